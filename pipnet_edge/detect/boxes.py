"""Boxes of faces: what a detector finds, and how those that mean the same face become one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.detect.spec import Margins
from pipnet_edge.preprocess import Box

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """A face that a detector found: the box that would hold its landmarks, x, y, width, height in pixels."""

    box: Box
    score: float


@dataclass(frozen=True, eq=False)
class Faces:
    """Faces in a picture, the best score first.

    boxes: (n, 4) x, y, width, height in pixels; parts may lie outside of the picture. scores: (n,) from 0 to 1.
    """

    boxes: Floats
    scores: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: NDArray[np.intp]) -> Faces:
        return Faces(self.boxes[chosen], self.scores[chosen])

    def landmark_boxes(self, margins: Margins) -> Floats:
        """The boxes (n, 4) that the faces' landmarks should fill, as crop_rect takes them."""
        x, y, w, h = self.boxes.T
        wide, high = 1 + margins.left + margins.right, 1 + margins.top + margins.bottom
        return np.stack([x - w * margins.left, y - h * margins.top, w * wide, h * high], axis=1)

    def found(self, margins: Margins) -> tuple[Found, ...]:
        """Each face with the box that its landmarks should fill."""
        rows = zip(self.landmark_boxes(margins).tolist(), self.scores.tolist(), strict=True)
        return tuple(Found((x, y, w, h), score) for (x, y, w, h), score in rows)


def best(faces: Faces, most: int) -> Faces:
    """So many faces of the highest scores, in falling order; of equal ones, the first."""
    return faces[np.argsort(-faces.scores, kind="stable")[:most]]


def overlaps(box: Floats, boxes: Floats) -> Floats:
    """Intersection over union of a box (4,) with each of (n, 4).

    As the reference does it, sides count the pixels at both ends: they are longer by one.
    """
    x, y, w, h = boxes.T
    across = np.minimum(box[0] + box[2], x + w) - np.maximum(box[0], x) + 1
    down = np.minimum(box[1] + box[3], y + h) - np.maximum(box[1], y) + 1
    both = np.maximum(across, 0) * np.maximum(down, 0)
    return np.asarray(both / ((box[2] + 1) * (box[3] + 1) + (w + 1) * (h + 1) - both))


def without_doubles(faces: Faces, overlap: float, most: int) -> Faces:
    """Greedy non-maximum suppression: from the best face on, each takes away those that overlap it so much or more.

    faces: in falling order of scores. Ends when it has kept `most`.
    """
    left, kept = np.arange(len(faces)), list[int]()
    while len(left) and len(kept) < most:
        first, others = int(left[0]), left[1:]
        kept.append(first)
        left = others[overlaps(faces.boxes[first], faces.boxes[others]) < overlap]
    return faces[np.array(kept, np.intp)]
