"""From a trained checkpoint to a verified bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import (
    DEFAULT_BUNDLE,
    Calibrate,
    CalibrateCount,
    CalibrateLabels,
    CheckpointFile,
    Dataset,
    Mean,
    MeanFaceFile,
    Outputs,
    Ranges,
    Rounding,
    Seed,
    Std,
    Weights,
    calibration_count,
    faces_in,
    listed,
    normalization,
    output_names,
)
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.output import Output


@command
def convert(
    checkpoint: CheckpointFile,
    data: Dataset = None,
    meanface: MeanFaceFile = None,
    to: Annotated[str, typer.Option(help="Runtimes, separated by commas.")] = "onnx,ncnn,mnn,tflite",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16, int8, int8-full, int16x8, w8; those a runtime lacks are left out. If not given: "
            "fp32,fp16, and int8 with --calibrate."
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="sparse: offset heads are computed at each landmark's winning cell alone; dense: the network gives "
            "all five maps, as other decoders need. If not given: sparse where heads are 1x1 convolutions."
        ),
    ] = None,
    calibrate: Calibrate = None,
    calibrate_labels: CalibrateLabels = None,
    calibrate_count: CalibrateCount = None,
    seed: Seed = 0,
    ranges: Ranges = "mse",
    rounding: Rounding = "sequential",
    max_drift: Annotated[
        str | None,
        typer.Option(
            help="The most a quantized variant may drift on faces it is not calibrated with: 0.5px (if there are at "
            "least 80 faces), 0.02nme, none. Layers go back to float until it does."
        ),
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Side of the crop in pixels, a multiple of the stride (256).")
    ] = None,
    weights: Weights = None,
    outputs: Outputs = None,
    mean: Mean = None,
    std: Std = None,
    simplify: Annotated[bool, typer.Option(help="Simplify the ONNX graph.")] = True,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            help="Load a pickled module. Loading runs code from the file: only for files whose maker you trust."
        ),
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle's folder.")] = DEFAULT_BUNDLE,
) -> Output:
    """Make a verified bundle from a trained checkpoint."""
    from pipnet_edge import converters
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.accuracy import parity
    from pipnet_edge.benchmarks.judge import judge
    from pipnet_edge.converters.quantize import budget as budgets
    from pipnet_edge.converters.quantize import calibration

    # Checked before torch is imported: nobody has to wait for torch to see a typing error.
    if precision is None:
        precision = "fp32,fp16,int8" if calibrate else "fp32,fp16"
    plan = converters.Plan(listed(to), listed(precision), heads)
    if plan.quantizes != bool(calibrate):
        raise EdgeError(
            f"--calibrate FOLDER and a quantized --precision go together; given: --precision {precision}"
            + (f" --calibrate {calibrate}" if calibrate else " and no --calibrate")
        )
    needing = {"--calibrate-labels": calibrate_labels, "--calibrate-count": calibrate_count, "--max-drift": max_drift}
    for option, value in needing.items():
        if value is not None and not calibrate:
            raise EdgeError(f"{option} {value} says nothing without --calibrate FOLDER")
    chosen = normalization(mean, std)
    count = calibration_count(calibrate_count)
    budget = budgets.USUAL if max_drift is None else budgets.parse(max_drift)
    from pipnet_edge.converters.checkpoint import read as checkpoints

    options = checkpoints.Options(
        data=data,
        meanface=meanface,
        input_size=input_size,
        trust_pickle=trust_pickle,
        outputs=output_names(outputs),
        weights=weights,
        **chosen,
    )
    progress = render.Progress()
    quantize, notes, lost = None, list[str](), dict[str, str]()
    try:
        with progress.shown():
            if calibrate:
                faces, notes = faces_in(calibrate, calibrate_labels)
                if max_drift is None and len(faces) < calibration.JUDGED:
                    budget = None
                    needed = f"at least {calibration.JUDGED} are needed for that"
                    notes.append(f"how far quantized variants drift is not judged: {len(faces)} faces, {needed}")
                quantize = converters.Quantize(faces, count, seed, ranges, rounding, budget, judge)
            bundle = converters.convert(
                *(checkpoint, output, plan, options, parity.verify, progress.step, simplify, quantize, notes.append),
                lost=lambda name, error: lost.update({name: str(error)}),
            )
    except EdgeError as e:
        if not lost:
            raise
        return Output({"bundle": None, "notes": notes, "lost": lost}, (*_lines(lost, ()), *notes), e.code, str(e))
    made = [variant.name for variant in bundle.variants]
    return Output(
        {"bundle": str(output), "notes": notes, "lost": lost, **bundle.to_json()},
        (
            tables.network(bundle.spec, bundle.source),
            "",
            tables.variants(bundle),
            "",
            *tables.quantization(bundle),
            *_lines(lost, made),
            *notes,
            f"bundle  {output}",
        ),
        code=CHECK_FAILED if lost else 0,
        error=f"without {', '.join(lost)}, which did not pass; the others are in {output}" if lost else None,
    )


def _lines(lost: Mapping[str, str], made: Sequence[str]) -> list[str]:
    """A line for each variant that the bundle does not have: why, and what passed for its runtime."""
    lines = []
    for name, why in lost.items():
        others = [other for other in made if other.partition("-")[0] == name.partition("-")[0]]
        lines.append(f"without {name}: {why}" + (f"; {', '.join(others)} passed" if others else ""))
    return lines
