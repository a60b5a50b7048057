"""docs/detection.md is enough to find faces: a reader written from that page alone, and the device half, agree."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.detect.boxes import Faces
from pipnet_edge.detect.decode import BoxMaps, decode
from pipnet_edge.detect.fit import Fit
from pipnet_edge.detect.spec import DetectorSpec
from pipnet_edge.strict import read

FOLDER = Path(__file__).resolve().parents[2] / "golden" / "detect"
VECTORS = json.loads((FOLDER / "vectors.json").read_text())
SPEC = read(DetectorSpec, VECTORS["spec"], "spec")


READER = SimpleNamespace(**runpy.run_path(str(FOLDER / "reader.py")))


def array(found: list[Any]) -> NDArray[np.float64]:
    return np.array([(*box, score) for box, score in found]).reshape(-1, 5)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: "x".join(map(str, case["size"])))
def test_the_page_finds_the_faces_of_the_vectors(case: dict[str, Any]) -> None:
    size = case["size"][0], case["size"][1]
    maps = {name: np.zeros(shape, np.float32) for name, shape in SPEC.at(size).map_shapes.items()}
    for level in SPEC.levels:
        maps[f"score_{level.stride}"][0::2], maps[f"score_{level.stride}"][1::2] = case["background"]
    for name, channel, row, column, value in case["values"]:
        maps[name][channel, row, column] = value
    found = READER.priors(VECTORS["spec"], size)
    assert len(found) == case["priors"]
    for number, *prior in case["some_priors"]:
        np.testing.assert_allclose(found[number][4:], prior, atol=1e-3)
    faces = array(READER.faces(VECTORS["spec"], size, maps))
    np.testing.assert_allclose(faces, np.array(case["faces"]).reshape(-1, 5), atol=2e-3)


def test_the_page_fits_pictures_and_finds_landmarks_boxes() -> None:
    for case in VECTORS["fits"]:
        assert list(READER.inside(case["picture"], case["size"])) == case["inside"]
        box = READER.back(case["box"], case["picture"], case["size"])
        assert box is None or np.allclose(box, case["in_picture"], atol=1e-3)
    for case in VECTORS["landmark_boxes"]:
        np.testing.assert_allclose(READER.landmarks(VECTORS["spec"], case["box"]), case["landmarks"])


@given(seed=st.integers(0, 1000), width=st.integers(128, 260), height=st.integers(128, 260))
@settings(max_examples=20)
def test_the_page_and_the_program_agree_on_all_maps(seed: int, width: int, height: int) -> None:
    random, sized = np.random.default_rng(seed), SPEC.at((width, height))
    maps = {name: random.normal(0, 1.5, shape).astype(np.float32) for name, shape in sized.map_shapes.items()}
    faces = decode(BoxMaps.from_outputs(maps, sized), sized)
    found = array(READER.faces(VECTORS["spec"], sized.size, maps))
    np.testing.assert_allclose(np.column_stack([faces.boxes, faces.scores]), found, rtol=1e-9, atol=1e-9)


@given(picture=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), seed=st.integers(0, 1000))
def test_the_page_and_the_program_agree_on_all_pictures(picture: tuple[int, int], seed: int) -> None:
    fit = Fit.of(picture, (640, 480))
    assert READER.inside(picture, (640, 480)) == fit.inside
    boxes = np.random.default_rng(seed).uniform(-100, 640, (9, 4))
    ours = fit.to_picture(Faces(boxes, np.ones(9))).boxes
    theirs = [box for box in (READER.back(box, picture, (640, 480)) for box in boxes) if box]
    np.testing.assert_allclose(ours, np.array(theirs).reshape(-1, 4))
