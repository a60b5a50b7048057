"""A report's tables, the same for HTML and Markdown. Each holds numbers of one kind, and says which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipnet_edge.benchmarks.report.contents import (
    EMULATED,
    MEASURED,
    PREDICTED,
    Drift,
    DriftRow,
    Estimate,
    Parity,
    Report,
    Target,
)
from pipnet_edge.benchmarks.speed.result import Counted, Measured, Predicted
from pipnet_edge.benchmarks.tables import DRIFT_COLUMNS
from pipnet_edge.output import Table
from pipnet_edge.worker.protocol import STAGES


@dataclass(frozen=True)
class Section:
    """A table and the kind of its numbers.

    target: the target's name, or the file's. remarks: on single rows, by their index. notes: on all rows. alarms: what
    is wrong with all rows.
    """

    title: str
    kind: str
    table: Table
    target: str = ""
    remarks: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.title} ({self.target})" if self.target else self.title


def title(report: Report) -> str:
    return f"PIPNet {report.network}" if report.network else "pipnet-edge report"


def dates(report: Report) -> str:
    """The day on which results of bench were made, or the first and the last day."""
    days = sorted({created.partition("T")[0] for created in report.created})
    return " – ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def glance(report: Report) -> Section | None:
    """The fastest measured variant of every target."""
    rows, kept = [], [target for target in report.targets if any(run.frames.size for run in target.measured)]
    for target in kept:
        best = min((run for run in target.measured if run.frames.size), key=lambda run: run.frame(0.5))
        p50 = best.frame(0.5)
        remark = "with warnings" if target.warnings(best) else ""
        rows.append([target.name, best.variant, str(best.threads), f"{p50:.2f}", fps(p50), px(best.px), remark])
    columns = ["target", "fastest variant", ">threads", ">p50 ms", ">FPS", ">px", ""]
    return Section("At a glance", MEASURED, Table(columns, rows)) if rows else None


# The names of a machine and its parts come first.
FACTS = ("device", "board", "soc", "cpu", "machine", "cores", "clusters", "governor", "features", "memory_mb")
UNITS = {"memory_mb": "memory MB", "memory_gb_s": "memory GB/s"}


def facts(report: Report) -> Section | None:
    """One column per target, one row per fact."""
    known = [target for target in report.targets if target.facts]
    told = dict.fromkeys(name for target in known for name in target.facts)
    names = sorted(told, key=lambda name: FACTS.index(name) if name in FACTS else len(FACTS))
    rows = [[UNITS.get(name, name), *(target.facts.get(name, "") for target in known)] for name in names]
    return Section("Machines", "", Table(["", *(target.name for target in known)], rows)) if rows else None


def of_target(target: Target) -> Iterator[Section]:
    """Measured, emulated and predicted numbers of one target, as far as there are any."""
    if target.measured:
        yield _measured(target)
    if target.counted:
        yield _counted(target)
    if target.predicted:
        yield _predicted(target)


def _measured(target: Target) -> Section:
    found = [target.warnings(run) for run in target.measured]
    # A warning about every run is given once.
    often = Counter(warning for warnings in found for warning in dict.fromkeys(warnings))
    common = tuple(w for w, count in often.items() if count == len(found) > 1)
    remarks = {}
    for index, (run, warnings) in enumerate(zip(target.measured, found, strict=True)):
        own = tuple(w for w in warnings if w not in common)
        if run.failure and not run.frames.size:
            own = (f"failed: {run.failure}", *own)
        if own:
            remarks[index] = own
    columns = ["variant", *(f">{name}" for name in MEASURED_COLUMNS), "computes in"]
    rows = [[run.variant, *_measured_cells(target, run), run.arithmetic] for run in target.measured]
    note = (
        "p50, p90, p99: a frame from picture to landmarks, over all samples. FPS: 1000 / p50. vs fp32: the same "
        "runtime's fp32 p50 with as many threads, divided by this one's. px: mean distance to the float network's "
        "landmarks, in pixels of the crop, from the bundle's manifest."
    )
    return Section(
        "Latency",
        MEASURED,
        Table(columns, rows),
        target.name,
        remarks,
        (note,),
        tuple(f"All runs: {w}" for w in common),
    )


MEASURED_COLUMNS = (
    *("threads", "p50 ms", "p90 ms", "p99 ms", "FPS", "vs fp32", "px"),
    *("size MB", "memory MB", "load ms", "first ms", "frames"),
)


def _measured_cells(target: Target, run: Measured) -> list[str]:
    times = [f"{run.frame(q):.2f}" for q in (0.5, 0.9, 0.99)] if run.frames.size else [""] * 3
    gain = speed_up(target, run)
    return [
        *(str(run.threads), *times),
        fps(run.frame(0.5)) if run.frames.size else "",
        f"{gain:.2f}×" if gain else "",
        *(px(run.px), megabytes(run.size), megabytes(run.peak_bytes)),
        *(fixed(run.load_ms, 1), fixed(run.first_ms, 1), str(run.frames.size)),
    ]


def runtime(variant: str) -> str:
    """The runtime in a variant's name, <runtime>-<precision>."""
    return variant.partition("-")[0]


def precision(variant: str) -> str:
    return variant.partition("-")[2]


def speed_up(target: Target, run: Measured) -> float | None:
    """How much faster than fp32 of the same runtime and threads; None for fp32 itself and without a run of it."""
    name = f"{runtime(run.variant)}-fp32"
    base = [
        other
        for other in target.measured
        if other.variant == name and other.threads == run.threads and other.frames.size
    ]
    if not base or run.variant == name or not run.frames.size or run.frame(0.5) <= 0:
        return None
    return base[0].frame(0.5) / run.frame(0.5)


def _counted(target: Target) -> Section:
    rows, remarks = [], {}
    for index, run in enumerate(target.counted):
        frame = run.frame
        counts = [f"{n / 1e6:.1f}" for n in (frame.total, frame.simd, frame.memory)] if run.stages else [""] * 3
        cells = [run.variant, run.cpu, run.runtime or "", megabytes(run.size), *counts, px(run.px)]
        rows.append([*cells, "" if run.flips is None else str(run.flips), str(run.images)])
        if run.failure:
            remarks[index] = (f"failed: {run.failure}",)
    columns = [
        "variant",
        "core",
        "runtime",
        ">size MB",
        ">M instructions",
        ">SIMD",
        ">memory",
        ">px",
        ">flips",
        ">crops",
    ]
    note = (
        "Millions of instructions a frame: all, those of SIMD and floating-point arithmetic, those that load or store. "
        "They cost different amounts of time on a real core. px: mean distance to the float network's landmarks; "
        "flips: landmarks whose winning cell changed."
    )
    return Section("Instructions", EMULATED, Table(columns, rows), target.name, remarks, (note,))


def _predicted(target: Target) -> Section:
    rows = []
    said: dict[str, list[str]] = {}
    sources: dict[str, list[str]] = {}
    for run in target.predicted:
        interval = f"{run.low:.1f} – {run.high:.1f}" if run.low is not None and run.high is not None else ""
        cells = [run.variant, megabytes(run.size), str(run.threads), fixed(run.ms, 1), interval, fixed(run.anchored, 1)]
        rows.append([*cells, run.anchor or ""])
        if run.note:
            said.setdefault(run.note, []).append(run.variant)
        if run.anchor_source:
            sources.setdefault(run.anchor_source, []).append(run.anchor or run.variant)
    columns = ["variant", ">size MB", ">threads", ">≈ ms", ">interval ms", ">anchored ms", "nearest published timing"]
    note = (
        "≈ ms: the latency model, for running the network alone. interval: from devices that were left out of the fit. "
        "anchored: the published timing scaled by the model."
    )
    notes = (f"{', '.join(dict.fromkeys(names))}: {what}" for what, names in (said | sources).items())
    return Section("Predicted latency", PREDICTED, Table(columns, rows), target.name, notes=(note, *notes))


def of_parity(parity: Parity) -> Section:
    rows, remarks = [], {}
    for index, row in enumerate(parity.rows):
        state = "absent" if row.skipped else "FAIL" if row.failure else "ok"
        numbers = ["" if row.flips is None else str(row.flips), fixed(row.px_mean, 5), fixed(row.px_max, 5)]
        rows.append([row.variant, state, *numbers, str(row.images), row.reference])
        if why := row.failure or row.skipped:
            remarks[index] = (why,)
    columns = ["variant", "", ">flips", ">px mean", ">px max", ">crops", "against"]
    notes = ("Landmarks' distance to the reference in pixels of the crop; flips: landmarks in another cell.",)
    return Section("Parity", parity.kind, Table(columns, rows), parity.target or parity.source, remarks, notes)


def of_drift(drift: Drift) -> Section:
    columns = [c for c in DRIFT_COLUMNS if any(c[1] in row.drift for row in drift.rows)]
    rows, remarks = [], {}
    for index, row in enumerate(drift.rows):
        rows.append(
            [row.variant, str(row.images or ""), *(_drift_cell(row, name, n, wide) for _, name, n, wide in columns)]
        )
        if row.failure:
            remarks[index] = (row.failure,)
    note = (
        f"Against {drift.reference}; px in pixels of the crop. NME, FR and AUC, where there are labels, as the change. "
        "[low, high]: 95 % bootstrap interval over faces."
    )
    table = Table(["variant", ">faces", *(f">{title}" for title, *_ in columns)], rows)
    return Section("Drift", MEASURED, table, drift.source, remarks, (note, *drift.notes))


def _drift_cell(row: DriftRow, name: str, digits: int, wide: bool) -> str:
    estimate = row.drift.get(name, Estimate(None, None, None))
    if not wide or estimate.low is None or estimate.high is None:
        return fixed(estimate.value, digits)
    return f"{fixed(estimate.value, digits)} [{fixed(estimate.low, digits)}, {fixed(estimate.high, digits)}]"


def sections(report: Report) -> Iterator[Section]:
    """All tables in order."""
    yield from filter(None, (glance(report), facts(report)))
    for target in report.targets:
        yield from of_target(target)
    yield from map(of_parity, report.parity)
    yield from map(of_drift, report.drift)


# --- Cells.


def fixed(value: float | None, digits: int) -> str:
    """A value with a number of digits and no minus before zero; empty for None."""
    return "" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def fps(milliseconds: float) -> str:
    return f"{1000 / milliseconds:.1f}" if milliseconds > 0 else ""


def px(value: float | None) -> str:
    """Pixels to a thousandth. A smaller value above 0 is "<0.001", because it is not nothing."""
    return "<0.001" if value is not None and 0 < value < 0.0005 else fixed(value, 3)


def megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"


def name(run: Measured | Counted | Predicted) -> str:
    """A run in few characters: variant, and threads if it has them."""
    return run.variant if isinstance(run, Counted) else f"{run.variant} ×{run.threads}"


def stage_medians(run: Measured) -> dict[str, float]:
    """Median milliseconds of each stage that has samples."""
    return {stage: float(np.median(samples)) for stage in STAGES if (samples := run.stage(stage)).size}
