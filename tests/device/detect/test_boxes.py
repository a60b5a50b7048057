"""Which of several boxes about one face stays, and where its landmarks are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.detect.boxes import Faces, best, overlaps, without_doubles
from pipnet_edge.detect.spec import DetectorSpec, Margins
from pipnet_edge.strict import read

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "golden" / "detect" / "vectors.json").read_text())
SPEC = read(DetectorSpec, VECTORS["spec"], "spec")


@st.composite
def crowds(draw: st.DrawFn) -> Faces:
    """Boxes near each other on whole pixels, with few different scores: overlaps of exactly a third, and ties."""
    random, count = np.random.default_rng(draw(st.integers(0, 10_000))), draw(st.integers(0, 60))
    corners, sides = random.integers(-10, 40, (count, 2)), random.integers(1, 30, (count, 2))
    return Faces(np.hstack([corners, sides]).astype(float), random.integers(1, 9, count) / 10)


def literal(faces: Faces, overlap: float) -> list[int]:
    """cpu_nms of the reference, its arithmetic to the letter, but for its unstable order of equal scores."""
    x1, y1 = faces.boxes[:, 0], faces.boxes[:, 1]
    x2, y2 = x1 + faces.boxes[:, 2], y1 + faces.boxes[:, 3]
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    order = sorted(range(len(faces)), key=lambda i: (-faces.scores[i], i))
    gone, kept = set[int](), list[int]()
    for place, i in enumerate(order):
        if i in gone:
            continue
        kept.append(i)
        for j in order[place + 1 :]:
            w = max(0.0, min(x2[i], x2[j]) - max(x1[i], x1[j]) + 1)
            h = max(0.0, min(y2[i], y2[j]) - max(y1[i], y1[j]) + 1)
            if w * h / (areas[i] + areas[j] - w * h) >= overlap:
                gone.add(j)
    return kept


@given(crowd=crowds(), overlap=st.sampled_from([0.1, 0.3, 1 / 3, 0.5, 1.0]))
def test_it_keeps_what_the_reference_keeps(crowd: Faces, overlap: float) -> None:
    kept = without_doubles(best(crowd, len(crowd)), overlap, len(crowd))
    wanted = literal(crowd, overlap)
    np.testing.assert_array_equal(kept.boxes, crowd.boxes[wanted].reshape(-1, 4))
    np.testing.assert_array_equal(kept.scores, crowd.scores[wanted])


@given(crowd=crowds(), overlap=st.floats(0.05, 1), most=st.integers(1, 20))
def test_what_stays_is_apart_in_order_and_stays_again(crowd: Faces, overlap: float, most: int) -> None:
    everything = without_doubles(best(crowd, len(crowd)), overlap, len(crowd))
    kept = without_doubles(best(crowd, len(crowd)), overlap, most)
    assert len(kept) == min(most, len(everything))
    assert (np.diff(kept.scores) <= 0).all()
    for index, box in enumerate(kept.boxes):
        assert (overlaps(box, np.delete(kept.boxes, index, axis=0)) < overlap).all()
    np.testing.assert_array_equal(without_doubles(kept, overlap, most).boxes, kept.boxes)
    # Whatever went away overlaps something better that stayed.
    for box, score in zip(crowd.boxes, crowd.scores, strict=True):
        better = everything.boxes[everything.scores >= score]
        assert (overlaps(box, better) >= overlap).any() or (better == box).all(axis=1).any()


def test_the_best_are_in_order_and_equal_ones_stay_in_theirs() -> None:
    faces = Faces(np.arange(16.0).reshape(4, 4), np.array([0.5, 0.9, 0.5, 0.7]))
    assert best(faces, 3).boxes[:, 0].tolist() == [4, 12, 0]
    assert len(best(faces, 0)) == 0


def test_an_overlap_of_just_the_limit_is_a_double() -> None:
    # 10 x 10 and 10 x 10 pixels, five columns in common: 50 of 150.
    faces = Faces(np.array([[0.0, 0, 9, 9], [5, 0, 9, 9]]), np.array([0.9, 0.8]))
    assert overlaps(faces.boxes[0], faces.boxes[1:]) == pytest.approx(1 / 3)
    assert len(without_doubles(faces, 50 / 150, 9)) == 1
    assert len(without_doubles(faces, 0.334, 9)) == 2


def test_landmarks_are_looked_for_where_margins_say() -> None:
    for case in VECTORS["landmark_boxes"]:
        faces = Faces(np.array([case["box"]]), np.ones(1))
        np.testing.assert_allclose(faces.landmark_boxes(SPEC.margins), [case["landmarks"]])
    assert Faces(np.empty((0, 4)), np.empty(0)).landmark_boxes(SPEC.margins).shape == (0, 4)


@given(crowd=crowds())
def test_no_margins_leave_a_box_as_it_is(crowd: Faces) -> None:
    np.testing.assert_array_equal(crowd.landmark_boxes(Margins(0, 0, 0, 0)), crowd.boxes)
    x, y, w, h = crowd.boxes.T
    wide = crowd.landmark_boxes(Margins(0.5, -0.25, 1, 0.5)).T
    np.testing.assert_allclose(wide, [x - w / 2, y + h / 4, w * 2.5, h * 1.25])
