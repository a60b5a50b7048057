"""Does every variant of a face detector find the faces that the float network finds?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy.parity import Progress, chosen, first_failure
from pipnet_edge.benchmarks.limits import Limit
from pipnet_edge.bundle import DetectorBundle, FacesParity, Variant
from pipnet_edge.detect.boxes import Faces, overlaps
from pipnet_edge.detect.decode import BoxMaps, decode
from pipnet_edge.detect.fit import Fit
from pipnet_edge.detect.spec import DetectorSpec, named
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.preprocess import read_picture
from pipnet_edge.worker.call import Call, here
from pipnet_edge.worker.detected import detect
from pipnet_edge.worker.protocol import Facts

# Intersection over union from which two boxes mean the same face.
SAME = 0.5

UNITS = {"lost": "%", "new": "%"}
MEANING = "IoU: overlap of the boxes of the same face; score: the largest difference"

AT_ONCE = 32  # pictures in memory

Pictures = NDArray[np.uint8]
Found = tuple[Sequence[Faces], Sequence[BoxMaps]]
# Pictures (n, H, W, 3) of one (width, height) in parts, each read when it is asked for.
Parts = Mapping[tuple[int, int], Sequence[Callable[[], Pictures]]]


@dataclass(frozen=True)
class Row:
    """One variant against the reference over so many images; the numbers are those of manifest.FacesParity.

    map_share: the largest difference in a map, as a share of all maps' magnitude. failure: why there are no numbers, or
    which limit is broken; None when the variant passed. skipped: why it was not run at all.
    """

    variant: str
    reference: str
    images: int
    parity: FacesParity | None = None
    map_share: float | None = None
    failure: str | None = None
    skipped: str | None = None

    def value(self, metric: str) -> float | None:
        """One of UNITS in its unit; None if there are no numbers."""
        if not self.parity:
            return None
        return 100 * float(getattr(self.parity, metric)) / max(self.parity.faces, 1)

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def check(
    bundle: DetectorBundle,
    names: Sequence[str] = (),
    threads: int = 1,
    images: Sequence[Path] = (),
    progress: Progress = lambda *_: None,
    call: Call = here,
    most: int | None = None,
) -> tuple[Row, ...]:
    """Compares variants (all by default) with the torch maps in golden.npz, or over pictures with the first fp32 one.

    Pictures are fitted into the usual size. call: where the variants run. most: at most this many pictures of a size. A
    variant that cannot run, crashes or gives NaN has a failed row. A variant that was not named has a skipped row if
    its runtime is not installed there.
    """
    installed = () if names and not images else call(Facts()).runtimes
    variants, missing = chosen(bundle, names, installed)
    reference, parts, wanted = _reference(bundle, threads, images[:most], call, installed, most)
    count, rows = sum(len(faces) for faces, _ in wanted.values()), []
    for index, variant in enumerate(variants):
        progress(variant.name, index, len(variants))
        row = Row(variant.name, reference, count)
        if variant.name in missing:
            rows.append(replace(row, skipped=f"{variant.runtime} is not installed"))
            continue
        try:
            found = {size: _detected(call, bundle, variant, threads, given) for size, given in parts.items()}
        except EdgeError as e:
            rows.append(replace(row, failure=str(e)))
            continue
        rows.append(compare(variant, row, wanted, found))
    return tuple(rows)


def _reference(
    bundle: DetectorBundle,
    threads: int,
    images: Sequence[Path],
    call: Call,
    installed: Sequence[str],
    most: int | None,
) -> tuple[str, Parts, dict[tuple[int, int], Found]]:
    """What is compared with: its name, the pictures, and what it finds in them."""
    spec, size = bundle.spec, bundle.spec.input_sizes[0]
    if not images:
        parts, wanted = dict[tuple[int, int], Sequence[Callable[[], Pictures]]](), dict[tuple[int, int], Found]()
        for each in spec.input_sizes:
            pictures, maps = bundle.read_golden(each)
            parts[each] = [partial(_same, pictures[:most])]
            wanted[each] = [decode(found, spec.at(each)) for found in maps[:most]], maps[:most]
        return "torch", parts, wanted
    singles = [v for v in bundle.variants if v.precision == "fp32" and v.runtime in installed]
    if not singles:
        raise EdgeError("a comparison over pictures needs an fp32 variant as reference, and its runtime installed")
    given = [partial(_read, images[i : i + AT_ONCE], bundle.spec) for i in range(0, len(images), AT_ONCE)]
    return singles[0].name, {size: given}, {size: _detected(call, bundle, singles[0], threads, given)}


def _same(pictures: Pictures) -> Pictures:
    return pictures


def _read(images: Sequence[Path], spec: DetectorSpec) -> Pictures:
    """Image files, fitted into the usual size."""
    pictures = []
    for image in images:
        picture = read_picture(image)
        fit = Fit.of((picture.shape[1], picture.shape[0]), spec.input_sizes[0])
        pictures.append(fit.input(picture, spec.mean))
    return np.stack(pictures)


def _detected(
    call: Call, bundle: DetectorBundle, variant: Variant, threads: int, parts: Sequence[Callable[[], Pictures]]
) -> Found:
    faces, maps = list[Faces](), list[BoxMaps]()
    for part in parts:
        found = detect(call, bundle.folder, variant.name, threads, part(), maps=True)
        assert found.maps is not None
        faces += found.faces
        maps += found.maps
    return faces, maps


def compare(
    variant: Variant, row: Row, want: Mapping[tuple[int, int], Found], got: Mapping[tuple[int, int], Found]
) -> Row:
    """Fills a row from what the reference and the variant found in pictures of each size."""
    lost, new, faces = 0, 0, 0
    same, scores = list[float](), list[float]()
    largest, share = 0.0, 0.0
    for size, (wanted, maps) in want.items():
        found, others = got[size]
        for one, other in zip(wanted, found, strict=True):
            pairs = paired(one, other)
            faces, lost, new = faces + len(one), lost + len(one) - len(pairs), new + len(other) - len(pairs)
            same += [overlap for *_, overlap in pairs]
            scores += [float(abs(one.scores[i] - other.scores[j])) for i, j, _ in pairs]
        for name in ("boxes", "logits"):
            pairs_of = [(getattr(a, name), getattr(b, name)) for a, b in zip(maps, others, strict=True)]
            difference = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs_of)
            magnitude = max(float(np.abs(a).max()) for a, _ in pairs_of) or 1.0
            largest, share = max(largest, difference), max(share, difference / magnitude)
    parity = FacesParity(
        reference=row.reference,
        images=row.images,
        faces=faces,
        lost=lost,
        new=new,
        iou_mean=float(np.mean(same)) if same else 1.0,
        iou_min=min(same, default=1.0),
        score_max=max(scores, default=0.0),
        map_max=largest,
    )
    limit, of = PRECISIONS[variant.precision].faces, max(faces, 1)
    broken = limit.broken(share, lost / of, new / of, parity.iou_mean)
    return replace(row, parity=parity, map_share=share, failure=", ".join(broken) or None)


def paired(one: Faces, other: Faces) -> list[tuple[int, int, float]]:
    """Pairs of the same face: its index in `one` and in `other`, and the overlap. Best scores choose first."""
    left, found = list(range(len(other))), list[tuple[int, int, float]]()
    for i, box in enumerate(one.boxes):
        shared = overlaps(box, other.boxes[left]) if left else np.zeros(0)
        if len(shared) and shared.max() >= SAME:
            best = int(shared.argmax())
            found.append((i, left.pop(best), float(shared[best])))
    return found


def verify(bundle: DetectorBundle) -> dict[str, FacesParity | EdgeError]:
    """Each variant's parity for the manifest of a bundle that is being made, or why it fails (exit code 3)."""
    measured: dict[str, FacesParity | EdgeError] = {}
    for row in check(bundle, [variant.name for variant in bundle.variants]):
        if row.failure:
            measured[row.variant] = EdgeError(row.failure, CHECK_FAILED)
            continue
        assert row.parity is not None
        measured[row.variant] = row.parity
    return measured


def broken(rows: Sequence[Row], limits: Sequence[Limit]) -> EdgeError | None:
    """The error (exit code 3) that names the first variant that failed or breaks one of the limits on UNITS."""
    failed = first_failure(rows)
    if failed:
        return failed
    for row in rows:
        for limit in limits:
            value = row.value(limit.metric)
            if value is not None and value > limit.most:
                return EdgeError(f"{row.variant}: {limit.metric} is {value:.3g} % (limit {limit.most:g})", CHECK_FAILED)
    return None


def sizes(bundle: DetectorBundle) -> str:
    """ "640x480 and 320x240"."""
    return " and ".join(map(named, bundle.spec.input_sizes))
