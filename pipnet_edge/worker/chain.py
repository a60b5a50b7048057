"""A clip through the whole chain, from its file to the drawn picture: timed stage by stage, or counted."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from pipnet_edge import bundle as bundles
from pipnet_edge import confined, draw, host, runtimes
from pipnet_edge.detect.boxes import Found
from pipnet_edge.detect.detector import Detector
from pipnet_edge.errors import EdgeError
from pipnet_edge.landmarker import Landmarker
from pipnet_edge.video import play as overlapping
from pipnet_edge.video.feed import Feed
from pipnet_edge.video.level import LevelCrop, cut_level
from pipnet_edge.video.source import Asked, Frame, opened
from pipnet_edge.video.track import Detect, Picture, Reading, Rules, Tracked, Tracker
from pipnet_edge.worker import limits, serve
from pipnet_edge.worker.opened import opencv
from pipnet_edge.worker.protocol import CHAIN, Chain, CountChain, Counts, Event, First, Frames, Loaded, Played, Version

# The stages' numbers. END: a frame is done.
SOURCE, DETECT, CROP, LANDMARKS, SMOOTH, DRAW = range(len(CHAIN))
END = len(CHAIN)
# Gets a stage's number as it begins, which ends the one before.
Begin = Callable[[int], object]


def tracker(detect: Detect, landmarker: Landmarker, begin: Begin) -> Tracker:
    """A tracker that tells of its stages. SMOOTH is all that is none of the others: smoothing, and where to cut next.

    Raises EdgeError for a network whose presence threshold is not known.
    """

    def find(picture: Picture) -> Sequence[Found]:
        begin(DETECT)
        found = detect(picture)
        begin(SMOOTH)
        return found

    def read(picture: Picture, crop: LevelCrop) -> Reading:
        begin(CROP)
        pixels = cut_level(picture, crop)
        begin(LANDMARKS)
        found = Reading.of(landmarker.crop(pixels), crop)
        begin(SMOOTH)
        return found

    return Tracker(find, read, landmarker.spec, Rules.of(landmarker.spec))


def play(frames: Iterator[Frame], track: Tracker, begin: Begin) -> Iterator[Tracked]:
    """Takes frames from a source, tracks the faces in them and draws those."""
    while True:
        begin(SOURCE)
        frame = next(frames, None)
        if frame is None:
            return
        begin(SMOOTH)
        tracked = track(frame.picture, frame.time)
        begin(DRAW)
        draw.faces(frame.picture, tracked.faces)
        begin(END)
        yield tracked


class Stopwatch:
    """What stages take, by one clock, without a gap between two."""

    def __init__(self) -> None:
        self._spent = [0.0] * (END + 1)
        self._stage, self._since = END, time.perf_counter()

    def begin(self, stage: int) -> None:
        """A Begin."""
        now = time.perf_counter()
        self._spent[self._stage] += now - self._since
        self._stage, self._since = stage, now

    def take(self) -> tuple[float, ...]:
        """Milliseconds of a frame's stages, rounded to a tenth of a microsecond. Those of the next begin at 0."""
        spent, self._spent = self._spent, [0.0] * (END + 1)
        return tuple(round(seconds * 1e3, 4) for seconds in spent[:END])


def timed(job: Chain) -> Iterator[Event | Played]:
    """No frame is dropped. A Frames event is written between two frames, as Samples are in the timing loop."""
    landmarker, detector, loaded = _loaded(job, job.threads)
    yield loaded
    watch = Stopwatch()
    track = tracker(detector.find, landmarker, watch.begin)

    def told(at: float, taken: Sequence[tuple[float, ...]]) -> Frames:
        stages = {name: tuple(frame[stage] for frame in taken) for stage, name in enumerate(CHAIN)}
        return Frames(at, stages, serve.state())

    for index, _ in enumerate(islice(play(_clip(job), track, watch.begin), job.warmup)):
        spent = watch.take()
        if not index:
            yield First(sum(spent), tuple(host.allowed_cpus()))
    yield told(0.0, [])
    count, taken, found = 0, list[tuple[float, ...]](), list[Tracked]()
    start = since = time.perf_counter()
    while count < job.count or time.perf_counter() - start < job.seconds:
        track.reset()
        for tracked in play(_clip(job), track, watch.begin):
            taken.append(watch.take())
            count += 1
            if count <= job.frames:
                found.append(tracked)
            if time.perf_counter() - since > serve.TELL or len(taken) == serve.MOST:
                yield told(time.perf_counter() - start, taken)
                taken, since = [], time.perf_counter()
    yield told(time.perf_counter() - start, taken)
    _write(Path(job.out), found, landmarker.spec.num_lms, track.rules.faces)
    yield Played(host.peak_bytes(), _overlapped(job, landmarker, detector))


def counted(job: CountChain) -> Iterator[Event | Version]:
    """Marks are stages' numbers as they begin. The program that counts instructions sees them; see serve.counting."""
    landmarker, detector, loaded = _loaded(job, 1)
    yield loaded
    getpriority = ctypes.CDLL(None).getpriority

    def mark(stage: int) -> None:
        getpriority(serve.MARK, stage)

    track, frames = tracker(detector.find, landmarker, mark), _clip(job)
    for _ in range(2):
        track.reset()
        for _ in play(islice(frames, job.frames), track, mark):
            pass
    yield Version(loaded.version)


def _loaded(job: Chain | CountChain, threads: int) -> tuple[Landmarker, Detector, Loaded]:
    """Both networks, and the event that says they are loaded. Raises EdgeError without OpenCV."""
    if not opencv(threads):
        raise EdgeError("the chain needs OpenCV, which is not installed: pip install opencv-python-headless")
    variant = bundles.read(Path(job.bundle)).variant(job.variant)
    other = bundles.read_detector(Path(job.detector)).variant(job.detector_variant)
    confined.limit_memory(limits.memory(variant.size + other.size))
    start = time.perf_counter()
    landmarker = Landmarker(job.bundle, variant.name, threads)
    detector = Detector(job.detector, other.name, threads)
    milliseconds = (time.perf_counter() - start) * 1e3
    arithmetic = runtimes.arithmetic(variant.runtime, variant.precision, host.features())
    return landmarker, detector, Loaded(milliseconds, runtimes.adapter(variant.runtime).version(), arithmetic)


def _clip(job: Chain | CountChain) -> Iterator[Frame]:
    """The clip's frames. Raises EdgeError if they are not as many as the job says."""
    source, shown = opened(Asked(job.clip)), 0
    try:
        for shown, frame in enumerate(source.frames, 1):  # noqa: B007
            yield frame
    finally:
        source.frames.close()
    if isinstance(job, Chain) and shown != job.frames:
        raise EdgeError(f"the clip has {shown} frames; the job is for {job.frames}")


def _write(path: Path, found: Sequence[Tracked], landmarks: int, faces: int) -> None:
    """Writes the file `out` of a Chain."""
    ids = np.zeros((len(found), faces), np.int64)
    points = np.zeros((len(found), faces, landmarks, 2), np.float32)
    score = np.zeros((len(found), faces), np.float32)
    for index, tracked in enumerate(found):
        for place, face in enumerate(tracked.faces):
            ids[index, place], points[index, place], score[index, place] = face.id, face.points, face.score
    np.savez(path, id=ids, points=points, score=score)


class _Drawing:
    """A sink that draws and keeps nothing."""

    def write(self, frame: Frame, tracked: Tracked, _: Mapping[str, float]) -> None:
        draw.faces(frame.picture, tracked.faces)

    def close(self) -> None:
        pass


def _overlapped(job: Chain, landmarker: Landmarker, detector: Detector) -> float:
    """Frames a second where reading, tracking and drawing overlap, over whole passes as those that were timed."""
    frames, seconds = 0, 0.0
    while frames < job.count or seconds < job.seconds:
        feed = Feed("the clip", lambda: opened(Asked(job.clip)))
        while not feed.source(overlapping.LOOK):
            pass
        track = overlapping.Timed(
            detector.find, landmarker.read, landmarker.spec, Rules.of(landmarker.spec), (), raw=False
        )
        for told in overlapping.play(feed, track, [_Drawing()], None, lambda: False):
            if isinstance(told, Counts) and told.trouble:
                raise EdgeError(told.trouble)
            if isinstance(told, Counts):
                frames, seconds = frames + told.frames, seconds + told.seconds
    return frames / seconds
