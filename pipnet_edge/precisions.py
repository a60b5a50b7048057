"""The one table that says what each precision means. The rows in runtimes/ say which runtimes have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """The most that a precision may cost, over all landmarks and images.

    px_mean, px_max: mean and largest landmark difference in pixels of the crop. flips: the share of landmarks whose
    winning cell may change.
    """

    px_mean: float
    px_max: float
    flips: float

    def broken(self, px_mean: float, px_max: float, flips: float) -> list[str]:
        """What is over the limit, with the limit. NaN is over every limit."""
        values = (
            (px_mean, self.px_mean, "px between landmarks on average"),
            (px_max, self.px_max, "px at the worst landmark"),
            (flips, self.flips, "of the landmarks in another cell"),
        )
        return [f"{value:.3g} {what} (limit {most:g})" for value, most, what in values if not value <= most]


@dataclass(frozen=True)
class FacesLimit:
    """The most that a precision may cost a face detector, over all pictures.

    maps: the largest difference in a map, as a share of the map's magnitude. changed: the share of the float network's
    faces that may be lost, and that may be new. overlap: the least mean intersection over union of the same faces.
    """

    maps: float
    changed: float
    overlap: float

    def broken(self, maps: float, lost: float, new: float, overlap: float) -> list[str]:
        """What is over the limit, with the limit. NaN is over every limit."""
        values = (
            (maps, self.maps, "of a map's magnitude"),
            (lost, self.changed, "of the faces lost"),
            (new, self.changed, "of so many new"),
        )
        said = [f"{value:.3g} {what} (limit {most:g})" for value, most, what in values if not value <= most]
        return said if overlap >= self.overlap else [*said, f"overlap {overlap:.3f} (limit {self.overlap:g})"]


# fp16 keeps 11 bits. Half-precision weights move the landmarks of a trained MobileNetV2 by 0.02 px on average, and
# half-precision arithmetic as well (ncnn on a Cortex-A76) moves them by 0.10. If two cells almost tie, the winner can
# change, and its landmark and the neighbours move by pixels. So the mean and the share of such flips are the real
# limits, and the limit of the worst landmark is loose. fp32 has no such excuse.
SINGLE, HALF = Limit(0.01, 0.05, 0.0), Limit(0.25, 8.0, 0.02)
# `drift` measures what a quantized variant costs; this limit only checks that it is the same network. A trained
# network with weights rounded to nearest reaches 1.1 px and 4 % flips.
INTEGER = Limit(3.0, math.inf, 0.15)
# The same for detectors. Few faces are in golden pictures, and one of them may lie at the threshold.
SINGLE_FACES, HALF_FACES = FacesLimit(1e-4, 0.0, 0.999), FacesLimit(0.05, 0.05, 0.98)
INTEGER_FACES = FacesLimit(math.inf, 0.1, 0.9)


@dataclass(frozen=True)
class Precision:
    """What one precision means.

    name: as in --precision and in variant names.
    weights: the type that stores them, "fp32", "fp16" or "int8".
    weight_bytes: the bytes of one stored weight.
    computes: the type of its arithmetic, if the runtime and the CPU have it (see runtimes.arithmetic).
    limit: the most that parity allows.
    predicted_as: the precision whose published speeds predict it; None if no published speeds are similar.
    """

    name: str
    weights: str
    weight_bytes: int
    computes: str
    limit: Limit
    predicted_as: str | None

    @property
    def faces(self) -> FacesLimit:
        """The most that parity allows a face detector."""
        return INTEGER_FACES if self.is_quantized else HALF_FACES if self.is_half else SINGLE_FACES

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
        """Whether weights are stored small and become float when they are loaded."""
        return self.computes == "fp32" != self.weights


PRECISIONS: Mapping[str, Precision] = {
    row.name: row
    for row in (
        Precision("fp32", weights="fp32", weight_bytes=4, computes="fp32", limit=SINGLE, predicted_as="fp32"),
        Precision("fp16", weights="fp16", weight_bytes=2, computes="fp16", limit=HALF, predicted_as="fp16"),
        Precision("int8", weights="int8", weight_bytes=1, computes="int8", limit=INTEGER, predicted_as="int8"),
        # It stores more layers in int8; targets/predicted/cost.py takes that from the variant.
        Precision("int8-full", weights="int8", weight_bytes=1, computes="int8", limit=INTEGER, predicted_as="int8"),
        Precision("int16x8", weights="int8", weight_bytes=1, computes="int16x8", limit=INTEGER, predicted_as=None),
        Precision("w8", weights="int8", weight_bytes=1, computes="fp32", limit=INTEGER, predicted_as="fp32"),
    )
}
