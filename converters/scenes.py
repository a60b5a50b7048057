"""Pictures to calibrate a face detector with: crops of faces, large and small, on backgrounds that have none.

Everything follows from a seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.converters.quantize import calibration
from pipnet_edge.converters.quantize.calibration import Face
from pipnet_edge.preprocess import Rect

Picture = NDArray[np.uint8]

COUNT = 64
MOST_FACES = 10
# Pixels of a crop's side: of the smallest faces that detectors find, and of a crop as it is read.
LEAST, SIDE = 24, 256
TRIES = 20
NOISE = 4.0  # the standard deviation of a camera's, in grey levels
CELLS = (8, 6)


@dataclass(frozen=True, eq=False)
class Scenes:
    """pictures: (H, W, 3) uint8 RGB each, their sizes in turn. images: the sha256 of each file that a face is from."""

    pictures: tuple[Picture, ...]
    images: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """One hash of all pixels in their order, and of the sizes."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(f"{picture.shape} ".encode() + picture.tobytes())
        return digest.hexdigest()


def draw(faces: Sequence[Face], sizes: Sequence[tuple[int, int]], count: int = COUNT, seed: int = 0) -> Scenes:
    """`count` scenes of each (width, height) in pixels, with crops of faces.

    Faces are drawn and refused as by calibration.choose; their order does not matter.
    """
    chosen, random = calibration.choose(faces, SIDE, seed=seed), np.random.default_rng(seed)

    def of(size: tuple[int, int]) -> Picture:
        crops = chosen.crops[random.integers(len(chosen.crops), size=random.integers(1, MOST_FACES + 1))]
        sides = np.exp(random.uniform(math.log(LEAST), math.log(min(size)), len(crops))).astype(int)
        return scene(crops, sides.tolist(), size, random)[0]

    return Scenes(tuple(of(size) for _ in range(count) for size in sizes), chosen.images)


def scene(
    crops: Sequence[Picture] | Picture, sides: Sequence[int], size: tuple[int, int], random: np.random.Generator
) -> tuple[Picture, list[Rect]]:
    """A picture (height, width, 3) uint8 RGB with each crop (S, S, 3) at a place drawn at random, and where they lie.

    sides: of the crops in the picture, in pixels. A crop that finds no place beside those before it is left out.
    """
    picture, rects = background(size, random), list[Rect]()
    for crop, side in zip(crops, sides, strict=True):
        for _ in range(TRIES):
            left, top = (int(random.integers(0, length - side + 1)) for length in size)
            rect = Rect(left, top, left + side, top + side)
            if not any(_touch(rect, other) for other in rects):
                picture[rect.top : rect.bottom, rect.left : rect.right] = _scaled(crop, side)
                rects.append(rect)
                break
    return picture, rects


def background(size: tuple[int, int], random: np.random.Generator) -> Picture:
    """Colours that flow into each other, with a camera's noise: nothing in it is like a face."""
    import cv2

    colours = random.integers(0, 256, (*CELLS[::-1], 3), dtype=np.uint8)
    smooth = cv2.resize(colours, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    noise = random.standard_normal(smooth.shape, np.float32) * np.float32(NOISE)
    return np.asarray(np.rint(smooth + noise).clip(0, 255), dtype=np.uint8)


def _scaled(crop: Picture, side: int) -> Picture:
    import cv2

    how = cv2.INTER_AREA if side < len(crop) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, (side, side), interpolation=how), dtype=np.uint8)


def _touch(one: Rect, other: Rect) -> bool:
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom
