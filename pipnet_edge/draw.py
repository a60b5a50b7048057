"""Dots and names on faces, and pictures as files.

Pictures are (H, W, 3) uint8 RGB. Landmarks in pixels are measured from the picture's corner: x = 0.5 is the middle of
the first column, and a normalised landmark times the picture's size is its position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import files
from pipnet_edge.errors import EdgeError

if TYPE_CHECKING:
    from pipnet_edge.video.track import Face

Image = NDArray[np.uint8]
Points = NDArray[np.floating]
Colour = tuple[int, int, int]

INK, GREEN = (32, 33, 36), (40, 220, 110)
# Of a crop, in its normalised positions.
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)


def annotate(image: Image, points: Points, colour: Colour = GREEN, radius: float | None = None) -> Image:
    """A copy of the image with a small dot, outlined in dark, at each landmark.

    points: (L, 2) of one face or (faces, L, 2), x then y in pixels of the image; those outside are not drawn. radius:
    of a dot, in pixels; by default 0.9 % of the face's extent and at least 1.
    """
    canvas = image.copy()
    for face in points.reshape(-1, *points.shape[-2:]):
        size = radius or max(1.0, 0.009 * float(np.ptp(face, axis=0).max()))
        for shade, r in ((INK, size + max(0.6, 0.35 * size)), (colour, size)):
            disks(canvas, face, r, shade)
    return canvas


def faces(picture: Image, tracked: Sequence[Face]) -> Image:
    """A copy of a frame with the smoothed landmarks of its faces, the square that each was cut in, and its id."""
    canvas = annotate(picture, np.stack([face.points for face in tracked])) if tracked else picture.copy()
    for face in tracked:
        _outline(canvas, face.crop.to_picture(CORNERS), str(face.id))
    return canvas


def box(canvas: Image, corner_and_size: Sequence[float], text: str = "") -> None:
    """Draws a box x, y, width, height, in pixels, into a picture, and a text above it."""
    x, y, width, height = corner_and_size
    _outline(canvas, np.array([x, y]) + CORNERS * (width, height), text)


def _outline(canvas: Image, corners: Points, text: str) -> None:
    """Draws the lines between corners (4, 2), in pixels, and a text on a dark ground above the first."""
    import cv2

    thick = max(1, round(min(canvas.shape[:2]) / 480))
    # OpenCV's middle of the first pixel is 0, and it draws at sixteenths of a pixel.
    cv2.polylines(canvas, [np.rint(16 * (corners - 0.5)).astype(np.int32)], True, GREEN, thick, cv2.LINE_AA, 4)
    if not text:
        return
    how, pad = (cv2.FONT_HERSHEY_SIMPLEX, 0.6 * thick), 3 * thick
    (width, height), _ = cv2.getTextSize(text, *how, thick)
    x, y = corners[0].tolist()
    left = max(0, min(round(x), canvas.shape[1] - width - 2 * pad))
    bottom = max(height + 2 * pad, min(round(y), canvas.shape[0]))
    canvas[bottom - height - 2 * pad : bottom, left : left + width + 2 * pad] = INK
    cv2.putText(canvas, text, (left + pad, bottom - pad), *how, GREEN, thick, cv2.LINE_AA)


def disk(canvas: Image, x: float, y: float, radius: float, colour: Colour) -> None:
    """Draws one of `disks`."""
    disks(canvas, np.array([[x, y]]), radius, colour)


def disks(canvas: Image, centres: Points, radius: float, colour: Colour) -> None:
    """Draws filled disks around centres (n, 2), smooth at any fraction of a pixel. OpenCV's small ones are not smooth.

    Those that lie outside are not drawn.
    """
    height, width = canvas.shape[:2]
    reach = math.ceil(radius + 1)
    centres = centres[((centres > -reach) & (centres < (width + reach, height + reach))).all(axis=1)]
    # A square of pixels around each: (n, 1, side) columns and (n, side, 1) rows.
    around = np.floor(centres).astype(np.int64)[:, :, None] + np.arange(-reach, reach + 1)
    columns, rows = around[:, 0, None, :], around[:, 1, :, None]
    distance = np.hypot(columns + 0.5 - centres[:, 0, None, None], rows + 0.5 - centres[:, 1, None, None])
    cover = np.clip(radius + 0.5 - distance, 0, 1)
    shown = (cover > 0) & (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    dot, row, column = shown.nonzero()
    if not len(dot):
        return
    columns, rows = columns[dot, 0, column], rows[dot, row, 0]
    # Where disks overlap, the larger cover counts, and each of them writes it.
    left, top = columns.min(), rows.min()
    covers = np.zeros((rows.max() - top + 1, columns.max() - left + 1))
    at = rows - top, columns - left
    np.maximum.at(covers, at, cover[shown])
    under = canvas[rows, columns].astype(np.float64)
    canvas[rows, columns] = np.rint(under + (np.array(colour) - under) * covers[at][:, None])


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
