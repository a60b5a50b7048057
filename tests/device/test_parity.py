"""What parity compares: maps with maps, and the values at winning cells where that is all that a network gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy import parity
from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import MAP_NAMES, WINNER_NAMES, Decoder, Landmarks, Maps, Winners, map_shapes
from pipnet_edge.runtimes import Checked
from pipnet_edge.spec import MeanFace, ModelSpec
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import serve

FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)
KINDS = ("maps", "winners")
EACH = [(first, second) for first in KINDS for second in KINDS]

Given = tuple[Landmarks, Maps | Winners]


def random_maps(seed: int, count: int = 3) -> Maps:
    random = np.random.default_rng(seed)
    shapes = {name: (count, *shape) for name, shape in map_shapes(SPEC).items()}
    return Maps(**{name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


def nearby(maps: Maps, far: float) -> Maps:
    """Offsets that lie up to so far off, scores that are the same."""
    random = np.random.default_rng(9)
    moved = {name: getattr(maps, name) for name in MAP_NAMES}
    for name in MAP_NAMES[1:]:
        moved[name] = moved[name] + random.uniform(-far, far, moved[name].shape).astype(np.float32)
    return Maps(**moved)


def given_as(kind: str, maps: Maps) -> Given:
    found = Decoder(SPEC)(maps)
    return found, maps if kind == "maps" else Winners.at(maps, found.cell)


def flipped(maps: Maps, image: int, landmark: int) -> Maps:
    """Another cell of one landmark wins."""
    score = maps.score.copy()
    score[image, landmark].flat[score[image, landmark].argmin()] = score.max() + 1
    return replace(maps, score=score)


def by_hand(wanted: Maps, found: Maps, cell: NDArray[np.intp]) -> dict[str, float]:
    """Map name -> the largest difference at these cells, number by number; of scores at all cells."""
    worst = dict.fromkeys(MAP_NAMES, 0.0)
    worst["score"] = float(np.abs(wanted.score.astype(float) - found.score).max())
    for (image, landmark), place in np.ndenumerate(cell):
        row, col = divmod(int(place), SPEC.grid)
        for name in MAP_NAMES[1:]:
            first, second = (getattr(maps, name)[image, landmark][..., row, col] for maps in (wanted, found))
            worst[name] = max(worst[name], float(np.abs(first.astype(float) - second).max()))
    return worst


def differences(want: Given, got: Given) -> dict[str, float]:
    return {name: float(difference.max()) for name, (_, difference) in parity._differences(want, got).items()}


@pytest.mark.parametrize(("first", "second"), EACH)
def test_what_is_equal_differs_by_nothing(first: str, second: str) -> None:
    maps = random_maps(0)
    found = parity._differences(given_as(first, maps), given_as(second, maps))
    assert tuple(found) == MAP_NAMES
    for wanted, difference in found.values():
        assert wanted.shape == difference.shape
        assert wanted.dtype == difference.dtype == np.float64
        assert np.abs(wanted).max() > 0.1
        assert not difference.any()


@pytest.mark.parametrize(("first", "second"), EACH)
@given(seed=st.integers(0, 2**32), far=st.sampled_from((1e-3, 1.0)))
@settings(max_examples=15)
def test_differences_are_those_at_the_cells_that_both_have(first: str, second: str, seed: int, far: float) -> None:
    maps = random_maps(seed)
    other, cell = nearby(maps, far), Decoder(SPEC)(maps).cell
    found = differences(given_as(first, maps), given_as(second, other))
    if first == second == "maps":
        everywhere = {name: np.abs(getattr(maps, name).astype(float) - getattr(other, name)) for name in MAP_NAMES}
        assert found == {name: float(difference.max()) for name, difference in everywhere.items()}
    else:
        assert found == by_hand(maps, other, cell)


@pytest.mark.parametrize(("first", "second"), EACH)
def test_where_another_cell_wins_the_same_cell_is_compared(first: str, second: str) -> None:
    """An offset in one cell says nothing of that in another: whoever has all cells is asked about the other's."""
    maps = random_maps(1)
    other = flipped(nearby(maps, 1e-3), 1, 3)
    want, got = given_as(first, maps), given_as(second, other)
    assert (want[0].cell != got[0].cell).sum() == 1
    found = differences(want, got)
    assert found["score"] > 1
    assert all(0 < found[name] <= 1.01e-3 for name in MAP_NAMES[1:])
    # What is far off in just these two cells shows, but where neither knows of the other's.
    row, col = np.divmod([int(each.cell[1, 3]) for each, _ in (want, got)], SPEC.grid)
    for name in MAP_NAMES[1:]:
        getattr(other, name)[1, 3][..., row, col] += 5
    unknown = first == second == "winners"
    found = differences(want, given_as(second, other))
    assert all((found[name] > 4) != unknown for name in MAP_NAMES[1:])


def test_a_cell_that_neither_has_of_the_other_is_not_compared() -> None:
    """Two networks that give winners alone, and one landmark whose winners lie apart: the others are compared."""
    maps = random_maps(2)
    want, got = given_as("winners", maps), given_as("winners", flipped(nearby(maps, 0.1), 2, 4))
    apart = want[0].cell != got[0].cell
    for name, (_, difference) in parity._differences(want, got).items():
        if name != "score":
            assert not difference[apart].any()
            assert difference[~apart].all()


@pytest.mark.parametrize(("first", "second"), EACH)
@pytest.mark.parametrize("name", MAP_NAMES[1:])
def test_the_worst_map_is_named_with_either_kind(null_bundle: Bundle, first: str, second: str, name: str) -> None:
    maps = random_maps(3)
    spoilt = replace(maps, **{name: getattr(maps, name) + 5})
    row = parity.Row("null-fp32", "torch", 3, 5)
    want, got = given_as(first, maps), given_as(second, spoilt)
    found = parity.compare(null_bundle.variant("null-fp32"), row, 96, want, got)
    assert found.maps
    assert found.worst_map == name
    assert found.maps[name][0] == pytest.approx(5, rel=1e-5)
    assert all(found.maps[other] == (0.0, 0.0) for other in MAP_NAMES if other != name)
    assert found.failure
    assert found.failure.endswith(f"worst map {name}, off by 5")
    assert parity.compare(null_bundle.variant("null-fp32"), row, 96, want, given_as(second, maps)).failure is None


@pytest.mark.parametrize(("first", "second"), EACH)
def test_swapped_axes_fail(null_bundle: Bundle, first: str, second: str) -> None:
    """x and y have the same shape: only the values tell that a model's outputs are named wrongly."""
    maps = random_maps(4)
    swapped = replace(maps, offset_x=maps.offset_y, offset_y=maps.offset_x)
    row = parity.Row("null-fp32", "torch", 3, 5)
    found = parity.compare(null_bundle.variant("null-fp32"), row, 96, given_as(first, maps), given_as(second, swapped))
    assert found.failure
    assert found.worst_map in ("offset_x", "offset_y")


# --- Where they come from.


def within(job: Any, listen: calls.Listen = calls.ignore) -> Any:
    """A worker's job in this process."""
    return list(serve.JOBS[type(job)](job))[-1]


@pytest.fixture
def winners(monkeypatch: pytest.MonkeyPatch) -> None:
    """The null runtime gives no more than what its maps hold at winning cells."""
    whole = Checked.run

    def run(self: Checked[Maps], crop: NDArray[np.uint8]) -> Winners:
        maps = whole(self, crop)
        return Winners.at(maps, Decoder(SPEC)(maps).cell)

    monkeypatch.setattr(Checked, "run", run)


def test_winners_come_back_from_a_worker(null_bundle: Bundle, winners: None) -> None:
    crops, maps = null_bundle.read_golden()
    dense = Decoder(null_bundle.spec)(maps)
    found = calls.infer(within, null_bundle.folder, "null-fp32", 1, crops, maps=True)
    assert isinstance(found.maps, Winners)
    for name in WINNER_NAMES:
        np.testing.assert_array_equal(getattr(found.maps, name), getattr(Winners.at(maps, dense.cell), name))
    np.testing.assert_array_equal(found.landmarks.points, dense.points)
    assert calls.infer(within, null_bundle.folder, "null-fp32", 1, crops).maps is None


def test_a_variant_that_gives_winners_is_checked(null_bundle: Bundle, winners: None) -> None:
    """Against the maps in the bundle."""
    (row,) = parity.check(null_bundle, ["null-fp16"], call=within)
    assert row.failure is None
    assert row.reference == "torch"
    assert row.maps == dict.fromkeys(MAP_NAMES, (0.0, 0.0))


def test_a_variant_whose_winners_are_off_fails(null_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Checked.run

    def run(self: Checked[Maps], crop: NDArray[np.uint8]) -> Winners:
        maps = whole(self, crop)
        found = Winners.at(maps, Decoder(SPEC)(maps).cell)
        return replace(found, offsets=found.offsets[:, ::-1])

    monkeypatch.setattr(Checked, "run", run)
    (row,) = parity.check(null_bundle, ["null-fp32"], call=within)
    assert row.failure
    assert "px between landmarks on average" in row.failure
