"""What int8 costs in each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import (
    CalibrateCount,
    CalibrateLabels,
    CheckpointFile,
    Dataset,
    MeanFaceFile,
    Ranges,
    Rounding,
    Seed,
    Weights,
    calibration_count,
    faces_in,
)
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Output
from pipnet_edge.words import counted


@command
def sensitivity(
    checkpoint: CheckpointFile,
    *,
    calibrate: Annotated[Path, typer.Option(help="Faces to quantize with; a fifth of them, held out, to judge by.")],
    data: Dataset = None,
    meanface: MeanFaceFile = None,
    weights: Weights = None,
    precision: Annotated[str, typer.Option(help="int8, or int8-full: the heads too.")] = "int8",
    calibrate_labels: CalibrateLabels = None,
    calibrate_count: CalibrateCount = None,
    seed: Seed = 0,
    ranges: Ranges = "mse",
    rounding: Rounding = "sequential",
    images: Annotated[
        Path | None, typer.Option(help="A folder of other faces to measure on; then none is held out.")
    ] = None,
    faces: Annotated[int, typer.Option(min=1, max=64, help="Faces to measure on; the time grows with them.")] = 16,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to draw.")] = Path("sensitivity.png"),
) -> Output:
    """Say what int8 costs in each layer: alone in int8, and alone in float."""
    from pipnet_edge import converters, draw
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.pictures import layers
    from pipnet_edge.converters.checkpoint import read as checkpoints

    _check_picture(output)
    count = calibration_count(calibrate_count)
    options = checkpoints.Options(data=data, meanface=meanface, weights=weights)
    progress = render.Progress()
    with progress.shown():
        found_faces, notes = faces_in(calibrate, calibrate_labels)
        quantize = converters.Quantize(found_faces, count, seed, ranges, rounding)
        others, more = faces_in(images, None) if images else ({}, [])
        notes += more
        rows = converters.sensitivities(checkpoint, options, quantize, precision, faces, progress.step, tuple(others))
    found = [row.to_json() for row in rows]
    draw.write_picture(output, layers.picture(found, f"{checkpoint.name}, {precision}, {counted(faces, 'face')}"))
    note = (
        "px: mean drift from float in pixels of the crop; alone: only this layer is int8; without: only it is not; "
        "clipped: outputs beyond the range they are stored in, on these faces and on those of calibration"
    )
    return Output(
        {"notes": notes, "layers": found, "picture": str(output)},
        (tables.sensitivity(found), "", note, *notes, f"picture  {output}"),
    )


def _check_picture(path: Path) -> None:
    """Raises EdgeError, before any work is done, if no picture can be written to this path."""
    import cv2

    if not path.parent.is_dir():
        raise EdgeError(f"there is no folder {path.parent} to write {path.name} into")
    if not cv2.haveImageWriter(path.name):
        raise EdgeError(f"cannot write a picture as {path.name}; use .png or .jpg")
