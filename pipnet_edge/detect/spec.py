"""One frozen value that describes a face detector of the SSD family: all that decoding its maps needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import LARGEST_INPUT, check_normalization
from pipnet_edge.words import joined

STRIDES = (8, 16, 32, 64, 128)
MOST_KINDS = 8  # of priors at one level
DENSEST = 8
MOST_PRIORS = 500_000  # about those of a picture of 4096 x 4096 pixels
LARGEST_MARGIN = 2.0


@dataclass(frozen=True)
class Prior:
    """Boxes that a network starts from: squares of `size` pixels, density x density of them in each cell.

    Their centres divide the cell's sides evenly, from its top left corner. A single one is in the cell's middle.
    """

    size: int
    density: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST_INPUT:
            raise EdgeError(f"priors of {self.size} pixels; allowed: 1 to {LARGEST_INPUT}")
        if not 1 <= self.density <= DENSEST:
            raise EdgeError(f"priors of density {self.density}; allowed: 1 to {DENSEST}")

    @property
    def offsets(self) -> tuple[float, ...]:
        """Where the centres lie along a cell's side, in cells."""
        return tuple(i / self.density for i in range(self.density)) if self.density > 1 else (0.5,)


@dataclass(frozen=True)
class Level:
    """A pair of maps, which have a cell for every stride x stride pixels, and what lies in each cell, in order."""

    stride: int
    priors: tuple[Prior, ...]

    def __post_init__(self) -> None:
        if self.stride not in STRIDES:
            raise EdgeError(f"detector stride {self.stride}; allowed: {', '.join(map(str, STRIDES))}")
        if not 1 <= len(self.priors) <= MOST_KINDS:
            raise EdgeError(f"{len(self.priors)} kinds of priors at stride {self.stride}; allowed: 1 to {MOST_KINDS}")

    @property
    def in_cell(self) -> int:
        """Priors in one cell."""
        return sum(prior.density**2 for prior in self.priors)

    def cells(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of its maps for a picture of this size; cells at the right and bottom may reach over it."""
        return -(-height // self.stride), -(-width // self.stride)


@dataclass(frozen=True)
class Margins:
    """What lies between a detector's box and the box about the landmarks: shares of its width and height.

    Positive where the landmarks' box is the larger one.
    """

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        given = joined((self.left, self.top, self.right, self.bottom))
        if not all(abs(share) <= LARGEST_MARGIN for share in (self.left, self.top, self.right, self.bottom)):
            raise EdgeError(f"margins {given}; four numbers from {-LARGEST_MARGIN:g} to {LARGEST_MARGIN:g} are needed")
        if self.left + self.right <= -1 or self.top + self.bottom <= -1:
            raise EdgeError(f"margins {given} leave nothing of a box; sums above -1 are needed")


@dataclass(frozen=True)
class DetectorSpec:
    """A trained detector's shape and conventions. Contradictions are refused when it is built (EdgeError).

    levels: from the finest stride to the coarsest. variances: what centres and sizes in the maps are multiplied with.
    mean and std are per RGB channel, in [0, 1] as in ModelSpec. threshold: a face's score is above it. overlap: of two
    boxes whose intersection is this share of their union, or more, the better one stays. input_sizes: (width, height)
    in pixels, the usual one first. margins turn its boxes into those that crop policies are for.
    """

    detector: str
    levels: tuple[Level, ...]
    variances: tuple[float, float]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    threshold: float
    overlap: float
    input_sizes: tuple[tuple[int, int], ...]
    margins: Margins

    def __post_init__(self) -> None:
        strides = [level.stride for level in self.levels]
        if not strides or strides != sorted(set(strides)):
            raise EdgeError(f"detector strides {joined(strides) or 'none'}; rising ones are needed, at least one")
        if len(self.variances) != 2 or not all(0 < variance <= 1 for variance in self.variances):
            raise EdgeError(f"variances {joined(self.variances)}; two numbers above 0 and up to 1 are needed")
        check_normalization("mean", self.mean)
        check_normalization("std", self.std)
        check_threshold(self.threshold)
        if not 0 < self.overlap <= 1:
            raise EdgeError(f"overlap {self.overlap:g}; a number above 0 and up to 1 is needed")
        if not self.input_sizes or len(set(self.input_sizes)) < len(self.input_sizes):
            raise EdgeError(
                f"input sizes {', '.join(map(named, self.input_sizes)) or 'none'}; at least one is needed, each once"
            )
        for width, height in self.input_sizes:
            self.check_size(width, height)

    def check_size(self, width: int, height: int) -> None:
        """Raises EdgeError if the network cannot take pictures of this size in pixels."""
        least = self.levels[-1].stride
        if not least <= min(width, height) <= max(width, height) <= LARGEST_INPUT:
            raise EdgeError(f"input size {width}x{height}; sides of {least} to {LARGEST_INPUT} pixels are needed")
        count = self.count(width, height)
        if count > MOST_PRIORS:
            raise EdgeError(f"{count} priors in {width}x{height} pixels; allowed: {MOST_PRIORS}")

    def count(self, width: int, height: int) -> int:
        """Priors in a picture of this size."""
        return sum(math.prod(level.cells(width, height)) * level.in_cell for level in self.levels)

    def at(self, size: tuple[int, int] | None = None) -> Sized:
        """The detector for pictures of this (width, height), else of the usual size."""
        return Sized(self, size or self.input_sizes[0])

    @property
    def map_names(self) -> tuple[str, ...]:
        """The network's outputs, in order: for each level where the boxes lie, and how much they are faces."""
        return tuple(f"{kind}_{level.stride}" for level in self.levels for kind in ("box", "score"))


@dataclass(frozen=True)
class Sized:
    """A detector for pictures of one size: (width, height) in pixels. Raises EdgeError if it cannot be of that size."""

    spec: DetectorSpec
    size: tuple[int, int]

    def __post_init__(self) -> None:
        self.spec.check_size(*self.size)

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.spec.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.spec.std

    def renormalised(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Self:
        return replace(self, spec=replace(self.spec, mean=mean, std=std))

    @property
    def map_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(channels, rows, columns) of each output, in order.

        Channels are prior * 4 + (x, y, width, height) in a box map, prior * 2 + (background, face) in a score map.
        """
        shapes = ((n * level.in_cell, *level.cells(*self.size)) for level in self.spec.levels for n in (4, 2))
        return dict(zip(self.spec.map_names, shapes, strict=True))


def check_threshold(threshold: float) -> None:
    """Raises EdgeError unless it can be a score."""
    if not 0 <= threshold <= 1:
        raise EdgeError(f"threshold {threshold:g}; a number from 0 to 1 is needed")


def named(size: tuple[int, int]) -> str:
    """ "640x480"."""
    return f"{size[0]}x{size[1]}"
