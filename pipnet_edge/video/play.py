"""From a source through a tracker to sinks: reading, tracking and writing overlap, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from pipnet_edge.detect.boxes import Found
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Box, crop_rect
from pipnet_edge.spec import ModelSpec
from pipnet_edge.video.feed import Feed
from pipnet_edge.video.sink import Sink
from pipnet_edge.video.source import Frame
from pipnet_edge.video.track import Detect, Picture, Read, Rules, Tracked, Tracker
from pipnet_edge.worker.protocol import Counts, Tracking

# Frames that wait to be written. Seconds between two signs of life, and in which a wish to end is seen.
BEHIND, TELL, LOOK = 2, 0.5, 0.1

Milliseconds = Mapping[str, float]


class Timed:
    """A tracker that tells how long detection and the rest of tracking took. raw: points are not smoothed.

    detect: finds faces; boxes, if it is None, are where faces are looked for until there is one.
    """

    def __init__(
        self, detect: Detect | None, read: Read, spec: ModelSpec, rules: Rules, boxes: Sequence[Box], raw: bool
    ) -> None:
        self._find = detect
        self._boxes, self._raw, self._detection = boxes, raw, 0.0
        self._track = Tracker(self._detect, read, spec, rules)

    def __call__(self, frame: Frame) -> tuple[Tracked, Milliseconds]:
        """What is tracked in the next frame, and the milliseconds of "detect" and "track"."""
        self._detection, start = 0.0, time.perf_counter()
        can_look = bool(self._find or self._boxes)
        tracked = self._track(frame.picture, frame.time)
        tracking = time.perf_counter() - start - self._detection
        tracked = replace(tracked, detected=tracked.detected and can_look)
        if tracked.faces:
            self._boxes = ()
        if self._raw:
            tracked = replace(tracked, faces=tuple(replace(face, points=face.raw) for face in tracked.faces))
        return tracked, {"detect": self._detection * 1e3, "track": tracking * 1e3}

    def _detect(self, picture: Picture) -> Sequence[Found]:
        start = time.perf_counter()
        found = self._find(picture) if self._find else self._start(picture)
        self._detection += time.perf_counter() - start
        return found

    def _start(self, picture: Picture) -> Sequence[Found]:
        height, width = picture.shape[:2]
        for box in self._boxes:
            crop_rect(box, width, height, "test", "--box")  # it says what is wrong with one
        return [Found(box, 1.0) for box in self._boxes]


class Writer:
    """A thread that writes frames to sinks. An error of one stops it, and is raised at the next frame or the end."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._items = queue.Queue[tuple[Frame, Tracked, Milliseconds] | None](BEHIND)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self._thread.start()

    def write(self, frame: Frame, tracked: Tracked, milliseconds: Milliseconds) -> None:
        """Waits while BEHIND frames wait to be written. Raises what a sink raised."""
        if self._error:
            raise self._error
        self._items.put((frame, tracked, milliseconds))

    def close(self) -> list[EdgeError]:
        """Writes what waits and closes all sinks. What sinks said is returned, so that each of them is closed."""
        self._items.put(None)
        self._thread.join()
        errors = list[EdgeError]()
        if isinstance(self._error, EdgeError):
            errors.append(self._error)
        elif self._error:
            raise self._error
        for sink in self._sinks:
            try:
                sink.close()
            except EdgeError as e:
                errors.append(e)
        return errors

    def _write(self) -> None:
        while item := self._items.get():
            if self._error:
                continue  # nobody who writes must wait for ever
            try:
                for sink in self._sinks:
                    sink.write(*item)
            except BaseException as e:  # it is raised in the thread that writes
                self._error = e


class Tally:
    """What has been tracked so far."""

    def __init__(self) -> None:
        self.frames = self.detections = self.faces = self.lost = 0
        self.at = 0.0
        self.present = frozenset[int]()

    def add(self, frame: Frame, tracked: Tracked) -> None:
        present = frozenset(face.id for face in tracked.faces)
        self.frames += 1
        self.detections += tracked.detected
        self.faces = max(self.faces, *present, 0)
        self.lost += len(self.present - present)
        self.at, self.present = frame.time, present


def play(
    feed: Feed,
    track: Timed,
    sinks: Sequence[Sink],
    seconds: float | None,
    is_asked_to_end: Callable[[], bool],
) -> Iterator[Tracking | Counts]:
    """Tracks in a feed whose source is open, until it is over, `seconds` of its time are done, or it is asked to end.

    Tells how far it is, at least every TELL seconds. The counts come last, when the feed and the sinks are closed; an
    EdgeError on the way ends it and is their `trouble`.
    """
    source, tally, writer = feed.source(0), Tally(), Writer(sinks)
    assert source is not None
    was_stopped, errors, told, start = False, list[EdgeError](), time.monotonic(), time.monotonic()
    try:
        while not feed.is_over and not was_stopped:
            taken = feed.take(LOOK)
            if taken and seconds is not None and taken.frame.time >= seconds:
                break
            if taken:
                tracked, milliseconds = track(taken.frame)
                writer.write(taken.frame, tracked, {"read": taken.milliseconds, **milliseconds})
                tally.add(taken.frame, tracked)
            if time.monotonic() - told > TELL:
                told = time.monotonic()
                yield Tracking(tally.frames, feed.passed_over, len(tally.present))
            was_stopped = is_asked_to_end()
    except EdgeError as e:
        errors.append(e)
    finally:
        passed_over = feed.passed_over
        feed.close()
        errors += writer.close()
    yield Counts(
        tally.frames,
        passed_over,
        tally.detections,
        tally.faces,
        tally.lost,
        time.monotonic() - start,
        source.is_live,
        was_stopped,
        str(errors[0]) if errors else None,
    )
