"""A source read by a thread of its own, so that frames are decoded while others are tracked."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipnet_edge.errors import EdgeError
from pipnet_edge.video.capture import OPENING, SILENCE
from pipnet_edge.video.source import Footage, Frame

# Frames that are decoded ahead of the one being tracked, of a source that is not live.
AHEAD = 2
# Seconds in which a frame has to come, by the feed's own clock: of a stream, for whose silence OpenCV looks first, and
# of a file, of which a slow board may take seconds for a picture of 100 megapixels.
LIVE, WHOLE = SILENCE + 0.5, 10.0


@dataclass(frozen=True)
class Taken:
    """A frame, the milliseconds that reading it took, and when it was there (time.monotonic)."""

    frame: Frame
    milliseconds: float
    at: float


class Feed:
    """Frames of a source, which a thread opens and reads.

    Every frame of a file waits to be taken. Of a live source only the newest does, and `passed_over` counts the others.
    It is read from the first `take` on: what loads a network meanwhile may stop all threads for seconds, and a source
    that was not looked at seems to hang.
    """

    def __init__(self, name: str, opened: Callable[[], Footage]) -> None:
        self.passed_over = 0
        self._name = name
        self._source: Footage | None = None
        self._frames = deque[Taken]()
        self._error: BaseException | None = None
        self._is_over = self._is_closed = self._is_wanted = False
        self._changed = threading.Condition()
        self._alive = time.monotonic()
        self._thread = threading.Thread(target=self._read, args=[opened], name="feed", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether all frames have been taken, no more will come, and there is nothing to raise."""
        return self._is_over and not self._frames and not self._error

    def source(self, seconds: float) -> Footage | None:
        """The source, None if it is not open within `seconds`.

        Raises EdgeError if it cannot be opened, or was not within OPENING.
        """
        self._wait(lambda: self._source is not None or self._is_over, seconds)
        if self._error and not self._source:
            raise self._error
        if not self._source and time.monotonic() - self._alive > OPENING + 1:
            raise EdgeError(f"{self._name} does not open within {OPENING:g} s")
        return self._source

    def take(self, seconds: float) -> Taken | None:
        """The next frame, None if there is none within `seconds` or the source is over.

        Raises what reading raised, after the frames before it, and EdgeError if the source hangs or does not open.
        """
        if not (source := self.source(seconds)):
            return None
        with self._changed:
            if not self._is_wanted:
                self._is_wanted, self._alive = True, time.monotonic()
                self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._frames) or self._is_over, seconds)
            if self._frames:
                taken = self._frames.popleft()
                self._alive = time.monotonic()
                self._changed.notify_all()
                return taken
        if self._error:
            raise self._error
        limit = LIVE if source.is_live else WHOLE
        if not self._is_over and time.monotonic() - self._alive > limit:
            raise EdgeError(f"{self._name} hangs: no whole frame for {limit:g} s")
        return None

    def close(self) -> None:
        """Ends the reading, if the source lets it end soon; otherwise the thread is left behind."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(0.5)

    def _wait(self, until: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(until, seconds)

    def _read(self, opened: Callable[[], Footage]) -> None:
        try:
            source = opened()
            with self._changed:
                self._source, self._alive = source, time.monotonic()
                self._changed.notify_all()
                if source.is_live:
                    self._changed.wait_for(lambda: self._is_wanted or self._is_closed)
            start = time.monotonic()
            for frame in source.frames:
                now = time.monotonic()
                self._give(Taken(frame, (now - start) * 1e3, now), source.is_live)
                if self._is_closed:
                    break
                start = time.monotonic()
        except BaseException as e:  # it is raised where frames are taken
            self._error = e
        finally:
            if self._source:
                self._source.frames.close()
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _give(self, taken: Taken, is_live: bool) -> None:
        with self._changed:
            if is_live:
                self.passed_over += len(self._frames)
                self._frames.clear()
            else:
                self._changed.wait_for(lambda: len(self._frames) < AHEAD or self._is_closed)
            self._frames.append(taken)
            self._alive = time.monotonic()
            self._changed.notify_all()
