"""Label files as people have them: spaces, commas, quotes, LaPa's files, and files that are no labels."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy import label_text
from pipnet_edge.benchmarks.accuracy.labels import Labels, image_folder, read_labels
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Rect

Points = NDArray[np.float64]
FACE = np.array([[0.25, 0.5], [0.75, 0.5], [0.5, 1.0625]])
PIXELS = FACE * [200, 80] + [20, 10]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder for pictures of 300 x 200 pixels."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((200, 300, 3), dtype=np.uint8))
    return path


def read(images: Path, text: str, num_lms: int | None = None) -> Labels:
    source = images.parent / "labels.txt"
    source.write_text(text, encoding="utf-8")
    return read_labels(source, images, None, num_lms)


def refusal(images: Path, source: Path, num_lms: int | None = None) -> str:
    with pytest.raises(EdgeError) as e:
        read_labels(source, images, None, num_lms)
    message = str(e.value)
    assert message.isprintable()
    assert len(message) < 500
    return message.replace(f"{images.parent}/", "")


# --- Lines of one image.

NUMBERS = ["0.25", "0.5", "0.75", "0.5", "0.5", "1.0625"]
SPACED = " ".join(NUMBERS)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.png", f"a.png,{','.join(NUMBERS)}"),
        ("a.png", f"a.png, {', '.join(NUMBERS)}"),
        ("a.png", f"a.png,{','.join(NUMBERS)},"),
        ("a.png", f'"a.png",{",".join(NUMBERS)}'),
        ("a.png", f'"a.png" {SPACED}'),
        ("a.png", f"a.png,{SPACED}"),
        ("a.png", f"'a.png'\t{SPACED}"),
        ("a.png", f"a .png {SPACED}"),
        ("a.png", f"  a.png   {SPACED}  "),
        ("my face 1.png", f"my face 1.png {SPACED}"),
        ("my face 1.png", f'"my face 1.png",{",".join(NUMBERS)}'),
        ("my  face.JPG", f"my  face.JPG {SPACED}"),
        ("a,b.png", f"a,b.png {SPACED}"),
        ("1.png copy.png", f"1.png copy.png {SPACED}"),
        ("sub dir/a.png", f"sub dir/a.png {SPACED}"),
        ("sub dir/a.png", f"C:\\my pictures\\sub dir\\a.png {SPACED}"),
    ],
)
@pytest.mark.parametrize("num_lms", [None, 3])
def test_names_and_separators(images: Path, name: str, line: str, num_lms: int | None) -> None:
    picture(images / name)
    labels = read(images, line, num_lms)
    assert labels.images == (images / name,)
    assert np.array_equal(labels.points, [FACE])
    assert labels.lines == (f"{images.parent}/labels.txt line 1",)


def test_a_name_as_written_comes_before_one_without_its_spaces(images: Path) -> None:
    picture(images / "a.png")
    picture(images / "a .png")
    assert read(images, f"a .png {SPACED}").images == (images / "a .png",)


def test_the_image_of_a_wflw_line_may_hold_spaces(images: Path) -> None:
    picture(images / "7--My Cheering/7 a.png")
    labels = read(images, f"{'50 60 ' * 98}20 20 120 120 0 0 0 0 0 0 7--My Cheering/7 a.png")
    assert labels.images == (images / "7--My Cheering/7 a.png",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a.png;{';'.join(NUMBERS)}", "line 1: fields separated by semicolons; spaces, tabs or commas are needed"),
        (f"a.png; {'; '.join(NUMBERS)}", "line 1: fields separated by semicolons; spaces, tabs or commas are needed"),
        (f"# mine\na.png {SPACED}", "line 1 begins with #; a label file has no comments, each line is a label"),
        (f"a.png {SPACED}\n#", "line 2 begins with #; a label file has no comments, each line is a label"),
        (f"image x0 y0 x1 y1\na.png {SPACED}", "line 1 has no number; a label is an image's name and its coordinates"),
        (f"image,x0,y0\na.png,{SPACED}", "line 1 has no number; a label is an image's name and its coordinates"),
        ("a.png 0,25 0,5 0,75 0,5", "line 1: '0,25' is not a number"),
        ("a.png,0.25,,0.75,0.5", "line 1: '' is not a number"),
        (f"b\x1b[31m.png {SPACED}", "none of its 1 labels (b?[31m.png …) has an image in images"),
        (f"/{'a' * 5000} {SPACED}", f"none of its 1 labels (/{'a' * 98}… …) has an image in images"),
        (f"/\0a.png {SPACED}", "none of its 1 labels (/?a.png …) has an image in images"),
        (f"a.png 1 {'9' * 4000}x", f"line 1: '{'9' * 59} is not a number"),
    ],
)
def test_lines_that_are_refused(images: Path, text: str, message: str) -> None:
    picture(images / "a.png")
    (images.parent / "labels.txt").write_text(text)
    assert message in refusal(images, images.parent / "labels.txt")


def test_sizes_are_limited_before_anything_is_read(images: Path) -> None:
    source = images.parent / "labels.txt"
    with source.open("wb") as file:
        file.truncate(8_000_000_000)
    assert refusal(images, source) == "labels.txt has 8000.0 MB; label files of at most 256.0 MB are read"
    source.write_text(f"a.png {SPACED}\n\nb.png {'1 ' * label_text.LONGEST}\n")
    assert refusal(images, source) == f"labels.txt line 3: longer than {label_text.LONGEST} characters"
    source.unlink()
    os.mkfifo(source)
    assert refusal(images, source) == "labels.txt is not a file"


# --- LaPa's files.


def lapa(path: Path, points: Points = PIXELS, count: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(f"{x} {y}" for x, y in points.tolist())
    path.write_text(f"{len(points) if count is None else count}\n{body}\n")


@pytest.mark.parametrize(
    ("picture_at", "label_at", "images", "source"),
    [
        ("images/a b.png", "landmarks/a b.txt", ".", "."),
        ("images/a b.png", "landmarks/a b.txt", "images", "."),
        ("images/a b.png", "landmarks/a b.txt", "images", "landmarks"),
        ("images/a b.png", "landmarks/a b.txt", "images", "landmarks/a b.txt"),
        ("train/images/a b.png", "train/landmarks/a b.txt", ".", "."),
        ("a b.png", "a b.txt", ".", "."),
    ],
)
def test_lapa(tmp_path: Path, picture_at: str, label_at: str, images: str, source: str) -> None:
    picture(tmp_path / picture_at)
    lapa(tmp_path / label_at)
    (tmp_path / label_at).with_name("._a b.txt").write_bytes(b"\0\5\x16\7")
    if picture_at.startswith("train"):
        picture(tmp_path / "train/labels/a b.png")  # LaPa's masks have the names of the images
    labels = read_labels(tmp_path / source, tmp_path / images, num_lms=3)
    assert labels.format == "lapa"
    assert labels.images == (tmp_path / picture_at,)
    # The box of the landmarks, 70 50 to 170 95, wider by a tenth on each side.
    assert labels.crops == (Rect(60, 45, 180, 99),)
    np.testing.assert_allclose(labels.points, [(PIXELS - [60, 45.5]) / [120, 54]], atol=1e-12)


@pytest.mark.parametrize(
    ("text", "num_lms", "message"),
    [
        ("3\n1 2\n3 4\n", None, "a.txt line 1: 2 points follow, the number is 3"),
        ("3\n1 2\n3 4\n5 6\n", 68, "a.txt line 1: 3 landmarks, 68 are needed"),
        ("0\n", None, "a.txt line 1: 0 landmarks, 1 are needed"),
        ("2\n1 2\n3 x\n", None, "a.txt line 3: 'x' is not a number"),
        ("2\n1 2\n3\n", None, "a.txt line 3: 1 coordinates; 2 are needed for 1 landmarks"),
        ("", None, "a.txt is empty"),
        (f"a.png {SPACED}", None, "a.txt line 1: LaPa's files begin with the number of their points; a file with"),
        ("2\n5 5\n5 5\n", None, "a.txt line 1: the face lies outside"),
    ],
)
def test_lapa_refusals(images: Path, text: str, num_lms: int | None, message: str) -> None:
    picture(images / "a.png")
    (images / "a.txt").write_text(text)
    assert f"images/{message}" in refusal(images, images, num_lms)


def test_a_folder_without_labels(images: Path) -> None:
    picture(images / "a.png")
    assert (
        refusal(images, images)
        == "no .txt file in images; a folder of labels holds one .pts or LaPa .txt for each image"
    )


def test_a_pts_file_without_points(images: Path) -> None:
    picture(images / "a.png")
    (images / "a.pts").write_text("version: 1\nn_points: 0\n{\n}\n")
    assert refusal(images, images) == "images/a.pts line 3: 0 landmarks, 1 are needed"


# --- Folders and pictures.


def test_what_systems_leave_in_folders_is_no_image(images: Path) -> None:
    for name in ("a.png", "sub/b.jpg"):
        picture(images / name)
        (images / name).with_name(f"._{Path(name).name}").write_bytes(b"\0\5\x16\7")
    for name in (".DS_Store", "Thumbs.db", ".hidden/c.png", "__MACOSX/a.png"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(bytes(99))
    found = image_folder(images)
    assert found.images == (images / "a.png", images / "sub/b.jpg")
    assert read(images, f"a.png {SPACED}").without_label == ("sub/b.jpg",)


def test_an_image_folder_that_is_a_file(images: Path) -> None:
    with pytest.raises(EdgeError, match=r"a\.png is a file; a folder of images is needed"):
        image_folder(picture(images / "a.png"))


def test_paths_that_are_too_long_are_not_there(images: Path) -> None:
    long = images.parent / ("a" * 300)
    assert refusal(images, long) == f"there is no label file {'a' * 300}"
    (images.parent / "labels.txt").write_text(f"a.png {SPACED}")
    with pytest.raises(EdgeError, match="there is no image folder"):
        read_labels(images.parent / "labels.txt", long)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\x89PNG\r\n\x1a\n"])
def test_a_picture_that_cannot_be_read_is_named_with_its_line(images: Path, content: bytes) -> None:
    picture(images / "a.png")
    (images / "b.png").write_bytes(content)
    pixels = " ".join(str(value) for value in PIXELS.ravel().tolist())
    (images.parent / "labels.txt").write_text(f"a.png {pixels}\nb.png {pixels}\n")
    assert refusal(images, images.parent / "labels.txt").startswith("labels.txt line 2: images/b.png is not an image")


# --- All cases that were collected, as their README states them.

READ = {
    **dict.fromkeys(
        ("ok", "crlf", "bom", "mac_cr", "tabs", "nonl", "winpath", "winrel", "quoted", "csv", "csv_space", "blank"), 4
    ),
    **dict.fromkeys(("missing_img", "pixels", "torchlm_abs", "yx", "stray_space"), 4),
    **dict.fromkeys(("space_in_name", "umlaut"), 1),
}
REFUSED = {
    "semicolon": "line 1: fields separated by semicolons",
    "header": "line 1 has no number",
    "hash": "line 1 begins with #",
    "count67": "line 1: 134 coordinates",
    "odd": "line 1: 135 coordinates",
    "mixed": "line 2: 134 coordinates",
    "nan": "line 2: 'nan' is not finite",
    "inf": "line 1: '1e999' is not finite",
    "comma_decimal": "line 1: '0,094090' is not a number",
    "dup": "line 5: 010f.jpg has a label already",
    "allmissing": "none of its 4 labels (x010f.jpg",
    "empty": "is empty",
    "spaces_only": "is empty",
    "binary": "is not a readable text file",
    "latin1": "is not a readable text file",
    "utf16": "is not a readable text file",
    "wflw_short": "a WFLW list has 98 landmarks, 68 are needed",
}


def test_collected_cases(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["labels.py", str(shared / "faces/studio68_test"), str(tmp_path)])
    runpy.run_path(str(shared / "cases/labels.py"))
    right = read_labels(tmp_path / "ok.txt", tmp_path / "img", num_lms=68).points
    for name, count in READ.items():
        labels = read_labels(tmp_path / f"{name}.txt", tmp_path / "img", num_lms=68)
        assert len(labels.images) == count, name
        if name != "yx":
            np.testing.assert_allclose(labels.points, right[:count], atol=3e-4, err_msg=name)
    for name, message in REFUSED.items():
        with pytest.raises(EdgeError) as e:
            read_labels(tmp_path / f"{name}.txt", tmp_path / "img", num_lms=68)
        assert message in str(e.value), name
    for name in ("pts_ok", "pts_2space", "pts_crlf", "pts_sep", "lapa"):
        assert len(read_labels(tmp_path / name, tmp_path / name, num_lms=68).images) == 4, name
    assert len(image_folder(tmp_path / "odd_folder").images) == 4
    with pytest.raises(EdgeError, match=r"none of its 1 labels \(/a+… …\) has an image in"):
        read_labels(shared / "cases/hostile/labels_absolute_long_name.txt", tmp_path / "img")
