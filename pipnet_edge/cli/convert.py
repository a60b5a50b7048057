"""The commands of the workstation half: from checkpoints to bundles."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.command import DEFAULT_BUNDLE, Threads, command, floats, thread_count, words
from pipnet_edge.cli.render import Output, counted
from pipnet_edge.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipnet_edge.preprocess import Rect


CheckpointFile = Annotated[Path, typer.Argument(help="A PIPNet state_dict (.pth) or a five-map ONNX file.")]
Dataset = Annotated[
    str | None, typer.Option(help="Dataset: aflw, cofw, wflw, lapa, 300w, 300w-celeba, 300w-cofw-wflw.")
]
MeanFaceFile = Annotated[Path | None, typer.Option(help="Mean-face file of a custom dataset: x0 y0 x1 y1 …")]
Calibrate = Annotated[
    Path | None, typer.Option(help="Faces to quantize with: a folder of crops, or of pictures with labels.")
]
CalibrateLabels = Annotated[Path | None, typer.Option(help="Label file that cuts the calibration faces, as for drift.")]
CalibrateCount = Annotated[int, typer.Option(help="So many calibration faces, chosen by --seed.")]
Seed = Annotated[int, typer.Option(min=0, help="Chooses the calibration faces.")]
Ranges = Annotated[str, typer.Option(help="How activations are clipped: mse, minmax, percentile, kl.")]
Rounding = Annotated[str, typer.Option(help="How weights are rounded: sequential (GPTQ, bias corrected) or nearest.")]


@command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the bundle and the picture.")] = Path(
        "demo"
    ),
    threads: Threads = 1,
) -> Output:
    """Convert and quantize the embedded checkpoint for every runtime; show parity, drift, speed and landmarks."""
    from pipnet_edge import converters, picture, runtimes
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.accuracy import drift, labels, parity
    from pipnet_edge.benchmarks.speed import bench
    from pipnet_edge.benchmarks.speed.result import QUICK
    from pipnet_edge.converters import golden
    from pipnet_edge.converters.checkpoint import read as checkpoints

    count = thread_count(threads)
    progress = render.Progress()
    with progress.shown():
        plan = converters.Plan(runtimes.DESTINATIONS, ("fp32", "fp16", "int8"))
        options = checkpoints.Options(data="300w")
        quantize = converters.Quantize(_faces(golden.CALIBRATION, None)[0])
        bundle = converters.convert(
            golden.CHECKPOINT, output / "bundle", plan, options, parity.verify, progress.step, quantize=quantize
        )
        labelled = labels.read_labels(golden.FACES / "labels.txt", golden.FACES, num_lms=bundle.spec.num_lms)
        faces = drift.Faces(labelled, bundle.spec.input_size)
        with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as cache:
            rows, _ = drift.run(bundle, faces, drift.choose(bundle, (), None), Path(cache), 1, progress.step)
        crops, _ = bundle.read_golden()
        timings = []
        for index, variant in enumerate(bundle.variants):
            progress.step(f"time {variant.name}", index, len(bundle.variants))
            timings.append(bench.measure(bundle, variant.name, count, crops, QUICK))
    drawn = picture.draw_crops(bundle, bundle.variants[0].name, crops, output / "faces.png")
    notes = (
        f"parity: distance to torch's landmarks, pixels of the {bundle.spec.input_size} px crop, {len(crops)} faces.",
        f"drift: the same and the change of the NME, against {bundle.variants[0].name}, {len(faces)} labelled faces, "
        "none of them for calibration.",
        f"ms: picture to landmarks, median, {counted(count, 'thread')}, measured on this machine.",
    )
    return Output(
        {
            "bundle": bundle.to_json(),
            "drift": [row.to_json() for row in rows],
            "timings": [
                {"variant": t.variant, "p50": t.frame(0.5), "p90": t.frame(0.9), "kind": "measured"} for t in timings
            ],
            "picture": str(drawn),
        },
        (tables.variants(bundle, timings, rows), "", *notes, f"bundle   {bundle.folder}", f"picture  {drawn}"),
    )


@command
def inspect(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT|BUNDLE", help="A checkpoint, five-map ONNX or bundle.")],
    input_size: Annotated[int | None, typer.Option(help="Side of the crop, for ONNX files that leave it open.")] = None,
    trust_pickle: Annotated[bool, typer.Option(help="Load pickled modules, which run the file's code.")] = False,
) -> Output:
    """Say what a checkpoint or a bundle is."""
    from pipnet_edge.benchmarks import tables

    if path.is_dir():
        from pipnet_edge import bundle as bundles

        bundle = bundles.read(path)
        tuned = [f"tuned for {machine}: {tuned}" for machine, tuned in bundle.tuned.items()]
        return Output(
            bundle.to_json(),
            (
                tables.network(bundle.spec, bundle.source),
                "",
                tables.variants(bundle),
                *tables.quantization(bundle),
                *tuned,
            ),
        )
    from pipnet_edge.converters.checkpoint import read as checkpoints

    found = checkpoints.read(path, input_size, trust_pickle)
    data = {
        "backbone": found.backbone,
        "num_lms": found.num_lms,
        "num_nb": found.num_nb,
        "net_stride": found.net_stride,
        "input_size": found.input_size,
        "parameters": found.parameters,
        "datasets": found.datasets,
    }
    return Output(data, (tables.checkpoint(data),))


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
    calibrate_count: CalibrateCount = 256,
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
    from pipnet_edge.benchmarks.accuracy import drift, parity
    from pipnet_edge.converters.quantize import budget as budgets

    # Checked before torch is imported: whoever mistypes need not wait for it.
    if precision is None:
        precision = "fp32,fp16,int8" if calibrate else "fp32,fp16"
    plan = converters.Plan(words(to), words(precision), heads)
    if plan.quantizes != bool(calibrate):
        raise EdgeError(
            f"--calibrate FOLDER and a quantized --precision go together; given: --precision {precision}"
            + (f" --calibrate {calibrate}" if calibrate else " and no --calibrate")
        )
    for option, value in (("--calibrate-labels", calibrate_labels), ("--max-drift", max_drift)):
        if value is not None and not calibrate:
            raise EdgeError(f"{option} {value} says nothing without --calibrate FOLDER")
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
            faces, notes = _faces(calibrate, calibrate_labels)
            quantize = converters.Quantize(faces, calibrate_count, seed, ranges, rounding, budget, drift.judge)
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


@command
def sensitivity(
    checkpoint: CheckpointFile,
    *,
    calibrate: Annotated[Path, typer.Option(help="Faces to quantize with; a fifth of them, held out, to judge by.")],
    data: Dataset = None,
    meanface: MeanFaceFile = None,
    precision: Annotated[str, typer.Option(help="int8, or int8-full: the heads too.")] = "int8",
    calibrate_labels: CalibrateLabels = None,
    calibrate_count: CalibrateCount = 256,
    seed: Seed = 0,
    ranges: Ranges = "mse",
    rounding: Rounding = "sequential",
    faces: Annotated[int, typer.Option(min=1, max=64, help="Faces to measure on; the time grows with them.")] = 16,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to draw.")] = Path("sensitivity.png"),
) -> Output:
    """Say what int8 costs in each layer: alone in int8, and alone in float."""
    from pipnet_edge import converters, picture
    from pipnet_edge.benchmarks.pictures import layers
    from pipnet_edge.converters.checkpoint import read as checkpoints

    _check_picture(output)
    options = checkpoints.Options(data=data, meanface=meanface)
    progress = render.Progress()
    with progress.shown():
        found_faces, notes = _faces(calibrate, calibrate_labels)
        quantize = converters.Quantize(found_faces, calibrate_count, seed, ranges, rounding)
        rows = converters.sensitivities(checkpoint, options, quantize, precision, faces, progress.step)
    found = [row.to_json() for row in rows]
    picture.write_picture(output, layers.picture(found, f"{checkpoint.name}, {precision}, {counted(faces, 'face')}"))
    note = "px: mean drift from float in pixels of the crop; alone: only this layer is int8; without: only it is not"
    return Output(
        {"notes": notes, "layers": found, "picture": str(output)},
        (layers.table(found), "", note, *notes, f"picture  {output}"),
    )


def _check_picture(path: Path) -> None:
    """Raises EdgeError, before any work is done, for a place where no picture can be written."""
    import cv2

    if not path.parent.is_dir():
        raise EdgeError(f"there is no folder {path.parent} to write {path.name} into")
    if not cv2.haveImageWriter(path.name):
        raise EdgeError(f"cannot write a picture as {path.name}; use .png or .jpg")


def _faces(
    images: Path, labels: Path | None
) -> tuple[dict[tuple[Path, Rect | None], NDArray[np.float64] | None], list[str]]:
    """The faces in a folder with their labels: whole pictures, or what a label file says to cut from them.

    The second value says what was left out.
    """
    from pipnet_edge.benchmarks.accuracy import labels as label_files

    found = label_files.read_labels(labels, images) if labels else label_files.image_folder(images)
    nothing = [None] * len(found.images)
    faces = zip(found.images, found.crops or nothing, strict=True)
    return dict(zip(faces, nothing if found.points is None else found.points, strict=True)), found.notes()
