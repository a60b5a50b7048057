"""What calibration saw, told by the features before the heads, and whether other faces are like that.

Of every channel, what counts is its mean over all cells. A face lies outside if more channels leave the range that they
had over the calibration faces than leave it for a face that was itself left out of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError

Array = NDArray[np.float32]

# So many faces like those of calibration lie outside, by definition of the limit.
USUAL = 0.2
# Ranges over fewer faces are so narrow that chance decides.
LEAST = 32
# Runtimes round differently: a channel leaves its range by more than this share of its largest value.
MARGIN = 1e-3


@dataclass(frozen=True, eq=False)
class Domain:
    """low, high: (C,) float32, the range of each channel. limit: a face with a larger share of channels out is outside.

    Raises EdgeError for numbers that are no ranges, or no share.
    """

    low: Array
    high: Array
    limit: float

    def __post_init__(self) -> None:
        # Written so that NaN is refused.
        is_range = np.isfinite([self.low, self.high]).all() and (self.low <= self.high).all()
        if not (is_range and 0 <= self.limit <= 1):
            raise EdgeError("the ranges of features over calibration faces are NaN, infinite or empty")

    @staticmethod
    def of(means: Array) -> Domain:
        """The domain of at least LEAST faces, from what `means` gives for each: (n, C)."""
        ordered = np.sort(means, axis=0)
        margin = np.float32(MARGIN) * np.maximum(np.abs(ordered[0]), np.abs(ordered[-1]))
        # If the face with the lowest value is left out, the next one is the lowest.
        low = np.where(means == ordered[0], ordered[1], ordered[0]) - margin
        high = np.where(means == ordered[-1], ordered[-2], ordered[-1]) + margin
        limit = np.quantile(_outside(means, low, high), 1 - USUAL)
        return Domain(ordered[0] - margin, ordered[-1] + margin, float(limit))

    def are_outside(self, given: Array) -> NDArray[np.bool_]:
        """Whether each face lies outside, from what `means` gives for each: (n, C). Raises EdgeError for another C."""
        if given.shape[1:] != self.low.shape:
            raise EdgeError(f"features have {given.shape[1]} channels; their ranges in calibration {len(self.low)}")
        return _outside(given, self.low, self.high) > self.limit


def means(features: Array) -> Array:
    """The mean of each channel over all cells: ([B,] C, H, W) to ([B,] C)."""
    return np.asarray(features.mean(axis=(-2, -1), dtype=np.float64), np.float32)


def _outside(given: Array, low: Array, high: Array) -> NDArray[np.float64]:
    """The share of channels out of these ranges, of each face."""
    return np.asarray(((given < low) | (given > high)).mean(axis=1))
