"""Faces from maps, written from docs/detection.md alone: tests/device/detect/test_page.py runs it on every vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Box = tuple[float, float, float, float]
Spec = Mapping[str, Any]


def inside(picture: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Width and height of a picture in an input."""
    s = min(size[0] / picture[0], size[1] / picture[1])
    w, h = (min(size[n], max(1, round(picture[n] * s))) for n in (0, 1))
    return w, h


def back(box: Sequence[float], picture: Sequence[int], size: Sequence[int]) -> Box | None:
    """A box of the input in the picture, None if it does not touch it."""
    w, h = inside(picture, size)
    x, y, wide, high = (n * side / part for n, side, part in zip(box, [*picture] * 2, [w, h] * 2, strict=True))
    return (x, y, wide, high) if x < picture[0] and y < picture[1] and x + wide > 0 and y + high > 0 else None


def priors(spec: Spec, size: Sequence[int]) -> list[tuple[str, int, int, int, float, float, int]]:
    """Stride, place in the maps (prior of the cell, row, column), centre and side of every prior."""
    found = []
    for level in spec["levels"]:
        stride = level["stride"]
        for row in range(math.ceil(size[1] / stride)):
            for column in range(math.ceil(size[0] / stride)):
                k = 0
                for kind in level["priors"]:
                    density = kind["density"]
                    steps = [i / density for i in range(density)] if density > 1 else [0.5]
                    for j in steps:
                        for i in steps:
                            centre = (column + i) * stride, (row + j) * stride
                            found.append((str(stride), k, row, column, *centre, kind["size"]))
                            k += 1
    return found


def overlap(one: Box, other: Box) -> float:
    (x1, y1, w1, h1), (x2, y2, w2, h2) = one, other
    across = max(0.0, min(x1 + w1, x2 + w2) - max(x1, x2) + 1)
    down = max(0.0, min(y1 + h1, y2 + h2) - max(y1, y2) + 1)
    both = across * down
    return both / ((w1 + 1) * (h1 + 1) + (w2 + 1) * (h2 + 1) - both)


def faces(spec: Spec, size: Sequence[int], maps: Mapping[str, Any]) -> list[tuple[Box, float]]:
    """Boxes and scores, the best first. maps: name to [channel][row][column]."""
    candidates = []
    for stride, k, row, column, cx, cy, side in priors(spec, size):
        background, face = (float(maps[f"score_{stride}"][k * 2 + n][row][column]) for n in (0, 1))
        score = 1 / (1 + math.exp(background - face))
        if score > spec["threshold"]:
            x, y, w, h = (float(maps[f"box_{stride}"][k * 4 + n][row][column]) for n in range(4))
            first, second = spec["variances"]
            wide, high = (side * math.exp(min(n * second, math.log(1000))) for n in (w, h))
            left, top = cx + x * first * side - wide / 2, cy + y * first * side - high / 2
            candidates.append(((left, top, wide, high), score))
    left_over, kept = sorted(candidates, key=lambda found: -found[1])[:5000], []
    while left_over and len(kept) < 750:
        kept.append(left_over[0])
        left_over = [found for found in left_over[1:] if overlap(kept[-1][0], found[0]) < spec["overlap"]]
    return kept


def landmarks(spec: Spec, box: Sequence[float]) -> Box:
    """The box that landmarks fill."""
    (x, y, w, h), m = box, spec["margins"]
    return (
        x - m["left"] * w,
        y - m["top"] * h,
        (1 + m["left"] + m["right"]) * w,
        (1 + m["top"] + m["bottom"]) * h,
    )
