"""A report's charts except those of speed: clocks, instructions, predictions and drift on the mean face.

Each is None if there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipnet_edge.benchmarks.report import svg
from pipnet_edge.benchmarks.report.contents import Drift, DriftRow, Estimate, Report, Target
from pipnet_edge.benchmarks.report.tables import name, px, runtime
from pipnet_edge.benchmarks.speed.result import Measured

WIDTH = 440.0
LEFT, ROW = 118.0, 26.0  # the start of a chart's rows, after their names, and a row's height
STATES = 240  # the most states drawn for a run
NOTHING = 0.001  # pixels: less drift counts as none
COLOURS = 6


@dataclass(frozen=True)
class Chart:
    """A drawing with a title above it, and a sentence on how to read it."""

    title: str
    caption: str
    svg: str


def colours(report: Report) -> dict[str, int]:
    """A colour's number for each runtime of a report, the same in all its charts."""
    names = [row.variant for drift in report.drift for row in drift.rows]
    for target in report.targets:
        for runs in (target.measured, target.counted, target.predicted):
            names += [run.variant for run in runs]
    return {found: i % COLOURS for i, found in enumerate(dict.fromkeys(map(runtime, names)))}


def rows(
    names: Sequence[str],
    axis: svg.Axis,
    unit: str,
    title: str,
    draw: Callable[[int, float], Iterable[str]],
    high: float,
) -> str:
    """Rows with one horizontal axis; draw(row, y of its middle) gives the content of a row."""
    top = 8.0
    bottom = top + high * len(names)
    parts = svg.grid_x(axis, top, bottom, unit)
    for index, row in enumerate(names):
        y = top + high * (index + 0.5)
        parts += [svg.text(LEFT - 8, y, svg.short(row), "name", "end"), *draw(index, y)]
    return svg.drawing(WIDTH, bottom + 34, title, parts)


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Colours with their names, in a line above a drawing."""
    x, parts = 0.0, []
    for style, label in entries:
        parts += [svg.rect(x, 4, 11, 11, f"bar {style}"), svg.text(x + 16, 9.5, label, "name")]
        x += 34 + svg.width(label)
    return svg.drawing(WIDTH, 20, ", ".join(label for _, label in entries), parts)


# --- The machine's state.


def clocks(target: Target) -> Chart | None:
    """Frequency and temperature, the runs one after the other without the pauses between them."""
    runs = [run for run in target.measured if any(s.mhz or s.celsius is not None for s in run.states)]
    if not runs:
        return None
    starts = np.cumsum([0.0, *(max(run.states[-1].at, 1e-3) for run in runs)])
    left, right = 40.0, WIDTH - 8
    x = svg.Axis(0, float(starts[-1]), left, right)
    domains = max(len(s.mhz) for run in runs for s in run.states)
    panels: list[tuple[str, list[Callable[[object], float | None]]]] = []
    if domains:
        panels.append(("MHz", [partial(_mhz, domain) for domain in range(domains)]))
    if any(s.celsius is not None for run in runs for s in run.states):
        panels.append(("°C", [_celsius]))
    parts: list[str] = []
    top = 30.0
    for unit, readers in panels:
        parts += _panel(runs, starts.tolist(), x, (top, top + 96), unit, readers)
        top += 140
    bottom = top - 44
    parts += [svg.text(x(tick), bottom + 11, f"{tick:g}", "tick", "middle") for tick in x.ticks(6)]
    parts.append(svg.text(right, bottom + 26, "s", "tick", "end"))
    caption = "During the runs above, one behind the other; pauses between them are left out. A run on each band."
    if any(s.throttled and s.throttled & 0xF for run in runs for s in run.states):
        caption += " Red: the firmware held the clock down."
    if domains > 1:
        caption += " A line for each clock domain."
    return Chart(
        "Frequency and temperature", caption, svg.drawing(WIDTH, bottom + 34, "Frequency and temperature", parts)
    )


def _mhz(domain: int, state: object) -> float | None:
    clocks = getattr(state, "mhz", ())
    return float(clocks[domain]) if domain < len(clocks) else None


def _celsius(state: object) -> float | None:
    return getattr(state, "celsius", None)


def _panel(
    runs: Sequence[Measured],
    starts: Sequence[float],
    x: svg.Axis,
    top_bottom: tuple[float, float],
    unit: str,
    readers: Sequence[Callable[[object], float | None]],
) -> Iterable[str]:
    top, bottom = top_bottom
    values = [v for run in runs for s in run.states for read in readers if (v := read(s)) is not None]
    most = max(values)
    y = svg.span([min(*values, 0.9 * most), 1.04 * most], bottom, top)
    for index, (run, start) in enumerate(zip(runs, starts, strict=False)):
        wide = x(starts[index + 1]) - x(start)
        yield svg.rect(x(start), top, wide, bottom - top, f"band b{index % 2}", name(run))
        for a, b in zip(run.states, run.states[1:], strict=False):
            if (a.throttled or 0) & 0xF or (b.throttled or 0) & 0xF:
                yield svg.rect(x(start + a.at), bottom - 3, max(x(start + b.at) - x(start + a.at), 0.6), 3, "throttled")
    yield from svg.grid_y(y, x.start, x.end, unit, 4)
    for number, read in enumerate(readers):
        for run, start in zip(runs, starts, strict=False):
            known = [(s.at, value) for s in run.states if (value := read(s)) is not None]
            points = [(x(start + at), y(value)) for at, value in thinned(known, STATES)]
            yield (
                svg.polyline(points, f"curve c{number % COLOURS}")
                if len(points) > 1
                else svg.dots(points, f"dots c{number % COLOURS}")
            )


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: the lowest and the highest of each stretch."""
    if len(points) <= most:
        return list(points)
    found = []
    for stretch in np.array_split(np.arange(len(points)), most // 2):
        inside = [points[i] for i in stretch]
        found += sorted({min(inside, key=lambda p: p[1]), max(inside, key=lambda p: p[1])})
    return found


# --- Emulated and predicted: never together with measured numbers.


def instructions(target: Target) -> Chart | None:
    runs = [run for run in target.counted if run.stages]
    if not runs:
        return None
    axis = svg.Axis(0, max(run.frame.total for run in runs) / 1e6 or 1, LEFT, WIDTH - 56)

    def draw(index: int, y: float) -> Iterable[str]:
        frame, at = runs[index].frame, 0.0
        parts = {"SIMD": frame.simd, "memory": frame.memory, "other": max(frame.total - frame.simd - frame.memory, 0)}
        for number, (kind, count) in enumerate(parts.items()):
            start, at = at, at + count / 1e6
            tip = f"{runs[index].variant}: {count / 1e6:.1f} M {kind}"
            yield svg.rect(axis(start), y - 7, axis(at) - axis(start), 14, f"bar counted n{number}", tip)
        yield svg.text(WIDTH, y, f"{frame.total / 1e6:.0f}", "value", "end")

    body = rows([run.variant for run in runs], axis, "M instructions a frame", "Instructions of a frame", draw, ROW)
    legend = key([(f"counted n{number}", kind) for number, kind in enumerate(("SIMD", "memory", "other"))])
    caption = f"Counted under emulation of {', '.join(dict.fromkeys(run.cpu for run in runs))}. Not a time."
    return Chart("Instructions of a frame", caption, legend + body)


def intervals(target: Target, colour: Mapping[str, int]) -> Chart | None:
    runs = [run for run in target.predicted if run.ms is not None]
    if not runs:
        return None
    axis = svg.Axis(0, max(max(run.ms or 0, run.high or 0) for run in runs) or 1, LEFT, WIDTH - 104)

    def draw(index: int, y: float) -> Iterable[str]:
        run = runs[index]
        style = f"c{colour[runtime(run.variant)]}"
        assert run.ms is not None
        told = f"{run.ms:.0f}"
        if run.low is not None and run.high is not None:
            yield svg.line(axis(run.low), y, axis(run.high), y, f"guess {style}")
            yield from (svg.line(axis(end), y - 5, axis(end), y + 5, f"whisker {style}") for end in (run.low, run.high))
            told += f" [{run.low:.0f} – {run.high:.0f}]"
        yield svg.marker(axis(run.ms), y, "diamond", f"hollow {style}", f"{name(run)}: {told} ms")
        yield svg.text(WIDTH, y, told, "value", "end")

    anchors = list(dict.fromkeys(run.anchor for run in runs if run.anchor))
    caption = "Diamond: the model's word; line: its interval."
    caption += f" Nearest published: {'; '.join(anchors[:3])}." if anchors else ""
    return Chart("Predicted latency", caption, rows(list(map(name, runs)), axis, "ms", "Predicted latency", draw, ROW))


# --- Drift on the mean face.

SHADES = 8
FACE = 220.0


def faces(drift: Drift) -> tuple[list[Chart], str]:
    """The mean face of every variant, landmarks coloured and sized by their mean drift on one scale; and that scale."""
    rows = [row for row in drift.rows if row.mean_face and row.landmarks]
    if not rows:
        return [], ""
    top = max(max(landmark.px_mean for landmark in row.landmarks) for row in rows)
    step = svg.round_step(top / 4) if top > 0 else 1.0
    top = step * np.ceil(top / step - 1e-9) if top > 0 else 1.0
    shades = (svg.rect(40 + 22 * i, 4, 22, 12, f"shade r{i}") for i in range(SHADES))
    ends = (svg.text(34, 10, "0", "tick", "end"), svg.text(46 + 22 * SHADES, 10, f"{top:g} px", "tick"))
    return [_face(row, float(top)) for row in rows], svg.drawing(WIDTH, 20, "Colours of drift", [*shades, *ends])


def _face(row: DriftRow, top: float) -> Chart:
    points = np.asarray(row.mean_face)
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    points = (points - low - extent / 2) * ((FACE - 44) / (extent.max() or 1)) + FACE / 2
    values = [landmark.px_mean for landmark in row.landmarks]
    ascending = sorted(range(len(values)), key=lambda i: values[i])
    parts: list[str] = []
    for i in ascending:
        share = min(max(values[i] / top, 0.0), 1.0)
        detail = f"landmark {i}: mean {values[i]:.3f} px, p95 {row.landmarks[i].px_p95:.3f} px"
        style = f"shade r{min(int(share * SHADES), SHADES - 1)}"
        parts.append(svg.marker(float(points[i, 0]), float(points[i, 1]), "circle", style, detail, 2.2 + 4.5 * share))
    worst = [i for i in ascending[::-1][:3] if values[i] >= NOTHING]
    spots = [(float(points[i, 0]), float(points[i, 1])) for i in worst]
    parts += svg.labels(spots, [str(i) for i in worst], (0, 0, FACE, FACE), 5.0)
    mean = row.drift.get("px_mean", Estimate(None, None, None))
    caption = f"mean {px(mean.value)}, largest {px(max(values))} px"
    return Chart(row.variant, caption, svg.drawing(FACE, FACE, f"Drift of {row.variant} on the mean face", parts))
