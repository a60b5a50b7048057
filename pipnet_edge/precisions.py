"""What a precision means: the one table. Which runtimes have it is told by their rows, in runtimes/."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """What a precision may cost over all landmarks and images.

    px_mean, px_max: mean and largest landmark difference in pixels of the crop. flips: the share of landmarks whose
    winning cell may change.
    """

    px_mean: float
    px_max: float
    flips: float


# fp16 keeps 11 bits: with half-precision weights landmarks of a trained MobileNetV2 move by 0.02 px on average, with
# half-precision arithmetic too (ncnn on a Cortex-A76) by 0.10. Where two cells are close to a tie the winner changes
# and moves its landmark and their neighbours by pixels; so the mean and the share of such flips are what holds, and
# the worst landmark is bounded loosely. fp32 has no such excuse.
SINGLE, HALF = Limit(0.01, 0.05, 0.0), Limit(0.25, 8.0, 0.02)
# What a quantized variant costs is for `drift` to measure; here it only has to be the same network. A trained one, with
# weights rounded to nearest, comes to 1.1 px and 4 % flips.
INTEGER = Limit(3.0, math.inf, 0.15)


@dataclass(frozen=True)
class Precision:
    """What one precision means.

    name: as in --precision and in variant names.
    weights: what they are stored in, "fp32", "fp16" or "int8".
    weight_bytes: how many a stored weight takes.
    computes: what its arithmetic is done in, where runtime and CPU have that (see runtimes.arithmetic).
    limit: what parity allows it.
    predicted_as: the precision whose published speeds predict it; None where there are none alike.
    """

    name: str
    weights: str
    weight_bytes: int
    computes: str
    limit: Limit
    predicted_as: str | None

    @property
    def is_quantized(self) -> bool:
        """Whether weights are rounded to integers, by the recipe of the same name."""
        return self.weights == "int8"

    @property
    def is_half(self) -> bool:
        """Whether a runtime is asked for half-precision arithmetic."""
        return self.computes == "fp16"

    @property
    def widens(self) -> bool:
        """Whether small weights are made float when they are loaded."""
        return self.computes == "fp32" != self.weights


PRECISIONS: Mapping[str, Precision] = {
    row.name: row
    for row in (
        Precision("fp32", weights="fp32", weight_bytes=4, computes="fp32", limit=SINGLE, predicted_as="fp32"),
        Precision("fp16", weights="fp16", weight_bytes=2, computes="fp16", limit=HALF, predicted_as="fp16"),
        Precision("int8", weights="int8", weight_bytes=1, computes="int8", limit=INTEGER, predicted_as="int8"),
        # What else it stores in int8, the cost of its layers knows.
        Precision("int8-full", weights="int8", weight_bytes=1, computes="int8", limit=INTEGER, predicted_as="int8"),
        Precision("int16x8", weights="int8", weight_bytes=1, computes="int16x8", limit=INTEGER, predicted_as=None),
        Precision("w8", weights="int8", weight_bytes=1, computes="fp32", limit=INTEGER, predicted_as="fp32"),
    )
}
