"""Fuzzes the parsers: `python -m tests.fuzz -o FOLDER --seconds 60`, from the root of a clone.

Prints a table and ends with status 1 if anything was found. The same seed, target and number give the same input:
`python -m tests.fuzz --target NAME --seed N --index I` runs that one here, with its traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Before any library starts threads: a fork has only one of them.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

from tests.fuzz import cover, findings, guided, planted  # noqa: E402
from tests.fuzz.engine import Engine, Tally  # noqa: E402
from tests.fuzz.findings import Finding  # noqa: E402
from tests.fuzz.target import Target, made  # noqa: E402

SHARE = 1 / 3  # of inputs that have to get past the first check


def targets() -> dict[str, Target]:
    """All parsers by name."""
    from tests.fuzz import foreign, inside

    return {target.name: target for target in (*inside.TARGETS, *foreign.TARGETS)}


def main() -> int:
    options = _options()
    known = {target.name: target for target in planted.TARGETS}
    if not set(options.target or [""]) <= set(known):
        known = targets()
    chosen = [known[name] for name in options.target or known]
    if options.index is not None:
        (target,) = chosen
        with tempfile.TemporaryDirectory() as folder:
            data = made(target, target.seeds(), options.seed, options.index)
            print(f"{len(data)} bytes, past the first check: {target.first(data)}: {data[:200]!r}")
            print(target.parse(data, Path(folder)))
        return 0
    if options.guided and (len(chosen) != 1 or chosen[0].foreign):
        names = ", ".join(target.name for target in known.values() if not target.foreign)
        sys.exit(f"--guided takes one --target of {names}")
    engine = Engine(chosen, options.seed, options.output)
    if options.cases:
        engine.replay(options.cases)
    elif options.guided:
        guided.run(engine, options.seconds)
        engine.minimise()
    else:
        engine.run(options.seconds, options.jobs)
        engine.minimise()
    found = [finding for finding, _ in findings.read(options.output)]
    lines = cover.measure(engine, options.cover) if options.cover else {}
    if options.json:
        options.json.write_text(json.dumps(_as_json(engine.tallies, found, lines), indent=1))
    print(_table(engine.tallies, found, lines))
    return 1 if found or (not options.cases and _low(engine.tallies)) else 0


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes the parsers of pipnet-edge.")
    parser.add_argument("-o", "--output", type=Path, default=Path("fuzz-findings"), help="Folder for what is found.")
    parser.add_argument("--target", action="append", help="A parser; all if not given. Repeatable.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="Time for all targets together.")
    parser.add_argument("--jobs", type=int, default=1, help="Processes at a time.")
    parser.add_argument("--cover", type=float, default=0, help="Seconds for each target's line coverage; 0: none.")
    parser.add_argument("--json", type=Path, help="Write the table as JSON too.")
    parser.add_argument("--cases", type=Path, help="Run the cases in this folder instead, TARGET-NAME.bin each.")
    parser.add_argument("--index", type=int, help="Run only this input of one target, in this process.")
    parser.add_argument("--guided", action="store_true", help="Guided by coverage, one target; needs atheris.")
    options = parser.parse_args()
    if options.guided and not guided.installed():
        sys.exit(guided.MISSING)
    if findings.read(options.output):
        parser.error(f"{options.output} holds findings of an earlier run; give another folder or remove it")
    return options


def _low(tallies: Sequence[Tally]) -> list[str]:
    """The targets too few of whose inputs get past the first check."""
    return [tally.target.name for tally in tallies if tally.share < SHARE]


def _as_json(tallies: Sequence[Tally], found: Sequence[Finding], lines: Mapping[str, tuple[int, int]]) -> object:
    rows = [
        {
            "target": tally.target.name,
            "foreign": tally.target.foreign,
            "inputs": tally.done,
            "seconds": round(tally.seconds, 1),
            "past": round(tally.share, 4),
            "accepted": tally.accepted,
            "contained": tally.contained,
            **{kind: _count(found, kind, tally.target.name) for kind in ("exception", "hang", "kill")},
        }
        for tally in tallies
    ]
    return {"targets": rows, "findings": [str(finding) for finding in found], "lines": lines}


def _count(found: Sequence[Finding], kind: str, target: str | None = None) -> int:
    return sum(finding.kind == kind and target in (None, finding.target) for finding in found)


def _table(tallies: Sequence[Tally], found: Sequence[Finding], lines: Mapping[str, tuple[int, int]]) -> str:
    rows = ["| parser | inputs | a second | past first check | accepted | uncaught | hangs | kills | contained |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for tally in tallies:
        name, speed = tally.target.name, tally.done / max(tally.seconds, 1e-9)
        counts = " | ".join(str(_count(found, kind, name)) for kind in ("exception", "hang", "kill"))
        held = tally.contained if tally.target.contained else ""
        share = f"{tally.share:.0%} | {tally.accepted / max(tally.done, 1):.0%}"
        rows.append(f"| {name} | {tally.done:,} | {speed:,.0f} | {share} | {counts} | {held} |")
    totals = " | ".join(str(_count(found, kind)) for kind in ("exception", "hang", "kill"))
    rows += [f"| **all** | {sum(tally.done for tally in tallies):,} | | | | {totals} | |", ""]
    if lines:
        rows += ["| code | lines | covered |", "|---|--:|--:|"]
        rows += [f"| {name} | {of} | {ran / max(of, 1):.0%} |" for name, (ran, of) in lines.items()]
        rows.append("")
    low = _low(tallies) if any(tally.past for tally in tallies) else []
    rows += [f"less than a third of the inputs get past the first check: {', '.join(low)}"] if low else []
    return "\n".join((*rows, *map(str, found)))


if __name__ == "__main__":
    sys.exit(main())
