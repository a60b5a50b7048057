"""Maps to faces: against the reference's figures, its loops to the letter, and what holds for all maps."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.detect import decode as decoding
from pipnet_edge.detect.boxes import overlaps
from pipnet_edge.detect.decode import MOST_CANDIDATES, MOST_FACES, BoxMaps, decode, priors
from pipnet_edge.detect.spec import DetectorSpec, Level, Prior
from pipnet_edge.errors import EdgeError
from pipnet_edge.strict import read

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "golden" / "detect" / "vectors.json").read_text())
SPEC = read(DetectorSpec, VECTORS["spec"], "spec")
SIDES = st.integers(128, 400)
Arrays = dict[str, NDArray[Any]]


def quiet(size: tuple[int, int], background: float = 3.0, face: float = -3.0) -> Arrays:
    """Maps without a face."""
    maps = {name: np.zeros(shape, np.float32) for name, shape in SPEC.at(size).map_shapes.items()}
    for name, values in maps.items():
        if name.startswith("score"):
            values[0::2], values[1::2] = background, face
    return maps


def noise(size: tuple[int, int], seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return {n: random.normal(0, 1.5, s).astype(np.float32) for n, s in SPEC.at(size).map_shapes.items()}


def literal_priors(width: int, height: int) -> NDArray[np.float64]:
    """PriorBox of the reference, its loops to the letter, in pixels."""
    found = list[tuple[float, float, float]]()
    for step, min_sizes in zip((32, 64, 128), ((32, 64, 128), (256,), (512,)), strict=True):
        for i, j in product(range(math.ceil(height / step)), range(math.ceil(width / step))):
            for min_size in min_sizes:
                steps = {32: (0, 0.25, 0.5, 0.75), 64: (0, 0.5)}.get(min_size, (0.5,))
                for y, x in product(steps, steps):
                    found.append(((j + x) * step, (i + y) * step, min_size))
    return np.array(found)


# --- Priors.


@given(width=SIDES, height=SIDES)
def test_priors_are_the_references(width: int, height: int) -> None:
    found = priors(SPEC.levels, width, height)
    np.testing.assert_array_equal(found, literal_priors(width, height))
    assert len(found) == SPEC.count(width, height)


@given(width=st.integers(1, 8), height=st.integers(1, 8))
def test_priors_lie_in_the_picture(width: int, height: int) -> None:
    found = priors(SPEC.levels, 128 * width, 128 * height)
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] < [128 * width, 128 * height]).all()


def test_priors_are_made_once_and_cannot_be_spoilt() -> None:
    found = priors(SPEC.levels, 640, 480)
    assert priors(SPEC.levels, 640, 480) is found
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    limit = priors.cache_info().maxsize
    assert limit is not None
    assert limit <= 8


# --- Decoding.


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: "x".join(map(str, case["size"])))
def test_faces_are_those_of_the_reference(case: dict[str, Any]) -> None:
    size = case["size"][0], case["size"][1]
    found = priors(SPEC.levels, *size)
    assert len(found) == case["priors"]
    for index, *prior in case["some_priors"]:
        np.testing.assert_allclose(found[index], prior, atol=1e-3)
    maps = quiet(size, *case["background"])
    for name, channel, row, column, value in case["values"]:
        maps[name][channel, row, column] = value
    faces = decode(BoxMaps.from_outputs(maps, SPEC.at(size)), SPEC.at(size))
    wanted = np.array(case["faces"]).reshape(-1, 5)
    # The reference computes in float32, in shares of the picture.
    np.testing.assert_allclose(faces.boxes, wanted[:, :4], atol=2e-3)
    np.testing.assert_allclose(faces.scores, wanted[:, 4], atol=2e-6)


@given(seed=st.integers(0, 1000), width=SIDES, height=SIDES, threshold=st.floats(0.5, 1))
@settings(max_examples=30)
def test_faces_are_apart_in_order_and_above_the_threshold(seed: int, width: int, height: int, threshold: float) -> None:
    size = width, height
    maps = BoxMaps.from_outputs(noise(size, seed), SPEC.at(size))
    faces = decode(maps, SPEC.at(size), threshold)
    assert faces.boxes.shape == (len(faces), 4)
    assert (faces.scores > threshold).all()
    assert (faces.scores <= 1).all()
    assert (np.diff(faces.scores) <= 0).all()
    assert (faces.boxes[:, 2:] > 0).all()
    for index, box in enumerate(faces.boxes[:20]):
        assert (overlaps(box, np.delete(faces.boxes, index, axis=0)) < SPEC.overlap).all()
    if threshold < 0.9:
        fewer = decode(maps, SPEC.at(size), 0.95)
        assert len(fewer) <= len(faces)
        assert fewer.scores.tolist() == faces.scores[: len(fewer)].tolist()


def test_each_channel_moves_its_own_prior() -> None:
    maps, size = quiet((256, 128)), (256, 128)
    maps["score_32"][2 * 17 + 1, 2, 5] = 9  # the second prior of 64 pixels: offsets 0.5 and 0
    maps["box_32"][4 * 17 : 4 * 17 + 4, 2, 5] = [1, -2, 0.5, -0.5]
    (box,) = decode(BoxMaps.from_outputs(maps, SPEC.at(size)), SPEC.at(size)).boxes
    w, h = 64 * math.exp(0.1), 64 * math.exp(-0.1)
    x, y = (5 + 0.5) * 32 + 0.1 * 64, 2 * 32 - 2 * 0.1 * 64
    np.testing.assert_allclose(box, [x - w / 2, y - h / 2, w, h], rtol=1e-7)


def test_outputs_may_have_a_batch_axis_and_half_precision() -> None:
    size, maps = (320, 240), noise((320, 240), 3)
    plain = decode(BoxMaps.from_outputs(maps, SPEC.at(size)), SPEC.at(size))
    other = {name: values[None] for name, values in maps.items()}
    np.testing.assert_array_equal(decode(BoxMaps.from_outputs(other, SPEC.at(size)), SPEC.at(size)).boxes, plain.boxes)
    half = {name: values.astype(np.float16) for name, values in maps.items()}
    assert BoxMaps.from_outputs(half, SPEC.at(size)).boxes.dtype == np.float32


def test_without_faces_there_are_none() -> None:
    faces = decode(BoxMaps.from_outputs(quiet((640, 480)), SPEC.at((640, 480))), SPEC.at((640, 480)))
    assert (len(faces), faces.boxes.shape, faces.scores.shape) == (0, (0, 4), (0,))


def test_a_score_of_just_the_threshold_is_no_face() -> None:
    sized = SPEC.at((128, 128))
    maps = BoxMaps.from_outputs(quiet((128, 128), 0, 0), sized)
    assert len(decode(maps, sized, 0.5)) == 0
    assert len(decode(maps, sized, 0.499)) > 0


# --- Bounds.


def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    real = decoding.without_doubles

    def counting(faces: Any, overlap: float, most: int) -> Any:
        seen.append(len(faces))
        return real(faces, overlap, most)

    monkeypatch.setattr(decoding, "without_doubles", counting)
    small = replace(SPEC, levels=(Level(8, (Prior(1, 4),)), *SPEC.levels[1:]))  # far too small to overlap
    maps = {name: np.zeros(shape, np.float32) for name, shape in small.at((640, 480)).map_shapes.items()}
    maps["box_8"][2::4] = maps["box_8"][3::4] = -15
    faces = decode(BoxMaps.from_outputs(maps, small.at((640, 480))), small.at((640, 480)), 0.4)
    assert (seen, len(faces)) == ([MOST_CANDIDATES], MOST_FACES)


def test_memory_is_bounded_by_the_maps() -> None:
    size = (1920, 1088)
    outputs = noise(size, 0)
    priors(SPEC.levels, *size)
    tracemalloc.start()
    try:
        decode(BoxMaps.from_outputs(outputs, SPEC.at(size)), SPEC.at(size), 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * sum(values.nbytes for values in outputs.values())


@pytest.mark.parametrize("extreme", [3e38, -3e38, 1e9, -1e9])
def test_maps_of_no_trained_network_give_finite_boxes(extreme: float) -> None:
    maps, size = quiet((128, 128)), (128, 128)
    maps["box_128"][:] = maps["box_32"][:] = extreme
    maps["score_128"][1::2] = 3e38
    maps["score_32"][0::2] = -3e38
    with np.errstate(all="raise", under="ignore"):
        faces = decode(BoxMaps.from_outputs(maps, SPEC.at(size)), SPEC.at(size))
    assert len(faces)
    assert np.isfinite(faces.boxes).all()
    assert np.isfinite(faces.scores).all()


# --- Refusals.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["box_32", "score_64"])
def test_maps_that_are_not_finite_are_refused(name: str, value: float) -> None:
    maps = quiet((128, 128))
    maps[name].flat[-1] = value
    with pytest.raises(EdgeError, match=f"map '{name}' holds NaN or infinity"):
        BoxMaps.from_outputs(maps, SPEC.at((128, 128)))


def test_maps_of_another_network_or_size_are_refused() -> None:
    maps = quiet((128, 128))
    with pytest.raises(EdgeError, match=r"output 'box_32' has shape \(84, 4, 4\), needed is \(84, 8, 8\)"):
        BoxMaps.from_outputs(maps, SPEC.at((256, 256)))
    del maps["score_128"]
    with pytest.raises(EdgeError, match="the model has no output 'score_128', only box_128, box_32"):
        BoxMaps.from_outputs(maps, SPEC.at((128, 128)))


@pytest.mark.parametrize("threshold", [-0.01, 1.01, math.nan])
def test_thresholds_that_are_none_are_refused(threshold: float) -> None:
    maps = BoxMaps.from_outputs(quiet((128, 128)), SPEC.at((128, 128)))
    with pytest.raises(EdgeError, match="a number from 0 to 1 is needed"):
        decode(maps, SPEC.at((128, 128)), threshold)
