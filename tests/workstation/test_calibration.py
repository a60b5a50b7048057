"""The choice of calibration faces, on the embedded ones and on pictures made here, and its overlap with a test set."""

from __future__ import annotations

import hashlib
import shutil

import cv2
import numpy as np
import pytest

from pipnet_edge.benchmarks.accuracy import drift
from pipnet_edge.converters import demo
from pipnet_edge.converters.quantize import calibration
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Rect, cut, read_picture

FACES = [(path, None) for path in sorted(demo.FACES.glob("*.jpg"))]
DIGESTS = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in FACES}


@pytest.fixture
def pictures(tmp_path):
    """20 different noisy pictures of 40x30 pixels."""
    random = np.random.default_rng(5)
    paths = [tmp_path / f"{i:02}.png" for i in range(20)]
    for path in paths:
        cv2.imwrite(str(path), random.integers(0, 255, (30, 40, 3), np.uint8))
    return [(path, None) for path in paths]


def test_the_same_faces_whatever_the_order_given():
    first = calibration.choose(FACES, 64, count=20)
    second = calibration.choose(FACES[::-1], 64, count=20)
    assert first.crops.shape == (20, 64, 64, 3)
    assert first.crops.dtype == np.uint8
    assert (first.faces, first.images, first.sha256) == (second.faces, second.images, second.sha256)
    assert np.array_equal(first.crops, second.crops)
    assert len(set(first.images)) == 20
    assert first.repeated == 0


def test_a_moved_folder_gives_the_same_faces(tmp_path):
    moved = shutil.copytree(demo.FACES, tmp_path / "Moved")
    here, there = (calibration.choose(f, 64, 16) for f in (FACES, [(moved / p.name, None) for p, _ in FACES]))
    assert here.sha256 == there.sha256


def test_the_seed_changes_the_choice_and_a_smaller_one_is_its_beginning():
    most = calibration.choose(FACES, 64, count=20, seed=1)
    assert calibration.choose(FACES, 64, count=20).faces != most.faces
    assert calibration.choose(FACES, 64, count=16, seed=1).faces == most.faces[:16]


def test_crops_are_those_of_inference():
    faces = [(path, Rect(10, 20, 200 + i, 180)) for i, (path, _) in enumerate(FACES)]
    chosen = calibration.choose(faces, 96)
    assert len(chosen.crops) == len(FACES)
    for crop, (path, rect), digest in zip(chosen.crops, chosen.faces, chosen.images, strict=True):
        assert np.array_equal(crop, cut(read_picture(path), rect, 96))
        assert digest == DIGESTS[path]


def test_several_faces_of_one_image(pictures):
    path = pictures[0][0]
    chosen = calibration.choose([(path, Rect(i, 0, i + 16, 16)) for i in range(20)], 16)
    assert set(chosen.images) == {hashlib.sha256(path.read_bytes()).hexdigest()}
    assert len({crop.tobytes() for crop in chosen.crops}) == 20


def test_the_hash_tells_pixels_order_and_side():
    chosen = calibration.choose(FACES, 64, count=16)

    def sha256(crops):
        return calibration.Calibration(crops, chosen.faces, chosen.images, 0).sha256

    other = chosen.crops.copy()
    other[3, 2, 1, 0] ^= 1
    reshaped = chosen.crops.reshape(4, 128, 128, 3)
    assert len({sha256(chosen.crops), sha256(other), sha256(chosen.crops[::-1]), sha256(reshaped)}) == 4
    assert sha256(chosen.crops.copy()) == chosen.sha256


@pytest.mark.parametrize(
    ("faces", "count", "message"),
    [
        ([], 256, "no images to calibrate with; at least 16 are needed"),
        (FACES[:15], 256, "15 images to calibrate with; at least 16 are needed"),
        (FACES[:10] * 3, 256, "10 images to calibrate with"),
        (FACES, 15, "15 calibration images; at least 16 are needed"),
    ],
)
def test_too_few(faces, count, message):
    with pytest.raises(EdgeError, match=message):
        calibration.choose(faces, 64, count)


def test_copies_are_counted_and_do_not_count(pictures):
    shutil.copy(pictures[3][0], pictures[4][0])
    assert calibration.choose(pictures, 16).repeated == 1
    for path, _ in pictures[:6]:
        shutil.copy(pictures[6][0], path)
    with pytest.raises(EdgeError, match="14 of 20 calibration images differ; at least 16 are needed"):
        calibration.choose(pictures, 16)


def test_an_unreadable_image_is_named(pictures):
    pictures[7][0].write_bytes(b"no picture")
    with pytest.raises(EdgeError, match=r"07\.png is not an image"):
        calibration.choose(pictures, 16)
    pictures[7][0].unlink()
    with pytest.raises(EdgeError, match=r"there is no image .*07\.png"):
        calibration.choose(pictures, 16)


def test_a_rectangle_outside_the_picture(pictures):
    pictures[2] = (pictures[2][0], Rect(30, 0, 41, 10))
    with pytest.raises(EdgeError, match=r"02\.png has 40x30 pixels; its face, 30,0 to 41,10, lies outside"):
        calibration.choose(pictures, 16)


def test_blank_images_are_named_and_counted(pictures):
    cv2.imwrite(str(pictures[9][0]), np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(EdgeError, match=r"09\.png shows nothing but one colour; faces are needed"):
        calibration.choose(pictures, 16)
    noise = np.random.default_rng(0).integers(0, 4, (30, 40, 3)) + np.array([200, 90, 10])
    cv2.imwrite(str(pictures[8][0]), noise.astype(np.uint8))
    with pytest.raises(EdgeError, match=r"\(as do 1 more of 20 calibration images\)"):
        calibration.choose(pictures, 16)


def test_the_overlap_with_a_test_set(tmp_path):
    chosen = calibration.choose(FACES, 64, count=16)
    paths = [path for path, _ in FACES]
    copied = tmp_path / "another name.jpg"
    copied.write_bytes(paths[0].read_bytes())
    expected = [path for path in paths if DIGESTS[path] in chosen.images]
    assert len(expected) == 16
    assert drift.overlap([*paths, *paths], chosen.images) == expected
    assert drift.overlap([copied], {DIGESTS[paths[0]]}) == [copied]
    assert drift.overlap(paths, ()) == []


@pytest.mark.parametrize(("count", "judges"), [(16, 64), (64, 53), (100, 17), (101, 16), (102, 23), (256, 23)])
def test_faces_to_judge_by_are_those_left_over_or_a_fifth(count, judges):
    faces = [(path, None) for path in sorted(demo.CALIBRATION.glob("*.jpg"))]
    assert len(faces) == 117
    given, others = calibration.split(faces[::-1], count, 3)
    assert len(others) == judges
    calibrated = calibration.choose(given, 32, count, 3)
    assert not set(calibrated.faces) & set(others)
    # Where faces are left over, calibration is the same as without a judge.
    assert (calibrated.sha256 == calibration.choose(faces, 32, count, 3).sha256) == (count <= 101)
    assert calibration.split(faces, count, 4)[1] != others
    with pytest.raises(EdgeError, match="79 faces; a budget needs at least 80, a fifth of them to judge by"):
        calibration.split(faces[:79], count, 3)
