"""A variant's drift in two drawings: the mean face coloured by drift, and a sheet of the worst faces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from pipnet_edge.benchmarks.accuracy import metrics
from pipnet_edge.benchmarks.accuracy.drift import Faces, Row
from pipnet_edge.benchmarks.accuracy.metrics import PerLandmark
from pipnet_edge.benchmarks.pictures.drawing import (
    BOLD,
    HAIRLINE,
    MUTED,
    PAPER,
    put_line,
    put_text,
    round_up,
    text_width,
)
from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import Landmarks
from pipnet_edge.draw import GREEN, Colour, Image, Points, disk, write_picture
from pipnet_edge.spec import MeanFace

Box = tuple[float, float, float, float]  # left, top, right, bottom

WORST = 12  # faces on a sheet
RED, TRAIL = (255, 50, 60), (255, 225, 90)
# From grey over amber and red to dark red: the most drift is the easiest to see.
RAMP = np.array([(186, 196, 210), (250, 205, 110), (244, 122, 60), (205, 30, 45), (105, 5, 35)], dtype=np.float64)


def draw(
    bundle: Bundle, faces: Faces, reference: str, rows: Sequence[Row], landmarks: dict[str, Landmarks], output: Path
) -> list[Path]:
    """Two drawings per variant into `output`: the mean face coloured by drift, and the worst faces."""
    paths = []
    for row in rows:
        if row.summary is None:
            continue
        mean, worst = output / f"{row.variant}-landmarks.png", output / f"{row.variant}-worst.png"
        title = f"{row.variant} against {reference}, {row.summary.images} faces"
        write_picture(mean, mean_face_picture(bundle.spec.mean_face, row.summary.landmarks, title))
        a, b = landmarks[reference], landmarks[row.variant]
        sample = metrics.measure(b, a, bundle.spec)
        px, order = sample.px.mean(axis=1), sample.worst(WORST)
        names = [faces.labels.images[i].name for i in order]
        sheet = worst_sheet(
            list(faces.crops(order.tolist())), a.points[order], b.points[order], names, px[order].tolist(), title
        )
        write_picture(worst, sheet)
        paths += [mean, worst]
    return paths


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
        # Lines join landmarks that follow each other along a contour; a long step starts the next contour.
        if np.median(steps) < 100 * u and step < min(1.7 * float(np.median(steps)), 100 * u):
            put_line(canvas, a, b, HAIRLINE, 2 * u)

    top = round_up(float(table.px_mean.max()))
    colours = [_ramp(float(mean) / top) for mean in table.px_mean]
    radii = (6 + 7 * table.px_mean / top) * u
    ascending = np.argsort(table.px_mean, kind="stable").tolist()
    for i in ascending:
        x, y = points[i].tolist()
        disk(canvas, x, y, radii[i] + 1.2 * u, PAPER)
        disk(canvas, x, y, radii[i], colours[i])
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
        disk(canvas, 880 * u, y, 7 * u, colours[i])
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
            disk(sheet, x + text * 0.6, 0.72 * head, text * 0.55, colour)
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
            disk(picture, x, y, r, colour)
    return picture


def _index_label(canvas: Image, index: int, point: Points, radius: float, taken: list[Box], u: float) -> None:
    """Writes a landmark's index near its dot, at the position that covers the least of `taken` and is the nearest."""
    height, text = 12 * u, str(index)
    width = text_width(text, height, BOLD)
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


def _ramp(share: float) -> Colour:
    red, green, blue = (round(float(np.interp(share * (len(RAMP) - 1), range(len(RAMP)), c))) for c in RAMP.T)
    return red, green, blue
