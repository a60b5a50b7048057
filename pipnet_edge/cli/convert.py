"""From a trained checkpoint to a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    MeanFaceFile,
    Ranges,
    Rounding,
    Seed,
    calibration_count,
    faces_in,
    floats,
    listed,
)
from pipnet_edge.errors import EdgeError
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
        str,
        typer.Option(
            help="sparse: offset heads are computed at each landmark's winning cell alone; dense: the network gives "
            "all five maps, as other decoders need."
        ),
    ] = "sparse",
    calibrate: Calibrate = None,
    calibrate_labels: CalibrateLabels = None,
    calibrate_count: CalibrateCount = None,
    seed: Seed = 0,
    ranges: Ranges = "mse",
    rounding: Rounding = "sequential",
    max_drift: Annotated[
        str | None,
        typer.Option(
            help="The most a quantized variant may drift, on a fifth of the calibration faces that is held out: 0.5px, "
            "0.02nme. Layers go back to float until it does."
        ),
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Side of the crop in pixels, a multiple of the stride (256).")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Mean of R,G,B in [0, 1], if not ImageNet's.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation of R,G,B, if not ImageNet's.")] = None,
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
    count = calibration_count(calibrate_count)
    budget = budgets.parse(max_drift) if max_drift is not None else None
    from pipnet_edge.converters.checkpoint import read as checkpoints

    given = {"mean": mean, "std": std}
    chosen: dict[str, Any] = {name: floats(name, text, 3) for name, text in given.items() if text is not None}
    options = checkpoints.Options(
        data=data, meanface=meanface, input_size=input_size, trust_pickle=trust_pickle, **chosen
    )
    progress = render.Progress()
    quantize, notes = None, list[str]()
    with progress.shown():
        if calibrate:
            faces, notes = faces_in(calibrate, calibrate_labels)
            quantize = converters.Quantize(faces, count, seed, ranges, rounding, budget, judge)
        bundle = converters.convert(checkpoint, output, plan, options, parity.verify, progress.step, simplify, quantize)
    return Output(
        {"bundle": str(output), "notes": notes, **bundle.to_json()},
        (
            tables.network(bundle.spec, bundle.source),
            "",
            tables.variants(bundle),
            "",
            *tables.quantization(bundle),
            *notes,
            f"bundle  {output}",
        ),
    )
