"""The tracker on scripted faces: who is kept, who is lost, and when faces are looked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.detect.boxes import Found
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Box
from pipnet_edge.spec import MeanFace, ModelSpec
from pipnet_edge.video.level import UNITS, LevelCrop, around
from pipnet_edge.video.track import Reading, Rules, Tracked, Tracker

# The first two are the eyes; the box of them all is the unit square.
SHAPE = np.array([[0.2, 0.3], [0.8, 0.3], [0.5, 0.6], [0.0, 0.0], [1.0, 1.0]])
FACE = MeanFace("five", tuple((x, y) for x, y in SHAPE.tolist()), (0, 1))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)
FRAME = np.zeros((480, 640, 3), np.uint8)
RULES = Rules(presence=0.4, faces=1)


def at(x: float, y: float, size: float = 100, turned: float = 0.0) -> NDArray[np.float32]:
    """Landmarks of a face whose box has its middle here."""
    cos, sin = size * math.cos(turned), size * math.sin(turned)
    return ((SHAPE - 0.5) @ np.array([[cos, sin], [-sin, cos]]) + [x, y]).astype(np.float32)


def box_of(points: NDArray[np.float32]) -> Box:
    (x, y), (width, height) = points.min(axis=0).tolist(), np.ptp(points, axis=0).tolist()
    return x, y, width, height


@dataclass
class World:
    """Faces that are there, by name: a network sees the one whose middle a crop holds, a detector all of them.

    scores: of a face's readings, 0.9 where none is given; as a list, of one reading after the other.
    """

    faces: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    scores: Mapping[str, float | list[float]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)  # from the detector
    read_in: list[LevelCrop] = field(default_factory=list)
    detections: int = 0

    def detect(self, picture: NDArray[np.uint8]) -> list[Found]:
        self.detections += 1
        return [Found(box_of(points), 0.99) for name, points in self.faces.items() if name not in self.hidden]

    def read(self, picture: NDArray[np.uint8], crop: LevelCrop) -> Reading:
        self.read_in.append(crop)
        middle = np.array([crop.x, crop.y]) / UNITS
        away = {name: float(np.abs(points.mean(axis=0) - middle).max()) for name, points in self.faces.items()}
        name = min(away, key=lambda name: away[name], default="")
        if not name or away[name] > crop.size / 2:
            return Reading(at(*middle.tolist()), 0.1)
        score = self.scores.get(name, 0.9)
        return Reading(self.faces[name], score.pop(0) if isinstance(score, list) else score)


@pytest.fixture
def world() -> World:
    return World({"a": at(200, 200)})


def tracker(world: World, rules: Rules = RULES) -> Callable[..., Tracked]:
    """track(): the next frame, a thirtieth of a second later."""
    track, frames = Tracker(world.detect, world.read, SPEC, rules), iter(range(10_000))
    return lambda picture=FRAME: track(picture, next(frames) / 30)


def ids(found: Tracked) -> list[int]:
    return [face.id for face in found.faces]


# --- One face.


def test_a_face_is_detected_once_and_then_followed(world: World) -> None:
    track = tracker(world)
    for frame in range(60):
        world.faces["a"] = at(200 + 5 * frame, 200 + frame)
        (face,) = track().faces
        assert face.id == 1
        assert face.is_new is (frame == 0)
        assert face.score == 0.9
        np.testing.assert_array_equal(face.raw, world.faces["a"])
    assert world.detections == 1
    assert len(world.read_in) == 60


def test_it_is_cut_by_its_raw_landmarks_of_the_last_frame_and_turned_level(world: World) -> None:
    track = tracker(world)
    before = world.faces["a"]
    track()
    for frame in range(1, 60):
        world.faces["a"] = at(200 + frame, 200, 100 + frame, math.radians(3 * frame))
        (face,) = track().faces
        assert face.crop == world.read_in[-1] == around(before, (0, 1), 96)
        before = world.faces["a"]
    assert math.degrees(math.atan2(face.crop.down, face.crop.across)) == pytest.approx(174, abs=0.1)


def test_a_network_without_eyes_is_cut_upright(world: World) -> None:
    world.faces["a"] = at(200, 200, turned=0.5)
    spec = ModelSpec("resnet18", 5, 2, 32, 96, MeanFace("five", FACE.points))
    track = Tracker(world.detect, world.read, spec, RULES)
    track(FRAME, 0)
    assert track(FRAME, 1).faces[0].crop == around(world.faces["a"], None, 96)


def test_what_is_given_out_is_smoothed(world: World) -> None:
    track = tracker(world)
    (first,) = track().faces
    np.testing.assert_array_equal(first.points, first.raw)
    world.faces["a"] = at(201, 200)
    (second,) = track().faces
    assert 200 < second.points.mean(axis=0)[0] + 200 - at(200, 200).mean(axis=0)[0] < 201
    np.testing.assert_array_equal(second.raw, world.faces["a"])


@pytest.mark.parametrize("time", [0.0, -5.0])
def test_time_that_does_not_go_on_leaves_the_raw_landmarks(world: World, time: float) -> None:
    track = Tracker(world.detect, world.read, SPEC, RULES)
    track(FRAME, 0)
    world.faces["a"] = at(201, 200)
    (face,) = track(FRAME, time).faces
    assert face.id == 1
    np.testing.assert_array_equal(face.points, face.raw)


# --- Scores.


@pytest.mark.parametrize(("score", "readings"), [(0.61, 1), (0.59, 2), (0.4, 2)])
def test_a_doubtful_reading_is_taken_again(world: World, score: float, readings: int) -> None:
    track = tracker(world)
    track()
    world.read_in.clear()
    world.faces["a"], world.scores = at(230, 200), {"a": score}
    (face,) = track().faces
    assert len(world.read_in) == readings
    assert face.score == score
    # Not better the second time: what was read first counts.
    assert face.crop == world.read_in[0] == around(at(200, 200), (0, 1), 96)


def test_the_better_reading_counts(world: World) -> None:
    track = tracker(world)
    track()
    world.faces["a"], world.scores = at(230, 200), {"a": [0.3, 0.7]}
    (face,) = track().faces
    assert face.id == 1
    assert face.score == 0.7
    assert face.crop == around(at(230, 200), (0, 1), 96)


def test_the_next_crop_is_around_the_better_reading() -> None:
    readings = [Reading(at(200, 200), 0.9), Reading(at(215, 200), 0.3), Reading(at(230, 200), 0.7)]
    read_in = []

    def read(_: NDArray[np.uint8], crop: LevelCrop) -> Reading:
        read_in.append(crop)
        return readings[min(len(read_in), 3) - 1]

    track = Tracker(lambda _: [Found((150, 150, 100, 100), 1)], read, SPEC, RULES)
    for time in range(3):
        assert ids(track(FRAME, time)) == [1]
    assert read_in[1:] == [around(at(x, 200), (0, 1), 96) for x in (200, 215, 230)]


@pytest.mark.parametrize(("score", "found"), [(0.4, [1]), (0.39, [])])
def test_below_the_threshold_there_is_no_face(world: World, score: float, found: list[int]) -> None:
    track = tracker(world)
    track()
    world.scores = {"a": score}
    assert ids(track()) == found


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        (at(200, 200, 20.5), True),
        (at(200, 200, 19.5), False),
        (at(240, 200, 2000), True),
        (at(240, 200, 15000), False),
        (at(1, 200), True),
        (at(-1, 200), False),
        (at(639, 479), True),
        (at(641, 200), False),
        (at(200, 481), False),
        (np.full((5, 2), 200, np.float32), False),
    ],
)
def test_a_face_has_some_size_and_its_middle_in_the_picture(points: NDArray[np.float32], kept: bool) -> None:
    followed = iter([at(200, 200), points])
    track = Tracker(
        lambda _: [Found((150, 150, 100, 100), 1)], lambda *_: Reading(next(followed, points), 1), SPEC, RULES
    )
    assert ids(track(FRAME, 0)) == [1]
    assert ids(track(FRAME, 1)) == [1] * kept


# --- When faces are looked for.


def detected_in(track: Callable[..., Tracked], frames: int) -> list[int]:
    return [frame for frame in range(frames) if track().detected]


def test_where_nobody_is_detection_backs_off() -> None:
    assert detected_in(tracker(World()), 30) == [0, 1, 3, 7, 12, 17, 22, 27]
    assert detected_in(tracker(World(), Rules(0.4, every=2)), 8) == [0, 1, 3, 5, 7]


def test_while_there_are_fewer_than_wanted_others_are_looked_for(world: World) -> None:
    track = tracker(world, Rules(0.4, faces=2, every=10))
    assert detected_in(track, 35) == [0, 10, 20, 30]
    world.faces["b"] = at(400, 200)
    assert detected_in(track, 30) == [5]
    assert ids(track()) == [1, 2]


def test_a_lost_face_is_looked_for_at_once(world: World) -> None:
    world.faces["b"] = at(400, 200)
    track = tracker(world, Rules(0.4, faces=2))
    assert ids(track()) == [1, 2]
    del world.faces["a"]
    assert detected_in(track, 60) == [0, 1, 3, 7, 15, 30, 45]
    world.faces["c"] = at(200, 200)
    assert detected_in(track, 30) == [0]
    assert ids(track()) == [2, 3]


def test_after_a_cut_the_new_face_is_there_in_the_same_frame(world: World) -> None:
    track = tracker(world)
    track()
    world.faces = {"b": at(500, 400, 50)}
    found = track()
    assert ids(found) == [2]
    assert found.faces[0].is_new
    assert found.detected


def test_a_face_that_returns_is_another(world: World) -> None:
    track = tracker(world)
    track()
    face = world.faces.pop("a")
    assert [ids(track()) for _ in range(8)] == [[]] * 8
    world.faces["a"] = face
    assert ids(track()) == []
    assert [ids(track()) for _ in range(9)][-1] == [2]


def test_reset_forgets_faces_but_not_ids(world: World) -> None:
    track = Tracker(world.detect, world.read, SPEC, RULES)
    track(FRAME, 0)
    track.reset()
    assert ids(track(FRAME, 1)) == [2]
    assert world.detections == 2


def test_a_picture_of_another_size_is_looked_at_anew(world: World) -> None:
    track = tracker(world)
    track()
    found = track(np.zeros((240, 320, 3), np.uint8))
    assert ids(found) == [2]
    assert found.detected
    assert not track(np.zeros((240, 320, 3), np.uint8)).detected


# --- Several.


def test_no_more_than_are_wanted_and_the_best_first() -> None:
    boxes = [Found((100 * n, 50, 60, 60), score) for n, score in enumerate((0.6, 0.9, 0.7, 0.8))]
    world = World({str(n): at(100 * n + 30, 80, 60) for n in range(4)})
    track = Tracker(lambda _: boxes, world.read, SPEC, Rules(0.4, faces=2))
    found = track(FRAME, 0).faces
    assert [face.raw.mean(axis=0)[0] // 100 for face in found] == [1, 3]
    assert len(world.read_in) == 2


def test_a_detector_that_finds_faces_everywhere_costs_a_few_readings() -> None:
    boxes = [Found((x, y, 40, 40), 0.9) for x in range(0, 600, 50) for y in range(0, 400, 50)]
    world = World()
    Tracker(lambda _: boxes, world.read, SPEC, Rules(0.4, faces=3))(FRAME, 0)
    assert len(world.read_in) <= 2 * 2 * 3


def test_a_detection_of_a_face_that_is_tracked_is_none(world: World) -> None:
    near = Found((150, 130, 100, 130), 1.0)
    track = Tracker(lambda _: [near], world.read, SPEC, Rules(0.4, faces=3, every=1))
    assert [ids(track(FRAME, time)) for time in range(4)] == [[1]] * 4
    assert len(world.read_in) == 4


def test_two_detections_of_one_face_are_one(world: World) -> None:
    both = [Found((150, 150, 100, 100), 1.0), Found((160, 140, 100, 120), 0.9)]
    track = Tracker(lambda _: both, world.read, SPEC, Rules(0.4, faces=3))
    assert ids(track(FRAME, 0)) == [1]
    assert ids(track(FRAME, 1)) == [1]


@pytest.mark.parametrize(("scores", "stays"), [((0.9, 0.8), 1), ((0.8, 0.9), 2), ((0.8, 0.8), 1)])
def test_of_two_on_one_face_the_better_stays(scores: tuple[float, float], stays: int) -> None:
    world = World({"a": at(200, 200), "b": at(400, 200)})
    track = tracker(world, Rules(0.4, faces=2))
    assert ids(track()) == [1, 2]
    # They come near, one in front of the other.
    world.faces = {"a": at(250, 200, 400), "b": at(350, 200, 400)}
    world.scores, world.hidden = dict(zip("ab", scores, strict=True)), {"a", "b"}
    found = track()
    assert ids(found) == [stays]
    assert found.detected


def test_faces_that_pass_each_other_without_touching_keep_their_ids() -> None:
    world = World({"a": at(100, 150), "b": at(500, 330)})
    track = tracker(world, Rules(0.4, faces=2))
    for frame in range(40):
        world.faces = {"a": at(100 + 10 * frame, 150), "b": at(500 - 10 * frame, 330)}
        first, second = track().faces
        assert (first.id, second.id) == (1, 2)
        np.testing.assert_array_equal(first.raw, world.faces["a"])
    assert world.detections == 1


# --- Refusals.


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"presence": 0.0}, r"^a presence threshold of 0; a number above 0 is needed$"),
        ({"presence": math.nan}, r"^a presence threshold of nan"),
        ({"presence": 0.4, "margin": 0.9}, r"^a crop margin of 0\.9; allowed: 1 to 4$"),
        ({"presence": 0.4, "faces": 0}, r"^faces is 0; a whole number of at least 1 is needed$"),
        ({"presence": 0.4, "every": 0}, r"^every is 0; "),
    ],
)
def test_rules_that_cannot_be(rules: dict[str, float], message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        Rules(**rules)  # type: ignore[arg-type]


def test_frames_that_are_none(world: World) -> None:
    track = Tracker(world.detect, world.read, SPEC, RULES)
    for picture in (FRAME[..., 0], FRAME.astype(np.float32), FRAME[:0], None):
        with pytest.raises(EdgeError, match=r"^the frame is "):
            track(picture, 0)  # type: ignore[arg-type]
    with pytest.raises(EdgeError, match=r"^a frame's time is nan; a number of seconds is needed$"):
        track(FRAME, math.nan)
    assert ids(track(FRAME, 0)) == [1]
