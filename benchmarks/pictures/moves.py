"""A face that a camera sees moving, generated: its crop pasted into a still background, with its true landmarks.

Everything follows from the seeds, so two programs can be held against each other on the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Points = NDArray[np.float64]

FPS, NOISE = 30, 4.0  # frames a second; the standard deviation of a camera's noise, in grey levels


@dataclass(frozen=True)
class Pose:
    """Where a face's crop lies in a picture: its middle and the length of its side in pixels, turned by radians."""

    x: float
    y: float
    side: float
    turned: float = 0.0

    def to_picture(self, points: Points) -> Points:
        """Landmarks (..., 2) normalised to the crop as pixels of the picture."""
        right, below = self._steps()
        return points[..., :1] * right + points[..., 1:] * below + self._corner()

    def _steps(self) -> tuple[Points, Points]:
        """The crop's upper and left edges, as vectors in pixels of the picture."""
        cos, sin = self.side * math.cos(self.turned), self.side * math.sin(self.turned)
        return np.array([cos, sin]), np.array([-sin, cos])

    def _corner(self) -> Points:
        right, below = self._steps()
        return np.array([self.x, self.y]) - (right + below) / 2

    def matrix(self, side: int) -> Points:
        """(2, 3), from the middles of the pixels of a side x side crop to those of the picture."""
        right, below = (step / side for step in self._steps())
        return np.stack([right, below, self._corner() + (right + below) / 2 - 0.5], axis=1)


def _swing(time: float, rate: float) -> float:
    return math.sin(2 * math.pi * rate * time)


# Name -> where the face is at a time in seconds, in 640 x 480 pixels. A face is about 200 pixels wide.
MOVES: dict[str, Callable[[float], Pose]] = {
    "still": lambda t: Pose(320, 240, 240),
    "slow": lambda t: Pose(
        320 + 60 * _swing(t, 0.2),
        240 + 20 * _swing(t, 0.3),
        240 * 1.08 ** _swing(t, 0.25),
        math.radians(6) * _swing(t, 0.25),
    ),
    "fast": lambda t: Pose(
        320 + 120 * _swing(t, 0.8),
        240 + 30 * _swing(t, 1.1),
        240 * 1.25 ** _swing(t, 0.7),
        math.radians(20) * _swing(t, 0.9),
    ),
    "roll": lambda t: Pose(320, 240, 240, math.radians(90) * min(t / 2, 1)),
}


def background(seed: int, width: int = 640, height: int = 480) -> Picture:
    """(height, width, 3) uint8: colours that flow into each other, in which nothing is like a face."""
    import cv2

    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def pasted(picture: Picture, crop: Picture, pose: Pose) -> Picture:
    """A copy of a picture with a square crop in it."""
    import cv2

    size = picture.shape[1], picture.shape[0]
    matrix = pose.matrix(len(crop))
    face = cv2.warpAffine(crop, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    corners = pose.to_picture(np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)) - 0.5
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.rint(corners).astype(np.int32), 1)
    return np.where(mask[..., None] == 1, face, picture).astype(np.uint8)


def noisy(picture: Picture, random: np.random.Generator) -> Picture:
    """A picture with a camera's noise."""
    noise = random.standard_normal(picture.shape, np.float32) * np.float32(NOISE)
    return np.rint(picture + noise).clip(0, 255).astype(np.uint8)


def clip(move: str, crop: Picture, frames: int, seed: int) -> Iterator[tuple[float, Picture, Pose]]:
    """The frames of a move: time in seconds, (480, 640, 3) uint8 RGB, and where the (S, S, 3) crop lies in it."""
    random, behind = np.random.default_rng(seed), background(seed)
    for index in range(frames):
        pose = MOVES[move](index / FPS)
        yield index / FPS, noisy(pasted(behind, crop, pose), random), pose
