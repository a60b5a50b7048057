"""Dots on a face, and pictures as files.

Pictures are (H, W, 3) uint8 RGB. Landmarks in pixels are measured from the picture's corner: x = 0.5 is the middle of
the first column, and a normalised landmark times the picture's size is its position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import files
from pipnet_edge.errors import EdgeError

Image = NDArray[np.uint8]
Points = NDArray[np.floating]
Colour = tuple[int, int, int]

INK, GREEN = (32, 33, 36), (40, 220, 110)


def annotate(image: Image, points: Points, colour: Colour = GREEN, radius: float | None = None) -> Image:
    """A copy of the image with a small dot, outlined in dark, at each landmark.

    points: (L, 2) of one face or (faces, L, 2), x then y in pixels of the image; those outside are not drawn. radius:
    of a dot, in pixels; by default 0.9 % of the face's extent and at least 1.
    """
    canvas = image.copy()
    for face in points.reshape(-1, *points.shape[-2:]):
        size = radius or max(1.0, 0.009 * float(np.ptp(face, axis=0).max()))
        for shade, r in ((INK, size + max(0.6, 0.35 * size)), (colour, size)):
            for x, y in face.tolist():
                disk(canvas, x, y, r, shade)
    return canvas


def box(canvas: Image, corner_and_size: Sequence[float], text: str = "") -> None:
    """Draws a box x, y, width, height, in pixels, into a picture, and a text above it."""
    import cv2

    x, y, w, h = corner_and_size
    thick = max(1, round(min(canvas.shape[:2]) / 480))
    cv2.rectangle(canvas, (round(x), round(y)), (round(x + w), round(y + h)), GREEN, thick)
    if text:
        at = max(0, round(x)), max(16 * thick, round(y) - 4 * thick)
        for shade, width in ((INK, 4 * thick), (GREEN, thick)):
            cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * thick, shade, width, cv2.LINE_AA)


def disk(canvas: Image, x: float, y: float, radius: float, colour: Colour) -> None:
    """Draws a filled disk, smooth at any fraction of a pixel. OpenCV's small circles are not smooth."""
    height, width = canvas.shape[:2]
    left, right = max(0, math.floor(x - radius - 1)), min(width, math.ceil(x + radius + 1))
    top, bottom = max(0, math.floor(y - radius - 1)), min(height, math.ceil(y + radius + 1))
    if left >= right or top >= bottom:
        return
    distance = np.hypot(np.arange(left, right) + 0.5 - x, np.arange(top, bottom)[:, None] + 0.5 - y)
    cover = np.clip(radius + 0.5 - distance, 0, 1)[..., None]
    under = canvas[top:bottom, left:right]
    canvas[top:bottom, left:right] = np.rint(under + (np.array(colour) - under.astype(np.float64)) * cover)


def write_picture(path: Path, picture: Image) -> None:
    """Writes a picture in its suffix's format. Raises EdgeError for unknown formats and full disks."""
    import cv2

    try:
        done, data = cv2.imencode(path.suffix, picture[:, :, ::-1])
    except cv2.error:
        done = False
    if not done:
        raise EdgeError(f"cannot write a picture as {path.name}; use .png or .jpg")
    files.write(path, data.tobytes())
