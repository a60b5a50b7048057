"""How a picture of any size becomes a detector's input, and the boxes that it finds boxes in the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.detect.boxes import Faces
from pipnet_edge.detect.decode import BoxMaps, decode
from pipnet_edge.detect.spec import Sized
from pipnet_edge.preprocess import check_pixels, resized

Infer = Callable[[NDArray[np.uint8]], BoxMaps]


@dataclass(frozen=True)
class Fit:
    """A picture as large as fits into an input, its sides in proportion, at the input's top left.

    picture, inside and size: (width, height) in pixels, of the picture, of the picture in the input, of the input.
    """

    picture: tuple[int, int]
    inside: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, picture: tuple[int, int], size: tuple[int, int]) -> Fit:
        """Smaller pictures are enlarged: detectors find large faces."""
        scale = min(size[0] / picture[0], size[1] / picture[1])
        width, height = (max(1, round(side * scale)) for side in picture)
        return cls(picture, (min(width, size[0]), min(height, size[1])), size)

    def input(self, picture: NDArray[np.uint8], mean: tuple[float, float, float]) -> NDArray[np.uint8]:
        """The picture (H, W, 3) uint8 RGB as input (height, width, 3).

        The rest has the mean colour: zeros for the network, as beyond its borders. A reflection would have faces.
        """
        (width, height), (wide, high) = self.inside, self.size
        found = np.empty((high, wide, 3), np.uint8)
        found[:height, :width] = resized(picture, width, height)
        fill = np.rint(np.array(mean) * 255).astype(np.uint8)
        found[height:], found[:height, width:] = fill, fill
        return found

    def to_picture(self, faces: Faces) -> Faces:
        """Boxes in the input as boxes in the picture, without those that do not touch it."""
        # In this order the input's corners become just the picture's.
        boxes = faces.boxes * np.tile(self.picture, 2) / np.tile(self.inside, 2)
        touch = (boxes[:, :2] < self.picture).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] > 0).all(axis=1)
        return Faces(boxes, faces.scores)[np.flatnonzero(touch)]


def find(picture: NDArray[np.uint8], infer: Infer, sized: Sized, threshold: float | None = None) -> Faces:
    """The faces in a picture (H, W, 3) uint8 RGB, boxes in its pixels.

    infer, such as a session's `run`, gets an input of that size, (height, width, 3) uint8 RGB. threshold: another than
    the spec's. Raises EdgeError for what is no picture and no threshold.
    """
    check_pixels("picture", picture)
    fit = Fit.of((picture.shape[1], picture.shape[0]), sized.size)
    return fit.to_picture(decode(infer(fit.input(picture, sized.mean)), sized, threshold))
