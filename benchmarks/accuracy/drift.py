"""The drift of variants on a folder of faces, against a float variant and against labels if there are any.

Faces are cut and run in chunks, several worker processes at a time. Every finished chunk is kept in `cache` under a
hash of everything that its landmarks depend on, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import __version__, host, runtimes
from pipnet_edge.benchmarks.accuracy import metrics
from pipnet_edge.benchmarks.accuracy.labels import Labels
from pipnet_edge.bundle import Bundle, Variant
from pipnet_edge.decode import Landmarks
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.files import file_sha256, write_array
from pipnet_edge.preprocess import Rect, cut, read_picture
from pipnet_edge.worker.call import Call, Workers, infer

CHUNK = 128


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
class Faces:
    """The faces of one run: labels, and the side of the crop in pixels that the network takes."""

    labels: Labels
    side: int

    def __len__(self) -> int:
        return len(self.labels.images)

    def crops(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """(n, side, side, 3) uint8 RGB crops of some faces."""
        return np.stack([self._crop(index) for index in indices])

    def _crop(self, index: int) -> NDArray[np.uint8]:
        picture = read_picture(self.labels.images[index])
        return cut(picture, self.labels.crops[index] if self.labels.crops else Rect.whole(picture), self.side)


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
    jobs: int,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[tuple[Row, ...], dict[str, Landmarks]]:
    """Rows, and the landmarks of every variant that ran and of the reference (n faces, normalised to the crop).

    Raises EdgeError when the reference cannot run. If another variant cannot run, its row says why.
    """
    cache.mkdir(parents=True, exist_ok=True)
    reference, others = variants
    chunks = [range(start, min(start + CHUNK, len(faces))) for start in range(0, len(faces), CHUNK)]
    found: dict[tuple[str, int], Landmarks | EdgeError] = {}

    with ThreadPoolExecutor(jobs) as pool, Workers() as workers:

        def work(index: int) -> dict[tuple[str, int], Landmarks | EdgeError]:
            crops = faces.crops(chunks[index])
            return {(v.name, index): _cached(workers.call, bundle, v, crops, cache) for v in (reference, *others)}

        tasks = [pool.submit(work, index) for index in range(len(chunks))]
        try:
            for done, task in enumerate(as_completed(tasks), 1):
                found |= task.result()
                progress(f"{len(chunks[done - 1])} faces", done - 1, len(chunks))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    landmarks: dict[str, Landmarks] = {}
    failures: dict[str, EdgeError] = {}
    for variant in (reference, *others):
        parts = [found[variant.name, index] for index in range(len(chunks))]
        broken = [part for part in parts if isinstance(part, EdgeError)]
        if broken:
            failures[variant.name] = broken[0]
        else:
            landmarks[variant.name] = _joined([part for part in parts if isinstance(part, Landmarks)])
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
    return tuple(rows), landmarks


def broken_limits(rows: Sequence[Row], limits: Sequence[metrics.Limit]) -> EdgeError | None:
    """The error (exit code 3) that names the first variant that failed or exceeds a limit, and counts the others."""
    broken = []
    for row in rows:
        if row.summary is None:
            broken.append(f"{row.variant}: {row.failure}")
            continue
        for limit in metrics.check(limits, row.summary):
            broken.append(f"{row.variant}: {limit} is broken by {row.summary.drift[limit.metric].value:.4g}")
    if not broken:
        return None
    return EdgeError(broken[0] + (f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""), CHECK_FAILED)


def _cached(
    call: Call, bundle: Bundle, variant: Variant, crops: NDArray[np.uint8], cache: Path
) -> Landmarks | EdgeError:
    path = cache / f"{_key(variant, crops)}.npy"
    try:
        if not path.is_file():
            found = infer(call, bundle.folder, variant.name, 1, crops).landmarks
            table = np.concatenate([found.points, found.score[..., None], found.cell[..., None]], axis=2)
            write_array(path, table.astype(np.float64))
        table = np.load(path, allow_pickle=False)
    except EdgeError as e:
        return e
    points, score, cell = table[..., :2], table[..., 2], table[..., 3]
    return Landmarks(points.astype(np.float32), score.astype(np.float32), cell.astype(np.intp))


def _key(variant: Variant, crops: NDArray[np.uint8]) -> str:
    """A hash of what landmarks depend on: crops, files, program, runtime and the CPU's features."""
    # A runtime chooses its kernels by the CPU's features, and kernels round differently.
    runs = [__version__, runtimes.installed(variant.runtime), platform.machine(), host.features(), np.__version__]
    key = hashlib.sha256(json.dumps([runs, [file.sha256 for file in variant.files]]).encode())
    key.update(crops.tobytes())
    return key.hexdigest()[:32]


def _joined(parts: Sequence[Landmarks]) -> Landmarks:
    return Landmarks(
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.cell for part in parts]),
    )
