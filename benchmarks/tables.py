"""Results as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from pipnet_edge import fastest, host
from pipnet_edge.benchmarks.speed.result import warnings
from pipnet_edge.bundle import Parity
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.output import Table
from pipnet_edge.words import joined, megabytes

if TYPE_CHECKING:
    from pipnet_edge.benchmarks.accuracy.drift import Row as DriftRow
    from pipnet_edge.benchmarks.accuracy.drift import Verdict
    from pipnet_edge.benchmarks.accuracy.metrics import Estimate
    from pipnet_edge.benchmarks.accuracy.parity import Row as ParityRow
    from pipnet_edge.benchmarks.speed.result import Change, Counted, Measured, Predicted, Result
    from pipnet_edge.benchmarks.speed.tune import Found
    from pipnet_edge.bundle import AnyBundle, Budget, Bundle, Held, Source
    from pipnet_edge.spec import ModelSpec


def network(spec: ModelSpec, source: Source) -> Table:
    """A bundle's network and where it came from."""
    before, after = map(megabytes, source.onnx_bytes)
    return _facts(
        ("backbone", spec.backbone),
        ("landmarks", f"{spec.num_lms} ({spec.mean_face.name}), {_neighbours(spec.num_nb)}"),
        ("input", _input(spec.input_size, spec.net_stride)),
        ("presence", "not measured" if spec.presence is None else f"mean winning score of at least {spec.presence:g}"),
        ("margin", f"crops of {spec.margin:g} times the landmarks' box"),
        ("parameters", f"{source.parameters / 1e6:.2f} M"),
        ("ONNX nodes", f"{source.onnx_nodes[0]} -> {source.onnx_nodes[1]}"),
        ("ONNX size", f"{before} -> {after}"),
    )


def checkpoint(found: Mapping[str, Any]) -> Table:
    """A checkpoint's network (the fields of converters.checkpoint.read.Found, and how its input is normalised)."""
    datasets = " or ".join(found["datasets"]) or "no known dataset: convert with --meanface"
    return _facts(
        ("backbone", found["backbone"]),
        ("landmarks", f"{found['num_lms']} ({datasets}), {_neighbours(found['num_nb'])}"),
        ("input", _input(found["input_size"], found["net_stride"])),
        ("normalization", f"mean {joined(found['mean'])}, std {joined(found['std'])}"),
        ("parameters", f"{found['parameters'] / 1e6:.2f} M"),
    )


def _neighbours(num_nb: int) -> str:
    return f"{num_nb} neighbours each" if num_nb else "no neighbours (three maps)"


def _facts(*rows: tuple[str, str]) -> Table:
    return Table(["network", ""], rows)


def _input(side: int, stride: int) -> str:
    cells = side // stride
    return f"{side} x {side} px, net stride {stride}, maps {cells} x {cells}"


def variants(bundle: Bundle, timings: Sequence[Measured] = (), drifts: Sequence[DriftRow] = ()) -> Table:
    """A bundle's variants with the parity in its manifest.

    drifts: adds their drift. timings, in the variants' order: add the median milliseconds.
    """
    drifted = {row.variant: row.summary.drift for row in drifts if row.summary}
    rows = []
    for index, variant in enumerate(bundle.variants):
        parity, drift = variant.parity, drifted.get(variant.name)
        numbers = (
            [f"{parity.px_mean:.5f}", f"{parity.px_max:.5f}", str(parity.flips)]
            if isinstance(parity, Parity)
            else [""] * 3
        )
        if drifts:
            columns = (("px_mean", 3), ("px_p95", 3), ("flips", 3), ("nme", 3))
            numbers += [f"{drift[name].value:.{digits}f}" if drift else "" for name, digits in columns]
        numbers += [f"{timings[index].frame(0.5):.2f}"] if timings else []
        rows.append([variant.name, megabytes(variant.size), *numbers])
    measured = [">drift px", ">p95", ">flips %", ">NME %"] if drifts else []
    return Table(["variant", ">size", ">px mean", ">px max", ">flips", *measured, *([">ms"] if timings else [])], rows)


def quantization(bundle: Held) -> list[str]:
    """How each quantized variant was made and what its budget cost; one sentence per variant."""
    lines = []
    for variant in bundle.variants:
        if not (how := variant.quantization):
            continue
        kept = Counter(how.kept.values())
        reasons = ", ".join(f"{number} {reason}" for reason, number in kept.items())
        line = f"{variant.name}: ranges {how.ranges}, rounding {how.rounding}; in float: {reasons or 'nothing'}"
        if (spent := how.budget) and not spent.layers:
            line += f". Drifts {_budget_columns(spent)[0][1]} on {spent.images} faces (limit {spent.limit})"
        elif spent:
            drift, ms, size = ("{} -> {}".format(*pair) for pair in _budget_columns(spent))
            line += f". Within {spent.limit} on {spent.images} faces: {drift}, {ms}, {size}"
        lines.append(line)
    return lines


def _budget_columns(spent: Budget) -> tuple[tuple[str, str], ...]:
    unit = spent.limit.lstrip("0123456789.e+-")
    return (
        (f"{spent.drift[0]:.3f}", f"{spent.drift[1]:.3f} {unit}"),
        (f"{spent.milliseconds[0]:.2f}", f"{spent.milliseconds[1]:.2f} ms"),
        (megabytes(spent.size[0]), megabytes(spent.size[1])),
    )


def parity(rows: Sequence[ParityRow]) -> Table:
    names = next((list(row.maps) for row in rows if row.maps), list(MAP_NAMES))
    cells = []
    for row in rows:
        if row.maps is None:
            cells.append([row.variant, "absent" if row.skipped else "FAIL", *[""] * (3 + len(names))])
            continue
        maps = [f"{row.maps[name][0]:.1e}" for name in names]
        numbers = [str(row.flips), f"{row.px_mean:.5f}", f"{row.px_max:.5f}"]
        cells.append([row.variant, "FAIL" if row.failure else "ok", *numbers, *maps])
    return Table(["variant", "", ">flips", ">px mean", ">px max", *[f">max |{name}|" for name in names]], cells)


# Column, metric, digits, and whether the interval is shown.
DRIFT_COLUMNS = (
    ("NME %", "nme", 3, True),
    ("FR %", "fr", 3, False),
    ("AUC", "auc", 4, False),
    ("px mean", "px_mean", 3, True),
    ("p95", "px_p95", 3, False),
    ("max", "px_max", 3, False),
    ("flips %", "flips", 3, True),
    ("noise px", "noise", 3, False),
)


def drift(rows: Sequence[DriftRow]) -> Table:
    """Drift of each variant. With labels, NME, FR and AUC are the change against the reference."""
    known = {name for row in rows if row.summary for name in row.summary.drift}
    columns = [column for column in DRIFT_COLUMNS if column[1] in known]
    cells = []
    for row in rows:
        drifts = row.summary.drift if row.summary else {}
        numbers = [_estimate(drifts[name], digits, wide) if drifts else "" for _, name, digits, wide in columns]
        cells.append([row.variant, "" if drifts else "FAIL", *numbers])
    return Table(["variant", "", *[f">{title}" for title, *_ in columns]], cells)


def limits(verdicts: Sequence[Verdict]) -> Table:
    """Which variant keeps which limit on its drift, and which breaks it."""
    rows = [
        [
            each.variant,
            str(each.limit),
            "" if each.value is None else f"{each.value:.3f}",
            "kept" if each.is_kept else "broken",
        ]
        for each in verdicts
    ]
    return Table(["variant", "limit", ">drift", ""], rows)


def _estimate(estimate: Estimate, digits: int, wide: bool) -> str:
    text = f"{estimate.value:.{digits}f}"
    if not wide or estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def bench(result: Result) -> list[Table | str]:
    """A bench's tables: one per kind of number, with the kind in each row, then notes."""
    parts: list[Table | str] = []
    if result.measured:
        parts += [_measured(result), *_warnings(result)]
    if result.counted:
        parts += [_counted(result.counted)]
    if result.predicted:
        parts += [_predicted(result.predicted)]
    spaced: list[Table | str] = []
    for part in parts:
        spaced += ["", part] if isinstance(part, Table) and spaced else [part]
    return spaced


def taken(bundle: AnyBundle, result: Result) -> list[str]:
    """What is run on each target that was measured if nobody asks for a variant, and why."""
    lines = []
    for target in dict.fromkeys(run.target for run in result.measured):
        facts = result.facts[target]
        ran = {run.variant: run.runtime for run in result.measured if run.target == target and run.frames.size}
        found = [variant for variant in bundle.variants if variant.name in ran]
        if (tuned := bundle.tuned.get(host.name(facts) or "")) and tuned.variant in ran:
            lines.append(f"{target}: run takes {tuned.variant}, as tuned")
        elif found:
            packages = {variant.runtime: ran[variant.name] for variant in found}
            _, why = fastest.ordered(bundle.network, found, facts.get("features", "").split(), packages)[0]
            lines.append(f"{target}: untuned, run takes {why}")
    return lines


def _measured(result: Result) -> Table:
    float_ms = {
        (run.target, run.variant.partition("-")[0], run.threads): run.frame(0.5)
        for run in result.measured
        if run.variant.endswith("-fp32") and run.frames.size
    }
    rows = []
    for number, run in enumerate(result.measured, 1):
        start = [run.variant, str(run.threads), megabytes(run.size)]
        mark = f"{number}!" if warnings(run, result.facts[run.target]) else ""
        if not run.frames.size:
            rows.append([*start, *[""] * 7, run.target, f"FAIL: {run.failure}"])
            continue
        p50 = run.frame(0.5)
        base = float_ms.get((run.target, run.variant.partition("-")[0], run.threads))
        faster = f"{base / p50:.2f}" if base and not run.variant.endswith("-fp32") else ""
        inference = f"{float(np.median(run.stage('inference'))):.2f}"
        memory = f"{run.peak_bytes / 1e6:.0f} MB" if run.peak_bytes else ""
        px = "" if run.px is None else f"{run.px:.3f}"
        numbers = [f"{p50:.2f}", f"{run.frame(0.9):.2f}", inference, f"{1000 / p50:.0f}", memory, faster, px]
        rows.append([*start, *numbers, run.target, f"measured {mark}".strip()])
    titles = [">p50 ms", ">p90 ms", ">inference", ">FPS", ">memory", ">x fp32", ">px"]
    return Table(["variant", ">threads", ">size", *titles, "target", "kind"], rows)


def _warnings(result: Result) -> list[str]:
    """The warnings about runs. Each comes once, with the numbers of its rows."""
    said: dict[str, list[str]] = {}
    for number, run in enumerate(result.measured, 1):
        for warning in warnings(run, result.facts[run.target]):
            said.setdefault(warning, []).append(f"{number}!")
    return [f"{' '.join(rows)}  {warning}" for warning, rows in said.items()]


def _counted(counts: Sequence[Counted]) -> Table:
    rows = []
    for count in counts:
        start = [count.variant, megabytes(count.size)]
        if count.failure:
            rows.append([*start, *[""] * 6, count.target, f"FAIL: {count.failure}"])
            continue
        frame, stages = count.frame, count.stages
        millions = [frame.total, frame.simd, frame.memory, stages["decode"].total if "decode" in stages else 0]
        parity = ["" if count.px is None else f"{count.px:.5f}", "" if count.flips is None else str(count.flips)]
        where = f"emulated {count.cpu}"
        rows.append([*start, *[f"{number / 1e6:.1f}" for number in millions], *parity, count.target, where])
    titles = [">Minstr/frame", ">SIMD", ">memory", ">decode", ">px mean", ">flips"]
    return Table(["variant", ">size", *titles, "target", "kind"], rows)


def _predicted(predictions: Sequence[Predicted]) -> Table:
    rows = []
    for row in predictions:
        start = [row.variant, str(row.threads)]
        if row.ms is None or row.low is None or row.high is None:
            rows.append([*start, "", "", row.target, "not predicted", row.note])
            continue
        numbers = [f"{row.ms:.1f}", f"[{row.low:.1f}, {row.high:.1f}]"]
        rows.append([*start, *numbers, row.target, "predicted", row.anchor or "nothing published"])
    return Table(["variant", ">threads", ">ms", "90 % interval", "target", "kind", "nearest published timing"], rows)


def changes(found: Sequence[Change]) -> Table:
    """An earlier result beside this one. A ratio above 1: faster now."""
    rows = [
        [c.variant, str(c.threads), f"{c.before:.2f}", f"{c.now:.2f}", f"{c.ratio:.3f}", c.target, "measured"]
        for c in found
    ]
    return Table(["variant", ">threads", ">before ms", ">now ms", ">ratio", "target", "kind"], rows)


def tuned(found: Sequence[Found]) -> Table:
    """All trials, the fastest first, with ratios to the fastest in the same rounds."""
    rows = []
    for each in found:
        fastest = each.trials[0]
        for trial in each.trials:
            candidate = trial.candidate
            px = each.px[candidate.variant]
            numbers = ["", ""] if trial.failure else [f"{trial.ms:.2f}", f"{median(trial.ratios(fastest)):.2f}"]
            word = f"FAIL: {trial.failure}" if trial.failure else "chosen" if candidate == each.chosen else ""
            where = [str(candidate.threads), host.cpu_list(candidate.cpus)]
            accuracy = "" if px is None else f"{px:.3f}"
            rows.append([candidate.variant, *where, *numbers, accuracy, each.target, "measured", word])
    return Table(["variant", ">threads", "CPUs", ">p50 ms", ">x fastest", ">px", "target", "kind", ""], rows)


def sensitivity(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per layer; px and flips with only this layer in int8, then with only this layer in float.

    rows: from converters.quantize.sensitivity.LayerSensitivity.to_json.
    """
    columns = ["layer", ">SNR dB", ">weights %", ">MACs %", ">px alone", ">flips %"]
    cells = [
        [
            row["layer"].removeprefix("backbone."),
            f"{row['snr_db']:.1f}",
            f"{100 * row['params']:.1f}",
            f"{100 * row['macs']:.1f}",
            f"{row['px_alone']:.3f}",
            f"{row['flips_alone']:.2f}",
            f"{row['px_without']:.3f}",
            f"{row['flips_without']:.2f}",
            f"{row['px_gain']:+.3f}",
            f"{100 * row['clipped']:.3f}",
            "" if row["clipped_calibration"] is None else f"{100 * row['clipped_calibration']:.3f}",
        ]
        for row in rows
    ]
    return Table([*columns, ">px without", ">flips %", ">px gain", ">clipped %", ">calib. %"], cells)
