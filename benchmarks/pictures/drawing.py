"""Pictures of landmarks: on a face, as a mean face coloured by drift, and as a sheet of the worst images.

Images are (H, W, 3) uint8 RGB. Landmarks in pixels count from the image's corner, so that x = 0.5 is the middle of the
first column and a normalised landmark times the image's size is its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy.metrics import PerLandmark
from pipnet_edge.spec import MeanFace

Image = NDArray[np.uint8]
Points = NDArray[np.floating]
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

INK, MUTED, HAIRLINE, PAPER = (32, 33, 36), (105, 110, 118), (214, 219, 226), (255, 255, 255)
GREEN, RED, TRAIL = (40, 220, 110), (255, 50, 60), (255, 225, 90)
# From grey over amber and red to dark red: no drift recedes, the most drift stands out.
RAMP = np.array([(186, 196, 210), (250, 205, 110), (244, 122, 60), (205, 30, 45), (105, 5, 35)], dtype=np.float64)
PLAIN, BOLD = cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX
BITS = 4  # of a pixel's fraction that OpenCV's lines keep


def annotate(image: Image, points: Points, colour: Colour = GREEN, radius: float | None = None) -> Image:
    """A copy of the image with a small dot, outlined in dark, at each landmark.

    points: (L, 2) of one face or (faces, L, 2), x then y in pixels of the image; those outside are not drawn. radius:
    a dot's, in pixels; by default 0.9 % of the face's extent and at least 1.
    """
    canvas = image.copy()
    for face in points.reshape(-1, *points.shape[-2:]):
        size = radius or max(1.0, 0.009 * float(np.ptp(face, axis=0).max()))
        for shade, r in ((INK, size + max(0.6, 0.35 * size)), (colour, size)):
            for x, y in face.tolist():
                _disk(canvas, x, y, r, shade)
    return canvas


def mean_face_picture(face: MeanFace, table: PerLandmark, title: str, worst: int = 12, side: int = 900) -> Image:
    """The mean face with each landmark coloured and sized by its mean drift, as (side, 1.45 * side, 3).

    The colour bar runs from 0 to the largest drift, rounded up. The `worst` landmarks carry their index (from 0, as in
    the mean face); a list gives their mean and 95th percentile in px and their cell flips in %.
    """
    u = side / 900  # every length below is in 900ths of the side
    canvas = np.full((side, round(1.45 * side), 3), PAPER, dtype=np.uint8)
    put_text(canvas, title, 40 * u, 46 * u, 17 * u, font=BOLD, anchor=(0, 0.5), most=1220 * u)
    points = np.asarray(face.points, dtype=np.float64)
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    points = (points - low - extent / 2) * (690 * u / extent.max()) + np.array([425, 490]) * u
    steps = np.hypot(*np.diff(points, axis=0).T)
    for (a, b), step in zip(pairwise(points), steps, strict=True):
        # Where landmarks follow a contour one after the other, lines show it; a long step starts the next contour.
        if np.median(steps) < 100 * u and step < min(1.7 * float(np.median(steps)), 100 * u):
            put_line(canvas, a, b, HAIRLINE, 2 * u)

    top = round_up(float(table.px_mean.max()))
    colours = [_ramp(float(mean) / top) for mean in table.px_mean]
    radii = (6 + 7 * table.px_mean / top) * u
    ascending = np.argsort(table.px_mean, kind="stable").tolist()
    for i in ascending:
        x, y = points[i].tolist()
        _disk(canvas, x, y, radii[i] + 1.2 * u, PAPER)
        _disk(canvas, x, y, radii[i], colours[i])
    chosen = ascending[::-1][:worst]
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(points.tolist(), radii.tolist(), strict=True)]
    for i in chosen:
        _index_label(canvas, i, points[i], radii[i], taken, u)

    _colour_bar(canvas, (880, 150, 1260, 170), top, u)
    columns = ((925, "landmark"), (1040, "mean px"), (1150, "p95 px"), (1260, "flips %"))
    for right, name in columns:
        put_text(canvas, name, right * u, 262 * u, 10 * u, MUTED, anchor=(1, 0.5))
    for row, i in enumerate(chosen):
        y = (300 + min(34, 580 / worst) * row) * u
        _disk(canvas, 880 * u, y, 7 * u, colours[i])
        cells = (f"{i}", f"{table.px_mean[i]:.2f}", f"{table.px_p95[i]:.2f}", f"{table.flips[i]:.1f}")
        for (right, _), cell in zip(columns, cells, strict=True):
            put_text(canvas, cell, right * u, y, 12 * u, anchor=(1, 0.5))
    return canvas


def worst_sheet(
    crops: Sequence[Image],
    reference: Points,
    variant: Points,
    names: Sequence[str],
    px: Sequence[float],
    title: str,
    columns: int = 4,
    tile: int = 320,
) -> Image:
    """A contact sheet of k crops with the reference's landmarks green, the variant's red, and a line between the two.

    reference, variant: (k, L, 2), normalised to the crops. names and px: k captions, px the image's mean drift. Crops
    of any size fill tiles of `tile` pixels square, `columns` in a row, in the order given.
    """
    gap, head, foot = tile // 20, tile // 4, tile // 10
    text = tile / 28  # height of capitals
    columns = min(columns, max(len(crops), 2))
    rows = math.ceil(len(crops) / columns)
    width, height = columns * (tile + gap) + gap, head + rows * (tile + foot + gap)
    sheet = np.full((height, width, 3), PAPER, dtype=np.uint8)
    put_text(sheet, title, gap, 0.32 * head, 1.3 * text, font=BOLD, anchor=(0, 0.5), most=width - 2 * gap)
    x = float(gap)
    legend = ((GREEN, "reference"), (RED, "variant"), (None, "px: mean drift of the image's landmarks"))
    for colour, what in legend:
        if colour:
            _disk(sheet, x + text * 0.6, 0.72 * head, text * 0.55, colour)
            x += 1.7 * text
        x += put_text(sheet, what, x, 0.72 * head, text, MUTED, anchor=(0, 0.5)) + 2 * text
    for k, crop in enumerate(crops):
        left, upper = gap + (k % columns) * (tile + gap), head + (k // columns) * (tile + foot + gap)
        picture = np.asarray(cv2.resize(crop, (tile, tile), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
        sheet[upper : upper + tile, left : left + tile] = _overlay(picture, reference[k] * tile, variant[k] * tile)
        y = upper + tile + foot / 2
        used = put_text(sheet, f"{px[k]:.1f} px", left + tile, y, text, font=BOLD, anchor=(1, 0.5))
        put_text(sheet, names[k], left, y, text, MUTED, anchor=(0, 0.5), most=tile - used - text)
    return sheet


def _overlay(picture: Image, reference: Points, variant: Points) -> Image:
    radius = len(picture) / 130
    for a, b in zip(reference, variant, strict=True):
        put_line(picture, a, b, TRAIL, radius)
    for points, r, colour in ((reference, radius, GREEN), (variant, 0.65 * radius, RED)):
        for x, y in points.tolist():
            _disk(picture, x, y, r, colour)
    return picture


def _index_label(canvas: Image, index: int, point: Points, radius: float, taken: list[Box], u: float) -> None:
    """Writes a landmark's index near its dot, in the first of the places around it that keeps clear of `taken`."""
    height, text = 12 * u, str(index)
    width = _text_width(text, height, BOLD)
    best: tuple[float, Box] | None = None
    for reach in (6, 16, 28, 42):
        for turn in range(12):
            angle = -math.pi / 2 + turn * math.pi / 6
            away = radius + reach * u
            x = point[0] + math.cos(angle) * (away + width / 2)
            y = point[1] + math.sin(angle) * (away + height / 2)
            box = (x - width / 2 - 2 * u, y - height / 2 - 2 * u, x + width / 2 + 2 * u, y + height / 2 + 2 * u)
            cost = sum(_overlap(box, other) for other in taken) + reach
            if best is None or cost < best[0]:
                best = cost, box
    assert best is not None
    left, top, right, bottom = best[1]
    taken.append(best[1])
    put_text(canvas, text, (left + right) / 2, (top + bottom) / 2, height, font=BOLD, anchor=(0.5, 0.5))


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _colour_bar(canvas: Image, box: Box, top: float, u: float) -> None:
    """A scale from 0 at the left to `top` at the right, with six ticks; box in units of u pixels."""
    left, upper, right, lower = (round(v * u) for v in box)
    for column in range(left, right):
        canvas[upper:lower, column] = _ramp((column - left) / (right - 1 - left))
    put_text(canvas, "mean drift of each landmark in px", left, upper - 20 * u, 10 * u, MUTED, anchor=(0, 0.5))
    for tick in range(6):
        x = left + (right - left) * tick / 5
        put_text(canvas, f"{top * tick / 5:.3g}", x, lower + 18 * u, 11 * u, MUTED, anchor=(0.5, 0.5))


def round_up(value: float) -> float:
    """The next 1, 1.5, 2, 3, 4, 5 or 7.5 times a power of ten; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if value <= step * power * (1 + 1e-9))


def _ramp(share: float) -> Colour:
    red, green, blue = (round(float(np.interp(share * (len(RAMP) - 1), range(len(RAMP)), c))) for c in RAMP.T)
    return red, green, blue


def _disk(canvas: Image, x: float, y: float, radius: float, colour: Colour) -> None:
    """A filled disk with smooth edges at any fraction of a pixel, which OpenCV's small circles do not have."""
    height, width = canvas.shape[:2]
    left, right = max(0, math.floor(x - radius - 1)), min(width, math.ceil(x + radius + 1))
    top, bottom = max(0, math.floor(y - radius - 1)), min(height, math.ceil(y + radius + 1))
    if left >= right or top >= bottom:
        return
    distance = np.hypot(np.arange(left, right) + 0.5 - x, np.arange(top, bottom)[:, None] + 0.5 - y)
    cover = np.clip(radius + 0.5 - distance, 0, 1)[..., None]
    under = canvas[top:bottom, left:right]
    canvas[top:bottom, left:right] = np.rint(under + (np.array(colour) - under.astype(np.float64)) * cover)


def put_line(canvas: Image, a: Points, b: Points, colour: Colour, thickness: float) -> None:
    start, end = ([round((v - 0.5) * 2**BITS) for v in p.tolist()] for p in (a, b))
    cv2.line(canvas, start, end, colour, max(1, round(thickness)), cv2.LINE_AA, BITS)


def _text_width(text: str, height: float, font: int) -> float:
    return float(cv2.getTextSize(text, font, _font_scale(height), 1)[0][0])


@lru_cache(maxsize=1)
def _cap_height() -> float:
    """Height in pixels of a capital at font scale 1, measured: OpenCV 4 and 5 draw other fonts under the same name."""
    sample = np.zeros((200, 200), dtype=np.uint8)
    cv2.putText(sample, "H", (40, 160), PLAIN, 4.0, 255, 1, cv2.LINE_AA)
    return int(np.count_nonzero(sample.max(axis=1) > 127)) / 4


def _font_scale(height: float) -> float:
    return height / _cap_height()


def put_text(
    canvas: Image,
    text: str,
    x: float,
    y: float,
    height: float,
    colour: Colour = INK,
    anchor: tuple[float, float] = (0, 0),
    font: int = PLAIN,
    most: float = math.inf,
) -> float:
    """Writes one line and returns its width. anchor: which part of the text is at (x, y), (0, 0) its upper left.

    A text wider than `most` pixels loses its middle.
    """
    keep = len(text)
    while _text_width(text, height, font) > most and keep > 4:
        keep -= 1
        text = text[: keep // 2] + ".." + text[len(text) - keep // 2 :]
    width = _text_width(text, height, font)
    origin = round(x - anchor[0] * width), round(y + (1 - anchor[1]) * height)
    cv2.putText(canvas, text, origin, font, _font_scale(height), colour, 1, cv2.LINE_AA)
    return width
