"""The level crop: a square around a face, turned so that the eyes are level, and the way back from its landmarks.

It is whole numbers, so that every language and machine cuts the very same pixels; docs/video.md has the arithmetic.
Positions are in pixels from the picture's corner: x = 0.5 is the middle of the first column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import MOST_PIXELS, Box, check_pixels
from pipnet_edge.spec import LARGEST_INPUT, MARGIN, MeanFace

# Whole numbers are so many to a pixel of the picture, and the positions where a picture is sampled FRACTIONS.
UNITS, FRACTIONS = 65536, 32

# At most so many rows of a crop are cut at once.
BAND = 64

# The longest side, in pixels, of a picture, and of what is cut of it. No position is beyond 2^31 units then.
LONGEST = 16384

# The outer eye corners where the NME is divided by 1 and the mean face names no pair.
EYES = {"aflw": (6, 11)}

Eyes = tuple[int, int]


@dataclass(frozen=True)
class LevelCrop:
    """Where the side x side pixels of a crop lie in a picture. Refuses what cannot be cut when it is built (EdgeError).

    x, y: its middle. across, down: half a crop's pixel to the right. All in 1/UNITS of the picture's pixels.
    """

    x: int
    y: int
    across: int
    down: int
    side: int

    def __post_init__(self) -> None:
        if not 1 <= self.side <= LARGEST_INPUT:
            raise EdgeError(f"a crop of {self.side} pixels square; allowed: 1 to {LARGEST_INPUT}")
        if not 1 <= self.size <= LONGEST or max(abs(self.x), abs(self.y)) > LONGEST * UNITS:
            where = f"{self.size:g} pixels square at {self.x / UNITS:g},{self.y / UNITS:g}"
            raise EdgeError(f"the square to cut is {where}; 1 to {LONGEST} square, and at most as far away, is allowed")

    @property
    def size(self) -> float:
        """The length of its side in pixels of the picture."""
        return 2 * self.side * math.hypot(self.across, self.down) / UNITS

    def to_picture(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Landmarks (..., 2) normalised to the crop as pixels (x, y) of the picture."""
        # In half pixels of the crop, from its middle.
        from_middle = points * np.float64(2 * self.side) - self.side
        right, below = from_middle[..., 0], from_middle[..., 1]
        across, down = self.across / UNITS, self.down / UNITS
        found = np.empty(points.shape, np.float32)
        found[..., 0] = self.x / UNITS + right * across - below * down
        found[..., 1] = self.y / UNITS + right * down + below * across
        return found


def eyes_of(mean_face: MeanFace) -> Eyes | None:
    """The landmarks of the left and the right eye in the picture, None for a mean face that has no level pair."""
    pair = mean_face.nme_pair or EYES.get(mean_face.name)
    if pair is None or max(pair) >= len(mean_face.points):
        return None
    left, right = sorted(pair, key=lambda landmark: mean_face.points[landmark][0])
    (x, y), (to_x, to_y) = mean_face.points[left], mean_face.points[right]
    return (left, right) if abs(to_y - y) < 0.2 * (to_x - x) else None


def around(points: NDArray[np.floating], eyes: Eyes | None, side: int, margin: float = MARGIN) -> LevelCrop:
    """The level crop of side x side pixels around landmarks (L, 2) in pixels: a square `margin` times their box.

    The box is the one that is level with the eyes; without eyes, or if they are one point, that of the picture's axes.
    Raises EdgeError for points that are not finite and for a square that cannot be cut.
    """
    # Python's own numbers: for a face's worth of them, numpy takes longer.
    xs, ys = points.T.tolist()
    cos, sin = _direction(*((xs[eye], ys[eye]) for eye in eyes)) if eyes else (1.0, 0.0)
    right = [x * cos + y * sin for x, y in zip(xs, ys, strict=True)]
    below = [y * cos - x * sin for x, y in zip(xs, ys, strict=True)]
    first_x, last_x, first_y, last_y = min(right), max(right), min(below), max(below)
    along, under = (first_x + last_x) / 2, (first_y + last_y) / 2
    half = margin * max(last_x - first_x, last_y - first_y) / (2 * side)
    numbers = (along * cos - under * sin, along * sin + under * cos, half * cos, half * sin)
    # min and max may pass over NaN.
    if not (math.isfinite(sum(right) + sum(below)) and all(abs(number) <= MOST_PIXELS for number in numbers)):
        raise EdgeError("landmarks hold NaN or infinity, or lie beyond any picture; nothing can be cut around them")
    middle_x, middle_y, across, down = (math.floor(number * UNITS + 0.5) for number in numbers)
    return LevelCrop(middle_x, middle_y, across, down, side)


def upright(box: Box, side: int, margin: float = MARGIN) -> LevelCrop:
    """The crop of side x side pixels around a box that would hold the landmarks. Raises EdgeError as `around` does."""
    x, y, width, height = box
    return around(np.array([[x, y], [x + width, y + height]]), None, side, margin)


def _direction(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """The cosine and sine of a line, 1 and 0 if it has no length."""
    across, down = end[0] - start[0], end[1] - start[1]
    length = math.sqrt(across * across + down * down)
    return (across / length, down / length) if length else (1.0, 0.0)


def is_inside(crop: LevelCrop, width: int, height: int) -> bool:
    """Whether a crop's middle lies in a picture of width x height pixels."""
    return 0 <= crop.x <= width * UNITS and 0 <= crop.y <= height * UNITS


def cut_level(picture: NDArray[np.uint8], crop: LevelCrop) -> NDArray[np.uint8]:
    """Cuts a crop from an (H, W, 3) uint8 picture: (side, side, 3) uint8. Outside, the border's pixels are repeated.

    Raises EdgeError for any other array, for pictures over LONGEST pixels wide or high and for a crop whose middle lies
    outside.
    """
    check_pixels("picture", picture)
    height, width = picture.shape[:2]
    if max(width, height) > LONGEST:
        raise EdgeError(f"the picture has {width}x{height} pixels; level crops need at most {LONGEST} on a side")
    if not is_inside(crop, width, height):
        at = f"{crop.x / UNITS:g},{crop.y / UNITS:g}"
        raise EdgeError(f"the middle of the crop, {at}, lies outside the picture of {width}x{height} pixels")
    import cv2

    # Positions as in docs/video.md, of so few rows at a time that they stay in the processor's cache: much of the time
    # is memory's. remap takes whole pixels and FRACTIONS of them, and computes with whole numbers, everywhere alike.
    half, start = np.arange(1 - crop.side, crop.side, 2, dtype=np.int32), UNITS // FRACTIONS // 2 - UNITS // 2
    along, under = half * crop.across, half * crop.down
    x = (along + (crop.x + start)) - under[:BAND, None]
    y = (under + (crop.y + start)) + along[:BAND, None]
    bits_x, bits_y = x.view(np.uint32), y.view(np.uint32)
    # A pair of int16, x and y, is one uint32, y in the upper half: copying every second number takes longer.
    whole, upper = np.empty(x.shape, np.uint32), np.empty(x.shape, np.uint32)
    pairs = whole.view(np.int16).reshape(*x.shape, 2)
    found = np.empty((crop.side, crop.side, 3), np.uint8)
    for top in range(0, crop.side, BAND):
        if top:
            x -= 2 * BAND * crop.down
            y += 2 * BAND * crop.across
        np.right_shift(bits_x, 16, out=whole)
        np.bitwise_and(bits_y, 0xFFFF0000, out=upper)
        whole |= upper
        fraction, fraction_x = y.astype(np.uint16), x.astype(np.uint16)
        fraction &= 0xF800
        fraction >>= 6
        fraction_x >>= 11
        fraction |= fraction_x
        rows = found[top : top + BAND]
        maps = pairs[: len(rows)], fraction[: len(rows)]
        cv2.remap(picture, *maps, cv2.INTER_LINEAR, dst=rows, borderMode=cv2.BORDER_REPLICATE)
    return found
