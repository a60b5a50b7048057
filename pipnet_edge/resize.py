"""Bilinear resizing to a square, bit for bit as OpenCV does it on x86, for machines where OpenCV does it otherwise.

The arithmetic is that of OpenCV's own code for 8 bits: weights have 11 bits after the point, sums of a row lose 4, and
products with a row's weight lose 16 more. On 64-bit Arm OpenCV hands the work to KleidiCV, which rounds differently (up
to 2 levels) and reads past the end of the source.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ONE = np.float32(1 << 11)

Indices = NDArray[np.intp]
Weights = NDArray[np.int32]


def bilinear(crop: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An (H, W, 3) uint8 picture as (side, side, 3). Work and memory depend on `side`, hardly on H and W."""
    height, width = crop.shape[:2]
    (left, right), across = _columns(width, side)
    used, (upper, lower), down = _rows(height, side)
    lines = crop[used].reshape(len(used), -1)
    sums = np.multiply(lines.take(left, axis=1, mode="clip"), across[0], dtype=np.int32)
    sums += np.multiply(lines.take(right, axis=1, mode="clip"), across[1], dtype=np.int32)
    sums >>= 4
    found = sums[upper]
    found *= down[0]
    found >>= 16
    below = sums[lower]
    below *= down[1]
    below >>= 16
    found += below
    found += 2
    found >>= 2
    resized: NDArray[np.uint8] = found.astype(np.uint8).reshape(side, side, 3)
    return resized


def _places(length: int, side: int) -> tuple[Indices, NDArray[np.float32]]:
    """For every pixel of the result the pixel before its place in the source, and how far after it that place is."""
    # OpenCV divides twice, and rounds to float32 before it takes the whole part.
    at = ((np.arange(side) + 0.5) * (1 / (side / length)) - 0.5).astype(np.float32)
    before = np.floor(at)
    return before.astype(np.intp), at - before


def _weights(after: NDArray[np.float32]) -> Weights:
    """(2, side): the weight of the pixel before and of the one after."""
    return np.rint(np.stack([1 - after, after]) * ONE).astype(np.int32)


@lru_cache(64)
def _columns(width: int, side: int) -> tuple[Indices, Weights]:
    """Where the values of the left and right pixels are in a row of the source (2, 3 side), and their weights."""
    before, after = _places(width, side)
    # Left of the first pixel's middle and right of the last one's there is only that pixel.
    after = np.where((before < 0) | (before >= width - 1), np.float32(0), after)
    pixels = np.stack([before, before + 1]).clip(0, width - 1)
    return (3 * pixels[..., None] + np.arange(3)).reshape(2, -1), np.repeat(_weights(after), 3, axis=1)


@lru_cache(64)
def _rows(height: int, side: int) -> tuple[Indices, Indices, Weights]:
    """The rows of the source that count, where the upper and lower ones are among them, and their weights."""
    before, after = _places(height, side)
    used, among = np.unique(np.stack([before, before + 1]).clip(0, height - 1), return_inverse=True)
    return used, among.reshape(2, side), _weights(after)[..., None]
