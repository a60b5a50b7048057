"""A report's charts of measured speed: latency, stages, speed against drift, and speed with threads.

Each is None if there is nothing to show. A chart that draws only some of the samples says so; statistics use all of
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.benchmarks.report import svg
from pipnet_edge.benchmarks.report.charts import LEFT, NOTHING, WIDTH, Chart, key, rows
from pipnet_edge.benchmarks.report.contents import Drift, Estimate, Target
from pipnet_edge.benchmarks.report.tables import name, precision, px, runtime, stage_medians
from pipnet_edge.benchmarks.speed.result import Measured
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.worker.protocol import STAGES

DOTS, EXTREMES = 240, 40  # the most samples drawn for a run, and how many of them are its slowest
BINS = 90
# The first precisions have a mark of their own; the others have a diamond.
SHAPES = dict(zip(PRECISIONS, ("circle", "square", "triangle"), strict=False))


def _timed(target: Target) -> list[Measured]:
    return [run for run in target.measured if run.frames.size]


def latency(target: Target, colour: Mapping[str, int]) -> Chart | None:
    runs = _timed(target)
    if not runs:
        return None
    # On this axis a ratio has the same width everywhere. A few outliers beyond it are given as a number, so that they
    # do not squeeze everything else.
    slowest = max(float(run.frames.max()) for run in runs)
    end = min(slowest * 1.02, 2 * max(run.frame(0.5) for run in runs))
    axis = svg.Axis(0.97 * min(float(run.frames.min()) for run in runs), end, LEFT, WIDTH - 46, log=True)

    def draw(index: int, y: float) -> Iterable[str]:
        run = runs[index]
        style = f"c{colour[runtime(run.variant)]}"
        p50, p90, p99 = (run.frame(q) for q in (0.5, 0.9, 0.99))
        yield _density(run.frames, axis, y, f"fill {style}")
        yield svg.dots(_cloud(chosen(run.frames), axis, y), f"dots {style}")
        yield svg.line(axis(p50), y - 10, axis(p50), y + 10, "median")
        yield from (svg.line(axis(p), y + 2, axis(p), y + 9, "quantile") for p in (p90, p99) if p <= axis.high)
        yield svg.text(WIDTH, y, f"{p50:.1f}", "value", "end")
        if run.frames.max() > axis.high:
            yield svg.text(axis.end, y - 7, f"max {run.frames.max():.0f} ▸", "tick", "end")

    caption = (
        "Every run's frames: shape, all samples; dots, samples, spread in height to be seen; long mark "
        "and number, p50; short marks, p90 and p99."
    )
    if any(run.frames.size > DOTS for run in runs):
        caption += f" At most {DOTS} dots a run: the {EXTREMES} slowest frames and an even choice of the others."
    return Chart("Latency of a frame", caption, rows(list(map(name, runs)), axis, "ms", "Latency", draw, 28))


def chosen(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most DOTS of the frames: the slowest EXTREMES, and an even choice of the others in their order of time."""
    if frames.size <= DOTS:
        return frames
    order = np.argsort(frames, kind="stable")
    others = np.sort(order[:-EXTREMES])
    even = others[np.linspace(0, others.size - 1, DOTS - EXTREMES).round().astype(int)]
    return np.concatenate([frames[even], frames[order[-EXTREMES:]]])


def _cloud(frames: NDArray[np.float64], axis: svg.Axis, y: float) -> Iterable[tuple[float, float]]:
    # Multiples of the golden ratio fill a height evenly, and the same every time.
    seen = frames[frames <= axis.high].tolist()
    return ((axis(value), y + 2.5 + 6 * (0.618034 * i % 1)) for i, value in enumerate(seen))


def _density(frames: NDArray[np.float64], axis: svg.Axis, y: float, style: str) -> str:
    edges = np.geomspace(axis.low, axis.high, BINS + 1)
    counts, _ = np.histogram(frames, edges)
    heights = np.convolve(np.pad(counts, 1), (0.25, 0.5, 0.25), "same")[1:-1]
    heights = 10.5 * heights / heights.max()
    seen = np.flatnonzero(heights)
    first, last = int(seen[0]), int(seen[-1])
    middle = np.sqrt(edges[:-1] * edges[1:])
    inner = [(axis(middle[i]), y - heights[i]) for i in range(first, last + 1)]
    return svg.polyline([(axis(edges[first]), y), *inner, (axis(edges[last + 1]), y)], style)


def stages(target: Target) -> Chart | None:
    runs = _timed(target)
    if not runs:
        return None
    medians = [stage_medians(run) for run in runs]
    columns = [WIDTH - 96, WIDTH - 42, WIDTH]
    axis = svg.Axis(0, max(sum(found.values()) for found in medians) or 1, LEFT, WIDTH - 136)

    def draw(index: int, y: float) -> Iterable[str]:
        at = 0.0
        for number, stage in enumerate(STAGES):
            value = medians[index].get(stage)
            if value is None:
                continue
            tip = f"{name(runs[index])}: {stage} {value:.3f} ms"
            yield svg.rect(axis(at), y - 7, axis(at + value) - axis(at), 14, f"bar s{number}", tip)
            yield svg.text(columns[number], y, f"{value:.2f}", f"value ink{number}", "end")
            at += value

    body = rows(list(map(name, runs)), axis, "ms", "Median of each stage", draw, 28)
    shares = [100 * (1 - found.get("inference", 0) / total) for found in medians if (total := sum(found.values())) > 0]
    around = f" Around the network: {min(shares):.1f} – {max(shares):.1f} % of a frame." if shares else ""
    legend = key([(f"s{number}", stage) for number, stage in enumerate(STAGES)])
    return Chart(
        "Stages of a frame", f"Median of each stage in ms, in the order {', '.join(STAGES)}.{around}", legend + body
    )


# --- Speed against drift, and speed with threads.


def tradeoff(target: Target, drifts: Sequence[Drift], colour: Mapping[str, int]) -> Chart | None:
    """The fastest run of each variant against its drift; without a result of drift, against the manifest's parity."""
    best: dict[str, Measured] = {}
    for run in sorted(_timed(target), key=lambda run: -run.frame(0.5)):
        best[run.variant] = run
    lost: dict[str, Estimate]
    if drifts:
        lost = {drifts[0].reference: Estimate(0.0, None, None)}
        for row in (row for drift in drifts for row in drift.rows):
            lost |= {row.variant: row.drift["px_mean"]} if "px_mean" in row.drift else {}
        images = max((row.images for drift in drifts for row in drift.rows), default=0)
        how = f"Mean drift over {images} faces against {drifts[0].reference} with its 95 % interval, from drift"
    else:
        lost = {run.variant: Estimate(run.px, None, None) for run in best.values()}
        how = "Mean distance to the float network's landmarks on the golden crops, from the bundle's manifest (parity)"
    shown = [
        (run, lost[run.variant])
        for run in best.values()
        if lost.get(run.variant, Estimate(None, None, None)).value is not None
    ]
    if len(shown) < 2:
        return None
    top, bottom, left, right = 30.0, 268.0, 40.0, WIDTH - 8
    most = max((e.high or e.value or 0) for _, e in shown)
    x = svg.Axis(NOTHING / 1.6, max(most * 1.6, 0.01), left, right, log=True)
    times = [run.frame(0.5) for run, _ in shown]
    y = svg.Axis(0, max(times) * 1.12, bottom, top)
    parts = [
        *svg.grid_x(x, top, bottom, "drift in px of the crop: less is better", 6),
        *svg.grid_y(y, left, right, "p50 ms: lower is faster"),
    ]
    points = []
    for run, estimate in shown:
        style = f"c{colour[runtime(run.variant)]}"
        at = x(max(estimate.value or 0, NOTHING)), y(run.frame(0.5))
        points.append(at)
        if estimate.low is not None and estimate.high is not None and estimate.high > NOTHING:
            parts.append(svg.line(x(max(estimate.low, NOTHING)), at[1], x(estimate.high), at[1], f"whisker {style}"))
        tip = f"{name(run)}: {run.frame(0.5):.2f} ms, {px(estimate.value)} px"
        parts.append(svg.marker(*at, SHAPES.get(precision(run.variant), "diamond"), f"mark {style}", tip))
    parts += svg.labels(points, [svg.short(name(run)) for run, _ in shown], (left + 2, top, WIDTH, bottom))
    caption = f"{how}; {NOTHING:g} px stands for all that is less. Of each variant the fastest number of threads (×)."
    return Chart("Speed against drift", caption, svg.drawing(WIDTH, bottom + 34, "Speed against drift", parts))


def scaling(target: Target, colour: Mapping[str, int]) -> Chart | None:
    curves: dict[str, dict[int, float]] = {}
    for run in _timed(target):
        if run.threads > 0 and run.frame(0.5) > 0:
            curves.setdefault(run.variant, {})[run.threads] = run.frame(0.5)
    gains = {
        variant: {threads: times[1] / ms for threads, ms in sorted(times.items())}
        for variant, times in curves.items()
        if 1 in times and len(times) > 1
    }
    if not gains:
        return None
    counts = sorted({threads for gain in gains.values() for threads in gain})
    top, bottom, left, right = 30.0, 268.0, 40.0, WIDTH - 128
    x = svg.Axis(1, counts[-1], left, right)
    best = max(max(gain.values()) for gain in gains.values())
    y = svg.Axis(
        min(0.5, *(min(gain.values()) for gain in gains.values())),
        max(best * 1.1, min(counts[-1], best * 1.5)),
        bottom,
        top,
    )
    parts = svg.grid_y(y, left, right, "times as fast as 1 thread")
    parts += [svg.line(x(count), top, x(count), bottom, "grid") for count in counts]
    parts += [svg.text(x(count), bottom + 11, str(count), "tick", "middle") for count in counts]
    parts.append(svg.text(right, bottom + 26, "threads", "tick", "end"))
    ideal = min(counts[-1], y.high)
    parts += [svg.line(x(1), y(1), x(ideal), y(ideal), "ideal")]
    parts.append(svg.text(x(ideal) - 6, y(ideal) + (4 if ideal < counts[-1] else 0), "ideal", "tick", "end"))
    ends = [y(gain[max(gain)]) for gain in gains.values()]
    for (variant, gain), end, height in zip(gains.items(), ends, svg.spread(ends, 14, top, bottom), strict=True):
        style = f"c{colour[runtime(variant)]}"
        parts.append(svg.polyline([(x(threads), y(value)) for threads, value in gain.items()], f"curve {style}"))
        shape = SHAPES.get(precision(variant), "diamond")
        parts += [
            svg.marker(x(threads), y(v), shape, f"mark {style}", f"{variant} ×{threads}: {v:.2f}", 3.5)
            for threads, v in gain.items()
        ]
        parts.append(svg.line(x(max(gain)) + 5, end, right + 18, height, "lead"))
        parts.append(svg.text(right + 21, height, f"{svg.short(variant)} {gain[max(gain)]:.2f}", "name"))
    caption = "p50 with one thread divided by p50 with more. Dashed: as many times faster as there are threads."
    return Chart("Thread scaling", caption, svg.drawing(WIDTH, bottom + 34, "Thread scaling", parts))
