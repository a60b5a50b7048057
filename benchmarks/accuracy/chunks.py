"""The landmarks of variants over faces, measured in chunks, several worker processes at a time.

Every finished chunk is kept in a folder under a hash of everything that its landmarks depend on, so that an interrupted
run continues where it stopped. Its file is the sha256 of what follows, then the landmarks. A file that is not what was
written is measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import __version__, host, runtimes
from pipnet_edge.bundle import Bundle, Variant
from pipnet_edge.decode import Landmarks
from pipnet_edge.domain import Domain
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import opened, write
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.words import counted
from pipnet_edge.worker.call import Call, Listen, Workers, infer
from pipnet_edge.worker.protocol import Event, Progress

CHUNK = 128

Item = TypeVar("Item")
UNKNOWN = -1.0


@dataclass(frozen=True, eq=False)
class Found:
    """What a variant gave for n faces. outside: (n,) whether each lies outside what calibration saw, if it tells."""

    landmarks: Landmarks
    outside: NDArray[np.bool_] | None = None


def run(
    bundle: Bundle,
    variants: Sequence[Variant],
    crop: Callable[[int], NDArray[np.uint8]],
    count: int,
    cache: Path,
    jobs: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, Found | EdgeError]:
    """By variant the landmarks of all faces, normalised to the crop, or why it cannot run.

    The first variant that is not quantized and gives features tells which faces lie outside what calibration saw.

    crop: gives the crop (S, S, 3) uint8 RGB of one of the `count` faces. jobs: workers at a time. progress gets the
    faces done and all of them. Raises EdgeError if a face cannot be read, and if the cache cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EdgeError(f"cannot write into {cache}: {e.strerror}") from e
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    found: dict[tuple[str, int], Found | EdgeError] = {}
    # Features of a quantized variant are clipped, and may be scaled.
    tells = next((v for v in variants if v.heads and not PRECISIONS[v.precision].is_quantized), None)
    domain = bundle.read_domain() if tells else None
    meter, over = _Meter(count, len(variants), progress), threading.Event()

    with ThreadPoolExecutor(jobs) as pool, Workers() as workers:

        def work(index: int) -> dict[tuple[str, int], Found | EdgeError]:
            pixels = np.stack([crop(face) for face in _until(over, chunks[index])])
            done = {}
            for variant in _until(over, variants):
                known = domain if variant is tells else None
                path = cache / f"{_key(variant, pixels, bundle.golden.sha256 if known else None)}.landmarks"
                with meter.counts(len(pixels)) as listen:
                    done[variant.name, index] = _cached(workers.call, bundle, variant, pixels, known, path, listen)
            return done

        tasks = [pool.submit(work, index) for index in range(len(chunks))]
        try:
            for task in as_completed(tasks):
                found |= task.result()
        except BaseException:
            # The pool's end waits for its threads, which hear nothing of Ctrl-C.
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {each.name: _joined([found[each.name, index] for index in range(len(chunks))]) for each in variants}


def _until(over: threading.Event, items: Iterable[Item]) -> Iterator[Item]:
    """The items, as long as it is not over; then an EdgeError, which nobody sees."""
    for item in items:
        if over.is_set():
            raise EdgeError("it is over")
        yield item


def _joined(parts: Sequence[Found | EdgeError]) -> Found | EdgeError:
    """All chunks as one, or the first error."""
    whole, outside = [], []
    for part in parts:
        if isinstance(part, EdgeError):
            return part
        whole.append(part.landmarks)
        outside += [part.outside] if part.outside is not None else []
    landmarks = Landmarks(
        np.concatenate([part.points for part in whole]),
        np.concatenate([part.score for part in whole]),
        np.concatenate([part.cell for part in whole]),
    )
    return Found(landmarks, np.concatenate(outside) if outside else None)


class _Meter:
    """Shows how many faces are done: a face is done when all variants have run over it. Threads share it."""

    def __init__(self, faces: int, variants: int, progress: Callable[[str, int, int], None]) -> None:
        self._faces, self._variants, self._progress = faces, variants, progress
        self._what = f"faces, {counted(variants, 'variant')}"
        self._ran, self._lock = 0, threading.Lock()
        progress(self._what, 0, faces)

    @contextmanager
    def counts(self, faces: int) -> Iterator[Listen]:
        """Within the block, faces count as its worker tells of them; after it, all of them have been counted."""
        counted_here = 0

        def listen(event: Event) -> None:
            nonlocal counted_here
            if isinstance(event, Progress):
                self._add(event.done - counted_here)
                counted_here = event.done

        yield listen
        self._add(faces - counted_here)

    def _add(self, ran: int) -> None:
        with self._lock:
            self._ran += ran
            done = self._ran // self._variants
            if done < self._faces:
                self._progress(self._what, done, self._faces)


def _cached(
    call: Call,
    bundle: Bundle,
    variant: Variant,
    crops: NDArray[np.uint8],
    domain: Domain | None,
    path: Path,
    listen: Listen,
) -> Found | EdgeError:
    """What is in the cache's file, or else from a worker; the reason if the variant cannot run.

    Raises EdgeError if the file cannot be written.
    """
    # Points, score and cell; with a domain, one row more says in its first place whether the face lies outside.
    count, rows = len(crops), bundle.spec.num_lms
    if (table := _kept(path, (count, rows + bool(domain), 4))) is None:
        try:
            found = infer(call, bundle.folder, variant.name, 1, crops, listen=listen)
            outside = domain.are_outside(found.features) if domain and found.features is not None else UNKNOWN
        except EdgeError as e:
            return e
        table = np.zeros((count, rows + bool(domain), 4))
        table[:, :rows, :2] = found.landmarks.points
        table[:, :rows, 2], table[:, :rows, 3] = found.landmarks.score, found.landmarks.cell
        table[:, rows:, 0] = np.reshape(outside, (-1, 1))
        content = table.astype("<f8").tobytes()
        write(path, hashlib.sha256(content).digest() + content)
    points, score, cell = table[:, :rows, :2], table[:, :rows, 2], table[:, :rows, 3]
    landmarks = Landmarks(points.astype(np.float32), score.astype(np.float32), cell.astype(np.intp))
    is_told = domain is not None and (table[:, rows, 0] != UNKNOWN).all()
    return Found(landmarks, table[:, rows, 0] != 0 if is_told else None)


def _kept(path: Path, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """The table in a file of the cache; None if there is none, or if it is not what was written."""
    digest, data = hashlib.sha256().digest_size, b""
    size = digest + math.prod(shape) * 8
    with suppress(OSError, EdgeError), opened(path, size) as file:
        data = file.read()
    if len(data) != size or hashlib.sha256(data[digest:]).digest() != data[:digest]:
        return None
    table = np.frombuffer(data[digest:], "<f8")
    return table.reshape(shape).astype(np.float64) if np.isfinite(table).all() else None


def _key(variant: Variant, crops: NDArray[np.uint8], domain: str | None) -> str:
    """A hash of what is kept: crops, files, program, runtime, the CPU's features, and the sha256 of a domain's file."""
    # A runtime chooses its kernels by the CPU's features, and kernels round differently.
    runs = [__version__, runtimes.installed(variant.runtime), platform.machine(), host.features(), np.__version__]
    parts = [runs, [file.sha256 for file in variant.files], *([domain] if domain else ())]
    key = hashlib.sha256(json.dumps(parts).encode())
    key.update(crops.tobytes())
    return key.hexdigest()[:32]
