"""Shared by the commands that quantize: their options, and the faces in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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


def faces_in(
    images: Path, labels: Path | None
) -> tuple[dict[tuple[Path, Rect | None], NDArray[np.float64] | None], list[str]]:
    """The faces in a folder with their labels: whole pictures, or the parts that a label file cuts from them.

    The second value says what was left out.
    """
    from pipnet_edge.benchmarks.accuracy import labels as label_files

    found = label_files.read_labels(labels, images) if labels else label_files.image_folder(images)
    nothing = [None] * len(found.images)
    faces = zip(found.images, found.crops or nothing, strict=True)
    return dict(zip(faces, nothing if found.points is None else found.points, strict=True)), found.notes()
