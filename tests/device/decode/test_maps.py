"""Decode against the reference's own figures, and against the paper written out one landmark at a time."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.decode import MAP_NAMES, Decoder, Landmarks, Maps, Winners, map_names
from pipnet_edge.spec import MeanFace, ModelSpec, mean_faces, neighbour_table

RandomMaps = Callable[..., Maps]
Specs = Callable[..., st.SearchStrategy[ModelSpec]]
GOLDEN = Path(__file__).resolve().parents[2] / "golden"
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


def test_golden_landmarks_of_three_maps(case: tuple[ModelSpec, dict[str, NDArray[Any]]]) -> None:
    """Without neighbours, a landmark is where the reference's own prediction is before fusion."""
    with_neighbours, arrays = case
    spec = replace(with_neighbours, num_nb=0)
    assert map_names(spec.num_nb) == ("score", "offset_x", "offset_y")
    maps = Maps.from_outputs({name: arrays[REFERENCE_NAMES[name]] for name in map_names(spec.num_nb)}, spec)
    assert maps.neighbor_x.shape == maps.neighbor_y.shape == (spec.num_lms, 0, spec.grid, spec.grid)
    found = Decoder(spec)(maps)
    largest = max(1.0, np.abs(arrays["own"]).max())
    np.testing.assert_allclose(found.points, arrays["own"], rtol=0, atol=1e-6 * largest)
    np.testing.assert_array_equal(found.score, arrays["max_cls"])
    assert_same(Decoder(spec)(Winners.at(maps, found.cell)), found)


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


@given(data=st.data(), seed=st.integers(0, 2**32), batch=st.integers(1, 4))
@settings(max_examples=60)
def test_equals_the_paper_and_batches_equal_singles(
    specs: Specs, random_maps: RandomMaps, data: st.DataObject, seed: int, batch: int
) -> None:
    spec = data.draw(specs())
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


def test_ties_give_the_lowest_cell(random_maps: RandomMaps) -> None:
    maps = random_maps(SPEC, 0)
    maps.score[:] = -1.0
    maps.score[1, 1, 2] = maps.score[1, 2, 0] = 4.0
    maps.score[2, 2, 1:] = 0.5
    maps.score[3, 0, 1], maps.score[3, 0, 2] = -0.0, 0.0  # equal numbers
    maps.score[4] = np.arange(9, dtype=np.float32).reshape(3, 3) // 2  # 0 0 1 1 2 2 3 3 4
    assert Decoder(SPEC)(maps).cell.tolist() == [0, 5, 7, 1, 8]
    maps.score[4] *= -1
    assert Decoder(SPEC)(maps).cell[4] == 0


def test_clamp_limits_points_and_is_off_by_default(random_maps: RandomMaps) -> None:
    maps = random_maps(SPEC, 3)
    maps.offset_x[0] += 20
    free = Decoder(SPEC)(maps)
    assert free.points.min() < 0
    assert free.points.max() > 1
    clamped = Decoder(replace(SPEC, clamp=True))(maps)
    np.testing.assert_array_equal(clamped.points, free.points.clip(0, 1))
    np.testing.assert_array_equal(clamped.score, free.score)


def test_a_landmark_that_is_nobodys_neighbour_keeps_its_own_prediction(random_maps: RandomMaps) -> None:
    face = MeanFace("lonely", ((0.0, 0.0), (0.125, 0.0), (0.25, 0.0), (1.0, 1.0)))
    spec = ModelSpec("any", 4, 1, 32, 96, face)
    assert neighbour_table(face, 1).tolist() == [[1, 1], [0, 2], [3, 3], [-1, -1]]
    maps = random_maps(spec, 5)
    found = Decoder(spec)(maps)
    row, col = divmod(int(found.cell[3]), 3)
    own = [(col + maps.offset_x[3, row, col]) / 3, (row + maps.offset_y[3, row, col]) / 3]
    np.testing.assert_allclose(found.points[3], own, rtol=1e-6)
    np.testing.assert_allclose(found.points, slow_decode(maps, spec)[0], rtol=0, atol=2e-6)


def test_views_decode_like_copies(random_maps: RandomMaps) -> None:
    maps = random_maps(SPEC, 7, batch=2)
    swapped = Maps(**{n: np.ascontiguousarray(getattr(maps, n).swapaxes(-1, -2)).swapaxes(-1, -2) for n in MAP_NAMES})
    assert not swapped.score.flags.c_contiguous
    assert_same(Decoder(SPEC)(swapped), Decoder(SPEC)(maps))


def test_maps_are_left_as_they_were(random_maps: RandomMaps) -> None:
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


def test_threads_may_share_a_decoder(random_maps: RandomMaps) -> None:
    decode = Decoder(SPEC)
    maps = [random_maps(SPEC, seed, batch=3) for seed in (0, 1)]
    expected = [decode(m) for m in maps]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(decode, [Lockstep(**vars(m)) for m in maps]))
    for landmarks, alone in zip(found, expected, strict=True):
        assert_same(landmarks, alone)


def test_many_threads_may_share_a_decoder(random_maps: RandomMaps) -> None:
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
