"""What a job runs: a bundle's network, over crops if it finds landmarks, over pictures if it finds faces."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import confined, domain, host, runtimes
from pipnet_edge.bundle import Bundle, DetectorBundle, Variant
from pipnet_edge.decode import Features
from pipnet_edge.detect.decode import decode
from pipnet_edge.detect.fit import Fit
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Rect, cut
from pipnet_edge.worker import limits
from pipnet_edge.worker.protocol import Count, Infer, Loaded, Time

Arrays = dict[str, Any]
# Arrays of a detector's faces, one after the other; the other arrays are stacked.
JOINED = ("boxes", "scores")


@dataclass(frozen=True, eq=False)
class Opened:
    """A loaded variant. inputs: (n, H, W, 3) uint8 RGB.

    session.run gives an input's maps, decode makes landmarks or faces of these. arrays: what Infer tells of an input,
    by the maps and by what decode made of them. frames: the pictures that the timing loop begins with, and what makes
    an input of one; None without OpenCV.
    """

    inputs: NDArray[np.uint8]
    session: Any
    decode: Callable[[Any], Any]
    arrays: Callable[[Any, Any], Arrays]
    frames: Callable[[int], tuple[Sequence[Any], Callable[[Any], Any] | None]]
    loaded: Loaded


def opened(job: Infer | Time | Count, threads: int) -> Opened:
    """Loads what a job names, within limits of memory. Raises EdgeError for what cannot be, and for other inputs."""
    bundle = bundles.read_any(Path(job.bundle))
    variant = bundle.variant(job.variant)
    confined.limit_memory(limits.memory(variant.size, job.crops))
    given = np.load(job.crops, allow_pickle=False) if job.crops else None
    if isinstance(bundle, Bundle):
        return _for_landmarks(bundle, job, given, threads)
    return _for_faces(bundle, job, given, threads)


def timed(variant: Variant, session: Callable[[], Any]) -> tuple[Any, Loaded]:
    """A variant's session, and the event that says it is loaded."""
    adapter = runtimes.adapter(variant.runtime)
    start = time.perf_counter()
    found = session()
    milliseconds = (time.perf_counter() - start) * 1e3
    arithmetic = runtimes.arithmetic(variant.runtime, variant.precision, host.features())
    return found, Loaded(milliseconds, adapter.version(), arithmetic)


def together(found: Sequence[Arrays]) -> Arrays:
    """The arrays of several inputs as those of a file."""
    return {
        name: (np.concatenate if name in JOINED else np.stack)([arrays[name] for arrays in found]) for name in found[0]
    }


def _for_landmarks(bundle: Bundle, job: Infer | Time | Count, given: Any, threads: int) -> Opened:
    side, asked = bundle.spec.input_size, isinstance(job, Infer) and job.maps
    crops = bundle.read_golden()[0] if given is None else given
    if crops.dtype != np.uint8 or crops.shape[1:] != (side, side, 3) or not len(crops):
        raise EdgeError(f"crops are {crops.dtype} {crops.shape}, this bundle takes uint8 (n, {side}, {side}, 3)")
    heads = bundle.read_heads(job.variant) if asked else None

    def arrays(output: Any, landmarks: Any) -> Arrays:
        told = {name: np.array(getattr(landmarks, name)) for name in ("points", "score", "cell")}
        if isinstance(output, Features):
            told["features"] = domain.means(output.features)
        if asked:
            dense = heads.maps(output) if heads and isinstance(output, Features) else output
            told |= {f"map_{name}": np.array(value) for name, value in vars(dense).items()}
        return told

    session, loaded = timed(bundle.variant(job.variant), lambda: bundle.open_session(job.variant, threads))
    return Opened(crops, session, bundle.decoder(job.variant), arrays, lambda count: _around(crops, count), loaded)


def _for_faces(bundle: DetectorBundle, job: Infer | Time | Count, given: Any, threads: int) -> Opened:
    size, asked = bundle.spec.input_sizes[0], isinstance(job, Infer) and job.maps
    pictures = bundle.read_golden(size)[0] if given is None else given
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not len(pictures):
        raise EdgeError(f"pictures are {pictures.dtype} {pictures.shape}, this bundle takes uint8 (n, H, W, 3)")
    sized = bundle.spec.at((pictures.shape[2], pictures.shape[1]))

    def arrays(output: Any, faces: Any) -> Arrays:
        told = {"count": np.int64(len(faces)), "boxes": faces.boxes, "scores": faces.scores}
        return told | ({f"map_{name}": np.array(value) for name, value in vars(output).items()} if asked else {})

    def frames(threads: int) -> tuple[Sequence[Any], Callable[[Any], Any] | None]:
        fit = Fit.of(sized.size, sized.size)
        return list(pictures), (lambda picture: fit.input(picture, sized.mean)) if opencv(threads) else None

    variant = bundle.variant(job.variant)
    session, loaded = timed(variant, lambda: bundle.open_session(variant.name, threads, sized.size))
    return Opened(pictures, session, lambda maps: decode(maps, sized), arrays, frames, loaded)


def _around(crops: Any, threads: int) -> tuple[Sequence[Any], Callable[[Any], Any] | None]:
    """The pictures that frames start with, and the function that cuts the crop from one.

    A face in them is 1.5 times as large as in its crop. Without OpenCV they are the crops, and the function is None.
    """
    if not opencv(threads):
        return list(crops), None
    side, margin = crops.shape[1], crops.shape[1] // 4
    large = side * 3 // 2
    rect = Rect(margin, margin, margin + large, margin + large)
    pictures = [
        np.pad(cut(crop, Rect.whole(crop), large), ((margin, margin), (margin, margin), (0, 0))) for crop in crops
    ]
    return pictures, lambda picture: cut(picture, rect, side)


def opencv(threads: int) -> bool:
    """Whether OpenCV is there. Then it takes so many threads."""
    try:
        import cv2
    except ImportError:
        return False
    cv2.setNumThreads(threads)
    return True
