"""Features, of which the heads are evaluated at the winning cells alone: nothing else may differ."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.decode import (
    FEATURE_NAMES,
    MAP_NAMES,
    ONE_THREAD,
    Decoder,
    Features,
    Heads,
    Landmarks,
    Maps,
    _blocks,
    map_shapes,
)
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec, mean_faces

RandomMaps = Callable[..., Maps]
RandomHeads = Callable[[ModelSpec, int, int], Heads]
RandomFeatures = Callable[..., Features]
Specs = Callable[..., st.SearchStrategy[ModelSpec]]
FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)
LAYOUTS = ("channels first", "channels last")


def assert_same(a: Landmarks, b: Landmarks) -> None:
    for field in fields(Landmarks):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


@pytest.fixture(scope="session")
def random_features(random_maps: RandomMaps) -> RandomFeatures:
    """random_features(spec, channels, seed, batch=None, layout="channels first"), with scores as of random_maps."""

    def make(spec: ModelSpec, channels: int, seed: int, batch: int | None = None, layout: str = LAYOUTS[0]) -> Features:
        score = random_maps(spec, seed, batch).score
        shape = (*score.shape[:-3], channels, spec.grid, spec.grid)
        features = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        if layout != LAYOUTS[0]:
            features = np.moveaxis(np.ascontiguousarray(np.moveaxis(features, -3, -1)), -1, -3)
        return Features(score, features)

    return make


def assert_dense_agrees(spec: ModelSpec, heads: Heads, found: Features) -> None:
    sparse, dense = Decoder(spec, heads)(found), Decoder(spec)(heads.maps(found))
    np.testing.assert_array_equal(sparse.cell, dense.cell)
    np.testing.assert_array_equal(sparse.score, dense.score)
    assert sparse.points.dtype == np.float32
    largest = max(1.0, float(np.abs(dense.points).max()))
    np.testing.assert_allclose(sparse.points, dense.points, rtol=0, atol=1e-5 * largest)


@given(
    data=st.data(),
    channels=st.integers(1, 40) | st.sampled_from((512, 1280, 2048, 4608, 4609, ONE_THREAD - 1, ONE_THREAD + 1)),
    seed=st.integers(0, 2**32),
    batch=st.none() | st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
)
@settings(max_examples=80)
def test_features_decode_as_all_maps_do(
    specs: Specs,
    random_heads: RandomHeads,
    random_features: RandomFeatures,
    data: st.DataObject,
    channels: int,
    seed: int,
    batch: int | None,
    layout: str,
) -> None:
    spec = data.draw(specs(8))
    heads = random_heads(spec, channels, seed)
    assert_dense_agrees(spec, heads, random_features(spec, channels, seed, batch, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", mean_faces())
def test_features_decode_with_every_mean_face(
    random_heads: RandomHeads, random_features: RandomFeatures, name: str, layout: str
) -> None:
    face = mean_faces()[name]
    spec = ModelSpec("any", len(face.points), 10, 32, 256, face)
    heads = random_heads(spec, 96, 3)
    for batch in (None, 2):
        assert_dense_agrees(spec, heads, random_features(spec, 96, 4, batch, layout))


def test_heads_give_the_maps_that_1x1_convolutions_give(
    random_heads: RandomHeads, random_features: RandomFeatures
) -> None:
    """Each offset written out: row of the weights times the features of one cell."""
    heads, found = random_heads(SPEC, 7, 1), random_features(SPEC, 7, 2, batch=2)
    maps = heads.maps(found)
    assert {name: getattr(maps, name).shape[1:] for name in MAP_NAMES} == map_shapes(SPEC)
    for b, landmark, row, col in np.ndindex(2, 5, 3, 3):
        seen = found.features[b, :, row, col]
        for axis, own, near in ((0, maps.offset_x, maps.neighbor_x), (1, maps.offset_y, maps.neighbor_y)):
            want = [float(heads.weight[landmark, axis, k] @ seen) + heads.bias[landmark, axis, k] for k in range(3)]
            got = [own[b, landmark, row, col], *near[b, landmark, :, row, col]]
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(maps.score, found.score)


def test_a_decoder_with_heads_decodes_maps_too(random_maps: RandomMaps, random_heads: RandomHeads) -> None:
    maps = random_maps(SPEC, 6)
    assert_same(Decoder(SPEC, random_heads(SPEC, 7, 1))(maps), Decoder(SPEC)(maps))


@given(data=st.data(), channels=st.integers(1, 3000) | st.integers(ONE_THREAD - 2, ONE_THREAD + 2))
@settings(max_examples=40)
def test_no_product_is_large_enough_to_wake_other_cores(
    specs: Specs, random_heads: RandomHeads, data: st.DataObject, channels: int
) -> None:
    spec = data.draw(specs(6))
    heads = random_heads(spec, channels, 0)
    weight, bias = _blocks(heads, spec)
    num_lms, blocks, rows, _ = weight.shape
    count = 2 * (1 + spec.num_nb)
    assert rows == 1 or rows * channels < ONE_THREAD
    assert blocks * rows < count + blocks  # less than one row a block is there for nothing
    np.testing.assert_array_equal(
        weight.reshape(num_lms, -1, channels)[:, :count], heads.weight.reshape(num_lms, count, channels)
    )
    assert not weight.reshape(num_lms, -1, channels)[:, count:].any()
    np.testing.assert_array_equal(bias, heads.bias.reshape(num_lms, count))


def test_features_and_heads_are_left_as_they_were(random_heads: RandomHeads, random_features: RandomFeatures) -> None:
    decode = Decoder(SPEC, random_heads(SPEC, 7, 1))
    found, again = random_features(SPEC, 7, 2), random_features(SPEC, 7, 2)
    first = decode(found)
    assert_same(decode(found), first)
    for name in FEATURE_NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))


def test_many_threads_may_share_a_decoder_with_heads(
    random_heads: RandomHeads, random_features: RandomFeatures
) -> None:
    spec = replace(SPEC, input_size=256)
    decode = Decoder(spec, random_heads(spec, 300, 1))
    given = [random_features(spec, 300, seed, 1 + seed % 3, LAYOUTS[seed % 2]) for seed in range(12)]
    expected = [decode(found) for found in given]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(decode, given * 15))
    finally:
        sys.setswitchinterval(interval)
    for index, landmarks in enumerate(found):
        assert_same(landmarks, expected[index % 12])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FEATURE_NAMES)
@pytest.mark.parametrize("batch", [None, 2])
def test_nan_and_infinity_in_features_are_refused_by_name(
    random_heads: RandomHeads, random_features: RandomFeatures, name: str, value: float, batch: int | None
) -> None:
    """Also in cells that win nothing: what a network gives has to be sound everywhere, as with maps."""
    decode = Decoder(SPEC, random_heads(SPEC, 7, 1))
    size = getattr(random_features(SPEC, 7, 2, batch), name).size
    for place in (0, size // 2, size - 1):
        found = random_features(SPEC, 7, 2, batch)
        getattr(found, name).flat[place] = value
        with pytest.raises(EdgeError, match=f"map '{name}' holds NaN or infinity"):
            decode(found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_nan_and_infinity_in_heads_are_refused(random_heads: RandomHeads, name: str, value: float) -> None:
    heads = random_heads(SPEC, 7, 1)
    getattr(heads, name).flat[-1] = value
    with pytest.raises(EdgeError, match="the heads hold NaN or infinity"):
        Decoder(SPEC, heads)


@pytest.mark.parametrize(
    "reshape",
    [
        lambda a: a[..., :-1],
        lambda a: a[:-1],
        lambda a: np.concatenate([a, a]),
        lambda a: a[None],
        lambda a: a[0],
        lambda a: a[:0],
        lambda a: np.moveaxis(a, 0, -1),  # NHWC
    ],
)
def test_features_of_wrong_shapes_are_refused(
    random_heads: RandomHeads, random_features: RandomFeatures, reshape: Any
) -> None:
    found = random_features(SPEC, 7, 2)
    with pytest.raises(EdgeError, match=r"map 'features' has shape \(.*needed is \(7, 3, 3\)"):
        Decoder(SPEC, random_heads(SPEC, 7, 1))(replace(found, features=reshape(found.features)))


def test_features_need_heads_and_a_batch_of_their_score(
    random_heads: RandomHeads, random_features: RandomFeatures
) -> None:
    with pytest.raises(EdgeError, match="only a decoder with heads can decode"):
        Decoder(SPEC)(random_features(SPEC, 7, 2))
    found = random_features(SPEC, 7, 2, batch=3)
    with pytest.raises(EdgeError, match="'features' has shape"):
        Decoder(SPEC, random_heads(SPEC, 7, 1))(replace(found, features=found.features[:2]))


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, num_nb=3),
        replace(SPEC, num_lms=4, mean_face=MeanFace("four", FACE.points[:4])),
    ],
)
def test_heads_of_another_network_are_refused(random_heads: RandomHeads, other: ModelSpec) -> None:
    with pytest.raises(EdgeError, match=r"heads have shapes .*; \(5, 2, 3\) is needed"):
        Decoder(SPEC, random_heads(other, 7, 1))


def test_a_bias_of_another_network_is_refused(random_heads: RandomHeads) -> None:
    heads = random_heads(SPEC, 7, 1)
    for bias in (heads.bias[:-1], heads.bias[..., :-1], heads.bias[..., None], heads.bias.ravel()):
        with pytest.raises(EdgeError, match="heads have shapes"):
            Decoder(SPEC, replace(heads, bias=bias))


@pytest.mark.parametrize("lead", [(), (1,), (1, 1)])
def test_features_are_bound_by_name(random_features: RandomFeatures, lead: tuple[int, ...]) -> None:
    found = random_features(SPEC, 7, 4, layout="channels last")
    named: dict[str, NDArray[Any]] = {
        "features": found.features.reshape(*lead, 7, 3, 3).astype(np.float64),
        "other": np.zeros(3),
        "score": found.score.reshape(1, -1).astype(np.float64),
    }
    bound = Features.from_outputs(named, SPEC)
    for name in FEATURE_NAMES:
        assert getattr(bound, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(bound, name), getattr(found, name))
    for name in FEATURE_NAMES:
        rest = sorted({*named} - {name})
        with pytest.raises(EdgeError, match=f"no output '{name}', only {', '.join(rest)}"):
            Features.from_outputs({key: named[key] for key in rest}, SPEC)


@pytest.mark.parametrize(
    ("score", "features"),
    [
        ((5, 3, 2), (7, 3, 3)),
        ((4, 3, 3), (7, 3, 3)),
        ((5, 3, 3), (7, 3, 2)),
        ((5, 3, 3), (3, 3, 7)),  # NHWC
        ((5, 3, 3), (63,)),
        ((5, 3, 3), ()),
        ((5, 3, 3), (3, 3)),
        ((5, 3, 3), (2, 7, 3, 3)),
        ((5, 3, 3), (0, 7, 3, 3)),
    ],
)
def test_features_of_wrong_sizes_are_not_bound(score: tuple[int, ...], features: tuple[int, ...]) -> None:
    named = {"score": np.zeros(score, np.float32), "features": np.zeros(features, np.float32)}
    with pytest.raises(EdgeError, match="outputs 'score' and 'features' have shapes"):
        Features.from_outputs(named, SPEC)
