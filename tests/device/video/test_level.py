"""The level crop: every pixel is what docs/video.md says, and landmarks come back to where they are."""

from __future__ import annotations

import hashlib
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, mean_faces
from pipnet_edge.video.level import BAND, LONGEST, UNITS, LevelCrop, around, cut_level, eyes_of, is_inside, upright

VECTORS = Path(__file__).resolve().parents[2] / "golden" / "video"
LEVEL = json.loads((VECTORS / "level.json").read_text())


READER = SimpleNamespace(**runpy.run_path(str(VECTORS / "reader.py")))


def numbers(crop: LevelCrop) -> list[int]:
    return [crop.x, crop.y, crop.across, crop.down]


def from_points(case: dict[str, Any]) -> LevelCrop:
    eyes = tuple(case["eyes"]) if case["eyes"] else None
    return around(np.array(case["points"], np.float64), eyes, case["side"], case["margin"])


# --- The vectors.


@pytest.mark.parametrize("case", LEVEL["around"])
def test_landmarks_to_numbers(case: dict[str, Any]) -> None:
    assert numbers(from_points(case)) == case["crop"]
    assert list(READER.around(case["points"], case["eyes"], case["margin"], case["side"])) == case["crop"]


@pytest.mark.parametrize("case", LEVEL["refused"])
def test_what_cannot_be_cut(case: dict[str, Any]) -> None:
    with pytest.raises(EdgeError):
        from_points(case)
    with pytest.raises(ValueError, match=r"cannot be cut|not finite"):
        READER.around(case["points"], case["eyes"], case["margin"], case["side"])


@pytest.mark.parametrize("case", LEVEL["cut"])
def test_numbers_to_pixels(case: dict[str, Any]) -> None:
    picture, side = READER.picture(case["width"], case["height"]), case["side"]
    for found in (cut_level(picture, LevelCrop(*case["crop"], side)), READER.cut(picture, case["crop"], side)):
        assert found.shape == (side, side, 3)
        assert hashlib.sha256(found.tobytes()).hexdigest() == case["sha256"]
        assert found.ravel().tolist() == case.get("pixels", found.ravel().tolist())


@pytest.mark.parametrize("case", LEVEL["landmarks"])
def test_landmarks_back_to_the_picture(case: dict[str, Any]) -> None:
    found = LevelCrop(*case["crop"], case["side"]).to_picture(np.array(case["points"], np.float32))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(case["picture"], np.float32))
    assert READER.to_picture(case["crop"], case["side"], case["points"]) == case["picture"]


# --- Many more crops, against the reader.


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), coarse=st.booleans())
def test_every_pixel_is_the_page_s(data: st.DataObject, seed: int, coarse: bool) -> None:
    random = np.random.default_rng(seed)
    height, width = data.draw(st.tuples(st.integers(1, 200), st.integers(1, 200)), "size")
    picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if coarse:
        picture = (picture >> 7) * np.uint8(255)
    side = data.draw(st.sampled_from([1, 2, 7, 32, 96]), "side")
    size, angle = data.draw(st.floats(1, 900), "size"), data.draw(st.floats(-4, 4) | st.just(0.0), "angle")
    step = (size + 0.01) * UNITS / (2 * side)
    x, y = (data.draw(st.integers(0, length * UNITS), "middle") for length in (width, height))
    crop = LevelCrop(x, y, round(step * math.cos(angle)), round(step * math.sin(angle)), side)
    np.testing.assert_array_equal(cut_level(picture, crop), READER.cut(picture, numbers(crop), side))


@pytest.mark.parametrize("side", [BAND, BAND + 1, 2 * BAND + 32])
def test_the_largest_crop_of_the_largest_picture(side: int) -> None:
    """Where 32 bits are nearly full."""
    picture = READER.picture(LONGEST, 3)
    step = int(LONGEST * UNITS / 2 / side / math.sqrt(2))
    for x, y, turn in ((LONGEST, 3, 1), (0, 0, -1), (LONGEST, 0, -1)):
        crop = LevelCrop(x * UNITS, y * UNITS, step * turn, step, side)
        np.testing.assert_array_equal(cut_level(picture, crop), READER.cut(picture, numbers(crop), side))


# --- What it means.


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


def test_a_crop_of_the_right_size_is_the_picture_itself(picture: NDArray[np.uint8]) -> None:
    crop = upright((30, 20, 64, 64), 64, margin=1)
    np.testing.assert_array_equal(cut_level(picture, crop), picture[20:84, 30:94])
    assert crop.size == 64


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_crop_turned_by_quarters_is_the_picture_turned(picture: NDArray[np.uint8], quarters: int) -> None:
    """The right eye below the left: the crop is the picture turned to the left, and so on."""
    corners = np.array([[30, 20], [94, 20], [94, 84], [30, 84]], np.float32)
    crop = around(corners, (quarters % 4, (quarters + 1) % 4), 64, margin=1)
    np.testing.assert_array_equal(cut_level(picture, crop), np.rot90(picture[20:84, 30:94], quarters))


def test_outside_the_border_is_repeated(picture: NDArray[np.uint8]) -> None:
    found = cut_level(picture, upright((-32, -32, 64, 64), 64, margin=1))
    np.testing.assert_array_equal(found[32:, 32:], picture[:32, :32])
    assert (found[:33, :33] == picture[0, 0]).all()
    np.testing.assert_array_equal(found[:32, 32:], np.broadcast_to(picture[0, :32], (32, 32, 3)))


@given(
    angle=st.floats(-math.pi, math.pi),
    size=st.floats(30, 2000),
    middle=st.tuples(st.floats(0, 2000), st.floats(0, 2000)),
)
def test_a_face_lies_alike_in_its_crop_however_it_is_turned(
    angle: float, size: float, middle: tuple[float, float]
) -> None:
    face = mean_faces()["300w"]
    points = np.array(face.points)
    points -= (points.min(axis=0) + points.max(axis=0)) / 2
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    placed = points @ np.array([[cos, sin], [-sin, cos]]) + middle
    crop = around(placed, eyes_of(face), 256)
    upright_crop = around(points * 1000 + 2000, eyes_of(face), 256)
    # What the crop of the turned face holds is found where the crop of the upright one holds it.
    steps = np.array([[upright_crop.across, upright_crop.down], [-upright_crop.down, upright_crop.across]]) / UNITS
    halves = (points * 1000 + 2000 - np.array([upright_crop.x, upright_crop.y]) / UNITS) @ np.linalg.inv(steps)
    found = crop.to_picture(((halves / 256 + 1) / 2).astype(np.float32))
    assert np.abs(found - placed).max() < 0.01 + size * 2e-4
    assert crop.size == pytest.approx(1.2 * size * upright_crop.size / 1200, rel=1e-3)


@given(x=st.integers(0, 160 * UNITS), y=st.integers(0, 120 * UNITS), turned=st.floats(-4, 4), size=st.floats(10, 300))
def test_a_landmark_is_where_its_pixel_came_from(x: int, y: int, turned: float, size: float) -> None:
    """A picture that shows its own positions: red is the column, green the row."""
    rows, columns = np.indices((120, 160))
    picture = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    step = size / 128 * UNITS
    crop = LevelCrop(x, y, round(step * math.cos(turned)), round(step * math.sin(turned)), 64)
    middles = (np.stack(np.meshgrid(np.arange(64), np.arange(64)), axis=-1) + 0.5).astype(np.float32) / 64
    expected = crop.to_picture(middles) - 0.5
    seen = cut_level(picture, crop)[..., :2]
    assert np.abs(seen - expected.clip(0, [159, 119])).max() <= 0.5 + 1 / 32


# --- Eyes.


@pytest.mark.parametrize("name", list(mean_faces()))
def test_every_mean_face_of_the_reference_has_eyes(name: str) -> None:
    face = mean_faces()[name]
    eyes = eyes_of(face)
    assert eyes
    points = np.array(face.points)
    left, right = points[list(eyes)]
    width = np.ptp(points[:, 0])
    # Level, an eye's distance from the middle to each side, and in the upper half of the face.
    assert abs(right[1] - left[1]) < 0.03
    assert 0.35 * width < right[0] - left[0] < 0.9 * width
    assert max(left[1], right[1]) < points[:, 1].mean()


def test_other_mean_faces() -> None:
    points = ((0.7, 0.3), (0.3, 0.32), (0.5, 0.9))
    assert eyes_of(MeanFace("mine", points, (0, 1))) == (1, 0)
    assert eyes_of(MeanFace("mine", points, (1, 2))) is None
    assert eyes_of(MeanFace("mine", points)) is None
    assert eyes_of(MeanFace("aflw", points)) is None


# --- Refusals.


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ((0, 0, 100, 0, 0), r"^a crop of 0 pixels square; allowed: 1 to 4096$"),
        ((0, 0, 100, 0, 4097), r"^a crop of 4097 pixels square"),
        ((0, 0, 127, 0, 256), r"^the square to cut is 0\.992188 pixels square at 0,0; 1 to 16384 square"),
        ((0, 0, 1 << 22, 0, 256), r"^the square to cut is 32768 pixels square"),
        ((1 << 31, 0, 1 << 15, 0, 256), r" at 32768,0; "),
        ((0, -(1 << 31), 1 << 15, 0, 256), r" at 0,-32768; "),
    ],
)
def test_crops_that_cannot_be(crop: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        LevelCrop(*crop)


def test_what_cannot_be_cut_from(picture: NDArray[np.uint8]) -> None:
    crop = upright((30, 20, 64, 64), 64)
    outside = upright((200, 20, 64, 64), 64)
    assert is_inside(crop, 160, 120)
    assert not is_inside(outside, 160, 120)
    with pytest.raises(
        EdgeError, match=r"^the middle of the crop, 232,52, lies outside the picture of 160x120 pixels$"
    ):
        cut_level(picture, outside)
    with pytest.raises(EdgeError, match=r"^the picture has 16385x1 pixels; level crops need at most 16384 on a side$"):
        cut_level(np.zeros((1, LONGEST + 1, 3), np.uint8), crop)
    with pytest.raises(EdgeError, match=r"^the picture is float32 \(120, 160, 3\)"):
        cut_level(picture.astype(np.float32), crop)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e305])
def test_landmarks_that_are_none(value: float) -> None:
    with pytest.raises(EdgeError, match=r"^landmarks hold NaN or infinity, or lie beyond any picture; "):
        around(np.array([[1, 2], [value, 50]]), None, 256)
