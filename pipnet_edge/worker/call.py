"""How a command gives a job to a worker: it starts the worker, sends the job and follows its lines.

Every way to run offers one function, a `Call`. It takes a job with paths (bundle, crops, out) of this machine, makes
these files available where the worker runs, and brings back the files that the worker wrote.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import npz
from pipnet_edge.decode import Landmarks, Maps, Winners, map_shapes, winner_shapes
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import write_array
from pipnet_edge.npz import Form
from pipnet_edge.spec import ModelSpec
from pipnet_edge.worker import limits, protocol
from pipnet_edge.worker.limits import ANSWERS, Limits
from pipnet_edge.worker.protocol import LONGEST, Answer, Error, Event, Infer, Job, Probe

Listen = Callable[[Event], None]
Item = TypeVar("Item")

WORKER = ("-P", "-m", "pipnet_edge.worker")
# Bytes of all arrays together. No worker writes so many.
LARGEST = 1 << 30
SAID = 1 << 16  # bytes at the end of stderr in which the last line is looked for


class Lost(EdgeError):
    """The connection to the target broke; nothing more can be done there."""


class Died(EdgeError):
    """The worker died: its runtime crashed or ended it."""


def ignore(_: Event) -> None:
    """Listens to nothing."""


class Call(Protocol):
    """Gives one job to a worker and returns its answer.

    `listen` gets every event before the answer, as it comes. Raises EdgeError with the worker's own message, and when
    it takes longer or tells more than its job allows (limits.py); Died, which says how, if it died.
    """

    def __call__(self, job: Job[Answer], listen: Listen = ignore) -> Answer: ...


def here(job: Job[Answer], listen: Listen = ignore) -> Answer:
    """A Call to a worker on this machine, in the Python that runs this."""
    return start([sys.executable, *WORKER], job, listen)


def works(runtime: str) -> bool:
    """Whether a runtime runs anything at all on this machine."""
    try:
        here(Probe(runtime))
    except EdgeError:
        return False
    return True


class Workers:
    """Workers on this machine for several threads. The end of the block kills those that still run.

    Only the main thread hears of Ctrl-C; the other threads would wait for their workers to the end.
    """

    def __init__(self) -> None:
        self._started = list[subprocess.Popen[bytes]]()
        self._lock, self._is_over = threading.Lock(), False

    def call(self, job: Job[Answer], listen: Listen = ignore) -> Answer:
        """A Call. Raises EdgeError after the end of the block."""
        return start([sys.executable, *WORKER], job, listen, started=self._keep)

    def _keep(self, worker: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._started.append(worker)
        if self._is_over:
            kill(worker)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
        for worker in self._started:
            kill(worker)


def parts(items: Sequence[Item], most: int, workers: int = 1) -> list[Sequence[Item]]:
    """The items in parts of at most so many, of one size but for one item, so that no worker waits for the others."""
    count = workers * math.ceil(len(items) / (workers * most))
    bounds = [len(items) * index // count for index in range(count + 1)] if count else []
    return [items[start:end] for start, end in pairwise(bounds) if start < end]


def start(
    command: Sequence[str],
    job: Job[Answer],
    listen: Listen = ignore,
    environment: Mapping[str, str] | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
    slowness: float = 1.0,
    descriptors: Sequence[int] = (),
) -> Answer:
    """A Call to the worker that `command` starts. The worker is killed if this is interrupted.

    `started` gets the worker's process. slowness: as in limits.of. descriptors: those of this process that the worker
    has too.
    """
    allowed, is_late = limits.of(job, slowness), threading.Event()
    with tempfile.TemporaryFile() as stderr:
        # The worker has a session of its own: only this process acts on Ctrl-C. The worker ends when its stdin does.
        worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
            pass_fds=descriptors,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None

        def give_up() -> None:
            is_late.set()
            kill(worker)

        alarm = _Alarm(give_up)
        try:
            started(worker)
            alarm.set(allowed.seconds)
            # A worker that dies at once closes the pipe; its exit status tells more than the broken pipe.
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(protocol.write_job(job).encode())
                worker.stdin.flush()
            lines = _lines(worker.stdout)
            answer = follow(alarm.each(lines, allowed.silence) if allowed.silence else lines, job, listen, allowed)
            worker.wait()
        finally:
            alarm.off()
            kill(worker)
            worker.wait()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
            worker.stdout.close()
        if is_late.is_set():
            raise EdgeError(too_late(job, allowed))
        if worker.returncode or answer is None:
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - SAID))
            raise Died(how_it_died(worker.returncode, stderr.read().decode(errors="replace")))
    return answer


class _Alarm:
    """Calls a function once, so many seconds after it was set the last time."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: threading.Timer | None = None

    def set(self, seconds: float) -> None:
        self.off()
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def off(self) -> None:
        if self._timer:
            self._timer.cancel()

    def each(self, lines: Iterable[str], seconds: float) -> Iterator[str]:
        """The lines; it is set anew before each but the first."""
        for line in lines:
            yield line
            self.set(seconds)


def kill(worker: subprocess.Popen[bytes]) -> None:
    """Kills a worker and all that it started, unless its end was seen."""
    if worker.returncode is None:  # not poll(): what it started may outlive it, and hold its stdout
        with contextlib.suppress(ProcessLookupError):  # another thread was faster
            os.killpg(worker.pid, signal.SIGKILL)


def follow(lines: Iterable[str], job: Job[Answer], listen: Listen = ignore, allowed: Limits = ANSWERS) -> Answer | None:
    """Reads all that a worker writes and returns its answer; None if it gave none.

    `listen` gets the events. Raises EdgeError as soon as the worker reports an error, writes a line that is no event,
    goes on after its answer or tells more than is allowed.
    """
    answer: Answer | None = None
    told = 0
    for number, line in enumerate(lines, 1):
        told += len(line)
        for count, most, what in ((number, allowed.lines, "lines"), (told, allowed.text, "characters")):
            if count > most:
                raise EdgeError(f"the worker wrote more than {most} {what} for {str(job)!r}")
        if answer is not None:
            raise EdgeError(f"the worker went on after its answer to {str(job)!r}")
        event = protocol.read_event(line, job)
        if isinstance(event, Error):
            raise EdgeError(event.message, event.code)
        if isinstance(event, Event):
            listen(event)
        else:
            answer = event
    return answer


def _lines(stdout: IO[bytes]) -> Iterator[str]:
    while (line := stdout.readline(LONGEST)).endswith(b"\n"):
        yield text_of(line, "the worker")
    if len(line) == LONGEST:
        raise EdgeError(f"the worker wrote a line of more than {LONGEST} bytes")
    # Otherwise it was the end, or the worker died before it finished the line.


def text_of(line: bytes, who: str) -> str:
    """The text of a line. Raises EdgeError if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise EdgeError(f"{who} wrote a line that is not UTF-8: {line[:40]!r}") from None


def too_late(job: Job[Any], allowed: Limits) -> str:
    if allowed.silence:
        return f"the worker gave no sign of life for {allowed.silence:.0f} s; its runtime hangs"
    return f"{str(job)!r} did not answer within {allowed.seconds:.0f} s"


def how_it_died(status: int, stderr: str) -> str:
    """Names the signal or exit status of a process on this machine, and its last line of stderr."""
    how = f"ended with status {status}"
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"crashed with {names.get(-status, f'signal {-status}')}"
    if -status == signal.SIGILL and not stderr.strip():
        return f"the runtime {how}: its package is built for another CPU"
    return f"the runtime {how}: {last_line(stderr)}"


def last_line(stderr: str) -> str:
    return (stderr.strip().splitlines() or ["nothing on stderr"])[-1][:300]


@dataclass(frozen=True)
class Inference:
    """landmarks and, if asked for, maps with a batch axis; version names the runtime that ran.

    maps are Winners if the network computes its offset heads only at winning cells. features: (n, C), the mean of each
    channel over all cells, if the network gives them.
    """

    landmarks: Landmarks
    maps: Maps | Winners | None
    version: str
    features: NDArray[np.float32] | None = None


@contextlib.contextmanager
def given_by_a_worker(out: Path) -> Iterator[None]:
    """In messages of an EdgeError, a file that a worker wrote is called so: its name says nothing."""
    try:
        yield
    except EdgeError as e:
        raise EdgeError(str(e).replace(str(out), "what the worker gave")) from None


def infer(
    call: Call,
    bundle: Path,
    variant: str,
    threads: int,
    crops: NDArray[np.uint8],
    maps: bool = False,
    listen: Listen = ignore,
    cpus: Sequence[int] = (),
) -> Inference:
    """Runs a variant over crops (n, S, S, 3) uint8 RGB on a target. cpus: those to keep to; empty for all.

    Raises EdgeError as `call` does, and when what came back is not what was asked for.
    """
    spec = bundles.read(bundle).spec
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        given, out = Path(folder, "crops.npy"), Path(folder, "out.npz")
        write_array(given, crops)
        job = Infer(str(bundle), variant, threads, str(out), str(given), maps, tuple(cpus) or None)
        answer = call(job, listen)
        with given_by_a_worker(out):
            landmarks, found, features = _given(out, spec, len(crops), maps)
    return Inference(landmarks, found, answer.version, features)


def _given(
    path: Path, spec: ModelSpec, count: int, maps: bool
) -> tuple[Landmarks, Maps | Winners | None, NDArray[np.float32] | None]:
    """What a worker found in `count` crops, from its .npz file. Raises EdgeError for anything else."""
    held = npz.names(path, LARGEST)
    forms = {
        "points": Form((count, spec.num_lms, 2)),
        "score": Form((count, spec.num_lms)),
        "cell": Form((count, spec.num_lms), (np.int64, np.int32)),
    }
    kind: type[Maps] | type[Winners] = Maps
    shapes = map_shapes(spec)
    if maps and "map_offsets" in held:
        kind, shapes = Winners, winner_shapes(spec)
    asked = {f"map_{name}": Form((count, *shape)) for name, shape in shapes.items()} if maps else {}
    if "features" in held:
        asked["features"] = Form((count, "C"))
    arrays = npz.read(path, forms | asked, LARGEST)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise EdgeError(f"{path}: {name} holds NaN or infinity")
    if not ((arrays["cell"] >= 0) & (arrays["cell"] < spec.grid**2)).all():
        raise EdgeError(f"{path}: cell names cells that the map of {spec.grid} x {spec.grid} has not")
    landmarks = Landmarks(arrays["points"], arrays["score"], arrays["cell"])
    found = kind(**{name: arrays[f"map_{name}"] for name in shapes}) if maps else None
    return landmarks, found, arrays.get("features")
