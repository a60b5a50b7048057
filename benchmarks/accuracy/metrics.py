"""The loss of a variant's landmarks against the float reference: drift in pixels, cell flips and, with labels, NME.

measure() turns landmarks into a Sample with one row per image. Every metric is a function of a Sample and of how often
each image counts, so the same function gives the value (every image once) and its bootstrap (images drawn again).
The accuracy metrics follow compute_nme and compute_fr_and_auc in lib/functions.py of jhb86253817/PIPNet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.decode import Landmarks
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR, EdgeError
from pipnet_edge.spec import ModelSpec

Array = NDArray[np.float64]

RESAMPLES = 1000
CONFIDENCE = 95  # per cent
MIN_IMAGES = 10  # fewer have no interval: their bootstrap would be too narrow
THRESHOLD, STEP = 0.1, 0.0001  # of FR and AUC, as fractions of the normalising distance


@dataclass(frozen=True)
class Sample:
    """One network's landmarks beside the reference's: n images, L landmarks.

    px: (n, L) float64, distance between the two in pixels of the S x S crop. flipped: (n, L) bool, the winning cell
    differs. nme and reference_nme: (n,) float64, NME of each image against the labels as a fraction, or None.
    """

    px: Array
    flipped: NDArray[np.bool_]
    nme: Array | None = None
    reference_nme: Array | None = None

    def baseline(self) -> Sample:
        """The reference measured against itself on the same images: no drift, its own NME."""
        return replace(self, px=np.zeros_like(self.px), flipped=np.zeros_like(self.flipped), nme=self.reference_nme)

    def worst(self, count: int) -> NDArray[np.intp]:
        """Indices of the images with the largest mean drift, worst first: (min(count, n),)."""
        return np.argsort(-self.px.mean(axis=1), kind="stable")[:count]


def measure(variant: Landmarks, reference: Landmarks, spec: ModelSpec, truth: Array | None = None) -> Sample:
    """A Sample of n images from two batches of landmarks (points (n, L, 2) normalised to the crop, cell (n, L)).

    truth: (n, L, 2) ground truth normalised to the crop. An image's NME is the mean distance to it over the L landmarks
    divided by the distance of spec.mean_face.nme_pair in the truth (by 1 if the mean face has no pair).
    Raises EdgeError for other shapes, for NaN or infinity anywhere, and for truth in which the pair is one point.
    """
    given = {"variant": variant.points, "reference": reference.points} | ({} if truth is None else {"labels": truth})
    n, lms = len(reference.points), spec.num_lms
    for name, points in given.items():
        if points.shape != (n, lms, 2) or not n:
            raise EdgeError(f"{name}: landmarks of shape {points.shape}; {(n or 'images', lms, 2)} is needed")
        broken = np.flatnonzero(~np.isfinite(points).all(axis=(1, 2)))
        if len(broken):
            raise EdgeError(
                f"{name}: NaN or infinity in the landmarks of {len(broken)} of {n} images, first in image {broken[0]}",
                CHECK_FAILED if name == "variant" else USER_ERROR,
            )
    if variant.cell.shape != (n, lms) or reference.cell.shape != (n, lms):
        raise EdgeError(f"winning cells of shape {variant.cell.shape} and {reference.cell.shape}; {(n, lms)} is needed")
    px = _distance(variant.points, reference.points) * spec.input_size
    flipped = variant.cell != reference.cell
    if truth is None:
        return Sample(px, flipped)
    pair = spec.mean_face.nme_pair
    norm = np.ones(n) if pair is None else _distance(truth[:, pair[0]], truth[:, pair[1]])
    if not norm.all():
        raise EdgeError(f"labels: landmarks {pair} coincide in image {int(norm.argmin())}, so it has no NME")
    return Sample(
        px,
        flipped,
        _distance(variant.points, truth).mean(axis=1) / norm,
        _distance(reference.points, truth).mean(axis=1) / norm,
    )


def _distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
    difference = np.asarray(a, dtype=np.float64) - b
    return np.hypot(difference[..., 0], difference[..., 1])


# --- Metrics: (sample, weight) -> values. weight is (B, n): how often each image counts; every row adds up to n.


def nme(sample: Sample, weight: Array) -> Array:
    """Normalised mean error in %: 100 * mean over images of their NME."""
    return 100 * _mean(_labelled(sample), weight)


def fr(sample: Sample, weight: Array) -> Array:
    """Failure rate at 0.1 in %: share of images whose NME exceeds 0.1."""
    return 100 * _mean(_labelled(sample) > THRESHOLD, weight)


def auc(sample: Sample, weight: Array) -> Array:
    """Area under the curve of (share of images with NME <= x) for x from 0 to 0.1, divided by 0.1: in [0, 1].

    Integrated by Simpson's rule with step 0.0001. An image adds the rule's coefficients of all x at or above its NME.
    """
    grid = np.arange(0, THRESHOLD + STEP, STEP)
    coefficient = np.where(np.arange(len(grid)) % 2, 4.0, 2.0)
    coefficient[[0, -1]] = 1.0
    above = np.append(coefficient[::-1].cumsum()[::-1], 0.0) * STEP / 3
    return _mean(above[np.searchsorted(grid, _labelled(sample))] / THRESHOLD, weight)


def px_mean(sample: Sample, weight: Array) -> Array:
    """Mean drift in px: distance to the reference's landmark in pixels of the crop, over all images and landmarks."""
    return _mean(sample.px.mean(axis=1), weight)


def px_p50(sample: Sample, weight: Array) -> Array:
    """Median drift in px over all images and landmarks."""
    return _quantile(sample.px, weight, 0.50)


def px_p95(sample: Sample, weight: Array) -> Array:
    """95th percentile of the drift in px over all images and landmarks, linear between order statistics."""
    return _quantile(sample.px, weight, 0.95)


def px_max(sample: Sample, weight: Array) -> Array:
    """Largest drift in px of any landmark in any image that counts."""
    return np.asarray(np.where(weight > 0, sample.px.max(axis=1), -np.inf).max(axis=1))


def flips(sample: Sample, weight: Array) -> Array:
    """Cell flips in %: share of landmarks whose winning cell is not the reference's."""
    return 100 * _mean(sample.flipped.mean(axis=1), weight)


def noise(sample: Sample, weight: Array) -> Array:
    """Offset noise in px: mean drift of the landmarks that did not flip; NaN if all of them did."""
    kept = ~sample.flipped
    with np.errstate(invalid="ignore"):
        return np.asarray((weight @ (sample.px * kept).sum(axis=1)) / (weight @ kept.sum(axis=1)))


class Metric(NamedTuple):
    of: Callable[[Sample, Array], Array]
    unit: str
    labels: bool = False  # needs ground truth
    interval: bool = True  # a maximum has no bootstrap: no resample exceeds what was seen


METRICS = {
    "nme": Metric(nme, "%", labels=True),
    "fr": Metric(fr, "%", labels=True),
    "auc": Metric(auc, "", labels=True),
    "px_mean": Metric(px_mean, "px"),
    "px_p50": Metric(px_p50, "px"),
    "px_p95": Metric(px_p95, "px"),
    "px_max": Metric(px_max, "px", interval=False),
    "flips": Metric(flips, "%"),
    "noise": Metric(noise, "px"),
}


UNITS = {name: metric.unit for name, metric in METRICS.items()}


def _labelled(sample: Sample) -> Array:
    if sample.nme is None:
        raise EdgeError("NME, FR and AUC need labels; none were given")
    return sample.nme


def _mean(per_image: NDArray[Any], weight: Array) -> Array:
    return np.asarray(weight @ per_image / weight.shape[1])


def _quantile(values: Array, weight: Array, q: float) -> Array:
    """np.quantile of (n, L) values with row i repeated weight[:, i] times, for each of the B weightings: (B,)."""
    order = np.argsort(values, axis=None)
    ascending, image = values.ravel()[order], order // values.shape[1]
    position = q * (values.size - 1)
    below, above = math.floor(position), math.ceil(position)
    found = np.empty((2, len(weight)))
    step = max(1, (1 << 22) // values.size)  # bounds the memory
    for start in range(0, len(weight), step):
        chunk = slice(start, start + step)
        seen = weight[chunk].take(image, axis=1).cumsum(axis=1)
        found[:, chunk] = ascending[(seen > below).argmax(axis=1)], ascending[(seen > above).argmax(axis=1)]
    return np.asarray(found[0] + (found[1] - found[0]) * (position - below))


# --- Summaries: values with their bootstrap intervals.


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its 95 % bootstrap interval over images; low and high are None without an interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """value (null if it is not a number), low and high (absent without an interval)."""
        interval = {"low": self.low, "high": self.high} if self.low is not None else {}
        return {"value": self.value if math.isfinite(self.value) else None, **interval}


@dataclass(frozen=True)
class PerLandmark:
    """For each of the L landmarks over all images, (L,) float64 each: px_mean and px_p95 in px, flips in %."""

    px_mean: Array
    px_p95: Array
    flips: Array

    def to_json(self) -> list[dict[str, float]]:
        rows = zip(self.px_mean.tolist(), self.px_p95.tolist(), self.flips.tolist(), strict=True)
        return [{"landmark": i, "px_mean": mean, "px_p95": p95, "flips": f} for i, (mean, p95, f) in enumerate(rows)]


@dataclass(frozen=True)
class Summary:
    """One variant's loss over all images.

    drift: for every metric of METRICS the variant's value minus the reference's, paired by image. The reference's px
    metrics, flips and noise are 0. variant and reference: their own nme, fr and auc. Without labels, these two are
    empty and drift has no metric that needs labels.
    """

    images: int
    drift: Mapping[str, Estimate]
    variant: Mapping[str, Estimate]
    reference: Mapping[str, Estimate]
    landmarks: PerLandmark

    def to_json(self) -> dict[str, Any]:
        """Plain values; metrics by the names of METRICS."""
        tables = {"drift": self.drift, "variant": self.variant, "reference": self.reference}
        plain = {key: {name: e.to_json() for name, e in table.items()} for key, table in tables.items()}
        return {"images": self.images, **plain, "landmarks": self.landmarks.to_json()}


def summarise(sample: Sample, seed: int = 0) -> Summary:
    """A Sample's Summary. The seed draws the bootstrap's images: the same sample and seed give the same intervals."""
    variant = _replicates(sample, seed)
    labelled = [name for name in variant if METRICS[name].labels]
    reference = _replicates(sample.baseline(), seed, labelled)
    return Summary(
        images=len(sample.px),
        drift={name: _estimate(variant[name] - reference.get(name, np.zeros(1))) for name in variant},
        variant={name: _estimate(variant[name]) for name in labelled},
        reference={name: _estimate(reference[name]) for name in labelled},
        landmarks=PerLandmark(
            sample.px.mean(axis=0), np.percentile(sample.px, 95, axis=0), 100 * sample.flipped.mean(axis=0)
        ),
    )


def _replicates(sample: Sample, seed: int, names: Iterable[str] = METRICS) -> dict[str, Array]:
    """For each metric that can be computed: its value, then its values on RESAMPLES draws of n images each."""
    n = len(sample.px)
    value, draws = np.ones((1, n)), np.empty((0, n))
    if n >= MIN_IMAGES:
        drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
        draws = np.bincount(drawn.ravel(), minlength=n * RESAMPLES).reshape(RESAMPLES, n).astype(np.float64)
    weight = np.concatenate([value, draws])
    return {
        name: METRICS[name].of(sample, weight if METRICS[name].interval else value)
        for name in names
        if sample.nme is not None or not METRICS[name].labels
    }


def _estimate(replicates: Array) -> Estimate:
    value, draws = float(replicates[0]), replicates[1:]
    if not draws.size or not np.isfinite(replicates).all():
        return Estimate(value)
    low, high = np.percentile(draws, [50 - CONFIDENCE / 2, 50 + CONFIDENCE / 2])
    return Estimate(value, float(low), float(high))
