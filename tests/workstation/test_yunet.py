"""YuNet, if its file is there: it finds the demo's faces in pictures, and its margins say where their landmarks are.

The file is OpenCV's face_detection_yunet_2023mar.onnx, in pipnet-edge's cache folder. It is not part of the project.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.converters import demo
from pipnet_edge.converters.scenes import background, scene
from pipnet_edge.detect import detector
from pipnet_edge.detect.boxes import overlaps
from pipnet_edge.detect.yunet import MARGINS, Yunet
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import cache_folder
from pipnet_edge.preprocess import read_picture

Pixels = NDArray[np.uint8]
Box = NDArray[np.float64]

# Where the user has it: tests have a cache folder of their own once they run.
FILE = cache_folder() / "face_detection_yunet_2023mar.onnx"


@pytest.fixture(scope="module")
def yunet() -> Yunet:
    if not FILE.is_file():
        pytest.skip(f"needs {FILE}")
    return Yunet(FILE)


def scenes(count: int = 10) -> Iterator[tuple[Pixels, Box]]:
    """Pictures of 640 x 480 pixels with a face of each size, and its landmarks' box."""
    for index, line in enumerate((demo.FACES / "labels.txt").read_text().splitlines()[:count]):
        name, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2)
        for side in (60, 140, 240, 330):
            picture, (rect,) = scene(
                [read_picture(demo.FACES / name)], [side], (640, 480), np.random.default_rng(index)
            )
            yield picture, np.hstack([rect.to_picture(points.min(0)), np.ptp(points, axis=0) * side])


def test_faces_are_found_and_nothing_else(yunet: Yunet) -> None:
    fits = []
    for picture, box in scenes():
        faces = yunet.faces(picture)
        assert len(faces) == 1
        assert 0.6 < faces.scores[0] <= 1
        fits.append(overlaps(box, faces.landmark_boxes(MARGINS))[0])
        (found,) = yunet.find(picture)
        np.testing.assert_allclose(found.box, faces.landmark_boxes(MARGINS)[0])
    assert np.mean(fits) >= 0.8
    assert min(fits) >= 0.5


def test_a_picture_without_faces_has_none(yunet: Yunet) -> None:
    for size in ((640, 480), (33, 500), (1, 1)):
        faces = yunet.faces(background(size, np.random.default_rng(1)))
        assert (len(faces), faces.boxes.shape) == (0, (0, 4))


def test_pictures_of_any_size_in_turn(yunet: Yunet) -> None:
    """Each is looked at in its own size: boxes are in its pixels."""
    picture, box = next(scenes())
    for width, height in ((640, 480), (1001, 750), (640, 480)):
        found = yunet.faces(cv2.resize(picture, (width, height))).landmark_boxes(MARGINS)
        scaled = found / np.tile([width / 640, height / 480], 2)
        assert overlaps(box, scaled)[0] > 0.5


def test_a_threshold_of_its_own(yunet: Yunet) -> None:
    picture, _ = next(scenes())
    (score,) = yunet.faces(picture).scores
    assert len(Yunet(FILE, min(1.0, float(score) + 0.02)).faces(picture)) == 0
    loaded = detector.load(FILE, threshold=float(score) - 0.02)
    assert len(loaded.faces(picture)) == 1
    assert loaded.version.startswith("YuNet, OpenCV ")
    for threshold in (-1.0, 1.5, float("nan")):
        with pytest.raises(EdgeError, match="a number from 0 to 1 is needed"):
            Yunet(FILE, threshold)


def test_arrays_that_are_no_pictures(yunet: Yunet) -> None:
    for array in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(EdgeError, match="the picture is"):
            yunet.faces(array)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["text", "cut", "empty", "other"])
def test_files_that_are_none(content: str, yunet: Yunet, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import onnx
    from onnx import TensorProto, helper

    path = tmp_path / "x.onnx"
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 320, 320]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "x", info[:1], info[1:])
    whole = FILE.read_bytes()
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8).SerializeToString()
    path.write_bytes({"text": b"no ONNX", "cut": whole[: len(whole) // 2], "empty": b"", "other": other}[content])
    assert onnx.load_from_string(other).graph.node[0].op_type == "Relu"
    with pytest.raises(EdgeError, match=r"x\.onnx is no YuNet that OpenCV can read") as caught:
        Yunet(path)
    assert len(str(caught.value).splitlines()) == 1
