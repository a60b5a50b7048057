"""Results of `bench --chain` as tables."""

from __future__ import annotations

from collections.abc import Mapping

from pipnet_edge.benchmarks.speed.chain import Chained, ChainResult, statistics
from pipnet_edge.output import Table
from pipnet_edge.targets.emulated.instructions import Count
from pipnet_edge.worker.protocol import CHAIN

MEANING = (
    "ms: a frame from the clip's file to the drawn picture; tracked, detecting: medians; mean, p90, p99: all frames; "
    "FPS: with reading, tracking and drawing at the same time.",
    "lost: frames in which the face was not found; ids: what the face got / should have got; jitter: second difference "
    "at rest; NME: distance to the truth; both in % of the inter-ocular distance.",
)


def tables(found: ChainResult) -> list[Table | str]:
    """Tables of what was measured and what was counted, and warnings."""
    parts: list[Table | str] = []
    if found.measured:
        said: dict[str, list[str]] = {}
        for number, run in enumerate(found.measured, 1):
            for warning in run.warnings(found.facts[run.target]):
                said.setdefault(warning, []).append(f"{number}!")
        parts += [_measured(found), *(f"{' '.join(rows)}  {warning}" for warning, rows in said.items()), ""]
        parts += [_stages(found), ""]
    if found.counted:
        parts += [_counted(found), ""]
    return parts


def _measured(found: ChainResult) -> Table:
    rows = []
    for number, run in enumerate(found.measured, 1):
        start, told = [run.variant, run.detector, str(run.threads)], statistics(run)
        if not told or not run.quality:
            rows.append([*start, *[""] * 10, run.target, f"FAIL: {run.failure}"])
            continue
        quality = run.quality
        numbers = [_ms(told[name]) for name in ("tracked", "detecting", "mean", "p90", "p99")]
        numbers.append(f"{run.fps:.1f}" if run.fps else "")
        followed = [f"{quality.lost}/{quality.frames}", f"{quality.ids}/{quality.appearances}"]
        followed += ["" if value is None else f"{value:.2f}" for value in (quality.jitter, quality.nme)]
        mark = f" {number}!" if run.warnings(found.facts[run.target]) else ""
        rows.append([*start, *numbers, *followed, run.target, _kind(run) + mark])
    titles = [">tracked ms", ">detecting", ">mean", ">p90", ">p99", ">FPS", ">lost", ">ids", ">jitter %", ">NME %"]
    return Table(["variant", "detector", ">threads", *titles, "target", "kind"], rows)


def _kind(run: Chained) -> str:
    if run.quality and run.quality.lost:
        return "LOSES FACES"
    return "CONFUSES FACES" if run.quality and run.quality.failure else "measured"


def _stages(found: ChainResult) -> Table:
    """What a tracked frame is made of, and beside it what detection adds to one."""
    rows = []
    for run in found.measured:
        if told := statistics(run):
            stages = [_ms(told["stages"][name]) for name in CHAIN]
            rows.append([run.variant, str(run.threads), *stages, f"{100 * told['detections']:.0f}", run.target])
    titles = [f">{name}" for name in CHAIN]
    return Table(["stages, ms", ">threads", *titles, ">detecting %", "target"], rows)


def _counted(found: ChainResult) -> Table:
    rows = []
    for row in found.counted:
        if row.failure:
            rows.append([row.variant, row.detector, *[""] * 8, row.target, f"FAIL: {row.failure}"])
            continue
        totals = [_millions(_total(stages)) for stages in (row.tracked, row.detecting)]
        stages = [_millions((row.detecting if name == "detect" else row.tracked)[name]) for name in CHAIN]
        rows.append([row.variant, row.detector, *totals, *stages, row.target, f"emulated {row.cpu}"])
    titles = [">tracked Minstr", ">detecting", *(f">{name}" for name in CHAIN)]
    return Table(["variant", "detector", *titles, "target", "kind"], rows)


def _total(stages: Mapping[str, Count]) -> Count:
    return sum(stages.values(), Count(0, 0, 0))


def _millions(count: Count) -> str:
    return f"{count.total / 1e6:.1f}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
