"""How a tracker is judged: what is lost, confused, wrong and shaky, on numbers that can be computed in the head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipnet_edge.benchmarks.accuracy.tracking import Quality, Truth, judge
from pipnet_edge.video.track import NOBODY

# Two eyes 100 pixels apart, and a mouth.
FACE = np.array([[100, 100], [200, 100], [150, 200]], float)
EYES = (0, 1)
FRAMES = 40


@pytest.fixture
def truth() -> Truth:
    """One face rests for 20 frames; another one, moved aside, is there for 10, away for 5, and there for 5."""
    points = np.repeat(FACE[None], FRAMES, axis=0)
    points[20:] += (300, 0)
    inside = np.ones((FRAMES, 3), bool)
    inside[30:35] = False
    face = np.array([0] * 20 + [1] * 20)
    return Truth(points, inside, face, face == 0)


def followed(truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """What a perfect tracker with room for two faces gives: an id for each appearance."""
    ids, points = np.zeros((FRAMES, 2), np.int64), np.zeros((FRAMES, 2, 3, 2))
    ids[:20, 0], ids[20:30, 0], ids[35:, 1] = 4, 5, 6
    points[ids > 0] = np.repeat(truth.points[:, None], 2, axis=1)[ids > 0]
    return ids, points


def test_a_perfect_tracker(truth: Truth) -> None:
    assert truth.appearances().tolist() == [1] * 20 + [2] * 10 + [0] * 5 + [3] * 5
    found = judge(*followed(truth), truth, EYES)
    assert found == Quality(frames=35, lost=0, extra=0, ids=3, appearances=3, nme=0, jitter=0)
    assert found.failure is None


def test_frames_without_the_face_are_lost(truth: Truth) -> None:
    ids, points = followed(truth)
    ids[3:6] = 0
    found = judge(ids, points, truth, EYES)
    assert found.lost == 3
    assert found.failure == "loses the face in 3 of 35 frames"


def test_a_tracker_has_some_frames_to_find_a_face(truth: Truth) -> None:
    ids, points = followed(truth)
    ids[20 : 20 + NOBODY] = 0
    assert judge(ids, points, truth, EYES).lost == 0
    ids[20 : 20 + NOBODY + 2] = 0
    assert judge(ids, points, truth, EYES).lost == 2
    # Once it was found it has none.
    ids[20] = 5
    assert judge(ids, points, truth, EYES).lost == NOBODY + 1


def test_landmarks_beside_the_face_do_not_count_as_found(truth: Truth) -> None:
    ids, points = followed(truth)
    points[10:15] += 60
    found = judge(ids, points, truth, EYES)
    assert (found.lost, found.extra) == (5, 5)


def test_what_is_found_where_no_face_is(truth: Truth) -> None:
    ids, points = followed(truth)
    ids[30:33, 0], points[30:33, 0] = 7, FACE
    assert judge(ids, points, truth, EYES).extra == 3
    # Of a face that is partly outside nobody can say where it has been found.
    cut = truth.inside.copy()
    cut[30:33, 0] = True
    assert judge(ids, points, replace(truth, inside=cut), EYES).extra == 0


def test_another_id_is_a_failure(truth: Truth) -> None:
    ids, points = followed(truth)
    ids[10:20, 0] = 9
    found = judge(ids, points, truth, EYES)
    assert (found.lost, found.ids) == (0, 4)
    assert found.failure == "gives 4 ids to 3 appearances"
    ids[35:, 1] = 5
    ids[10:20, 0] = 4
    assert judge(ids, points, truth, EYES).failure == "gives 2 ids to 3 appearances"


def test_errors_are_shares_of_the_distance_of_the_eyes(truth: Truth) -> None:
    ids, points = followed(truth)
    found = judge(ids, points + np.array([3, 4]), truth, EYES)
    assert found.nme == pytest.approx(5)
    assert found.jitter == pytest.approx(0)
    # Without eyes, of the mean of the face's width and height, which are the same here.
    assert judge(ids, points + np.array([3, 4]), truth, None).nme == pytest.approx(5)


def test_jitter_is_the_second_difference_at_rest(truth: Truth) -> None:
    ids, points = followed(truth)
    shaken = points.copy()
    shaken[::2] += (0, 1)  # to and fro by one pixel: the difference changes by two
    assert judge(ids, shaken, truth, EYES).jitter == pytest.approx(2)
    # A face that moves is not looked at, and a step is no trembling where the id changes.
    moved = points.copy()
    moved[20:30:2] += (0, 1)
    moved[10:20] += (0, 5)
    ids[10:20, 0] = 9
    assert judge(ids, moved, truth, EYES).jitter == 0


def test_nobody_is_found(truth: Truth) -> None:
    ids, points = followed(truth)
    found = judge(0 * ids, points, truth, EYES)
    assert (found.nme, found.jitter, found.ids) == (None, None, 0)
    assert found.lost == 35 - NOBODY * 3
