"""The drift of variants on a folder of faces, against a float variant and against labels if there are any."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import runtimes
from pipnet_edge.benchmarks.accuracy import chunks, metrics
from pipnet_edge.benchmarks.accuracy.labels import Labels
from pipnet_edge.benchmarks.limits import Limit
from pipnet_edge.bundle import Bundle, Variant
from pipnet_edge.decode import Landmarks
from pipnet_edge.domain import USUAL
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.files import file_sha256
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.spec import ModelSpec

# Networks reach 2 to 8 % on the faces they are made for; labels in another order or of another crop give 20 % and more.
FITS = 15.0
# Of fewer faces, chance may have most outside what calibration saw.
FEWEST = 8


@dataclass(frozen=True)
class Row:
    """One variant: its drift, or why there is none. mean_face: its landmarks' positions, for drawings of the drift."""

    variant: str
    summary: metrics.Summary | None = None
    failure: str | None = None
    mean_face: tuple[tuple[float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        if not self.summary:
            return {"variant": self.variant, "failure": self.failure}
        return {"variant": self.variant, "summary": self.summary.to_json(), "mean_face": self.mean_face}


@dataclass(frozen=True)
class Verdict:
    """Whether a variant keeps a limit on the magnitude of its drift. value: the drift; None if there is no number."""

    variant: str
    limit: Limit
    value: float | None

    @property
    def is_kept(self) -> bool:
        return self.value is not None and abs(self.value) <= self.limit.most

    def to_json(self) -> dict[str, Any]:
        limit = {"metric": self.limit.metric, "most": self.limit.most}
        return {"variant": self.variant, **limit, "value": self.value, "kept": self.is_kept}


@dataclass(frozen=True)
class Fit:
    """How labels fit the reference: its own NME in %, and what it would be with x and y of the labels swapped."""

    reference: str
    nme: float
    swapped: float

    def notes(self) -> list[str]:
        """The reference's NME, and a warning if the labels do not fit."""
        said = f"the NME of {self.reference} itself is {self.nme:.3f} %"
        if self.nme <= FITS:
            return [said]
        guess = "swapped x and y? another order of landmarks? another crop?"
        if self.swapped <= FITS:
            guess = f"x and y are swapped in them, it would be {self.swapped:.3f} %"
        return [f"warning: the labels do not fit the faces, as {said}: {guess}"]

    def to_json(self) -> dict[str, Any]:
        return {"nme": self.nme, "nme_swapped": self.swapped, "fits": self.nme <= FITS}


@dataclass(frozen=True)
class Strangers:
    """How many of so many faces lie outside what calibration saw."""

    outside: int
    of: int

    @property
    def is_warning(self) -> bool:
        """Whether most faces are strange, which those like the calibration's never were (docs/quantization.md)."""
        return self.of >= FEWEST and self.outside > self.of / 2

    def notes(self) -> list[str]:
        if not self.is_warning:
            return []
        return [
            f"warning: {self.outside} of {self.of} faces lie outside what calibration saw (of faces like its own "
            f"{USUAL:.0%} do), so int8 may lose more on them: convert with faces like these in --calibrate; "
            "`sensitivity --images` shows which layers clip them"
        ]

    def to_json(self) -> dict[str, Any]:
        return {"outside": self.outside, "of": self.of, "usual": USUAL, "warning": self.is_warning}


@dataclass(frozen=True)
class Measured:
    """What a run gives. landmarks: of the reference and of every variant that ran, n faces, normalised to the crop.

    strangers: None if what calibration saw is not known, or if no quantized variant is measured.
    """

    rows: tuple[Row, ...]
    landmarks: dict[str, Landmarks]
    strangers: Strangers | None


@dataclass(frozen=True)
class Faces:
    """The faces of one run: labels, and the side of the crop in pixels that the network takes."""

    labels: Labels
    side: int

    def __len__(self) -> int:
        return len(self.labels.images)

    def each(self) -> list[chunks.Face]:
        known, nothing = self.labels, [None] * len(self)
        parts = zip(known.images, known.crops or nothing, known.lines or nothing, strict=True)
        return [chunks.Face(*part, self.side) for part in parts]

    def crops(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """(n, side, side, 3) uint8 RGB crops of some faces."""
        each = self.each()
        return np.stack([each[index].crop() for index in indices])


def choose(bundle: Bundle, names: Sequence[str], reference: str | None) -> tuple[Variant, list[Variant]]:
    """The reference (the first fp32 variant whose runtime is installed) and the variants to compare with it.

    Without names these are all other variants that can run here. Raises EdgeError when either is missing.
    """
    runnable = [variant for variant in bundle.variants if not runtimes.is_missing(variant.runtime)]
    if reference:
        float_variant = bundle.variant(reference)
    else:
        singles = [variant for variant in runnable if variant.precision == "fp32"]
        if not singles:
            raise EdgeError("no fp32 variant of this bundle can run here; name a reference with --reference")
        float_variant = singles[0]
    others = [bundle.variant(name) for name in names] or [v for v in runnable if v != float_variant]
    if not others:
        raise EdgeError(
            f"{float_variant.name} is the only variant that can run here; there is nothing to compare it with"
        )
    return float_variant, others


def overlap(images: Sequence[Path], calibration: Collection[str]) -> list[Path]:
    """The images that variants were calibrated on, in their order: those whose file has one of these sha256.

    An image with several faces comes once. The same image in another file is not recognised.
    """
    if not calibration:
        return []
    return [path for path in dict.fromkeys(images) if file_sha256(path) in calibration]


def overlap_note(faces: Faces, bundle: Bundle) -> list[str]:
    """A sentence about the faces that quantized variants were calibrated with, if there are any among these."""
    known = overlap(faces.labels.images, frozenset(bundle.calibration.images) if bundle.calibration else frozenset())
    if not known:
        return []
    first = ", ".join(path.name for path in known[:3])
    return [
        f"{len(known)} of these images were used to calibrate, so quantized variants look better than they are: {first}"
        + (", …" if len(known) > 3 else "")
    ]


def run(
    bundle: Bundle,
    faces: Faces,
    variants: tuple[Variant, list[Variant]],
    cache: Path,
    spread: chunks.Spread,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Measured:
    """Measures variants against the reference, which comes first.

    progress gets the faces done and all of them. Raises EdgeError when the reference cannot run, and as `spread` does.
    If another variant cannot run, its row says why.
    """
    reference, others = variants
    found = chunks.run(bundle, (reference, *others), faces.each(), cache, spread, progress)
    landmarks = {name: each.landmarks for name, each in found.items() if isinstance(each, chunks.Found)}
    failures = {name: each for name, each in found.items() if isinstance(each, EdgeError)}
    if reference.name in failures:
        raise failures[reference.name]
    rows = []
    for variant in others:
        try:
            if variant.name in failures:
                raise failures[variant.name]
            pair = landmarks[variant.name], landmarks[reference.name]
            sample = metrics.measure(*pair, bundle.spec, faces.labels.points)
            rows.append(Row(variant.name, metrics.summarise(sample), mean_face=bundle.spec.mean_face.points))
        except EdgeError as e:
            rows.append(Row(variant.name, failure=str(e)))
    told = [each.outside for each in found.values() if isinstance(each, chunks.Found) and each.outside is not None]
    calibrated = any(PRECISIONS[variant.precision].is_quantized for variant in others)
    strangers = Strangers(int(told[0].sum()), len(faces)) if told and calibrated else None
    return Measured(tuple(rows), landmarks, strangers)


def fit(reference: str, landmarks: Landmarks, spec: ModelSpec, faces: Faces) -> Fit | None:
    """How the labels fit the reference's landmarks; None without labels."""
    truth = faces.labels.points
    if truth is None:
        return None
    samples = [metrics.measure(landmarks, landmarks, spec, points) for points in (truth, truth[..., ::-1])]
    nme, swapped = (float(metrics.nme(sample, np.ones((1, len(truth))))[0]) for sample in samples)
    return Fit(reference, nme, swapped)


def check_limits(limits: Sequence[Limit], has_labels: bool) -> None:
    """Raises EdgeError for a limit on a metric that needs labels where there are none."""
    without = [name for name, metric in metrics.METRICS.items() if not metric.labels]
    for limit in limits:
        if not has_labels and limit.metric not in without:
            raise EdgeError(f"--limit {limit} needs labels; without --labels: {', '.join(without)}")


def judged(rows: Sequence[Row], limits: Sequence[Limit]) -> tuple[Verdict, ...]:
    """Every limit on every variant. A variant that failed, or whose drift is not a number, keeps none."""
    return tuple(Verdict(row.variant, limit, _value(row, limit.metric)) for row in rows for limit in limits)


def _value(row: Row, metric: str) -> float | None:
    value = row.summary.drift[metric].value if row.summary else math.nan
    return value if math.isfinite(value) else None


def broken_limits(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> EdgeError | None:
    """The error (exit code 3) that names the first variant that failed or breaks a limit, and counts the others."""
    broken = [f"{row.variant}: {row.failure}" for row in rows if not row.summary]
    failed = {row.variant for row in rows if not row.summary}
    for verdict in verdicts:
        if not verdict.is_kept and verdict.variant not in failed:
            value = "no number" if verdict.value is None else f"{verdict.value:.4g}"
            broken.append(f"{verdict.variant}: --limit {verdict.limit} is broken by {value}")
    if not broken:
        return None
    return EdgeError(broken[0] + (f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""), CHECK_FAILED)
