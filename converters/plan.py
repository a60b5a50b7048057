"""What to make of a checkpoint, and with what. It does not import torch: nobody has to wait to see a typing error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import runtimes
from pipnet_edge.bundle import Bundle, Parity
from pipnet_edge.converters.quantize.budget import Budget
from pipnet_edge.converters.quantize.calibration import Face
from pipnet_edge.decode import Landmarks
from pipnet_edge.errors import EdgeError
from pipnet_edge.precisions import PRECISIONS

# Gets how many faces are done, and of how many.
Count = Callable[[int, int], None]
Verify = Callable[[Bundle], Mapping[str, Parity | EdgeError]]
# Gets a variant's name, and why the bundle will not have it.
Lost = Callable[[str, EdgeError], None]
# Gets a bundle, a variant's name, crops, the float network's landmarks for them, and labels (n, L, 2) or None; returns
# drift as "px" and, with labels, "nme" (see budget.Budget), and the milliseconds a crop takes as "ms".
Judge = Callable[[Bundle, str, NDArray[np.uint8], Landmarks, NDArray[np.float64] | None, Count], Mapping[str, float]]


def raised(name: str, error: EdgeError) -> None:
    """A Lost: no variant may be lost."""
    raise EdgeError(f"{name}: {error}", error.code) from error


class Step(Protocol):
    """Gets what is done now, how many steps are done and of how many, and how far this one is: "9 of 99 faces"."""

    def __call__(self, what: str, done: int, total: int, part: str = "", /) -> None: ...


# sparse: offset heads are evaluated only at winning cells, by decode or, if a runtime can, inside the model.
HEADS = ("sparse", "dense")


@dataclass(frozen=True)
class Plan:
    """Which variants to make: destinations and precisions; combinations that a runtime does not have are left out.

    heads is one of HEADS; None: sparse where the network can be split, else dense. Raises EdgeError for unknown names
    and when no combination is left.
    """

    destinations: tuple[str, ...]
    precisions: tuple[str, ...]
    heads: str | None = None

    def __post_init__(self) -> None:
        for name, given, allowed in (
            ("--to", self.destinations, set(runtimes.DESTINATIONS)),
            ("--precision", self.precisions, set(PRECISIONS)),
        ):
            unknown = [word for word in given if word not in allowed]
            if unknown or not given:
                raise EdgeError(
                    f"{name} {', '.join(unknown) or 'names nothing'}; allowed: {', '.join(sorted(allowed))}"
                )
        if self.heads not in (None, *HEADS):
            raise EdgeError(f"--heads {self.heads}; allowed: {', '.join(HEADS)}")
        if not self.variants:
            raise EdgeError(f"{', '.join(self.destinations)} has no {', '.join(self.precisions)} variant")

    @property
    def variants(self) -> tuple[tuple[str, str], ...]:
        """(destination, precision) pairs, in the order given."""
        return tuple(
            (destination, precision)
            for destination in dict.fromkeys(self.destinations)
            for precision in dict.fromkeys(self.precisions)
            if precision in runtimes.RUNTIMES[destination].precisions
        )

    @property
    def quantizes(self) -> bool:
        """Whether one of the variants is quantized, which needs calibration faces."""
        return any(PRECISIONS[precision].is_quantized for _, precision in self.variants)

    @property
    def is_sparse(self) -> bool:
        """Whether offset heads are evaluated only at winning cells, if a precision allows it."""
        return self.heads == "sparse"


@dataclass(frozen=True)
class Quantize:
    """What quantized variants are made with.

    faces: the calibration faces, with their labels (L, 2), normalised to the crop, if they have any; count of them are
    drawn with the seed. ranges: how activations are clipped (ranges.METHODS); rounding: how weights are rounded
    (prepare.ROUNDINGS). budget: the most drift that a variant may have, measured by the judge. Raises EdgeError for a
    budget without a judge.
    """

    faces: Mapping[Face, NDArray[np.float64] | None]
    count: int = 256
    seed: int = 0
    ranges: str = "mse"
    rounding: str = "sequential"
    budget: Budget | None = None
    judge: Judge | None = None

    def __post_init__(self) -> None:
        if self.budget and not self.judge:
            raise EdgeError(f"a budget of {self.budget} needs a judge of how far variants drift")
