"""What a source's thread does: it drops nothing of a file, and keeps only the newest of what is live."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator

import numpy as np
import pytest

from pipnet_edge.benchmarks.pictures.moves import background
from pipnet_edge.errors import EdgeError
from pipnet_edge.video import feed as feeds
from pipnet_edge.video.feed import Feed
from pipnet_edge.video.source import Asked, Footage, Frame, opened
from tests.device.video import streams

PICTURE = np.zeros((8, 8, 3), np.uint8)


def source(frames: Callable[[], Generator[Frame, None, None]], is_live: bool) -> Footage:
    return Footage("it", 8, 8, 30, None, is_live, frames())


def frames(count: int, seconds: float = 0.0) -> Generator[Frame, None, None]:
    for index in range(count):
        time.sleep(seconds)
        yield Frame(PICTURE, index / 30, index)


def taken(feed: Feed, pause: float = 0.0) -> list[int]:
    found = []
    while not feed.is_over:
        if got := feed.take(0.1):
            found.append(got.frame.index)
            time.sleep(pause)
    return found


def test_a_file_waits_for_whoever_is_slow() -> None:
    given = list[int]()

    def counted() -> Generator[Frame, None, None]:
        for frame in frames(20):
            given.append(frame.index)
            yield frame

    feed = Feed("it", lambda: source(counted, is_live=False))
    time.sleep(0.2)
    assert len(given) == feeds.AHEAD + 1
    assert taken(feed, 0.01) == list(range(20))
    assert feed.passed_over == 0


def test_of_a_live_source_the_newest_is_taken() -> None:
    feed = Feed("it", lambda: source(lambda: frames(30, 0.01), is_live=True))
    found = taken(feed, 0.05)
    assert found == sorted(set(found))
    assert found[-1] == 29
    assert len(found) + feed.passed_over == 30
    assert feed.passed_over > 10


def test_a_live_source_is_read_once_its_frames_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that loads meanwhile may stop every thread for longer than a camera may be silent."""
    monkeypatch.setattr(feeds, "LIVE", 0.3)
    given = list[int]()

    def counted() -> Generator[Frame, None, None]:
        for frame in frames(3, 0.2):
            given.append(frame.index)
            yield frame

    feed = Feed("it", lambda: source(counted, is_live=True))
    time.sleep(0.5)
    assert given == []
    assert taken(feed) == [0, 1, 2]


def ages(count: int) -> tuple[list[float], int]:
    """Milliseconds since a camera took the frames that a tracker of 10 frames a second takes; how many it did not."""
    found = list[float]()
    with streams.camera(background(0)) as url:
        feed = Feed(url, lambda: opened(Asked(url)))
        while len(found) < count:
            if got := feed.take(0.1):
                found.append((streams.now() - streams.stamp(got.frame.picture)) % (1 << streams.BITS))
                time.sleep(0.1)
        feed.close()
    return found, feed.passed_over


def test_the_age_of_a_camera_s_frames_when_the_tracker_is_slow() -> None:
    """30 frames a second. A busy machine may stop for longer than a frame; a queue makes each try fail."""
    frame_time, tries = 1000 / 30, list[tuple[float, float]]()
    while len(tries) < 3:
        found, passed_over = ages(50)
        assert passed_over > 50
        tries.append((float(np.median(found)), float(np.percentile(found, 99))))
        print(f"median {tries[-1][0]:.0f} ms, p99 {tries[-1][1]:.0f} ms")
        if tries[-1][0] <= 1.5 * frame_time and tries[-1][1] <= 3 * frame_time:
            return
    pytest.fail(f"median and p99 of each try, in ms: {tries}")


def test_what_reading_raises_comes_after_the_frames_before_it() -> None:
    def breaking() -> Generator[Frame, None, None]:
        yield from frames(2)
        raise EdgeError("it broke")

    feed = Feed("it", lambda: source(breaking, is_live=False))
    time.sleep(0.1)
    assert [got.frame.index for got in (feed.take(1), feed.take(1)) if got] == [0, 1]
    assert not feed.is_over
    with pytest.raises(EdgeError, match="it broke"):
        feed.take(1)


def test_a_source_that_does_not_open() -> None:
    def refuse() -> Footage:
        raise EdgeError("there is none")

    with pytest.raises(EdgeError, match="there is none"):
        Feed("it", refuse).source(1)


@pytest.mark.parametrize("is_live", [True, False])
def test_a_source_that_hangs(is_live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed's own clock: decoders may know none."""
    monkeypatch.setattr(feeds, "LIVE" if is_live else "WHOLE", 0.3)
    over = threading.Event()

    def hanging() -> Generator[Frame, None, None]:
        yield from frames(1)
        over.wait(10)

    feed = Feed("it", lambda: source(hanging, is_live))
    assert feed.take(1)
    start = time.monotonic()
    with pytest.raises(EdgeError, match=r"it hangs: no whole frame for 0\.3 s"):
        taken(feed)
    assert 0.2 < time.monotonic() - start < 2
    over.set()
    feed.close()


def test_a_source_that_hangs_while_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "OPENING", -0.7)
    over = threading.Event()

    def hanging() -> Footage:
        over.wait(10)
        raise EdgeError("too late")

    feed = Feed("it", hanging)
    time.sleep(0.5)
    with pytest.raises(EdgeError, match="it does not open within"):
        feed.source(0.05)
    over.set()
    feed.close()


def test_a_tracker_that_takes_long_is_no_source_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "WHOLE", 0.2)
    feed = Feed("it", lambda: source(lambda: frames(5), is_live=False))
    assert taken(feed, 0.5) == list(range(5))


def test_closing_ends_the_source() -> None:
    closed = threading.Event()

    def endless() -> Generator[Frame, None, None]:
        try:
            while True:
                yield from frames(1)
        finally:
            closed.set()

    feed = Feed("it", lambda: source(endless, is_live=False))
    assert feed.take(1)
    feed.close()
    assert closed.is_set()
