"""Pictures: sizes, what stays untouched, and that what is drawn stands where it should and in its colour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge import draw
from pipnet_edge.benchmarks.accuracy.metrics import PerLandmark
from pipnet_edge.benchmarks.pictures import drawing, drift
from pipnet_edge.benchmarks.pictures.drawing import PAPER
from pipnet_edge.benchmarks.pictures.drift import RED, TRAIL, mean_face_picture, worst_sheet
from pipnet_edge.draw import GREEN, annotate
from pipnet_edge.spec import MeanFace, mean_faces

GREY = np.full((120, 160, 3), 128, dtype=np.uint8)


def test_annotate_draws_on_a_copy_and_only_near_the_points() -> None:
    points = np.array([[40.5, 30.5], [120.5, 30.5], [80.5, 90.5]])
    image = annotate(GREY, points)
    assert image.shape == GREY.shape
    assert image.dtype == np.uint8
    assert (GREY == 128).all()
    for x, y in points.astype(int):
        assert tuple(image[y, x]) == GREEN
    ys, xs = np.nonzero((image != GREY).any(axis=2))
    distance = np.hypot(xs[:, None] + 0.5 - points[:, 0], ys[:, None] + 0.5 - points[:, 1]).min(axis=1)
    assert distance.max() < 4
    assert (annotate(GREY, points, colour=RED)[30, 40] == RED).all()


def test_dots_grow_with_the_face_and_keep_a_floor() -> None:
    large = np.zeros((1200, 1200, 3), dtype=np.uint8) + np.uint8(128)
    corner = np.array([[100.5, 100.5], [1100.5, 1100.5]])

    def reach(points: np.ndarray) -> int:
        return int((annotate(large, points) == GREEN).all(axis=2).sum())

    assert reach(corner) > 20 * reach(corner / 50 + 300.49) > 0
    assert (annotate(GREY, np.array([[50.5, 50.5]])) != GREY).any()  # a face of one point has no extent
    assert (annotate(GREY, corner, radius=3.0)[100, 103] != 128).any()


def test_annotate_takes_several_faces_and_points_outside() -> None:
    faces = np.array([[[20.5, 20.5], [60.5, 60.5]], [[100.5, 20.5], [140.5, 60.5]]])
    both = annotate(GREY, faces)
    assert all(tuple(both[int(y), int(x)]) == GREEN for x, y in faces.reshape(-1, 2))
    outside = np.array([[-500.0, -500.0], [160.0, 60.0], [1e6, 50.0], [50.0, -1e6]])
    image = annotate(GREY, outside, radius=2.0)
    assert (image[60, 159] != 128).any()
    assert (image[:, :150] == GREY[:, :150]).all()


@given(st.floats(5, 15), st.floats(5, 15), st.floats(1, 4))
def test_a_dot_has_its_centre_and_area_at_any_fraction_of_a_pixel(x: float, y: float, radius: float) -> None:
    canvas = np.zeros((20, 20, 3), dtype=np.uint8)
    draw.disk(canvas, x, y, radius, (255, 255, 255))
    cover = canvas[:, :, 0] / 255
    centre = np.arange(20) + 0.5
    assert cover.sum() == pytest.approx(np.pi * radius**2, rel=0.15)
    assert (cover.sum(axis=0) * centre).sum() / cover.sum() == pytest.approx(x, abs=0.15)
    assert (cover.sum(axis=1) * centre).sum() / cover.sum() == pytest.approx(y, abs=0.15)


@given(st.floats(1e-9, 1e9))
def test_the_scale_ends_just_above_the_largest_drift(value: float) -> None:
    top = drawing.round_up(value)
    assert value * (1 - 1e-6) <= top <= 1.7 * value


def test_the_ramp_darkens() -> None:
    light = [sum(drift._ramp(share)) for share in np.linspace(0, 1, 30)]
    assert light[0] > light[-1]
    assert tuple(drift.RAMP[0]) == drift._ramp(0.0)
    assert tuple(drift.RAMP[-1]) == drift._ramp(1.0)


def table(lms: int, worst: int | None = None) -> PerLandmark:
    mean = np.zeros(lms)
    if worst is not None:
        mean[worst] = 2.0
    return PerLandmark(mean, 2 * mean, mean)


def test_mean_face_shows_the_worst_landmark() -> None:
    face = MeanFace("square", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    image = mean_face_picture(face, table(4, worst=2), "square", worst=1)
    assert image.shape == (900, 1305, 3)
    assert tuple(image[835, 770]) == drift._ramp(1.0)  # the corners are 690 apart around (425, 490)
    for x, y in ((80, 145), (770, 145), (80, 835)):
        assert tuple(image[y, x]) == drift._ramp(0.0)
    assert tuple(image[450, 425]) == PAPER
    number = (image[790:830, 740:800] < 90).all(axis=2).sum()  # ink above that corner only
    assert number > 20
    assert (image[95:135, 740:800] < 90).all(axis=2).sum() == 0


@pytest.mark.parametrize("name", list(mean_faces()))
def test_every_mean_face_can_be_drawn(name: str) -> None:
    face = mean_faces()[name]
    values = np.random.default_rng(0).gamma(1.0, 0.3, (3, len(face.points)))
    image = mean_face_picture(face, PerLandmark(*values), "a title that is far too long " * 9, worst=30, side=300)
    assert image.shape == (300, 435, 3)
    assert (image[:, [0, -1]] == 255).all()  # nothing runs out of the picture
    still = mean_face_picture(face, table(len(face.points)), "no drift", side=300)
    assert (still != image).any()


def test_worst_sheet_puts_both_landmarks_and_a_line_on_each_crop() -> None:
    crops = [np.zeros((64, 64, 3), dtype=np.uint8), np.zeros((256, 200, 3), dtype=np.uint8), np.zeros_like(GREY)]
    reference = np.full((3, 2, 2), 0.25)
    variant = np.array([[[0.75, 0.25], [0.25, 0.25]]] * 3)
    names = ["a.jpg", "a_name_that_would_never_fit_below_a_tile_" * 4 + ".png", "ü.png"]
    sheet = worst_sheet(crops, reference, variant, names, [64.0, 3.25, 0.0], "worst", columns=2, tile=320)
    gap, head, foot = 16, 80, 32
    assert sheet.shape == (head + 2 * (320 + foot + gap), 2 * (320 + gap) + gap, 3)
    for row, column in ((0, 0), (0, 1), (1, 0)):
        tile = sheet[head + row * (320 + foot + gap) :, gap + column * (320 + gap) :][:320, :320]
        assert tuple(tile[80, 240]) == RED  # the variant's first landmark, at (240, 80)
        assert tuple(tile[80, 80]) == RED  # the second did not move: red within green
        red, green = tile[70:90, 70:90, 0].astype(int), tile[70:90, 70:90, 1].astype(int)
        assert (green > red + 100).sum() >= 8
        assert np.abs(tile[79:81, 160].astype(int) - TRAIL).sum(axis=1).min() < 120
        assert (tile[100:, :] == 0).all()
    empty = sheet[head + 320 + foot + gap :, gap + 320 + gap :]
    assert (empty == 255).all()
    assert (sheet[:, :gap] == 255).all()
    assert (sheet[:, -gap:] == 255).all()


def test_worst_sheet_of_none_is_its_heading() -> None:
    sheet = worst_sheet([], np.zeros((0, 3, 2)), np.zeros((0, 3, 2)), [], [], "nothing drifted")
    assert sheet.shape == (80, 2 * 336 + 16, 3)
    assert (sheet < 90).any()
