"""The front door: pictures and boxes in, pixels out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge import Landmarker
from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import Decoder
from pipnet_edge.errors import EdgeError
from pipnet_edge.video.level import around, upright


@pytest.fixture
def crops(null_bundle: Bundle) -> NDArray[np.uint8]:
    return null_bundle.read_golden()[0]


def test_a_crop(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    expected = Decoder(null_bundle.spec)(null_bundle.read_golden()[1])
    with Landmarker(str(null_bundle.folder), "null-fp32", threads=2) as landmarker:
        assert landmarker.spec == null_bundle.spec
        for index, crop in enumerate(crops):
            np.testing.assert_array_equal(landmarker.crop(crop).points, expected.points[index])


def test_the_whole_picture_without_boxes(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    with Landmarker(null_bundle.folder, "null-fp32") as landmarker:
        found = landmarker.locate(crops[1])
        np.testing.assert_array_equal(found, landmarker.crop(crops[1]).points[None] * 96)
        assert found.dtype == np.float32


def test_boxes_by_policy(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    """Golden crops lie in a picture just where the policies cut."""
    picture = np.zeros((400, 300, 3), dtype=np.uint8)
    picture[100:196, 40:136], picture[200:296, 150:246] = crops[0], crops[2]
    with Landmarker(null_bundle.folder, "null-fp32") as landmarker:
        one, two = (landmarker.crop(crops[index]).points * 96 for index in (0, 2))
        found = landmarker.locate(picture, [(48, 108, 80, 80), (158, 208, 80, 80)])
        np.testing.assert_allclose(found, [np.add(one, [40, 100]), np.add(two, [150, 200])], rtol=1e-6)
        # demo: 8 more at the left and right, 9 less at the top and more at the bottom, and x + w - 1 left out.
        found = landmarker.locate(picture, [(48, 91, 81, 97)], policy="demo")
        np.testing.assert_allclose(found, [np.add(one, [40, 100])], rtol=1e-6)


def test_refusals(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    with pytest.raises(EdgeError, match="has no variant 'onnx-fp32'"):
        Landmarker(null_bundle.folder, "onnx-fp32")
    with pytest.raises(EdgeError, match=r"manifest\.json"):
        Landmarker(null_bundle.folder / "null-fp32", "null-fp32")
    with Landmarker(null_bundle.folder, "null-fp32") as landmarker:
        with pytest.raises(EdgeError, match="lies outside the picture of 96x96"):
            landmarker.locate(crops[0], [(200, 200, 10, 10)])
        with pytest.raises(EdgeError, match="crop policy 'tight'"):
            landmarker.locate(crops[0], [(10, 10, 20, 20)], policy="tight")
        with pytest.raises(EdgeError, match="this crop is none of them"):
            landmarker.locate(crops[0], [(10, 10, 20, 20)])


GREY = np.zeros((96, 96), np.uint8)
OTHERS = {
    "grey": GREY,
    "grey with an axis": GREY[..., None],
    "RGBA": np.zeros((96, 96, 4), np.uint8),
    "float": np.zeros((96, 96, 3), np.float32),
    "int64": np.zeros((96, 96, 3), np.int64),
    "bool": np.zeros((96, 96, 3), bool),
    "channels first": np.zeros((3, 96, 96), np.uint8),
    "batch": np.zeros((1, 96, 96, 3), np.uint8),
    "empty": np.zeros((0, 96, 3), np.uint8),
    "list": GREY.tolist(),
    "None": None,
}


@pytest.mark.parametrize("name", OTHERS)
def test_arrays_that_are_no_picture(null_bundle: Bundle, name: str) -> None:
    other: Any = OTHERS[name]
    with Landmarker(null_bundle.folder, "null-fp32") as landmarker:
        with pytest.raises(EdgeError, match=r"^the picture is .*; uint8 \(H, W, 3\), red green blue, is needed$"):
            landmarker.locate(other)
        with pytest.raises(EdgeError, match=r"^the crop is .*; uint8 \(96, 96, 3\), red green blue, is needed$"):
            landmarker.crop(other)


def test_crops_of_another_size_are_refused_and_views_are_not(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    with Landmarker(null_bundle.folder, "null-fp32") as landmarker:
        with pytest.raises(EdgeError, match=r"the crop is uint8 \(48, 96, 3\)"):
            landmarker.crop(crops[0, :48])
        turned = crops[0][:, ::-1].copy()[:, ::-1]
        np.testing.assert_array_equal(landmarker.crop(turned).points, landmarker.crop(crops[0]).points)


def test_a_level_crop(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    """A golden crop that lies turned by a quarter in a picture: the network sees it upright."""
    picture = np.zeros((200, 300, 3), dtype=np.uint8)
    picture[50:146, 40:136] = np.rot90(crops[1], -1)
    corners = np.array([[136, 50], [136, 146], [40, 146], [40, 50]], np.float32)
    with Landmarker(null_bundle.folder, "null-fp32") as landmarker:
        expected = landmarker.crop(crops[1])
        found = landmarker.read(picture, around(corners, (0, 1), 96, margin=1))
        x, y = expected.points.T * 96
        np.testing.assert_allclose(found.points, np.stack([136 - y, 50 + x], axis=1), atol=1e-4)
        assert found.score == pytest.approx(float(expected.score.mean()))
        with pytest.raises(EdgeError, match=r"^the middle of the crop, .* lies outside the picture of 300x200 pixels$"):
            landmarker.read(picture, upright((250, 50, 200, 50), 96))
        with pytest.raises(EdgeError, match=r"^the picture is "):
            landmarker.read(picture[..., 0], upright((50, 50, 50, 50), 96))
