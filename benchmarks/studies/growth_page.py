"""How cost grows: the stored result, and its Markdown tables and drawing.

`python -m pipnet_edge.benchmarks.studies.growth_page RESULT.json` writes both beside the result.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipnet_edge import strict
from pipnet_edge.benchmarks.report import svg
from pipnet_edge.errors import EdgeError

NUMBERS = re.compile(r"\[[\d\s.,]*\]")
# The values of most PIPNets; the curves cross there.
LANDMARKS, SIDE = 68, 256
BACKBONES = {"mobilenet_v2": "MobileNetV2", "resnet18": "ResNet18"}


@dataclass(frozen=True)
class Run:
    """A network and how it was run. stages: milliseconds by stage and of the "frame", the median of each round."""

    backbone: str
    precision: str
    heads: str
    landmarks: int
    side: int
    threads: int
    runtime: str | None
    stages: Mapping[str, tuple[float, ...]]

    def median(self, stage: str = "frame") -> float:
        return float(np.median(self.stages[stage]))

    @property
    def series(self) -> str:
        """The name of the curve that it is a point of."""
        return f"{BACKBONES[self.backbone]} {self.precision}, {self.heads}"


@dataclass(frozen=True)
class Faces:
    """A way (growth_faces) to locate a number of faces in one picture. ms: milliseconds per face, one per round."""

    variant: str
    way: str
    faces: int
    threads: int
    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.ms))

    @property
    def series(self) -> str:
        runtime = {"onnx": "ONNX Runtime", "tflite": "TFLite"}[self.variant.split("-")[0]]
        how = {"loop": "one by one", "batch": "as a batch", "sessions": f"{self.threads} sessions, a thread each"}
        threads = "" if self.way == "sessions" else f", {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{runtime}, {how[self.way]}{threads}"


@dataclass(frozen=True)
class Growth:
    """Everything that one run of growth.py found."""

    machine: Mapping[str, str]
    rounds: int
    runs: tuple[Run, ...]
    faces: tuple[Faces, ...]


def read(path: Path) -> Growth:
    """A result of growth.py. Raises EdgeError for anything else."""
    try:
        return strict.read(Growth, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as e:
        raise EdgeError(f"{path} is not a result of growth: {' '.join(str(e).split())[:200]}") from e


def write(growth: Growth, path: Path) -> None:
    """Writes a result that `read` can read, with each list of numbers on one line."""
    text = json.dumps(asdict(growth), indent=1)
    path.write_text(NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n", encoding="utf-8")


# --- Curves: series -> value on the horizontal axis -> run.

Curves = dict[str, dict[int, Run]]


def by_landmarks(growth: Growth) -> Curves:
    return _curves(growth, lambda run: run.landmarks, lambda run: (run.side, run.threads) == (SIDE, 1))


def by_side(growth: Growth) -> Curves:
    return _curves(growth, lambda run: run.side, lambda run: (run.landmarks, run.threads) == (LANDMARKS, 1))


def by_threads(growth: Growth) -> Curves:
    return _curves(growth, lambda run: run.threads, lambda run: (run.landmarks, run.side) == (LANDMARKS, SIDE))


def _curves(growth: Growth, position: Callable[[Run], int], chosen: Callable[[Run], bool]) -> Curves:
    found: Curves = {}
    for run in growth.runs:
        if chosen(run):
            found.setdefault(run.series, {})[position(run)] = run
    return {name: dict(sorted(curve.items())) for name, curve in found.items()}


# --- Tables.


def markdown(growth: Growth) -> str:
    """All tables, with the machine and the way they were measured."""
    parts = [
        "# How cost grows",
        "Made by `python -m pipnet_edge.benchmarks.studies.growth -o growth.json` and `python -m "
        "pipnet_edge.benchmarks.studies.growth_page growth.json`. Heads of other landmarks are copies of the demo's, "
        "and ResNet18 has random weights, which changes no time. Artefacts take one crop; a batch is the same ONNX "
        "file with a free first dimension.",
        "Milliseconds of a frame, and of decode in it, by landmarks (256 px, one thread):",
        _table("landmarks", by_landmarks(growth), _with_decode),
        "by input size (68 landmarks, one thread):",
        _table("px", by_side(growth), _with_decode),
        "by threads (68 landmarks, 256 px):",
        _table("threads", by_threads(growth), lambda run: f"{run.median():.2f}"),
        "and, a face, by faces in one picture (MobileNetV2 int8, 68 landmarks, 256 px; TFLite's heads sparse, ONNX "
        "Runtime's dense):",
        _faces_table(growth),
    ]
    return "\n\n".join(parts) + "\n"


def _with_decode(run: Run) -> str:
    return f"{run.median():.2f} ({run.median('decode'):.2f})"


def _table(what: str, curves: Curves, cell: Callable[[Run], str]) -> str:
    columns = sorted({at for curve in curves.values() for at in curve})
    rows = [[name, *(cell(curve[at]) if at in curve else "" for at in columns)] for name, curve in curves.items()]
    return _lines([what, *map(str, columns)], rows)


def _faces_table(growth: Growth) -> str:
    columns = sorted({row.faces for row in growth.faces})
    series: dict[str, dict[int, str]] = {}
    for row in growth.faces:
        series.setdefault(row.series, {})[row.faces] = f"{row.median:.2f}"
    return _lines(
        ["faces", *map(str, columns)], [[name, *map(cells.__getitem__, columns)] for name, cells in series.items()]
    )


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# --- The drawing: four panels.

WIDE, HIGH, GAP = 460.0, 300.0, 30.0
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#00855f", "#7bc8a4", "#b0508c", "#5d6670")
STYLE = "".join(
    (
        "svg{font:12px system-ui,sans-serif;background:#fff}text{fill:#1c2126}.tick{fill:#5d6670;font-size:11px}",
        ".title{font-weight:600;font-size:13px}.grid{stroke:#dfe3e8}.curve{fill:none;stroke-width:2}",
        *(f".c{i}{{stroke:{colour}}}.f{i}{{fill:{colour}}}" for i, colour in enumerate(COLOURS)),
    )
)
Lines = Mapping[str, Mapping[int, float]]


def drawing(growth: Growth) -> str:
    """An SVG file with a panel each for landmarks, input size, threads and faces."""
    curves = [
        ("ms a frame, by landmarks", "landmarks", by_landmarks(growth)),
        ("ms a frame, by input size", "px", by_side(growth)),
        ("ms a frame, by threads", "threads", by_threads(growth)),
    ]
    panels: list[tuple[str, str, Lines]] = [
        (title, unit, {name: {at: run.median() for at, run in curve.items()} for name, curve in found.items()})
        for title, unit, found in curves
    ]
    faces: dict[str, dict[int, float]] = {}
    for row in growth.faces:
        faces.setdefault(row.series, {})[row.faces] = row.median
    panels.append(("ms a face, by faces in a picture", "faces", faces))
    names = list(dict.fromkeys(name for _, _, lines in panels[:3] for name in lines))
    key_high = svg.LINE * max(len(names), len(faces)) + 12
    parts = [f"<style>{STYLE}</style>"]
    for index, (title, unit, lines) in enumerate(panels):
        x, y = index % 2 * (WIDE + GAP), index // 2 * (HIGH + GAP)
        among = names if index < 3 else list(faces)
        parts.append(f'<g transform="translate({x:g} {y:g})">{"".join(_panel(title, unit, lines, among))}</g>')
    for column, shown in enumerate((names, list(faces))):
        x, y = column * (WIDE + GAP), 2 * (HIGH + GAP)
        parts.append(f'<g transform="translate({x:g} {y:g})">{"".join(_key(shown))}</g>')
    whole = svg.drawing(2 * WIDE + GAP, 2 * (HIGH + GAP) + key_high, "How the cost of a frame grows", parts)
    return whole.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _panel(title: str, unit: str, lines: Lines, names: Sequence[str]) -> Iterator[str]:
    """Curves on axes that begin at 0. names: their order gives the colours."""
    positions = sorted({at for line in lines.values() for at in line})
    top, bottom, left, right = 34.0, HIGH - 40, 34.0, WIDE - 16
    x = svg.Axis(0, positions[-1], left, right)
    y = svg.Axis(0, max(ms for line in lines.values() for ms in line.values()) * 1.05, bottom, top)
    yield svg.text(0, 8, title, "title")
    yield from svg.grid_y(y, left, right, "")
    for at in positions:
        yield svg.line(x(at), top, x(at), bottom, "grid")
        yield svg.text(x(at), bottom + 11, str(at), "tick", "middle")
    yield svg.text(right, bottom + 26, unit, "tick", "end")
    for name, line in lines.items():
        colour = names.index(name) % len(COLOURS)
        yield svg.polyline([(x(at), y(ms)) for at, ms in line.items()], f"curve c{colour}")
        for at, ms in line.items():
            yield svg.marker(x(at), y(ms), "circle", f"f{colour}", f"{name}: {ms:.2f} ms", 3)


def _key(names: Sequence[str]) -> Iterator[str]:
    for row, name in enumerate(names):
        colour, y = row % len(COLOURS), svg.LINE * row + 8
        yield svg.line(0, y, 24, y, f"curve c{colour}")
        yield svg.text(32, y, name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="growth_page", description="Writes a result's tables and drawing beside it.")
    parser.add_argument("result", type=Path)
    given = parser.parse_args()
    growth = read(given.result)
    given.result.with_suffix(".md").write_text(markdown(growth), encoding="utf-8")
    given.result.with_suffix(".svg").write_text(drawing(growth), encoding="utf-8")


if __name__ == "__main__":
    main()
