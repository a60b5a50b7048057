"""Everything on the embedded checkpoint and faces."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import Threads, faces_in, thread_count, useless_threads
from pipnet_edge.output import Output
from pipnet_edge.words import counted


@command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the bundle and the picture.")] = Path(
        "demo"
    ),
    threads: Threads = 1,
) -> Output:
    """Convert and quantize the embedded checkpoint for every runtime; show parity, drift, speed and landmarks."""
    from pipnet_edge import converters, runtimes
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.accuracy import chunks, drift, labels, parity
    from pipnet_edge.benchmarks.pictures.faces import draw_crops
    from pipnet_edge.benchmarks.speed import bench
    from pipnet_edge.benchmarks.speed.result import QUICK
    from pipnet_edge.converters.checkpoint import read as checkpoints
    from pipnet_edge.converters.demo import CALIBRATION, CHECKPOINT, FACES

    count = thread_count(threads)
    progress = render.Progress()
    with progress.shown():
        plan = converters.Plan(runtimes.DESTINATIONS, ("fp32", "fp16", "int8"))
        options = checkpoints.Options(data="300w")
        quantize = converters.Quantize(faces_in(CALIBRATION, None)[0])
        bundle = converters.convert(
            CHECKPOINT, output / "bundle", plan, options, parity.verify, progress.step, quantize=quantize
        )
        labelled = labels.read_labels(FACES / "labels.txt", FACES, num_lms=bundle.spec.num_lms)
        faces = drift.Faces(labelled, bundle.spec.input_size)
        with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as cache:
            rows = drift.run(
                bundle, faces, drift.choose(bundle, (), None), Path(cache), chunks.processes(1), progress.step
            ).rows
        crops, _ = bundle.read_golden()
        timings = []
        for index, variant in enumerate(bundle.variants):
            progress.step(f"time {variant.name}", index, len(bundle.variants))
            timings.append(bench.measure(bundle, variant.name, count, crops, QUICK))
    drawn = draw_crops(bundle, bundle.variants[0].name, crops, output / "faces.png")
    found = _in_a_picture(bundle.folder, output)
    notes = (
        *useless_threads(threads),
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
        (tables.variants(bundle, timings, rows), "", *notes, f"bundle   {bundle.folder}", f"picture  {drawn}", *found),
    )


def _in_a_picture(bundle: Path, output: Path) -> list[str]:
    """Lines about faces that the detector finds in a picture with several; there may be no detector."""
    from pipnet_edge import draw, picture
    from pipnet_edge.converters.golden import scenes_of
    from pipnet_edge.detect.detector import usual

    if not usual().exists():
        return ["faces in pictures are not shown: there is no face detector; `pipnet-edge detector` makes one"]
    photo = output / "photo.png"
    draw.write_picture(photo, scenes_of((640, 480))[1])
    found = picture.annotate(bundle, photo, picture.Asked(), None, None, None, output / "found.png")
    return [f"picture  {found.picture}, {counted(len(found.faces), 'face')} by {found.by}"]
