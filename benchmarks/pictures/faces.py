"""Faces side by side, with the landmarks that a variant finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.bundle import Bundle
from pipnet_edge.draw import annotate, write_picture
from pipnet_edge.worker.call import here, infer


def draw_crops(bundle: Bundle, variant: str, crops: NDArray[np.uint8], output: Path) -> Path:
    """Draws a variant's landmarks on crops (n, S, S, 3) uint8 RGB side by side into `output`, and returns that path."""
    points = infer(here, bundle.folder, variant, 1, crops).landmarks.points * bundle.spec.input_size
    faces = [annotate(crop, p) for crop, p in zip(crops, points, strict=True)]
    write_picture(output, np.hstack(faces))
    return output
