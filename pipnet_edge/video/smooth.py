"""Landmarks without the jitter of single frames: the One-Euro filter (Casiez and others, 2012) over a whole face.

A point that rests is smoothed much, one that moves little. Speeds are in face sizes a second, as in MediaPipe's Face
Landmarker, so that a face counts alike whether it is near or far. But where MediaPipe filters x and y each by its own
speed, a point here has one: at the turn of a movement one of the two rests, and would stay behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Cutoff = TypeVar("Cutoff", float, Points)

# The cutoff of a resting point and of the speed, in Hz, and how much of a cutoff a speed adds.
REST, SPEED, BETA = 0.05, 1.0, 60.0


@dataclass(frozen=True)
class Smoothed:
    """A face at one time, in seconds. points and raw: (L, 2) in pixels; speed: (L, 2), smoothed, in faces a second."""

    points: Points
    raw: Points
    speed: Points
    time: float


def smooth(before: Smoothed | None, raw: Points, time: float) -> Smoothed:
    """The next of a face's Smoothed: raw landmarks (L, 2) in pixels at a time in seconds.

    Begins anew, with the raw landmarks, where there was none before and where time has not gone on.
    """
    passed = time - before.time if before else 0.0
    if before is None or passed <= 0:
        return Smoothed(raw, raw, np.zeros_like(raw), time)
    # A face has some extent, unless all of its landmarks are one point.
    width, height = (np.maximum.reduce(raw) - np.minimum.reduce(raw)).tolist()
    size = max((width + height) / 2, 1e-6)
    speed = before.speed + _share(SPEED, passed) * ((raw - before.raw) / (size * passed) - before.speed)
    share = _share(REST + BETA * np.hypot(speed[:, :1], speed[:, 1:]), passed)
    return Smoothed(before.points + share * (raw - before.points), raw, speed, time)


def _share(cutoff: Cutoff, passed: float) -> Cutoff:
    """How much a new value counts in a low-pass filter of this cutoff in Hz, after so many seconds."""
    ratio = 2 * math.pi * passed * cutoff
    return ratio / (1 + ratio)
