"""The faces that an int8 conversion looks at: drawn, cut as in inference, and hashed to be recognised later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.files import file_sha256
from pipnet_edge.preprocess import Rect, cut, read_picture

COUNT = 256
LEAST = 16
HELD = 64
# So many faces are needed for some of them to be a jury: a fifth of these are as many as calibration needs.
JUDGED = 5 * LEAST
# A crop shows nothing if each of its channels spans fewer grey levels than this: the rest is a camera's noise.
CONTRAST = 8


# An image, and the rectangle to cut from it: None if the image is the crop.
Face = tuple[Path, Rect | None]


@dataclass(frozen=True, eq=False)
class Calibration:
    """n faces in the order in which they were drawn, so that the first few are a fair choice too.

    crops: (n, side, side, 3) uint8 RGB. faces: where they come from. images: the sha256 of each of those files, to
    recognise them in a test set. repeated: how many crops have the same pixels as an earlier one.
    """

    crops: NDArray[np.uint8]
    faces: tuple[Face, ...]
    images: tuple[str, ...]
    repeated: int

    @property
    def pictures(self) -> NDArray[np.uint8]:
        return self.crops

    @property
    def sha256(self) -> str:
        """One hash of all pixels in their order, and of the side."""
        digest = hashlib.sha256(f"{self.crops.shape[1]} ".encode())
        for crop in self.crops:
            digest.update(crop.tobytes())
        return digest.hexdigest()


def choose(faces: Sequence[Face], side: int, count: int = COUNT, seed: int = 0) -> Calibration:
    """Draws `count` faces without replacement, all when there are fewer, and cuts them to side x side pixels.

    A face is an image and the rectangle to cut, None if the image is the crop. The draw depends on the seed and the
    paths, not on the order given. Raises EdgeError for fewer than 16 faces, for fewer than 16 that differ, and for an
    image that is unreadable, does not contain its rectangle or shows nothing: the first such image is named.
    """
    if count < LEAST:
        raise EdgeError(f"{count} calibration images; at least {LEAST} are needed")
    candidates = sorted(set(faces), key=_order)
    if len(candidates) < LEAST:
        raise EdgeError(f"{len(candidates) or 'no'} images to calibrate with; at least {LEAST} are needed")
    crops, drawn = draw(candidates, side, count, seed)
    different = len({hashlib.sha256(crop.tobytes()).digest() for crop in crops})
    if different < LEAST:
        raise EdgeError(f"{different} of {len(crops)} calibration images differ; at least {LEAST} are needed")
    images = tuple(file_sha256(path) for path, _ in drawn)
    return Calibration(crops, drawn, images, len(crops) - different)


def draw(faces: Sequence[Face], side: int, count: int, seed: int) -> tuple[NDArray[np.uint8], tuple[Face, ...]]:
    """(crops (n, side, side, 3) uint8 RGB of `count` faces, drawn and refused as by `choose`; those faces)."""
    candidates = sorted(set(faces), key=_order)
    drawn = [candidates[i] for i in np.random.default_rng(seed).permutation(len(candidates))[:count]]
    crops = np.empty((len(drawn), side, side, 3), np.uint8)
    for crop, (path, rect) in zip(crops, drawn, strict=True):
        crop[:] = _crop(path, rect, side)
    _check_contrast(crops, [path for path, _ in drawn])
    return crops, tuple(drawn)


def split(faces: Sequence[Face], count: int, seed: int) -> tuple[list[Face], list[Face]]:
    """(faces from which `choose` draws `count` to calibrate with, others to judge the result by, 64 at most).

    What calibration leaves over judges. If that is fewer than 16, a fifth of all judges and is not calibrated with.
    Raises EdgeError for fewer than 80 faces.
    """
    candidates = sorted(set(faces), key=_order)
    if len(candidates) < JUDGED:
        raise EdgeError(f"{len(candidates)} faces; a budget needs at least {JUDGED}, a fifth of them to judge by")
    drawn = [candidates[i] for i in np.random.default_rng(seed).permutation(len(candidates))]
    if len(drawn) - count >= LEAST:
        return drawn, drawn[count:][:HELD]
    held = min(HELD, len(drawn) // 5)
    return drawn[held:], drawn[:held]


def _order(face: Face) -> tuple[str, tuple[int, ...]]:
    path, rect = face
    return path.as_posix(), (rect.left, rect.top, rect.right, rect.bottom) if rect else ()


def _crop(path: Path, rect: Rect | None, side: int) -> NDArray[np.uint8]:
    picture = read_picture(path)
    height, width = picture.shape[:2]
    rect = rect or Rect.whole(picture)
    if not (0 <= rect.left < rect.right <= width and 0 <= rect.top < rect.bottom <= height):
        corners = f"{rect.left},{rect.top} to {rect.right},{rect.bottom}"
        raise EdgeError(f"{path} has {width}x{height} pixels; its face, {corners}, lies outside")
    return cut(picture, rect, side)


def _check_contrast(crops: NDArray[np.uint8], paths: Sequence[Path]) -> None:
    blank = [path for crop, path in zip(crops, paths, strict=True) if np.ptp(crop, axis=(0, 1)).max() < CONTRAST]
    if blank:
        more = f" (as do {len(blank) - 1} more of {len(crops)} calibration images)" if len(blank) > 1 else ""
        raise EdgeError(f"{blank[0]} shows nothing but one colour{more}; faces are needed")
