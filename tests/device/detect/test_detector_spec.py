"""The detector's spec: what it refuses when it is built, and when it is read."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.detect.spec import DetectorSpec, Level, Margins, Prior
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.strict import read

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "golden" / "detect" / "vectors.json").read_text())
SPEC = read(DetectorSpec, VECTORS["spec"], "spec")


def test_json_gives_the_spec_back() -> None:
    again = read(DetectorSpec, json.loads(json.dumps(asdict(SPEC))), "spec")
    assert again == SPEC
    assert hash(again) == hash(SPEC)  # frozen through and through: tuples, no lists
    with pytest.raises(FrozenInstanceError):
        SPEC.threshold = 0.9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ()}, "detector strides none; rising ones are needed, at least one"),
        ({"levels": SPEC.levels[::-1]}, "detector strides 128,64,32; rising"),
        ({"levels": SPEC.levels[:1] * 2}, "detector strides 32,32; rising"),
        ({"variances": (0.1, 0.0)}, "variances 0.1,0; two numbers above 0"),
        ({"variances": (math.nan, 0.2)}, "variances nan,0.2"),
        ({"variances": (0.1,)}, "variances 0.1; two numbers"),
        ({"mean": (123.0, 117.0, 104.0)}, "given in pixels"),
        ({"std": (0.0, 1.0, 1.0)}, "std 0,1,1"),
        ({"threshold": -0.1}, "threshold -0.1; a number from 0 to 1 is needed"),
        ({"threshold": 60.0}, "threshold 60; a number from 0 to 1"),
        ({"threshold": math.nan}, "threshold nan"),
        ({"overlap": 0.0}, "overlap 0; a number above 0"),
        ({"overlap": math.inf}, "overlap inf"),
        ({"input_sizes": ()}, "input sizes none; at least one is needed"),
        ({"input_sizes": ((640, 480), (640, 480))}, "input sizes 640x480, 640x480; at least one is needed, each once"),
        ({"input_sizes": ((640, 127),)}, "input size 640x127; sides of 128 to 4096 pixels are needed"),
        ({"input_sizes": ((4097, 480),)}, "input size 4097x480"),
        ({"levels": (Level(8, (Prior(16, 8),)),), "input_sizes": ((4096, 4096),)}, "16777216 priors in 4096x4096"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeError) as refused:
        replace(SPEC, **change)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.code == USER_ERROR


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prior(0), "priors of 0 pixels; allowed: 1 to 4096"),
        (lambda: Prior(32, 9), "priors of density 9; allowed: 1 to 8"),
        (lambda: Prior(32, 0), "priors of density 0"),
        (lambda: Level(33, (Prior(32),)), "detector stride 33; allowed: 8, 16, 32, 64, 128"),
        (lambda: Level(32, ()), "0 kinds of priors at stride 32; allowed: 1 to 8"),
        (lambda: Margins(0, math.nan, 0, 0), "margins 0,nan,0,0; four numbers from -2 to 2"),
        (lambda: Margins(-0.6, 0, -0.4, 0), "leave nothing of a box"),
    ],
)
def test_parts_refuse_what_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(EdgeError) as refused:
        make()
    assert message in str(refused.value)


def test_another_shape_of_json_is_refused() -> None:
    spoilt = VECTORS["spec"] | {"levels": [{"stride": 32, "priors": [{"size": 32}]}]}
    with pytest.raises(EdgeError, match="has no 'density'"):
        read(DetectorSpec, spoilt, "spec")


@given(width=st.integers(128, 1000), height=st.integers(128, 1000))
def test_shapes_of_maps_hold_all_priors(width: int, height: int) -> None:
    shapes = SPEC.at((width, height)).map_shapes
    assert list(shapes) == ["box_32", "score_32", "box_64", "score_64", "box_128", "score_128"]
    for level in SPEC.levels:
        rows, columns = shapes[f"box_{level.stride}"][1:]
        assert (rows - 1) * level.stride < height <= rows * level.stride
        assert (columns - 1) * level.stride < width <= columns * level.stride
    boxes, scores = (sum(math.prod(s) for n, s in shapes.items() if n.startswith(kind)) for kind in ("box", "score"))
    assert boxes == 2 * scores == 4 * SPEC.count(width, height)


def test_counts_of_the_reference() -> None:
    assert SPEC.count(640, 480) == 6400
    assert SPEC.count(640, 640) == 8525
