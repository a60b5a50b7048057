"""Where frames come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """One picture of a source: (H, W, 3) uint8 RGB, and its time in seconds since the source's first.

    index: 0, 1, 2 … of the frames that the source gave; of a live source some are passed over, and theirs are missing.
    """

    picture: NDArray[np.uint8]
    time: float
    index: int
