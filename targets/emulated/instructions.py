"""Instructions, which are what an emulated frame costs; they say nothing about time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Instructions: all, those of SIMD and floating-point arithmetic, and those that load or store."""

    total: int
    simd: int
    memory: int

    def __add__(self, other: Count) -> Count:
        return Count(self.total + other.total, self.simd + other.simd, self.memory + other.memory)

    def __sub__(self, other: Count) -> Count:
        return Count(self.total - other.total, self.simd - other.simd, self.memory - other.memory)


@dataclass(frozen=True)
class Instructions:
    """Instructions per frame on one thread: of each stage (protocol.STAGES) the median over frames.

    cpu: qemu's name of the core. version: the runtime's name and version. spread: (largest - smallest) / median of all
    instructions of a frame.
    """

    cpu: str
    version: str
    stages: Mapping[str, Count]
    frames: int
    spread: float

    @property
    def frame(self) -> Count:
        """All stages together."""
        return sum(self.stages.values(), Count(0, 0, 0))
