"""run: what it refuses to read and to write, and what it says about what it was given."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipnet_edge import host
from pipnet_edge.bundle import Bundle

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Failed = Callable[[Result, int, str], str]
Envelope = Callable[[Result, str], dict[str, Any]]
CPUS = len(host.allowed_cpus())


@pytest.fixture
def photo(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo in a folder of its own, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(image, "photo.png")
    return Path("photo.png")


def test_opencv_says_nothing_beside_the_one_line(photo: Path, null_bundle: Bundle, here: Run, failed: Failed) -> None:
    cv2.imwrite("float.tiff", np.zeros((16, 16, 3), np.float32))
    result = here("run", null_bundle.folder, "float.tiff")
    failed(result, 1, "float.tiff is not an image that OpenCV can read")
    assert len(result.stderr.splitlines()) == 1


# --- What is written.


@pytest.mark.parametrize("name", ["photo.png", "./photo.png", "link.png", "same.png", "sub/../photo.png"])
def test_the_photo_is_never_overwritten(photo: Path, name: str, null_bundle: Bundle, here: Run, failed: Failed) -> None:
    Path("link.png").symlink_to(photo)
    os.link(photo, "same.png")
    Path("sub").mkdir()
    before = hashlib.sha256(photo.read_bytes()).digest()
    result = here("run", null_bundle.folder, photo, "-o", name)
    failed(result, 1, f"cannot write {Path(name)}: it is what is read (photo.png); give another name with -o")
    failed(here("run", null_bundle.folder, name, "-o", photo), 1, "cannot write photo.png: it is what is read")
    assert hashlib.sha256(photo.read_bytes()).digest() == before
    assert not Path("photo.json").exists()


def test_neither_is_what_else_is_read(photo: Path, null_bundle: Bundle, here: Run, failed: Failed) -> None:
    photo.rename("photo.json")
    failed(here("run", null_bundle.folder, "photo.json", "-o", "photo.png"), 1, "cannot write photo.json: it is what")
    shutil.copytree(null_bundle.folder, "bundle")
    before = Path("bundle/manifest.json").read_bytes()
    failed(here("run", "photo.json", "-o", "bundle/manifest.png"), 1, "cannot write bundle/manifest.json: it is what")
    assert Path("bundle/manifest.json").read_bytes() == before


# --- What is read.


def test_paths_in_the_wrong_order(photo: Path, null_bundle: Bundle, here: Run, failed: Failed) -> None:
    folder = null_bundle.folder
    failed(here("run", photo, folder), 1, "photo.png is no bundle; BUNDLE comes first, then IMAGE")
    failed(here("run", photo, photo), 1, "photo.png is no bundle; BUNDLE comes first, then IMAGE")
    failed(here("run", folder, folder), 1, f"{folder} is a folder; an image is needed: [BUNDLE] IMAGE")
    failed(here("run", folder), 1, f"{folder} is a folder; an image is needed: [BUNDLE] IMAGE")


def test_boxes_and_crops_by_their_options(photo: Path, null_bundle: Bundle, here: Run, failed: Failed) -> None:
    side = null_bundle.spec.input_size
    for option, value, message in (
        (
            "box",
            "0.25,0.5,0.5,1",
            f"--box 0.25,0.5,0.5,1 is in fractions; in pixels, as is needed, of this {side}x{side}",
        ),
        ("box", "nan,1,2,3", "--box nan,1,2,3; four numbers in pixels, at most 1e+08, are needed: x,y,width,height"),
        ("box", "1,1,1e308,5", "--box 1,1,1e+308,5; four numbers in pixels"),
        ("box", "1,1,-5,5", "--box 1,1,-5,5 is empty"),
        ("box", "900,1,5,5", "--box 900,1,5,5 lies outside the picture"),
        ("box", "1,2,3", "--box 1,2,3; 4 numbers separated by commas are needed"),
        ("crop", "wide", "--crop wide; allowed: test, demo"),
    ):
        failed(here("run", null_bundle.folder, photo, f"--{option}={value}"), 1, message)


# --- What is said.


@pytest.mark.parametrize(
    ("size", "doubt"),
    [
        *(((30, 30), True), ((96, 300), True), ((300, 96), True), ((5000, 3000), True)),
        *(((96, 96), False), ((96, 192), False), ((4096, 3000), False)),
    ],
)
def test_whole_pictures_that_are_hardly_a_face(
    size: tuple[int, int], doubt: bool, photo: Path, null_bundle: Bundle, here: Run, envelope: Envelope
) -> None:
    cv2.imwrite("other.png", cv2.resize(cv2.imread(str(photo)), size, interpolation=cv2.INTER_NEAREST))
    said = f"the whole picture of {size[0]}x{size[1]} pixels was taken as one face; if it is not one, leave --whole out"
    found = envelope(here("run", null_bundle.folder, "other.png", "--whole", "--variant", "null-fp32", "--json"), "run")
    assert found["note"] == (said if doubt else None)
    text = here("run", null_bundle.folder, "other.png", "--whole", "--variant", "null-fp32").stdout
    assert (said in text.splitlines()) == doubt


def test_a_box_leaves_no_doubt(photo: Path, null_bundle: Bundle, here: Run, envelope: Envelope) -> None:
    face = cv2.imread(str(photo))
    side = len(face)
    cv2.imwrite("wide.png", np.pad(face, ((0, 1), (0, 3 * side), (0, 0))))
    # The demo's crop of this box is the face: (0, 0) to (side, side).
    box = f"--box=0,-{side / 10:g},{side / 1.1:g},{side / 1.1 + side / 10:g}"
    words = ("wide.png", box, "--crop", "demo", "--variant", "null-fp32", "--json")
    found = envelope(here("run", null_bundle.folder, *words), "run")
    assert found["note"] is None


@pytest.mark.parametrize("threads", [CPUS + 1, 999, 100_000])
def test_more_threads_than_cores_are_cut(
    threads: int, photo: Path, null_bundle: Bundle, run: Run, envelope: Envelope
) -> None:
    result = run("run", null_bundle.folder, photo, "--whole", "--threads", str(threads))
    cores = "core" if CPUS == 1 else "cores"
    assert f"{threads} threads are useless on {CPUS} {cores}: {CPUS} thread" in result.stdout
    assert json.loads(Path("photo-landmarks.json").read_text())["threads"] == CPUS
