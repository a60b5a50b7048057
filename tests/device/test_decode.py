"""Decode against the reference's own figures, and against the paper written out one landmark at a time."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
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
    WINNER_NAMES,
    Decoder,
    Features,
    Heads,
    Landmarks,
    Maps,
    Winners,
    _blocks,
    map_shapes,
    outputs,
    winner_shapes,
)
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec, mean_faces, neighbour_table

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "index.json").read_text())
REFERENCE_NAMES = {"score": "cls", "offset_x": "x", "offset_y": "y", "neighbor_x": "nb_x", "neighbor_y": "nb_y"}
FOLDERS = {
    "AFLW": "aflw",
    "COFW": "cofw",
    "WFLW": "wflw",
    "LaPa": "lapa",
    "data_300W": "300w",
    "data_300W_CELEBA": "300w-celeba",
}
MAX_LEN = {"aflw": 18, "cofw": 19, "300w": 22, "300w-celeba": 22, "300w-cofw-wflw": 22, "wflw": 17, "lapa": 20}

FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)


def random_maps(spec: ModelSpec, seed: int, batch: int | None = None) -> Maps:
    """Offsets of a few cells and small whole scores, so that ties are frequent."""
    random = np.random.default_rng(seed)
    lead = () if batch is None else (batch,)
    arrays = {name: random.normal(0, 3, lead + shape).astype(np.float32) for name, shape in map_shapes(spec).items()}
    arrays["score"] = random.integers(-3, 3, arrays["score"].shape).astype(np.float32)
    return Maps(**arrays)


def one(maps: Maps, index: int) -> Maps:
    return Maps(**{name: getattr(maps, name)[index] for name in MAP_NAMES})


def assert_same(a: Landmarks, b: Landmarks) -> None:
    for field in fields(Landmarks):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


# --- The reference's figures.


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ModelSpec, dict[str, NDArray[Any]]]:
    about = CASES[request.param]
    face = mean_faces()[FOLDERS[about["data"]]]
    spec = ModelSpec(
        about["backbone"], about["num_lms"], about["num_nb"], about["net_stride"], about["input_size"], face
    )
    with np.load(GOLDEN / f"{request.param}.npz") as arrays:
        return spec, dict(arrays)


def test_all_golden_cases_are_here() -> None:
    assert len(CASES) == 9
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(CASES)


def test_golden_landmarks(case: tuple[ModelSpec, dict[str, NDArray[Any]]]) -> None:
    spec, arrays = case
    maps = Maps.from_outputs({name: arrays[theirs] for name, theirs in REFERENCE_NAMES.items()}, spec)
    found = Decoder(spec)(maps)
    largest = max(1.0, np.abs(arrays["merged"]).max())
    assert found.points.dtype == found.score.dtype == np.float32
    np.testing.assert_allclose(found.points, arrays["merged"], rtol=0, atol=1e-6 * largest)
    np.testing.assert_array_equal(found.score, arrays["max_cls"])
    # The reference's own predictions, before fusion, follow from the winning cells.
    landmark, row, col = np.arange(spec.num_lms), found.cell // spec.grid, found.cell % spec.grid
    own = [col + maps.offset_x[landmark, row, col], row + maps.offset_y[landmark, row, col]]
    np.testing.assert_allclose(np.stack(own, axis=1) / spec.grid, arrays["own"], rtol=0, atol=1e-6 * largest)


def test_golden_neighbour_table(case: tuple[ModelSpec, dict[str, NDArray[Any]]]) -> None:
    spec, arrays = case
    table = neighbour_table(spec.mean_face, spec.num_nb)
    assert table.shape == (spec.num_lms, int(arrays["max_len"]))
    expected = arrays["reverse_index1"] * spec.num_nb + arrays["reverse_index2"]
    np.testing.assert_array_equal(table.ravel(), expected)


# --- The paper, written out.


def nearest(face: MeanFace, landmark: int, count: int) -> list[int]:
    """The landmarks nearest to one on the mean face, itself left out, the lower index first among equals."""

    def squared(other: int) -> float:
        dx = face.points[landmark][0] - face.points[other][0]
        dy = face.points[landmark][1] - face.points[other][1]
        return dx * dx + dy * dy

    others = [other for other in range(len(face.points)) if other != landmark]
    return sorted(others, key=lambda other: (squared(other), other))[:count]


def speakers(spec: ModelSpec) -> list[list[tuple[int, int]]]:
    """For each landmark the pairs (s, k) where it is the k-th neighbour of s, all lists cyclically as long as one."""
    pairs: list[list[tuple[int, int]]] = [[] for _ in range(spec.num_lms)]
    for s in range(spec.num_lms):
        for k, landmark in enumerate(nearest(spec.mean_face, s, spec.num_nb)):
            pairs[landmark].append((s, k))
    longest = max(len(of_one) for of_one in pairs)
    return [[of_one[i % len(of_one)] for i in range(longest)] if of_one else [] for of_one in pairs]


def slow_decode(maps: Maps, spec: ModelSpec) -> tuple[list[list[float]], list[int]]:
    """Points and winning cells of one crop, in Python numbers."""
    cells, places = [], []
    for landmark in range(spec.num_lms):
        best, best_score = 0, -np.inf
        for cell in range(spec.grid**2):
            score = float(maps.score[landmark, cell // spec.grid, cell % spec.grid])
            if score > best_score:
                best, best_score = cell, score
        cells.append(best)
        places.append((best // spec.grid, best % spec.grid))
    points = []
    for landmark, about in enumerate(speakers(spec)):
        row, col = places[landmark]
        xs = [col + float(maps.offset_x[landmark, row, col])]
        ys = [row + float(maps.offset_y[landmark, row, col])]
        for s, k in about:
            row, col = places[s]
            xs.append(col + float(maps.neighbor_x[s, k, row, col]))
            ys.append(row + float(maps.neighbor_y[s, k, row, col]))
        point = [sum(xs) / len(xs) / spec.grid, sum(ys) / len(ys) / spec.grid]
        points.append([min(max(v, 0.0), 1.0) for v in point] if spec.clamp else point)
    return points, cells


@st.composite
def specs(draw: st.DrawFn, most: int = 30) -> ModelSpec:
    """Any small spec, at most so many landmarks; mean faces lie on a lattice of 1/64: exact, often equal distances."""
    whole = st.integers(-8, 72)
    places = draw(st.lists(st.tuples(whole, whole), min_size=2, max_size=most, unique=True))
    face = MeanFace("drawn", tuple((x / 64, y / 64) for x, y in places))
    stride, grid = draw(st.sampled_from((16, 32, 64, 128))), draw(st.integers(1, 8))
    num_nb = draw(st.integers(1, len(places) - 1))
    return ModelSpec("any", len(places), num_nb, stride, stride * grid, face, clamp=draw(st.booleans()))


@given(spec=specs(), seed=st.integers(0, 2**32), batch=st.integers(1, 4))
@settings(max_examples=60)
def test_equals_the_paper_and_batches_equal_singles(spec: ModelSpec, seed: int, batch: int) -> None:
    maps = random_maps(spec, seed, batch)
    decode = Decoder(spec)
    together = decode(maps)
    assert together.points.shape == (batch, spec.num_lms, 2)
    assert together.score.shape == together.cell.shape == (batch, spec.num_lms)
    for index in range(batch):
        single = decode(one(maps, index))
        assert_same(single, Landmarks(together.points[index], together.score[index], together.cell[index]))
        points, cells = slow_decode(one(maps, index), spec)
        assert single.cell.tolist() == cells
        largest = max(1.0, float(np.abs(points).max()))
        np.testing.assert_allclose(single.points, points, rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize("name", MAX_LEN)
def test_neighbour_table_of_every_mean_face(name: str) -> None:
    face = mean_faces()[name]
    assert set(mean_faces()) == set(MAX_LEN)
    spec = ModelSpec("any", len(face.points), 10, 32, 256, face)
    expected = [[s * 10 + k for s, k in about] for about in speakers(spec)]
    assert neighbour_table(face, 10).tolist() == expected
    assert len(expected[0]) == MAX_LEN[name]


def test_the_two_68_point_tables_differ() -> None:
    a, b = (neighbour_table(mean_faces()[name], 10) for name in ("300w", "300w-celeba"))
    assert (a != b).sum() == 4  # FACTS.md: why --data is required for a 68-point checkpoint


def test_mean_faces_are_the_reference_s(shared: Path) -> None:
    theirs = json.loads((shared / "meanfaces.json").read_text())
    ours = {(face.points, face.nme_pair) for face in mean_faces().values()}
    pairs = {name: face["nme_pair"] and tuple(face["nme_pair"]) for name, face in theirs.items()}
    assert ours == {(tuple(map(tuple, face["points"])), pairs[name]) for name, face in theirs.items()}


# --- Selection and fusion, one property each.


def test_ties_give_the_lowest_cell() -> None:
    maps = random_maps(SPEC, 0)
    maps.score[:] = -1.0
    maps.score[1, 1, 2] = maps.score[1, 2, 0] = 4.0
    maps.score[2, 2, 1:] = 0.5
    maps.score[3, 0, 1], maps.score[3, 0, 2] = -0.0, 0.0  # equal numbers
    maps.score[4] = np.arange(9, dtype=np.float32).reshape(3, 3) // 2  # 0 0 1 1 2 2 3 3 4
    assert Decoder(SPEC)(maps).cell.tolist() == [0, 5, 7, 1, 8]
    maps.score[4] *= -1
    assert Decoder(SPEC)(maps).cell[4] == 0


def test_clamp_limits_points_and_is_off_by_default() -> None:
    maps = random_maps(SPEC, 3)
    maps.offset_x[0] += 20
    free = Decoder(SPEC)(maps)
    assert free.points.min() < 0
    assert free.points.max() > 1
    clamped = Decoder(replace(SPEC, clamp=True))(maps)
    np.testing.assert_array_equal(clamped.points, free.points.clip(0, 1))
    np.testing.assert_array_equal(clamped.score, free.score)


def test_a_landmark_that_is_nobodys_neighbour_keeps_its_own_prediction() -> None:
    face = MeanFace("lonely", ((0.0, 0.0), (0.125, 0.0), (0.25, 0.0), (1.0, 1.0)))
    spec = ModelSpec("any", 4, 1, 32, 96, face)
    assert neighbour_table(face, 1).tolist() == [[1, 1], [0, 2], [3, 3], [-1, -1]]
    maps = random_maps(spec, 5)
    found = Decoder(spec)(maps)
    row, col = divmod(int(found.cell[3]), 3)
    own = [(col + maps.offset_x[3, row, col]) / 3, (row + maps.offset_y[3, row, col]) / 3]
    np.testing.assert_allclose(found.points[3], own, rtol=1e-6)
    np.testing.assert_allclose(found.points, slow_decode(maps, spec)[0], rtol=0, atol=2e-6)


def test_views_decode_like_copies() -> None:
    maps = random_maps(SPEC, 7, batch=2)
    swapped = Maps(**{n: np.ascontiguousarray(getattr(maps, n).swapaxes(-1, -2)).swapaxes(-1, -2) for n in MAP_NAMES})
    assert not swapped.score.flags.c_contiguous
    assert_same(Decoder(SPEC)(swapped), Decoder(SPEC)(maps))


def test_maps_are_left_as_they_were() -> None:
    maps, again = random_maps(SPEC, 9), random_maps(SPEC, 9)
    Decoder(SPEC)(maps)
    for name in MAP_NAMES:
        np.testing.assert_array_equal(getattr(maps, name), getattr(again, name))


class Lockstep(Maps):
    """Maps whose every reading waits for the other thread's, so that anything kept between two readings shows."""

    barrier = threading.Barrier(2)

    def __getattribute__(self, name: str) -> Any:
        if name in MAP_NAMES:
            Lockstep.barrier.wait(timeout=30)
        return super().__getattribute__(name)


def test_threads_may_share_a_decoder() -> None:
    decode = Decoder(SPEC)
    maps = [random_maps(SPEC, seed, batch=3) for seed in (0, 1)]
    expected = [decode(m) for m in maps]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(decode, [Lockstep(**vars(m)) for m in maps]))
    for landmarks, alone in zip(found, expected, strict=True):
        assert_same(landmarks, alone)


def test_many_threads_may_share_a_decoder() -> None:
    spec = replace(SPEC, input_size=256)
    decode = Decoder(spec)
    maps = [random_maps(spec, seed, batch=1 + seed % 3) for seed in range(16)]
    expected = [decode(m) for m in maps]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(decode, maps * 25))
    finally:
        sys.setswitchinterval(interval)
    for index, landmarks in enumerate(found):
        assert_same(landmarks, expected[index % 16])


# --- Refusals.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", MAP_NAMES)
@pytest.mark.parametrize("batch", [None, 2])
def test_nan_and_infinity_are_refused_by_name(name: str, value: float, batch: int | None) -> None:
    size = getattr(random_maps(SPEC, 1, batch), name).size
    for place in (0, size // 2, size - 1):
        maps = random_maps(SPEC, 1, batch)
        getattr(maps, name).flat[place] = value
        with pytest.raises(EdgeError, match=f"map '{name}' holds NaN or infinity"):
            Decoder(SPEC)(maps)


def test_infinities_of_both_signs_and_nan_together_are_refused() -> None:
    for values in ((np.inf, -np.inf), (np.nan, np.inf), (np.nan, np.nan)):
        maps = random_maps(SPEC, 1)
        maps.offset_y.flat[[3, 11]] = values
        with pytest.raises(EdgeError, match="offset_y"):
            Decoder(SPEC)(maps)


def test_the_largest_finite_numbers_are_allowed() -> None:
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
def test_wrong_shapes_are_refused_by_name(name: str, reshape: Any) -> None:
    maps = random_maps(SPEC, 2)
    spoilt = replace(maps, **{name: reshape(getattr(maps, name))})
    # Where score has the batch axis, the first map that disagrees with it is named.
    with pytest.raises(EdgeError, match=r"map '\w+' has shape \(.*needed is"):
        Decoder(SPEC)(spoilt)


def test_wrong_batches_are_refused() -> None:
    maps = random_maps(SPEC, 2, batch=3)
    for changed in ({"offset_x": maps.offset_x[:2]}, {name: getattr(maps, name)[None] for name in MAP_NAMES}):
        with pytest.raises(EdgeError, match="has shape"):
            Decoder(SPEC)(replace(maps, **changed))
    empty = Maps(**{name: getattr(maps, name)[:0] for name in MAP_NAMES})
    with pytest.raises(EdgeError, match="'score' has shape"):
        Decoder(SPEC)(empty)


def test_outputs_are_bound_by_name() -> None:
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


# --- Features, of which the heads are evaluated at the winning cells alone: nothing else may differ.

LAYOUTS = ("channels first", "channels last")


def random_heads(spec: ModelSpec, channels: int, seed: int) -> Heads:
    """Heads that give offsets of a few cells, whatever the number of channels."""
    random = np.random.default_rng(seed)
    shape = (spec.num_lms, 2, 1 + spec.num_nb)
    weight = random.normal(0, 1 / np.sqrt(channels), (*shape, channels)).astype(np.float32)
    return Heads(weight, random.normal(0, 1, shape).astype(np.float32))


def random_features(
    spec: ModelSpec, channels: int, seed: int, batch: int | None = None, layout: str = LAYOUTS[0]
) -> Features:
    score = random_maps(spec, seed, batch).score
    shape = (*score.shape[:-3], channels, spec.grid, spec.grid)
    features = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if layout != LAYOUTS[0]:
        features = np.moveaxis(np.ascontiguousarray(np.moveaxis(features, -3, -1)), -1, -3)
    return Features(score, features)


def assert_dense_agrees(spec: ModelSpec, heads: Heads, found: Features) -> None:
    sparse, dense = Decoder(spec, heads)(found), Decoder(spec)(heads.maps(found))
    np.testing.assert_array_equal(sparse.cell, dense.cell)
    np.testing.assert_array_equal(sparse.score, dense.score)
    assert sparse.points.dtype == np.float32
    largest = max(1.0, float(np.abs(dense.points).max()))
    np.testing.assert_allclose(sparse.points, dense.points, rtol=0, atol=1e-5 * largest)


@given(
    spec=specs(8),
    channels=st.integers(1, 40) | st.sampled_from((512, 1280, 2048, 4608, 4609, ONE_THREAD - 1, ONE_THREAD + 1)),
    seed=st.integers(0, 2**32),
    batch=st.none() | st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
)
@settings(max_examples=80)
def test_features_decode_as_all_maps_do(
    spec: ModelSpec, channels: int, seed: int, batch: int | None, layout: str
) -> None:
    heads = random_heads(spec, channels, seed)
    assert_dense_agrees(spec, heads, random_features(spec, channels, seed, batch, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MAX_LEN)
def test_features_decode_with_every_mean_face(name: str, layout: str) -> None:
    face = mean_faces()[name]
    spec = ModelSpec("any", len(face.points), 10, 32, 256, face)
    heads = random_heads(spec, 96, 3)
    for batch in (None, 2):
        assert_dense_agrees(spec, heads, random_features(spec, 96, 4, batch, layout))


def test_heads_give_the_maps_that_1x1_convolutions_give() -> None:
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


def test_a_decoder_with_heads_decodes_maps_too() -> None:
    maps = random_maps(SPEC, 6)
    assert_same(Decoder(SPEC, random_heads(SPEC, 7, 1))(maps), Decoder(SPEC)(maps))


@given(spec=specs(6), channels=st.integers(1, 3000) | st.integers(ONE_THREAD - 2, ONE_THREAD + 2))
@settings(max_examples=40)
def test_no_product_is_large_enough_to_wake_other_cores(spec: ModelSpec, channels: int) -> None:
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


def test_features_and_heads_are_left_as_they_were() -> None:
    decode = Decoder(SPEC, random_heads(SPEC, 7, 1))
    found, again = random_features(SPEC, 7, 2), random_features(SPEC, 7, 2)
    first = decode(found)
    assert_same(decode(found), first)
    for name in FEATURE_NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))


def test_many_threads_may_share_a_decoder_with_heads() -> None:
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
def test_nan_and_infinity_in_features_are_refused_by_name(name: str, value: float, batch: int | None) -> None:
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
def test_nan_and_infinity_in_heads_are_refused(name: str, value: float) -> None:
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
def test_features_of_wrong_shapes_are_refused(reshape: Any) -> None:
    found = random_features(SPEC, 7, 2)
    with pytest.raises(EdgeError, match=r"map 'features' has shape \(.*needed is \(7, 3, 3\)"):
        Decoder(SPEC, random_heads(SPEC, 7, 1))(replace(found, features=reshape(found.features)))


def test_features_need_heads_and_a_batch_of_their_score() -> None:
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
def test_heads_of_another_network_are_refused(other: ModelSpec) -> None:
    with pytest.raises(EdgeError, match=r"heads have shapes .*; \(5, 2, 3\) is needed"):
        Decoder(SPEC, random_heads(other, 7, 1))


def test_a_bias_of_another_network_is_refused() -> None:
    heads = random_heads(SPEC, 7, 1)
    for bias in (heads.bias[:-1], heads.bias[..., :-1], heads.bias[..., None], heads.bias.ravel()):
        with pytest.raises(EdgeError, match="heads have shapes"):
            Decoder(SPEC, replace(heads, bias=bias))


@pytest.mark.parametrize("lead", [(), (1,), (1, 1)])
def test_features_are_bound_by_name(lead: tuple[int, ...]) -> None:
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


# --- Winners: the offsets of the winning cells, evaluated before decode sees them.


def random_winners(spec: ModelSpec, seed: int, batch: int | None = None) -> Winners:
    maps = random_maps(spec, seed, batch)
    return Winners.at(maps, Decoder(spec)(maps).cell)


@given(spec=specs(12), seed=st.integers(0, 2**32), batch=st.none() | st.integers(1, 4))
@settings(max_examples=60)
def test_winners_decode_exactly_as_all_maps_do(spec: ModelSpec, seed: int, batch: int | None) -> None:
    """Every bit: what is read from the maps is the same, and so is what is done with it."""
    maps, decode = random_maps(spec, seed, batch), Decoder(spec)
    dense = decode(maps)
    found = decode(Winners.at(maps, dense.cell))
    assert_same(found, dense)
    assert found.points.dtype == np.float32
    assert found.points.flags.c_contiguous == dense.points.flags.c_contiguous


@pytest.mark.parametrize("name", MAX_LEN)
def test_winners_decode_with_every_mean_face(name: str) -> None:
    face = mean_faces()[name]
    spec = ModelSpec("any", len(face.points), 10, 32, 256, face)
    for batch in (None, 2):
        maps = random_maps(spec, 5, batch)
        dense = Decoder(spec)(maps)
        assert_same(Decoder(spec)(Winners.at(maps, dense.cell)), dense)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_winners_at_cells_written_out(batch: int | None) -> None:
    """At any cells, not the winning ones alone; and under the maps' names again."""
    maps = random_maps(SPEC, 8, batch)
    lead = () if batch is None else (batch,)
    cell = np.random.default_rng(0).integers(0, 9, (*lead, 5))
    found = Winners.at(maps, cell)
    assert found.score is maps.score
    assert found.offsets.shape == (*lead, 5, 2, 3)
    named = found.by_map()
    assert tuple(named) == MAP_NAMES
    np.testing.assert_array_equal(named["score"], maps.score)
    for index in np.ndindex(*lead, 5):
        row, col = divmod(int(cell[index]), 3)
        for axis, own, near in ((0, "offset_x", "neighbor_x"), (1, "offset_y", "neighbor_y")):
            wanted = [getattr(maps, own)[index][row, col], *getattr(maps, near)[index][:, row, col]]
            assert found.offsets[index][axis].tolist() == wanted
            assert named[own][index] == wanted[0]
            assert named[near][index].tolist() == wanted[1:]


def test_ties_among_winners_give_the_lowest_cell() -> None:
    """Whoever made the offsets took that one too; in any other they would be moved by a cell."""
    maps = random_maps(SPEC, 0)
    maps.score[:] = 2.0
    maps.score[1, 0, 0] = 1.0
    found = Decoder(SPEC)(Winners.at(maps, np.array([0, 1, 0, 0, 0])))
    assert found.cell.tolist() == [0, 1, 0, 0, 0]
    assert_same(found, Decoder(SPEC)(maps))


def test_winners_of_any_layout_decode_like_copies() -> None:
    found = random_winners(SPEC, 7, batch=2)
    offsets = np.ascontiguousarray(np.moveaxis(found.offsets, 1, -1))
    views = Winners(np.ascontiguousarray(found.score.swapaxes(-1, -2)).swapaxes(-1, -2), np.moveaxis(offsets, -1, 1))
    assert not views.score.flags.c_contiguous
    assert not views.offsets.flags.c_contiguous
    assert_same(Decoder(SPEC)(views), Decoder(SPEC)(found))


def test_winners_are_left_as_they_were_and_may_not_be_written_to() -> None:
    """A runtime gives memory of its own, which the next frame is written to."""
    found, again = random_winners(SPEC, 9), random_winners(SPEC, 9)
    for name in WINNER_NAMES:
        getattr(found, name).flags.writeable = False
    first = Decoder(SPEC)(found)
    for name in WINNER_NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    found.offsets.flags.writeable = True
    found.offsets[:] = 0
    assert_same(first, Decoder(SPEC)(again))


def test_a_decoder_with_heads_decodes_winners_too() -> None:
    found = random_winners(SPEC, 6)
    assert_same(Decoder(SPEC, random_heads(SPEC, 7, 1))(found), Decoder(SPEC)(found))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", WINNER_NAMES)
@pytest.mark.parametrize("batch", [None, 2])
def test_nan_and_infinity_in_winners_are_refused_by_name(name: str, value: float, batch: int | None) -> None:
    size = getattr(random_winners(SPEC, 1, batch), name).size
    for place in (0, size // 2, size - 1):
        found = random_winners(SPEC, 1, batch)
        getattr(found, name).flat[place] = value
        with pytest.raises(EdgeError, match=f"map '{name}' holds NaN or infinity"):
            Decoder(SPEC)(found)


@pytest.mark.parametrize(
    "reshape",
    [
        lambda a: a[..., :-1],
        lambda a: a[:-1],
        lambda a: np.concatenate([a, a]),
        lambda a: a[None],
        lambda a: a.reshape(-1),
        lambda a: a[:0],
        lambda a: np.moveaxis(a, 0, -1),
        lambda a: a.swapaxes(-1, -2),
    ],
)
def test_winners_of_wrong_shapes_are_refused(reshape: Any) -> None:
    found = random_winners(SPEC, 2)
    with pytest.raises(EdgeError, match=r"map 'offsets' has shape \(.*needed is \(5, 2, 3\)"):
        Decoder(SPEC)(replace(found, offsets=reshape(found.offsets)))


def test_winners_need_a_batch_of_their_score() -> None:
    found = random_winners(SPEC, 2, batch=3)
    for wrong in (replace(found, offsets=found.offsets[:2]), replace(found, score=found.score[0])):
        with pytest.raises(EdgeError, match="'offsets' has shape"):
            Decoder(SPEC)(wrong)
    for wrong in (Winners(found.score[:0], found.offsets[:0]), Winners(found.score[None], found.offsets[None])):
        with pytest.raises(EdgeError, match="'score' has shape"):
            Decoder(SPEC)(wrong)


def test_winners_are_bound_by_name() -> None:
    found = random_winners(SPEC, 4)
    named: dict[str, NDArray[Any]] = {
        "offsets": found.offsets.reshape(10, 3).astype(np.float64),
        "other": np.zeros(3),
        "score": found.score[None].astype(np.float64),
    }
    bound = Winners.from_outputs(named, SPEC)
    assert {name: getattr(bound, name).shape for name in WINNER_NAMES} == winner_shapes(SPEC)
    for name in WINNER_NAMES:
        assert getattr(bound, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(bound, name), getattr(found, name))
        rest = sorted({*named} - {name})
        with pytest.raises(EdgeError, match=f"no output '{name}', only {', '.join(rest)}"):
            Winners.from_outputs({key: named[key] for key in rest}, SPEC)
    with pytest.raises(EdgeError, match=r"output 'offsets' has shape \(5, 2, 2\), \(5, 2, 3\) is needed"):
        Winners.from_outputs(named | {"offsets": found.offsets[..., :2]}, SPEC)


def test_what_a_model_gives_is_told_by_its_outputs_names() -> None:
    assert outputs(MAP_NAMES) is Maps
    assert outputs(FEATURE_NAMES) is Features
    assert outputs(WINNER_NAMES) is Winners
    assert outputs({"other", *reversed(FEATURE_NAMES)}) is Features
    assert outputs({"other", *reversed(WINNER_NAMES)}) is Winners
    # What says most comes first.
    assert outputs((*WINNER_NAMES, *FEATURE_NAMES, *MAP_NAMES)) is Maps
    assert outputs((*WINNER_NAMES, *FEATURE_NAMES)) is Features
    for names in ((), ("score",), ("features",), ("offsets",), FEATURE_NAMES[1:] + WINNER_NAMES[1:], MAP_NAMES[:-1]):
        with pytest.raises(EdgeError) as refusal:
            outputs(names)
        choices = f"{', '.join(MAP_NAMES)} or {', '.join(FEATURE_NAMES)} or {', '.join(WINNER_NAMES)} are needed"
        assert str(refusal.value) == f"outputs {', '.join(sorted(names))}; {choices}"
