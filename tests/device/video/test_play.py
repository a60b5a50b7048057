"""From a feed through a tracker to sinks: what they get, what is counted, and how it ends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge.bundle import Bundle
from pipnet_edge.detect.boxes import Found
from pipnet_edge.errors import EdgeError
from pipnet_edge.landmarker import Landmarker
from pipnet_edge.video.feed import Feed
from pipnet_edge.video.play import BEHIND, Timed, Writer, play
from pipnet_edge.video.sink import Sink
from pipnet_edge.video.source import Footage, Frame
from pipnet_edge.video.track import Face, Rules, Tracked
from pipnet_edge.worker.protocol import Counts, Tracking
from tests.device.video import streams

BOX = tuple(float(word) for word in streams.BOX.split(","))


@dataclass
class Kept:
    """A sink that keeps what it gets. wrong: what it raises, at which frame or when it is closed ("close")."""

    wrong: Mapping[int | str, BaseException] = field(default_factory=dict)
    pause: float = 0.0
    got: list[tuple[Frame, Tracked, dict[str, float]]] = field(default_factory=list)
    closed: int = 0

    def write(self, frame: Frame, tracked: Tracked, milliseconds: Mapping[str, float]) -> None:
        if frame.index in self.wrong:
            raise self.wrong[frame.index]
        time.sleep(self.pause)
        self.got.append((frame, tracked, dict(milliseconds)))

    def close(self) -> None:
        self.closed += 1
        if "close" in self.wrong:
            raise self.wrong["close"]


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return streams.steady(make_bundle, tmp_path_factory.mktemp("steady") / "bundle")


@pytest.fixture
def timed(bundle: Bundle) -> Callable[..., Timed]:
    def make(detect: Any = None, boxes: Sequence[Any] = (BOX,), raw: bool = False) -> Timed:
        landmarker = Landmarker(bundle.folder)
        rules = Rules(0.25, faces=1)
        return Timed(detect, landmarker.read, landmarker.spec, rules, boxes, raw)

    return make


def feed_of(bundle: Bundle, count: int, then: BaseException | None = None, is_live: bool = False) -> Feed:
    """A face in all frames but the last two."""
    pictures = [streams.frame(bundle)] * (count - 2) + [streams.frame(bundle, golden=1)] * 2

    def frames() -> Generator[Frame, None, None]:
        for index, picture in enumerate(pictures):
            yield Frame(picture, index / 30, index)
        if then:
            raise then

    feed = Feed("it", lambda: Footage("it", 640, 480, 30, count, is_live, frames()))
    assert feed.source(5)
    return feed


def played(
    feed: Feed,
    track: Any,
    sinks: Sequence[Sink],
    seconds: float | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> Counts:
    *told, counts = play(feed, track, sinks, seconds, asked)
    assert all(isinstance(each, Tracking) for each in told)
    assert isinstance(counts, Counts)
    return counts


class Blind:
    """A tracker that finds nothing, or the same faces again."""

    def __init__(self, ids: Mapping[int, Sequence[int]] | None = None) -> None:
        self.ids = ids or {}

    def __call__(self, frame: Frame) -> tuple[Tracked, dict[str, float]]:
        points = np.zeros((5, 2), np.float32)
        crop: Any = None
        faces = tuple(Face(number, points, points, 0.5, crop, False) for number in self.ids.get(frame.index, ()))
        return Tracked(faces, frame.index == 0), {"detect": 1.0, "track": 2.0}


def test_frames_and_faces_reach_every_sink(bundle: Bundle, timed: Callable[..., Timed]) -> None:
    sinks = Kept(), Kept(pause=0.01)
    counts = played(feed_of(bundle, 12), timed(), sinks)
    for sink in sinks:
        assert [frame.index for frame, _, _ in sink.got] == list(range(12))
        assert [len(tracked.faces) for _, tracked, _ in sink.got] == [1] * 10 + [0, 0]
        assert sink.closed == 1
        for _, tracked, milliseconds in sink.got[:10]:
            np.testing.assert_allclose(tracked.faces[0].points, streams.POINTS, atol=0.05)
            assert tracked.faces[0].id == 1
            assert set(milliseconds) == {"read", "detect", "track"}
            assert milliseconds["track"] > 0
    assert counts == Counts(12, 0, 1, 1, 1, counts.seconds, False, False, None)
    assert 0.1 < counts.seconds < 20


def test_a_box_is_looked_at_until_a_face_is_there(bundle: Bundle, timed: Callable[..., Timed]) -> None:
    sink, elsewhere = Kept(), (400.0, 300.0, 100.0, 100.0)
    empty = feed_of(bundle, 2)
    # The null runtime refuses what is no golden crop: the box is really cut.
    assert "the null runtime knows only the golden crops" in str(
        played(empty, timed(boxes=[elsewhere]), [sink]).trouble
    )
    outside = played(feed_of(bundle, 5), timed(boxes=[(700.0, 0.0, 50.0, 50.0)]), [sink])
    assert outside.trouble == "--box 700,0,50,50 lies outside the picture of 640x480 pixels"
    assert outside.frames == 0


def test_detection_is_timed_apart_and_told(bundle: Bundle, timed: Callable[..., Timed]) -> None:
    def detect(_: Any) -> list[Found]:
        time.sleep(0.05)
        return [Found(BOX, 0.9)]  # type: ignore[arg-type]

    sink = Kept()
    counts = played(feed_of(bundle, 6), timed(detect), [sink])
    assert [tracked.detected for _, tracked, _ in sink.got] == [True] + [False] * 3 + [True, True]
    assert counts.trouble is None
    assert sink.got[0][2]["detect"] > 50 > sink.got[0][2]["track"]
    assert sink.got[1][2]["detect"] == 0


@pytest.mark.parametrize("raw", [False, True])
def test_raw_points_are_not_smoothed(bundle: Bundle, timed: Callable[..., Timed], raw: bool) -> None:
    track = timed(raw=raw)
    track(Frame(streams.frame(bundle), 0.0, 0))
    tracked, _ = track(Frame(streams.frame(bundle, golden=2), 1 / 30, 1))
    (face,) = tracked.faces
    assert np.array_equal(face.points, face.raw) is raw


def test_counts_of_faces(bundle: Bundle) -> None:
    ids = {0: [1], 1: [1, 2], 2: [2], 3: [], 4: [3], 5: [3]}
    counts = played(feed_of(bundle, 6), Blind(ids), [Kept()])
    assert (counts.frames, counts.faces, counts.lost, counts.detections) == (6, 3, 2, 1)


# --- How it ends.


def test_so_many_seconds_of_the_source(bundle: Bundle) -> None:
    sink = Kept()
    counts = played(feed_of(bundle, 30), Blind(), [sink], seconds=0.5)
    assert [frame.index for frame, _, _ in sink.got] == list(range(15))
    assert (counts.frames, counts.trouble, counts.was_stopped) == (15, None, False)


def test_it_ends_when_it_is_asked_to(bundle: Bundle) -> None:
    sink, calls = Kept(), iter([False, False, True])
    counts = played(feed_of(bundle, 30), Blind(), [sink], asked=lambda: next(calls))
    assert counts.was_stopped
    assert counts.frames == len(sink.got) <= 3
    assert sink.closed == 1


def test_it_ends_when_it_is_asked_to_while_the_source_says_nothing() -> None:
    over = threading.Event()

    def silent() -> Generator[Frame, None, None]:
        over.wait(10)
        yield from ()

    feed = Feed("it", lambda: Footage("it", 8, 8, 30, None, True, silent()))
    assert feed.source(5)
    start = time.monotonic()
    assert played(feed, Blind(), [], asked=lambda: True).was_stopped
    assert time.monotonic() - start < 2
    over.set()


def test_a_source_that_breaks_is_the_trouble_of_what_was_tracked(bundle: Bundle) -> None:
    sink = Kept()
    counts = played(feed_of(bundle, 5, EdgeError("it broke")), Blind(), [sink])
    assert (counts.frames, counts.trouble, len(sink.got), sink.closed) == (5, "it broke", 5, 1)


@pytest.mark.parametrize("at", [3, "close"])
def test_a_sink_that_fails_closes_all(bundle: Bundle, at: int | str) -> None:
    first, second = Kept({at: EdgeError("the disk is full")}), Kept()
    counts = played(feed_of(bundle, 30), Blind(), [first, second])
    assert counts.trouble == "the disk is full"
    assert first.closed == second.closed == 1
    assert len(second.got) == (30 if at == "close" else 3)


@pytest.mark.parametrize("where", ["source", "sink"])
def test_a_defect_keeps_its_traceback(bundle: Bundle, where: str) -> None:
    defect = ZeroDivisionError("a defect")
    feed = feed_of(bundle, 5, defect if where == "source" else None)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        played(feed, Blind(), [Kept({4: defect} if where == "sink" else {})])


def test_who_writes_waits_for_a_slow_sink_and_for_a_failed_one_not() -> None:
    go, frame = threading.Event(), Frame(np.zeros((8, 8, 3), np.uint8), 0.0, 0)

    class Slow(Kept):
        def write(self, frame: Frame, tracked: Tracked, milliseconds: Mapping[str, float]) -> None:
            go.wait(10)
            raise EdgeError("it failed")

    writer, written = Writer([Slow()]), list[int]()

    def write() -> None:
        with contextlib.suppress(EdgeError):
            for index in range(10):
                writer.write(frame, Tracked((), False), {})
                written.append(index)

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.2)
    assert len(written) <= BEHIND + 1
    go.set()
    thread.join(5)
    assert not thread.is_alive()
    assert len(written) < 10
    assert [str(error) for error in writer.close()] == ["it failed"]


def test_signs_of_life(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Slow(Blind):
        def __call__(self, frame: Frame) -> tuple[Tracked, dict[str, float]]:
            time.sleep(0.12)
            return super().__call__(frame)

    *told, _ = play(feed_of(bundle, 12), Slow({n: [1] for n in range(12)}), [], None, lambda: False)  # type: ignore[arg-type]
    assert len(told) >= 2
    assert all(isinstance(each, Tracking) and each.faces == 1 for each in told)
