"""Speed of variants on this machine, from every sample the worker's timing loop took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.targets import local

# At least so many frames and so long, after the warm-up: enough for a median, not for a tail.
WARMUP, SECONDS, COUNT = 8, 1.0, 30


@dataclass(frozen=True)
class Timing:
    """One variant's samples in ms, in the order taken: inference (crop to maps) and decode (maps to landmarks)."""

    variant: str
    threads: int
    load: float
    inference: tuple[float, ...]
    decode: tuple[float, ...]

    def frame(self, quantile: float) -> float:
        """A quantile in [0, 1] of inference plus decode, in milliseconds."""
        return float(np.quantile(np.add(self.inference, self.decode), quantile))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kind": "measured", "p50": self.frame(0.5), "p90": self.frame(0.9)}


def measure(bundle: Path, variant: str, threads: int, crops: NDArray[np.uint8]) -> Timing:
    """Times one variant over crops (n, S, S, 3) uint8 RGB in its own worker. Raises EdgeError when it cannot run."""
    done = local.measure(bundle, variant, threads, crops, WARMUP, SECONDS, COUNT)
    return Timing(variant, threads, done["loaded"]["milliseconds"], tuple(done["inference"]), tuple(done["decode"]))
