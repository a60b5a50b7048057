"""How a command gives pictures to a detector in a worker, and reads what it found."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import npz
from pipnet_edge.detect.boxes import Faces
from pipnet_edge.detect.decode import MOST_FACES, BoxMaps
from pipnet_edge.detect.spec import DetectorSpec
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import write_array
from pipnet_edge.npz import Form
from pipnet_edge.worker.call import LARGEST, Call, Listen, given_by_a_worker, ignore
from pipnet_edge.worker.protocol import Find, Infer


@dataclass(frozen=True, eq=False)
class Detection:
    """The faces in each picture, and its maps if asked for; version names the runtime that ran."""

    faces: tuple[Faces, ...]
    maps: tuple[BoxMaps, ...] | None
    version: str


def detect(
    call: Call,
    bundle: Path,
    variant: str,
    threads: int,
    pictures: NDArray[np.uint8],
    maps: bool = False,
    listen: Listen = ignore,
) -> Detection:
    """Runs a detector's variant over pictures (n, H, W, 3) uint8 RGB of one of its sizes.

    Raises EdgeError as `call` does, and when what came back is not what was asked for.
    """
    spec = bundles.read_detector(bundle).spec
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        given, out = Path(folder, "pictures.npy"), Path(folder, "out.npz")
        write_array(given, pictures)
        answer = call(Infer(str(bundle), variant, threads, str(out), str(given), maps), listen)
        with given_by_a_worker(out):
            found = _given(out, spec, pictures.shape, maps)
    return Detection(*found, answer.version)


def _given(
    path: Path, spec: DetectorSpec, shape: Sequence[int], maps: bool
) -> tuple[tuple[Faces, ...], tuple[BoxMaps, ...] | None]:
    """What a worker found, from its .npz file. Raises EdgeError for anything else."""
    count, height, width = shape[:3]
    (counts,) = npz.read(path, {"count": Form((count,), (np.int64,))}, LARGEST).values()
    if not ((counts >= 0) & (counts <= MOST_FACES)).all():
        raise EdgeError(f"{path}: count is not from 0 to {MOST_FACES}")
    total = int(counts.sum())
    forms = {"boxes": Form((total, 4), (np.float64,)), "scores": Form((total,), (np.float64,))} if total else {}
    if maps:
        priors = spec.count(width, height)
        forms |= {"map_boxes": Form((count, priors, 4)), "map_logits": Form((count, priors, 2))}
    arrays = npz.read(path, forms, LARGEST)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise EdgeError(f"{path}: {name} holds NaN or infinity")
    found = Faces(arrays.get("boxes", np.zeros((0, 4))), arrays.get("scores", np.zeros(0)))
    each = tuple(found[rows] for rows in _parts(counts))
    if not maps:
        return each, None
    return each, tuple(BoxMaps(*pair) for pair in zip(arrays["map_boxes"], arrays["map_logits"], strict=True))


def _parts(counts: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    """The rows of each picture's faces."""
    start = 0
    for count in counts.tolist():
        yield np.arange(start, start + count)
        start += count


@dataclass(frozen=True, eq=False)
class Places:
    """Faces in a picture: the detector's boxes (n, 4), their scores (n,), and the boxes that landmarks should fill."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    fit: NDArray[np.float64]
    version: str


def places(call: Call, job: Find) -> Places:
    """The faces in a picture, x, y, width, height in its pixels, the best score first. Raises EdgeError as `detect`."""
    answer, path = call(job), Path(job.out)
    with given_by_a_worker(path):
        arrays = npz.read_all(path, LARGEST)
        count = len(arrays["scores"]) if "scores" in arrays and arrays["scores"].ndim == 1 else -1
        shapes = {"boxes": (count, 4), "scores": (count,), "fit": (count, 4)}
        if {name: array.shape for name, array in arrays.items()} != shapes or not 0 <= count <= MOST_FACES:
            raise EdgeError(f"{path} holds other arrays than boxes, scores and fit of up to {MOST_FACES} faces")
        if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values()):
            raise EdgeError(f"{path} holds what is no finite number")
    return Places(arrays["boxes"], arrays["scores"], arrays["fit"], answer.version)
