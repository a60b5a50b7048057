"""The parts of drawings: text, lines, boxes, and a scale that ends at a round number.

All lengths are in pixels. A drawing is designed for one size and can be made at any: its lengths are multiples of u.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from pipnet_edge.draw import INK, Colour, Image, Points

MUTED, HAIRLINE, PAPER = (105, 110, 118), (214, 219, 226), (255, 255, 255)
PLAIN, BOLD = cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX
BITS = 4  # the bits of a pixel's fraction that OpenCV's lines keep


def round_up(value: float) -> float:
    """The next 1, 1.5, 2, 3, 4, 5 or 7.5 times a power of ten; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if value <= step * power * (1 + 1e-9))


def put_line(canvas: Image, a: Points, b: Points, colour: Colour, thickness: float) -> None:
    """A line from a to b, (x, y) each."""
    start, end = ([round((v - 0.5) * 2**BITS) for v in p.tolist()] for p in (a, b))
    cv2.line(canvas, start, end, colour, max(1, round(thickness)), cv2.LINE_AA, BITS)


def put_box(canvas: Image, left: float, upper: float, right: float, lower: float, colour: Colour) -> None:
    """A filled rectangle."""
    cv2.rectangle(canvas, (round(left), round(upper)), (round(right) - 1, round(lower) - 1), colour, cv2.FILLED)


def text_width(text: str, height: float, font: int) -> float:
    """The width in pixels of put_text's line when its capitals have this height."""
    return float(cv2.getTextSize(text, font, _font_scale(height), 1)[0][0])


@lru_cache(maxsize=1)
def _cap_height() -> float:
    """Height in pixels of a capital at font scale 1. Measured: OpenCV 4 and 5 have different fonts of the same name."""
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
    """Writes one line and returns its width. anchor: the part of the text that is at (x, y); (0, 0): its upper left.

    A text wider than `most` pixels loses its middle.
    """
    keep = len(text)
    while text_width(text, height, font) > most and keep > 4:
        keep -= 1
        text = text[: keep // 2] + ".." + text[len(text) - keep // 2 :]
    width = text_width(text, height, font)
    origin = round(x - anchor[0] * width), round(y + (1 - anchor[1]) * height)
    cv2.putText(canvas, text, origin, font, _font_scale(height), colour, 1, cv2.LINE_AA)
    return width
