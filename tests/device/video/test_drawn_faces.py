"""What is drawn on a frame: landmarks, squares and ids, wherever a face is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge import draw
from pipnet_edge.draw import GREEN
from pipnet_edge.video.level import around
from pipnet_edge.video.track import Face
from tests.device.video import moving

GREY = np.full((240, 320, 3), 128, np.uint8)


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=2)


def test_without_a_face_it_is_a_copy() -> None:
    drawn = draw.faces(GREY, ())
    assert (drawn == GREY).all()
    assert not np.shares_memory(drawn, GREY)


def test_landmarks_and_square_are_where_they_should_be_and_nothing_else_is_touched() -> None:
    face = moving.face(1, 160, 120, 100, turned=0.5)
    drawn = draw.faces(GREY, (face,))
    assert (GREY == 128).all()
    columns, rows = face.points.astype(int).T
    assert (np.abs(drawn[rows, columns].astype(int) - GREEN).max(axis=1) < 60).all()
    rows, columns = changed(drawn).nonzero()
    corners = face.crop.to_picture(draw.CORNERS)
    ends = np.roll(corners, -1, axis=0)
    at = np.stack([columns + 0.5, rows + 0.5], axis=1)[:, None]
    along = np.clip(((at - corners) * (ends - corners)).sum(-1) / ((ends - corners) ** 2).sum(-1), 0, 1)[..., None]
    off_square = np.linalg.norm(at - (corners + along * (ends - corners)), axis=2).min(axis=1)
    off_points = np.linalg.norm(at - face.points, axis=2).min(axis=1)
    off_name = np.linalg.norm(at[:, 0] - corners[0], axis=1)
    assert (np.minimum(off_square, off_points) < 3)[off_name > 30].all()
    # Both sides of each line: it lies on the square's edge, not half a pixel beside it.
    assert off_square[(off_points > 5) & (off_name > 30)].mean() < 0.8


def test_ids_differ_and_stand_at_the_faces_own_corner() -> None:
    left, top = moving.face(1, 160, 130, 100).crop.to_picture(np.zeros(2, np.float32)).astype(int)
    shown = []
    for number in (1, 7, 12, 345):
        names = []
        for moved in (0, 5):
            drawn = draw.faces(GREY, (moving.face(number, 160 + moved, 130, 100),))
            names.append(drawn[top - 20 : top - 2, left + moved : left + moved + 50].astype(int))
        assert np.abs(names[0] - names[1]).mean() < 12
        assert (names[0].max(axis=2) < 80).sum() > 10
        assert (names[0][:, :, 1] - names[0][:, :, 0] > 100).sum() > 10
        shown.append(names[0])
    assert all((a != b).any() for a in shown for b in shown if a is not b)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (319, 239), (0, 239), (319, 0), (160, 1)])
def test_a_name_stays_in_the_picture(x: float, y: float) -> None:
    face = moving.face(8, x, y, 120)
    with_name = draw.faces(GREY, (face,))
    other = draw.faces(GREY, (Face(3, face.points, face.raw, face.score, face.crop, False),))
    assert (with_name != other).any(axis=2).sum() > 20


@given(
    st.integers(1, 10**9),
    st.tuples(st.integers(1, 90), st.integers(1, 70)),
    st.lists(st.tuples(st.floats(-400, 400), st.floats(-400, 400)), min_size=2, max_size=6, unique=True),
)
def test_any_face_can_be_drawn(number: int, size: tuple[int, int], points: list[tuple[float, float]]) -> None:
    landmarks = np.array(points, np.float32)
    if np.ptp(landmarks, axis=0).max() < 2:
        return
    face = Face(number, landmarks, landmarks, 0.5, around(landmarks, None, 96), True)
    picture = np.zeros((*size, 3), np.uint8)
    assert draw.faces(picture, (face, face)).shape == picture.shape
    assert not picture.any()


@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 35)), max_size=12), st.floats(0.5, 5))
def test_disks_together_are_the_largest_cover_of_each(centres: list[tuple[float, float]], radius: float) -> None:
    together = np.zeros((30, 40, 3), np.uint8)
    draw.disks(together, np.array(centres).reshape(-1, 2), radius, (200, 100, 255))
    expected = np.zeros_like(together)
    for x, y in centres:
        one = np.zeros_like(together)
        draw.disk(one, x, y, radius, (200, 100, 255))
        expected = np.maximum(expected, one)
    assert (together == expected).all()
