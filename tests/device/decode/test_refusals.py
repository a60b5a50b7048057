"""Maps that are refused: no numbers, other shapes, other batches, and outputs under other names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipnet_edge.decode import MAP_NAMES, Decoder, Maps
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec

RandomMaps = Callable[..., Maps]
FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", MAP_NAMES)
@pytest.mark.parametrize("batch", [None, 2])
def test_nan_and_infinity_are_refused_by_name(
    random_maps: RandomMaps, name: str, value: float, batch: int | None
) -> None:
    size = getattr(random_maps(SPEC, 1, batch), name).size
    for place in (0, size // 2, size - 1):
        maps = random_maps(SPEC, 1, batch)
        getattr(maps, name).flat[place] = value
        with pytest.raises(EdgeError, match=f"map '{name}' holds NaN or infinity"):
            Decoder(SPEC)(maps)


def test_infinities_of_both_signs_and_nan_together_are_refused(random_maps: RandomMaps) -> None:
    for values in ((np.inf, -np.inf), (np.nan, np.inf), (np.nan, np.nan)):
        maps = random_maps(SPEC, 1)
        maps.offset_y.flat[[3, 11]] = values
        with pytest.raises(EdgeError, match="offset_y"):
            Decoder(SPEC)(maps)


def test_the_largest_finite_numbers_are_allowed(random_maps: RandomMaps) -> None:
    maps = random_maps(SPEC, 1)
    most = np.finfo(np.float32).max
    maps.score[0, 0, 0], maps.score[0, 2, 2] = -most, most
    assert Decoder(SPEC)(maps).cell[0] == 8


@pytest.mark.parametrize("name", MAP_NAMES)
@pytest.mark.parametrize(
    "reshape",
    [
        lambda a: a[..., :-1],
        lambda a: a[:-1],
        lambda a: a.reshape(-1),
        lambda a: a[None],  # one map with a batch axis, the others without
        lambda a: a[..., None],
        lambda a: a[:0],
        lambda a: np.moveaxis(a, 0, -1),  # NHWC
    ],
)
def test_wrong_shapes_are_refused_by_name(random_maps: RandomMaps, name: str, reshape: Any) -> None:
    maps = random_maps(SPEC, 2)
    spoilt = replace(maps, **{name: reshape(getattr(maps, name))})
    # Where score has the batch axis, the first map that disagrees with it is named.
    with pytest.raises(EdgeError, match=r"map '\w+' has shape \(.*needed is"):
        Decoder(SPEC)(spoilt)


def test_wrong_batches_are_refused(random_maps: RandomMaps) -> None:
    maps = random_maps(SPEC, 2, batch=3)
    for changed in ({"offset_x": maps.offset_x[:2]}, {name: getattr(maps, name)[None] for name in MAP_NAMES}):
        with pytest.raises(EdgeError, match="has shape"):
            Decoder(SPEC)(replace(maps, **changed))
    empty = Maps(**{name: getattr(maps, name)[:0] for name in MAP_NAMES})
    with pytest.raises(EdgeError, match="'score' has shape"):
        Decoder(SPEC)(empty)


def test_outputs_are_bound_by_name(random_maps: RandomMaps) -> None:
    maps = random_maps(SPEC, 4)
    outputs = {name: getattr(maps, name)[None].astype(np.float64) for name in reversed(MAP_NAMES)}
    flat = outputs | {"neighbor_x": outputs["neighbor_x"].reshape(1, 10, 3, 3), "other": np.zeros(3)}
    bound = Maps.from_outputs(flat, SPEC)
    for name in MAP_NAMES:
        assert getattr(bound, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(bound, name), getattr(maps, name))
    del outputs["offset_y"]
    with pytest.raises(EdgeError, match="no output 'offset_y', only neighbor_x, neighbor_y, offset_x, score"):
        Maps.from_outputs(outputs, SPEC)
    with pytest.raises(EdgeError, match=r"output 'score' has shape \(5, 3, 2\), \(5, 3, 3\) is needed"):
        Maps.from_outputs(flat | {"score": maps.score[..., :2]}, SPEC)
