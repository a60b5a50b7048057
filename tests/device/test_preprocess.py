"""Crops: the reference's arithmetic, box by box, and the way back to the picture."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.preprocess import Box, Rect, crop_rect, cut, pictures_in, read_picture, with_room

Corners = tuple[int, int, int, int]


def corners(rect: Rect) -> Corners:
    return rect.left, rect.top, rect.right, rect.bottom


def reference_test_crop(box: Box, width: int, height: int) -> Corners:
    """process_wflw in lib/preprocess.py of jhb86253817/PIPNet, its arithmetic to the letter."""
    xmin, ymin, xmax, ymax = map(float, (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    w, h, scale = xmax - xmin, ymax - ymin, 1.2
    xmin -= w * (scale - 1) / 2
    ymin -= h * (scale - 1) / 2
    xmax += w * (scale - 1) / 2
    ymax += h * (scale - 1) / 2
    return int(max(xmin, 0)), int(max(ymin, 0)), int(min(xmax, width - 1)), int(min(ymax, height - 1))


def reference_demo_crop(box: tuple[int, int, int, int], width: int, height: int) -> Corners:
    """demo_image in lib/demo.py; its detector gives whole pixels."""
    xmin, ymin, w, h = box
    scale = 1.2
    xmax, ymax = xmin + w - 1, ymin + h - 1
    xmin -= int(w * (scale - 1) / 2)
    ymin += int(h * (scale - 1) / 2)
    xmax += int(w * (scale - 1) / 2)
    ymax += int(h * (scale - 1) / 2)
    return max(xmin, 0), max(ymin, 0), min(xmax, width - 1), min(ymax, height - 1)


# --- By hand.


@pytest.mark.parametrize(
    ("policy", "box", "size", "expected"),
    [
        # A tenth of 200 x 240 more on each side.
        ("test", (300, 260, 200, 240), (1000, 800), (280, 236, 520, 524)),
        # 7.25 and 9.5 more on each side; whole pixels are cut off, not rounded.
        ("test", (100, 100, 72.5, 95), (1000, 800), (92, 90, 179, 204)),
        # At each edge: nothing left of 0 or above it, nothing right of width - 1 or below height - 1.
        ("test", (5, 3, 100, 100), (1000, 800), (0, 0, 115, 113)),
        ("test", (950, 750, 100, 100), (1000, 800), (940, 740, 999, 799)),
        ("test", (0, 0, 640, 480), (640, 480), (0, 0, 639, 479)),
        # 25 * 0.1 is 2 whole pixels; the last pixel of a box is at x + w - 1.
        ("demo", (300, 260, 25, 38), (1000, 800), (298, 263, 326, 300)),
        ("demo", (5, 3, 105, 105), (1000, 800), (0, 13, 119, 117)),
        ("demo", (950, 750, 105, 105), (1000, 800), (940, 760, 999, 799)),
        # (1.2 - 1) / 2 is a little less than a tenth, so that 100 gains 9 pixels.
        ("demo", (300, 260, 100, 100), (1000, 800), (291, 269, 408, 368)),
    ],
)
def test_by_hand(policy: str, box: Box, size: tuple[int, int], expected: Corners) -> None:
    assert corners(crop_rect(box, *size, policy)) == expected


# --- Against the reference's arithmetic.

SIDES = st.integers(1, 2000)
PLACES = st.integers(-300, 2000)


@given(x=PLACES, y=PLACES, w=SIDES, h=SIDES, width=SIDES, height=SIDES)
def test_test_crop_is_the_reference_s(x: int, y: int, w: int, h: int, width: int, height: int) -> None:
    assume(max(abs(x), abs(y), w, h) > 1)
    expected = reference_test_crop((x, y, w, h), width, height)
    assume(expected[0] < expected[2] and expected[1] < expected[3])
    assert corners(crop_rect((x, y, w, h), width, height, "test")) == expected


@given(x=PLACES, y=PLACES, w=SIDES, h=SIDES, width=SIDES, height=SIDES)
def test_demo_crop_is_the_reference_s(x: int, y: int, w: int, h: int, width: int, height: int) -> None:
    assume(max(abs(x), abs(y), w, h) > 1)
    expected = reference_demo_crop((x, y, w, h), width, height)
    assume(expected[0] < expected[2] and expected[1] < expected[3])
    assert corners(crop_rect((x, y, w, h), width, height, "demo")) == expected


@pytest.mark.parametrize("policy", ["test", "demo"])
def test_every_width_at_one_place(policy: str) -> None:
    """Widths that are multiples of ten are where 0.1 * w and w * (1.2 - 1) / 2 part."""
    reference = {"test": reference_test_crop, "demo": reference_demo_crop}[policy]
    wrong = [
        (x, side)
        for x in (-60, 0, 7, 100)
        for side in range(100, 1000)
        if corners(crop_rect((x, x, side, side), 4000, 4000, policy)) != reference((x, x, side, side), 4000, 4000)
    ]
    assert wrong == []


# --- Whatever the box.

NUMBERS = st.floats(-1e4, 1e4)


@given(
    box=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS) | st.tuples(*[st.floats()] * 4),
    width=SIDES,
    height=SIDES,
    policy=st.sampled_from(["test", "demo"]),
)
def test_rectangles_lie_in_the_picture(box: Box, width: int, height: int, policy: str) -> None:
    try:
        rect = crop_rect(box, width, height, policy)
    except EdgeError as e:
        refusal: EdgeError | None = e
    else:
        refusal = None
        assert all(type(value) is int for value in corners(rect))
        assert 0 <= rect.left < rect.right <= width - 1
        assert 0 <= rect.top < rect.bottom <= height - 1
    assert refusal is None or (refusal.code == USER_ERROR and "\n" not in str(refusal))


@given(
    left=st.integers(0, 3000),
    top=st.integers(0, 3000),
    width=SIDES,
    height=SIDES,
    points=st.lists(st.tuples(st.floats(-0.5, 1.5, width=32), st.floats(-0.5, 1.5, width=32)), min_size=1, max_size=5),
)
def test_to_picture_inverts(left: int, top: int, width: int, height: int, points: list[tuple[float, float]]) -> None:
    rect = Rect(left, top, left + width, top + height)
    given_points = np.array(points, dtype=np.float32)
    found = rect.to_picture(given_points)
    assert found.dtype == np.float32
    back = (found.astype(np.float64) - [left, top]) / [width, height]
    # float32 holds a pixel of 6000 to 2.5e-4; normalised, that grows as the rectangle shrinks.
    assert np.abs((back - given_points) * [width, height]).max() < 1e-3
    ends = rect.to_picture(np.array([[[0, 0], [1, 1]], [[0.5, 0], [1, 0]]], dtype=np.float32))
    np.testing.assert_array_equal(ends[0], [[left, top], [left + width, top + height]])
    np.testing.assert_array_equal(ends[1], [[left + width / 2, top], [left + width, top]])


# --- Refusals.


@pytest.mark.parametrize("policy", ["test", "demo"])
@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 0, 50), r"^box 10,10,0,50 is empty; x,y,width,height in pixels are needed, the last two above 0$"),
        *(((*place, *size), "is empty") for place in ((10, 10), (0, 0)) for size in ((50, 0), (-50, 50), (50, -1))),
        ((math.nan, 10, 50, 50), r"^box nan,10,50,50; four numbers in pixels, at most 1e\+08, are needed: x,y,width,h"),
        *((box, "; four numbers") for box in ((9, 9, math.nan, 9), (9, 9, math.inf, 9), (-math.inf, 1, 9, 9))),
        *((box, "; four numbers") for box in ((1, 1, 1e308, 5), (-1e308, 1, 5, 5), (1, 1e9, 5, 5))),
        (
            (0.1, 0.25, 0.5, 0.5),
            r"^box 0\.1,0\.25,0\.5,0\.5 is in fractions; .* of this 640x480 picture: 64,120,320,240$",
        ),
        ((0, 0, 1, 1), r"^box 0,0,1,1 is in fractions; in pixels, as is needed, of this 640x480 picture: 0,0,640,480$"),
        ((-0.1, 0, 1, 1), "is in fractions; "),
        ((10, 10, 0.9, 50), r"^box 10,10,0\.9,50 is too small; a width and height of at least 1 pixel are needed$"),
        ((-1, 10, 1.5, 50), r"^box -1,10,1\.5,50 leaves less than a pixel of the picture of 640x480 pixels$"),
    ],
)
def test_boxes_that_are_none_are_refused(box: Box, message: str, policy: str) -> None:
    with pytest.raises(EdgeError, match=message):
        crop_rect(box, 640, 480, policy)


def test_boxes_are_called_as_the_caller_says() -> None:
    for box in ((0, 0, 0, 0), (math.nan, 0, 1, 1), (0, 0, 1, 1), (5, 5, 0.5, 5), (900, 0, 5, 5)):
        with pytest.raises(EdgeError, match=r"^--box "):
            crop_rect(box, 640, 480, "test", "--box")


@pytest.mark.parametrize("box", [(700, 10, 50, 50), (10, 500, 50, 50), (-100, 10, 50, 50), (10, -100, 50, 50)])
@pytest.mark.parametrize("policy", ["test", "demo"])
def test_boxes_outside_are_refused(box: Box, policy: str) -> None:
    x, y, w, h = box
    with pytest.raises(EdgeError, match=f"box {x},{y},{w},{h} lies outside the picture of 640x480 pixels"):
        crop_rect(box, 640, 480, policy)


@pytest.mark.parametrize("policy", ["", "Test", "wflw"])
def test_unknown_policies_are_refused(policy: str) -> None:
    with pytest.raises(EdgeError, match=f"crop policy '{policy}'; allowed: test, demo"):
        crop_rect((10, 10, 50, 50), 640, 480, policy)


# --- Cutting.


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize("rect", [Rect(10, 20, 90, 100), Rect(0, 0, 160, 120), Rect(3, 4, 5, 6), Rect(0, 50, 159, 51)])
@pytest.mark.parametrize("side", [32, 64, 256])
def test_cut_is_the_reference_s_resize(picture: NDArray[np.uint8], rect: Rect, side: int) -> None:
    expected = cv2.resize(picture[rect.top : rect.bottom, rect.left : rect.right, :], (side, side))
    found = cut(picture, rect, side)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rect", [Rect(0, 50, 159, 120), Rect(3, 4, 4, 5)])
def test_a_crop_with_room_is_the_crop(picture: NDArray[np.uint8], rect: Rect) -> None:
    """On Arm OpenCV reads on; what it finds there must not depend on what was in memory."""
    crop = picture[rect.top : rect.bottom, rect.left : rect.right]
    copy = with_room(crop)
    np.testing.assert_array_equal(copy, crop)
    assert copy.flags.c_contiguous
    behind = copy.base[copy.size :]  # type: ignore[index]
    assert len(behind) >= max(2 * crop.shape[1] * 3, 256)
    assert not behind.any()


def test_a_cut_of_the_right_size_is_the_picture_itself(picture: NDArray[np.uint8]) -> None:
    found = cut(picture, Rect(10, 20, 106, 116), 96)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, picture[20:116, 10:106])


# --- Reading.


@pytest.fixture
def rgb() -> NDArray[np.uint8]:
    """Red, green, blue, white: as wide as high it is not, so that a turned picture shows."""
    return np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255]] * 3], dtype=np.uint8)


def test_pictures_are_rgb(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    cv2.imwrite(str(tmp_path / "ä b.png"), rgb[:, :, ::-1])
    found = read_picture(tmp_path / "ä b.png")
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, rgb)


def test_grey_deep_and_transparent_pictures_are_rgb_too(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), rgb[:, :, 0])
    np.testing.assert_array_equal(read_picture(path), np.repeat(rgb[:, :, :1], 3, axis=2))
    cv2.imwrite(str(path), rgb[:, :, ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(path), rgb)
    cv2.imwrite(str(path), np.dstack([rgb[:, :, ::-1], np.full(rgb.shape[:2], 255, np.uint8)]))
    np.testing.assert_array_equal(read_picture(path), rgb)


def test_pictures_are_turned_as_exif_says(tmp_path: Path) -> None:
    upright = np.zeros((32, 64, 3), dtype=np.uint8)
    upright[:, :32] = 255  # white on the left, black on the right
    _, encoded = cv2.imencode(".jpg", upright)
    jpeg = encoded.tobytes()
    for orientation, turned in ((1, upright), (3, np.rot90(upright, 2)), (6, np.rot90(upright, -1))):
        tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        exif = b"Exif\0\0" + tiff
        (tmp_path / "x.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
        found = read_picture(tmp_path / "x.jpg")
        assert found.shape == turned.shape
        assert np.abs(found.astype(int) - turned).max() < 20


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", pytest.param(b"BM" + bytes(60), id="no pixels")],
)
def test_files_that_are_no_pictures_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(EdgeError, match=r"x\.png is not an image that OpenCV can read") as caught:
        read_picture(tmp_path / "x.png")
    assert "\n" not in str(caught.value)


def test_pictures_are_told_by_their_names(tmp_path: Path) -> None:
    below = ("z/a.webp", "z/__MACOSX/b.png", ".hidden/c.png", "z/._a.jpg")
    for name in ("b.PNG", "a.jpeg", "c.webp", "d.Bmp", "e.jpg", "._b.png", ".jpg", "notes.txt", "png", *below):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = ["a.jpeg", "b.PNG", "c.webp", "d.Bmp", "e.jpg"]
    assert [path.name for path in pictures_in(tmp_path)] == names
    assert pictures_in(tmp_path, below=True) == [tmp_path / name for name in (*names, "z/a.webp")]
