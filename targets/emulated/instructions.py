"""Instructions: the cost of an emulated frame. They say nothing about time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Instructions. total: all. simd: SIMD and floating-point arithmetic. memory: loads and stores."""

    total: int
    simd: int
    memory: int

    def __add__(self, other: Count) -> Count:
        return Count(self.total + other.total, self.simd + other.simd, self.memory + other.memory)

    def __sub__(self, other: Count) -> Count:
        return Count(self.total - other.total, self.simd - other.simd, self.memory - other.memory)


@dataclass(frozen=True)
class Instructions:
    """Instructions per frame on one thread: the median over frames for each stage (protocol.STAGES).

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
        """The sum of all stages."""
        return sum(self.stages.values(), Count(0, 0, 0))


@dataclass(frozen=True)
class ChainInstructions:
    """Instructions by stage (protocol.CHAIN) of a frame in which faces were tracked, and of one they were detected in.

    Others as in Instructions.
    """

    cpu: str
    version: str
    tracked: Mapping[str, Count]
    detecting: Mapping[str, Count]
