"""The worker: `python -m pipnet_edge.worker` does one job in a process of its own and writes what it finds as lines.

A runtime that crashes takes down a worker, not the command. protocol.py defines the jobs, events and answers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from pipnet_edge import confined, host, strict
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.worker import limits, protocol
from pipnet_edge.worker.protocol import (
    LONGEST,
    STAGES,
    AnyJob,
    Chain,
    Count,
    CountChain,
    Counts,
    Cpus,
    Error,
    Event,
    Facts,
    Find,
    First,
    Groups,
    Infer,
    Job,
    Loaded,
    Machine,
    Opened,
    Peak,
    Played,
    Probe,
    Progress,
    Samples,
    State,
    Time,
    Track,
    Version,
)

TELL, MOST = 0.25, 8192  # seconds and frames between two events with samples: the line stays short
SAID = 2000  # characters of an error's message
MARK = 0x9E7  # no kind of process that getpriority knows


def probe(job: Probe) -> Iterator[Version]:
    confined.limit_memory(limits.memory(0))
    from pipnet_edge.runtimes.probe import probe as run_probe

    yield Version(run_probe(job.runtime))


def facts(_: Facts) -> Iterator[Machine]:
    from pipnet_edge import runtimes

    found: Any = {
        name: strict.printable(value) if isinstance(value, str) else value for name, value in host.facts().items()
    }
    yield Machine(found, tuple(name for name in runtimes.RUNTIMES if not runtimes.is_missing(name)))


def cpus(_: Cpus) -> Iterator[Groups]:
    yield Groups(tuple(group.cpus for group in host.clusters()))


def infer(job: Infer) -> Iterator[Event | Version]:
    _keep_to_cpus(job)
    import numpy as np

    from pipnet_edge.worker.opened import opened, together

    # Only this machine knows how many CPUs it has. More threads are useless, and thousands end it.
    network = opened(job, min(job.threads, len(host.allowed_cpus())))
    yield network.loaded
    found = []
    for index, given in enumerate(network.inputs):
        maps = network.session.run(given)
        found.append(network.arrays(maps, network.decode(maps)))
        yield Progress(index + 1, len(network.inputs))
    network.session.close()
    np.savez(job.out, **together(found))
    yield Version(network.loaded.version)


def find(job: Find) -> Iterator[Version]:
    import numpy as np

    from pipnet_edge.detect import detector

    confined.limit_memory(limits.memory(detector.size_of(Path(job.detector)), job.picture))
    threads = min(job.threads, len(host.allowed_cpus()))
    finder = detector.load(Path(job.detector), job.variant, threads, job.threshold)
    picture = np.load(job.picture, allow_pickle=False)
    found = finder.faces(picture)
    finder.close()
    np.savez(job.out, boxes=found.boxes, scores=found.scores, fit=found.landmark_boxes(finder.margins))
    yield Version(finder.version)


def timing(job: Time) -> Iterator[Event | Peak]:
    """The one timing loop. Samples are milliseconds of each stage of each frame; no frame is dropped.

    preprocess: from a picture in memory and a face's rectangle to the crop (without OpenCV there is no such stage, and
    frames start at the crop); inference: crop to maps; decode: maps to landmarks. A detector's frames are from a
    picture to its input, to maps, to faces. A frame is the sum of its stages, without a gap. A Samples event is written
    between two frames. It has the samples since the last such event, and the machine's state.
    """
    _keep_to_cpus(job)
    from pipnet_edge.worker.opened import opened

    network = opened(job, job.threads)
    session, decode = network.session, network.decode
    frames, prepare = network.frames(job.threads)
    yield network.loaded
    clock = time.perf_counter

    def frame(index: int) -> tuple[float, float, float, float]:
        picture = frames[index % len(frames)]
        t0 = clock()
        crop = prepare(picture) if prepare else picture
        t1 = clock()
        maps = session.run(crop)
        t2 = clock()
        decode(maps)
        return t0, t1, t2, clock()

    def samples(at: float, taken: list[tuple[float, float, float, float]]) -> Samples:
        """Turns clock readings of frames into milliseconds by stage, rounded to a tenth of a microsecond."""
        stages = {name: tuple(round((t[i + 1] - t[i]) * 1e3, 4) for t in taken) for i, name in enumerate(STAGES)}
        return Samples(at, stages if prepare else stages | {STAGES[0]: ()}, state())

    first = frame(0)
    yield First((first[2] - first[1]) * 1e3, tuple(host.allowed_cpus()))
    for index in range(1, job.warmup):
        frame(index)
    yield samples(0.0, [])
    count = 0
    taken: list[tuple[float, float, float, float]] = []
    start = told = clock()
    while count < job.count or clock() - start < job.seconds:
        taken.append(frame(count))
        count += 1
        if clock() - told > TELL or len(taken) == MOST:
            yield samples(clock() - start, taken)
            taken, told = [], clock()
    yield samples(clock() - start, taken)
    session.close()
    yield Peak(host.peak_bytes())


def counting(job: Count) -> Iterator[Event | Version]:
    """Runs frames like those that are timed, with a mark before every stage and one after the last.

    A mark is a system call that fails and has no effect. The instruction counter (targets/emulated/icount.c) sees it.
    """
    import ctypes

    from pipnet_edge.worker.opened import opened

    network = opened(job, 1)
    session, decode = network.session, network.decode
    frames, prepare = network.frames(1)
    mark = ctypes.CDLL(None).getpriority
    yield network.loaded
    for index in range(job.frames):
        mark(MARK, 0)
        given = frames[index % len(frames)]
        crop = prepare(given) if prepare else given
        mark(MARK, 1)
        maps = session.run(crop)
        mark(MARK, 2)
        decode(maps)
        mark(MARK, 3)
    session.close()
    yield Version(network.loaded.version)


def track(job: Track) -> Iterator[Event | Counts]:
    """Opens the source while it loads the networks. From the first frame on, what goes wrong is part of the answer."""
    asked_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())
    _keep_to_cpus(job)
    from pipnet_edge import bundle as bundles
    from pipnet_edge import runtimes
    from pipnet_edge.detect import detector
    from pipnet_edge.landmarker import Landmarker
    from pipnet_edge.video import play, sink, source
    from pipnet_edge.video.feed import Feed
    from pipnet_edge.video.page import Page
    from pipnet_edge.video.track import Rules

    variant = bundles.read(Path(job.bundle)).variant(job.variant)
    confined.limit_memory(limits.memory(variant.size))
    asked = source.Asked(job.source, job.stdin, job.size, job.fps)
    feed = Feed(asked.shown, lambda: source.opened(asked))
    landmarker = Landmarker(job.bundle, job.variant, job.threads)
    spec = landmarker.spec
    rules = Rules.of(spec, job.faces, job.every)
    find = detector.load(Path(job.detector), None, job.threads, job.threshold).find if job.detector else None
    tracker = play.Timed(find, landmarker.read, spec, rules, job.boxes, job.raw)
    arithmetic = runtimes.arithmetic(variant.runtime, variant.precision, host.features())
    yield Loaded(None, runtimes.adapter(variant.runtime).version(), arithmetic)
    while not (opened := feed.source(play.LOOK)):
        if asked_to_end.is_set():
            raise EdgeError(f"interrupted before {asked.shown} was open")
    address, _, port = (job.page or "").rpartition(":")
    page = Page(address, int(port)) if port else None
    video = sink.Video(Path(job.video), opened.fps or source.FPS) if job.video else None
    lines = sink.Lines(Path(job.lines), 1 if job.stdout is None else job.stdout) if job.lines else None
    url = page.url if page else None
    yield Opened(opened.width, opened.height, opened.fps, opened.count, url)
    sinks = [each for each in (video, lines, page) if each]
    yield from play.play(feed, tracker, sinks, job.seconds, asked_to_end.is_set)


def chain(job: Chain) -> Iterator[Event | Played]:
    _keep_to_cpus(job)
    from pipnet_edge.worker import chain as chains

    yield from chains.timed(job)


def count_chain(job: CountChain) -> Iterator[Event | Version]:
    from pipnet_edge.worker import chain as chains

    yield from chains.counted(job)


def _keep_to_cpus(job: Infer | Time | Track | Chain) -> None:
    """Must be called before any thread is started."""
    if job.cpus:
        host.pin(job.cpus, job.threads)


def state() -> State:
    """The machine's present state."""
    told: Any = host.state()
    return State(tuple(told.get("mhz", ())), told.get("celsius"), told.get("throttled"), told.get("load"))


JOBS: dict[type[AnyJob], Callable[[Any], Iterator[Any]]] = {
    Probe: probe,
    Facts: facts,
    Infer: infer,
    Find: find,
    Time: timing,
    Count: counting,
    Cpus: cpus,
    Track: track,
    Chain: chain,
    CountChain: count_chain,
}


def serve(lines: TextIO, job: str) -> int:
    """Does the job in a line and writes what it finds. Returns the exit status: 0, or the code of an EdgeError."""

    def write(event: Any) -> None:
        lines.write(protocol.write_event(event))
        lines.flush()

    def refuse(message: str, code: int = USER_ERROR) -> int:
        write(Error(strict.printable(message)[:SAID], code))
        return code

    try:
        asked: Job[Any] = protocol.read_job(job)
        for event in JOBS[type(asked)](asked):  # type: ignore[index]
            write(event)
    except EdgeError as e:
        return refuse(str(e), e.code)
    except OSError as e:
        # The job names a file that is not there, or the disk is full.
        return refuse(f"cannot use {e.filename or 'a file'}: {e.strerror or e}")
    except MemoryError:
        return refuse("more memory is needed than a worker may have, or than there is")
    return 0


def _first_line() -> str:
    """The first line of stdin. It is read without a buffer, because another process reads the rest."""
    line = bytearray()
    with contextlib.suppress(OSError):  # there is no stdin
        while not line.endswith(b"\n") and len(line) <= LONGEST and (part := os.read(0, 1 << 16)):
            line += part
    return line.partition(b"\n")[0].decode(errors="replace")


def _end_with_stdin(lines: TextIO) -> int:
    """Starts a process that ends this one, with all that it has started, when stdin ends. Returns its id.

    A thread would not do: a runtime that hangs may let none run. lines: what only this process writes to.
    """
    worker = os.getpid()
    watcher = os.fork()
    if watcher:
        return watcher
    try:
        confined.end_with(worker)
        os.close(lines.fileno())  # who reads it waits for the last that could write
        with contextlib.suppress(OSError):
            while os.read(0, 1 << 16):
                pass  # a sign of life
        os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(0)


def main() -> None:
    # It leads a process group of its own, which ends with it. Only the foreground group may read a terminal.
    if not os.isatty(0):
        with contextlib.suppress(PermissionError):  # it leads one already
            os.setpgid(0, 0)
    # Some runtimes print to stdout from C; the JSON lines get a descriptor of their own and stdout goes to stderr.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)
        job = _first_line()
        watcher = _end_with_stdin(lines)
        status = serve(lines, job)
    os.kill(watcher, signal.SIGKILL)
    os.waitpid(watcher, 0)
    if threading.active_count() > 1:
        # It hangs in a source that is silent. If it awoke while Python ends, it would crash.
        os._exit(status)
    sys.exit(status)
