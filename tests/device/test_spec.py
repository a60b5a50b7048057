"""The spec: what it refuses when it is built, and when it is read from a manifest."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.spec import CROPS, NET_STRIDES, MeanFace, ModelSpec, mean_faces
from pipnet_edge.strict import read

FACE = MeanFace("four", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.5, 0.75)), (0, 1))
SPEC = ModelSpec("resnet18", num_lms=4, num_nb=2, net_stride=32, input_size=256, mean_face=FACE)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    points = tuple(draw(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=12)))
    index = st.integers(0, len(points) - 1)
    stride = draw(st.sampled_from(NET_STRIDES))
    return ModelSpec(
        backbone=draw(st.text().filter(str.isprintable)),
        num_lms=len(points),
        num_nb=draw(st.integers(0, len(points) - 1)),
        net_stride=stride,
        input_size=stride * draw(st.integers(1, 4096 // stride)),
        mean_face=MeanFace(draw(st.text().filter(str.isprintable)), points, draw(st.none() | st.tuples(index, index))),
        mean=draw(st.tuples(FINITE, FINITE, FINITE)),
        std=draw(st.tuples(*[POSITIVE] * 3)),
        crop=draw(st.sampled_from(CROPS)),
        clamp=draw(st.booleans()),
    )


@given(spec=specs())
def test_json_gives_the_spec_back(spec: ModelSpec) -> None:
    again = read(ModelSpec, json.loads(json.dumps(asdict(spec))), "spec")
    assert again == spec
    assert hash(again) == hash(spec)  # frozen through and through: tuples, no lists
    assert asdict(again) == asdict(spec)
    assert spec.grid * spec.net_stride == spec.input_size


def test_the_mean_faces_of_the_reference_give_specs() -> None:
    for name, face in mean_faces().items():
        spec = ModelSpec("resnet18", len(face.points), 10, 32, 256, face)
        assert spec.mean_face.name == name
        assert (spec.grid, spec.crop, spec.clamp) == (8, "test", False)
        assert (face.nme_pair is None) == (name == "aflw")


def test_a_spec_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        SPEC.num_nb = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        FACE.name = "other"  # type: ignore[misc]


# --- Contradictions.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_lms": 5}, "the network predicts 5 landmarks, mean face 'four' has 4"),
        ({"num_lms": 0}, "the network predicts 0 landmarks"),
        ({"num_nb": 4}, "4 neighbours of 4 landmarks; allowed: 0 to 3"),
        ({"num_nb": -1}, "-1 neighbours"),
        ({"net_stride": 8}, "net stride 8; allowed: 16, 32, 64, 128"),
        ({"net_stride": 0}, "net stride 0; allowed"),
        ({"net_stride": -32}, "net stride -32; allowed"),
        ({"input_size": 250}, "input size 250 is not a multiple of the net stride 32 up to 4096"),
        ({"input_size": 0}, "input size 0 is not"),
        ({"input_size": -256}, "input size -256 is not"),
        ({"input_size": 4128}, "input size 4128 is not"),
        ({"net_stride": 128, "input_size": 64}, "input size 64 is not a multiple of the net stride 128"),
        ({"mean": (0.5, 0.5)}, r"mean \(0.5, 0.5\) and std .* need three finite numbers each"),
        ({"mean": (0.5, 0.5, 0.5, 0.5)}, "need three finite numbers each"),
        ({"mean": (0.5, 0.5, math.nan)}, "need three finite numbers each"),
        ({"mean": ()}, "need three finite numbers each"),
        ({"std": (0.5, 0.5)}, "need three finite numbers each"),
        ({"std": ()}, "need three finite numbers each"),
        ({"std": (0.5, 0.5, 0.5, 0.5)}, "need three finite numbers each"),
        ({"std": (0.5, 0.5, 0.0)}, "std above 0"),
        ({"std": (0.5, 0.5, -0.1)}, "std above 0"),
        ({"std": (0.5, 0.5, math.inf)}, "need three finite numbers each"),
        ({"mean": (0.5,), "std": (0.5,)}, "need three finite numbers each"),
        ({"crop": "tight"}, "crop policy 'tight'; allowed: test, demo"),
        ({"crop": ""}, "crop policy ''; allowed: test, demo"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        replace(SPEC, **change)
    assert caught.value.code == USER_ERROR
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [32, 4096])
def test_the_limits_of_the_input_size_are_allowed(size: int) -> None:
    assert replace(SPEC, input_size=size).grid == size // 32


@pytest.mark.parametrize(
    ("points", "pair", "message"),
    [
        ((), None, "mean face 'odd' needs at least two finite"),
        (((0.5, 0.5),), None, "needs at least two finite"),
        (((0.5, 0.5), (0.1, math.nan)), None, "needs at least two finite"),
        (((0.5, 0.5), (-math.inf, 0.1)), None, "needs at least two finite"),
        (((0.5, 0.5), (0.1, 0.2, 0.3)), None, r"finite \(x, y\) points"),
        (((0.5, 0.5), (0.1,)), None, r"finite \(x, y\) points"),
        (((0.5, 0.5), (0.1, 0.1)), (0, 2), r"mean face 'odd' has 2 points, its NME pair is \(0, 2\)"),
        (((0.5, 0.5), (0.1, 0.1)), (-1, 0), "its NME pair is"),
    ],
)
def test_bad_mean_faces_are_refused(points: Any, pair: Any, message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        MeanFace("odd", points, pair)


# --- Manifests.


def plain() -> dict[str, Any]:
    return json.loads(json.dumps(asdict(SPEC)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("key", asdict(SPEC))
def test_missing_fields_are_refused(key: str) -> None:
    data = plain()
    del data[key]
    with pytest.raises(EdgeError, match=key):
        read(ModelSpec, data, "spec")


@pytest.mark.parametrize("key", asdict(SPEC)["mean_face"])
def test_missing_fields_of_the_mean_face_are_refused(key: str) -> None:
    data = plain()
    del data["mean_face"][key]
    with pytest.raises(EdgeError, match=key):
        read(ModelSpec, data, "spec")


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(EdgeError, match="head"):
        read(ModelSpec, plain() | {"head": "sparse"}, "spec")
    data = plain()
    data["mean_face"]["colour"] = "blue"
    with pytest.raises(EdgeError, match="colour"):
        read(ModelSpec, data, "spec")


def shortened(value: object) -> str:
    return repr(value)[:40]


ILL_TYPED: list[tuple[str, Any]] = [
    *((key, v) for key in ("num_lms", "num_nb", "net_stride", "input_size") for v in ("4", 4.0, True, None)),
    *((key, [value]) for key in ("num_lms", "input_size") for value in (4, 256)),
    *(("backbone", value) for value in (None, 18, ["resnet18"], {})),
    *(("crop", value) for value in (None, 1, ["test"], {})),
    *(("clamp", value) for value in (None, 0, 1, "false", "", [])),
    *((key, v) for key in ("mean", "std") for v in (None, 0.5, "123", [0.5] * 2, [0.5] * 4, ["a"] * 3, [[0.5]] * 3)),
    *(("mean", [value, 0.5, 0.5]) for value in (None, True, "0.5", math.inf, 10**400)),
    *(("mean_face", value) for value in (None, 3, "four", [], [1, 2])),
]


@pytest.mark.parametrize(("key", "value"), ILL_TYPED, ids=shortened)
def test_ill_typed_fields_are_refused(key: str, value: Any) -> None:
    with pytest.raises(EdgeError):
        read(ModelSpec, plain() | {key: value}, "spec")


ILL_TYPED_FACE: list[tuple[str, Any]] = [
    *(("name", value) for value in (None, 4, ["four"])),
    *(("points", value) for value in (None, 4, "four", {}, [[0.5, 0.5]] * 3, [0.5] * 8, [[0.5]] * 4, [[0.5] * 3] * 4)),
    *(("points", [[0.5, value], *[[0.5, 0.1]] * 3]) for value in (None, True, "0.5", [0.5], math.nan, 10**400)),
    *(("nme_pair", value) for value in (3, "01", [0], [0, 1, 2], [0, "1"], [0, 1.5], [0, None], [0, 4], [0, -1])),
    *(("nme_pair", value) for value in ({"0": 0, "1": 1}, [0, True], [0, math.inf], [0, math.nan])),
]


@pytest.mark.parametrize(("key", "value"), ILL_TYPED_FACE, ids=shortened)
def test_ill_typed_fields_of_the_mean_face_are_refused(key: str, value: Any) -> None:
    data = plain()
    data["mean_face"][key] = value
    with pytest.raises(EdgeError):
        read(ModelSpec, data, "spec")


@pytest.mark.parametrize("data", [None, 3, "spec", [], [["num_lms", 4]]])
def test_a_spec_that_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises(EdgeError, match="dict is needed"):
        read(ModelSpec, data, "spec")
