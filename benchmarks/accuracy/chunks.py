"""The landmarks of variants over faces, measured in chunks, several at a time.

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
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import __version__, host, runtimes
from pipnet_edge.bundle import Bundle, Variant
from pipnet_edge.decode import Landmarks
from pipnet_edge.domain import Domain
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import opened, write
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.preprocess import Rect, cut, read_picture
from pipnet_edge.words import counted
from pipnet_edge.worker.call import Call, Listen, Workers, infer, parts
from pipnet_edge.worker.protocol import Event, Progress

CHUNK = 128  # faces at most

Item = TypeVar("Item")
UNKNOWN = -1.0


@dataclass(frozen=True, eq=False)
class Found:
    """What a variant gave for n faces. outside: (n,) whether each lies outside what calibration saw, if it tells."""

    landmarks: Landmarks
    outside: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Face:
    """A face, whose crop of side x side pixels is cut from rect of an image, or from all of it. line: its label's."""

    image: Path
    rect: Rect | None
    line: str | None
    side: int

    def crop(self) -> NDArray[np.uint8]:
        """(side, side, 3) uint8 RGB. Raises EdgeError that names the picture and its label's line."""
        try:
            picture = read_picture(self.image)
        except EdgeError as e:
            raise EdgeError(f"{self.line}: {e}" if self.line else str(e), e.code) from e
        return cut(picture, self.rect or Rect.whole(picture), self.side)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some of the faces, and all that is needed to run variants over them. It can be sent to another machine.

    variants: those to run. teller: the name of that which tells which faces lie outside the domain. cache: the folder
    of finished chunks.
    """

    index: int
    bundle: Bundle
    variants: tuple[Variant, ...]
    teller: str | None
    domain: Domain | None
    faces: tuple[Face, ...]
    cache: Path


# By variant what it gave, or why it cannot run.
ByVariant = dict[str, Found | EdgeError]


class Spread(Protocol):
    """Measures chunks on several workers, and gives what each of them gave by its index.

    Raises EdgeError if a face cannot be read, and if the cache cannot be written. Its end, however it comes, ends all
    work that it began here.
    """

    def __call__(self, parts: Sequence[Chunk], meter: Meter, /) -> dict[int, ByVariant]: ...


def run(
    bundle: Bundle,
    variants: Sequence[Variant],
    faces: Sequence[Face],
    cache: Path,
    spread: Spread,
    progress: Callable[[str, int, int], None],
) -> ByVariant:
    """By variant the landmarks of all faces, normalised to the crop, or why it cannot run.

    The first variant that is not quantized and gives features tells which faces lie outside what calibration saw.

    progress gets the faces done and all of them. Raises EdgeError as `spread` does.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EdgeError(f"cannot write into {cache}: {e.strerror}") from e
    # Features of a quantized variant are clipped, and may be scaled.
    teller = next((v.name for v in variants if v.heads and not PRECISIONS[v.precision].is_quantized), None)
    domain = bundle.read_domain() if teller else None
    split = enumerate(parts(faces, CHUNK))
    chunks = [Chunk(i, bundle, tuple(variants), teller, domain, tuple(part), cache) for i, part in split]
    found = spread(chunks, Meter(len(faces), len(variants), progress))
    return {each.name: _joined([found[chunk.index][each.name] for chunk in chunks]) for each in variants}


def processes(jobs: int) -> Spread:
    """Spreads chunks over worker processes on this machine, `jobs` at a time."""

    def spread(chunks: Sequence[Chunk], meter: Meter) -> dict[int, ByVariant]:
        found, over = dict[int, ByVariant](), threading.Event()
        with ThreadPoolExecutor(jobs) as pool, Workers() as workers:
            tasks = {pool.submit(measure, chunk, workers.call, meter.counts, over): chunk.index for chunk in chunks}
            try:
                for task in as_completed(tasks):
                    found[tasks[task]] = task.result()
            except BaseException:
                # The pool's end waits for its threads, which hear nothing of Ctrl-C.
                over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    return spread


def measure(
    chunk: Chunk, call: Call, counts: Callable[[int], AbstractContextManager[Listen]], over: threading.Event
) -> ByVariant:
    """Runs all variants over a chunk's faces, but for what is in the cache. counts: as Meter's. over: it is to end.

    Raises EdgeError if a face cannot be read, and if the cache cannot be written.
    """
    pixels = np.stack([face.crop() for face in _until(over, chunk.faces)])
    found: ByVariant = {}
    for variant in _until(over, chunk.variants):
        known = chunk.domain if variant.name == chunk.teller else None
        key = _key(variant, pixels, chunk.bundle.golden.sha256 if known else None)
        with counts(len(pixels)) as listen:
            path = chunk.cache / f"{key}.landmarks"
            found[variant.name] = _cached(call, chunk.bundle, variant, pixels, known, path, listen)
    return found


def versions(runtime: str) -> tuple[str, str | None, str]:
    """Those of this program, of a runtime (None if it is missing) and of numpy."""
    return __version__, runtimes.installed(runtime), np.__version__


def cpu() -> tuple[str, tuple[str, ...]]:
    """The machine and the CPU's features: a runtime chooses its kernels by these, and kernels round differently."""
    return platform.machine(), host.features()


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
    return Found(Landmarks.joined(whole), np.concatenate(outside) if outside else None)


class Meter:
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
    program, runtime, numpy = versions(variant.runtime)
    parts = [[program, runtime, *cpu(), numpy], [file.sha256 for file in variant.files], *([domain] if domain else ())]
    key = hashlib.sha256(json.dumps(parts).encode())
    key.update(crops.tobytes())
    return key.hexdigest()[:32]
