"""Pictures of any size in an input, and boxes back in the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.detect.boxes import Faces
from pipnet_edge.detect.decode import BoxMaps
from pipnet_edge.detect.fit import Fit, find
from pipnet_edge.detect.spec import DetectorSpec
from pipnet_edge.errors import EdgeError
from pipnet_edge.strict import read

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "golden" / "detect" / "vectors.json").read_text())
SPEC = read(DetectorSpec, VECTORS["spec"], "spec")
SIDES = st.integers(1, 5000)


@pytest.mark.parametrize("case", VECTORS["fits"], ids=lambda case: "x".join(map(str, case["picture"])))
def test_pictures_fit_as_the_vectors_say(case: dict[str, Any]) -> None:
    fit = Fit.of((case["picture"][0], case["picture"][1]), (case["size"][0], case["size"][1]))
    assert list(fit.inside) == case["inside"]
    found = fit.to_picture(Faces(np.array([case["box"]]), np.ones(1)))
    for box in found.boxes:
        np.testing.assert_allclose(box, case["in_picture"], atol=1e-3)


@given(width=SIDES, height=SIDES, size=st.sampled_from(SPEC.input_sizes))
def test_a_picture_fills_one_side_and_keeps_its_aspect(width: int, height: int, size: tuple[int, int]) -> None:
    fit = Fit.of((width, height), size)
    assert fit.inside[0] == size[0] or fit.inside[1] == size[1]
    assert 1 <= fit.inside[0] <= size[0]
    assert 1 <= fit.inside[1] <= size[1]
    # Within half a pixel of the exact side, or one pixel where that would be none.
    scale = min(size[0] / width, size[1] / height)
    assert all(abs(n - side * scale) <= 0.5 or n == 1 for n, side in zip(fit.inside, (width, height), strict=True))


@given(width=SIDES, height=SIDES, size=st.sampled_from(SPEC.input_sizes))
def test_the_pictures_corners_come_back(width: int, height: int, size: tuple[int, int]) -> None:
    fit = Fit.of((width, height), size)
    whole = Faces(np.array([[0.0, 0, *fit.inside]]), np.ones(1))
    np.testing.assert_allclose(fit.to_picture(whole).boxes, [[0, 0, width, height]], rtol=1e-12)
    beside = np.array([[fit.inside[0], 0, 9, 9], [0, fit.inside[1], 9, 9], [-9, 0, 9, 9], [0, -9, 9, 9]])
    assert len(fit.to_picture(Faces(beside.astype(float), np.ones(4)))) == 0


def test_the_rest_of_the_input_is_zero_for_the_network() -> None:
    picture = np.full((100, 50, 3), 200, np.uint8)
    fit = Fit.of((50, 100), (640, 480))
    found = fit.input(picture, SPEC.mean)
    assert found.shape == (480, 640, 3)
    assert (found[:, :240] == 200).all()
    assert (found[:, 240:] == [123, 117, 104]).all()
    assert (Fit.of((100, 50), (640, 480)).input(picture.transpose(1, 0, 2), SPEC.mean)[320:] == [123, 117, 104]).all()


def test_a_picture_of_the_inputs_size_is_the_input() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Fit.of((320, 240), (320, 240)).input(picture, SPEC.mean), picture)


# --- The whole way, with a network that takes what is white for a face.


class Bright:
    """The first prior of 64 pixels of each cell that is white near its top left corner."""

    def __init__(self) -> None:
        self.inputs = list[NDArray[np.uint8]]()

    def __call__(self, pixels: NDArray[np.uint8]) -> BoxMaps:
        self.inputs.append(pixels)
        height, width = pixels.shape[:2]
        maps = {name: np.zeros(shape, np.float32) for name, shape in SPEC.at((width, height)).map_shapes.items()}
        for level in SPEC.levels:
            maps[f"score_{level.stride}"][0::2] = 9
        for row, column in np.argwhere((pixels[8::32, 8::32] > 250).all(axis=2)):
            maps["score_32"][2 * 16 + 1, row, column] = 18
        return BoxMaps.from_outputs(maps, SPEC.at((width, height)))


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_faces_are_found_in_pixels_of_the_picture(scale: int) -> None:
    picture = np.zeros((480 * scale, 640 * scale, 3), np.uint8)
    picture[64 * scale : 96 * scale, 128 * scale : 160 * scale] = 255
    network = Bright()
    faces = find(picture, network, SPEC.at())
    np.testing.assert_allclose(faces.boxes, [[96 * scale, 32 * scale, 64 * scale, 64 * scale]])
    assert faces.scores == pytest.approx(1 / (1 + np.exp(-9)))
    assert network.inputs[0].shape == (480, 640, 3)
    smaller = find(picture, network, SPEC.at((320, 240)))
    np.testing.assert_allclose(smaller.boxes, [[64 * scale, 0, 128 * scale, 128 * scale]])
    assert len(find(picture, network, SPEC.at(), threshold=0.99999)) == 0


def test_what_is_no_picture_or_no_size_is_refused() -> None:
    picture = np.zeros((480, 640, 3), np.uint8)
    with pytest.raises(EdgeError, match=r"the picture is float32 \(480, 640, 3\); uint8 \(H, W, 3\)"):
        find(picture.astype(np.float32), Bright(), SPEC.at())  # type: ignore[arg-type]
    with pytest.raises(EdgeError, match=r"the picture is uint8 \(480, 640\)"):
        find(picture[..., 0], Bright(), SPEC.at())
    with pytest.raises(EdgeError, match="input size 64x48; sides of 128 to 4096 pixels are needed"):
        SPEC.at((64, 48))
    with pytest.raises(EdgeError, match="threshold 2"):
        find(picture, Bright(), SPEC.at(), threshold=2)
