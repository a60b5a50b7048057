"""Winners: the offsets of the winning cells, evaluated before decode sees them."""

from __future__ import annotations

from collections.abc import Callable
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
    WINNER_NAMES,
    Decoder,
    Features,
    Heads,
    Landmarks,
    Maps,
    Winners,
    outputs,
    winner_shapes,
)
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec, mean_faces

RandomMaps = Callable[..., Maps]
RandomHeads = Callable[[ModelSpec, int, int], Heads]
RandomWinners = Callable[..., Winners]
Specs = Callable[..., st.SearchStrategy[ModelSpec]]
FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)


def assert_same(a: Landmarks, b: Landmarks) -> None:
    for field in fields(Landmarks):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


@pytest.fixture(scope="session")
def random_winners(random_maps: RandomMaps) -> RandomWinners:
    """random_winners(spec, seed, batch=None): those of random_maps."""

    def make(spec: ModelSpec, seed: int, batch: int | None = None) -> Winners:
        maps = random_maps(spec, seed, batch)
        return Winners.at(maps, Decoder(spec)(maps).cell)

    return make


@given(data=st.data(), seed=st.integers(0, 2**32), batch=st.none() | st.integers(1, 4))
@settings(max_examples=60)
def test_winners_decode_exactly_as_all_maps_do(
    specs: Specs, random_maps: RandomMaps, data: st.DataObject, seed: int, batch: int | None
) -> None:
    """Every bit: what is read from the maps is the same, and so is what is done with it."""
    spec = data.draw(specs(12))
    maps, decode = random_maps(spec, seed, batch), Decoder(spec)
    dense = decode(maps)
    found = decode(Winners.at(maps, dense.cell))
    assert_same(found, dense)
    assert found.points.dtype == np.float32
    assert found.points.flags.c_contiguous == dense.points.flags.c_contiguous


@pytest.mark.parametrize("name", mean_faces())
def test_winners_decode_with_every_mean_face(random_maps: RandomMaps, name: str) -> None:
    face = mean_faces()[name]
    spec = ModelSpec("any", len(face.points), 10, 32, 256, face)
    for batch in (None, 2):
        maps = random_maps(spec, 5, batch)
        dense = Decoder(spec)(maps)
        assert_same(Decoder(spec)(Winners.at(maps, dense.cell)), dense)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_winners_at_cells_written_out(random_maps: RandomMaps, batch: int | None) -> None:
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


def test_ties_among_winners_give_the_lowest_cell(random_maps: RandomMaps) -> None:
    """Whoever made the offsets took that one too; in any other they would be moved by a cell."""
    maps = random_maps(SPEC, 0)
    maps.score[:] = 2.0
    maps.score[1, 0, 0] = 1.0
    found = Decoder(SPEC)(Winners.at(maps, np.array([0, 1, 0, 0, 0])))
    assert found.cell.tolist() == [0, 1, 0, 0, 0]
    assert_same(found, Decoder(SPEC)(maps))


def test_winners_of_any_layout_decode_like_copies(random_winners: RandomWinners) -> None:
    found = random_winners(SPEC, 7, batch=2)
    offsets = np.ascontiguousarray(np.moveaxis(found.offsets, 1, -1))
    views = Winners(np.ascontiguousarray(found.score.swapaxes(-1, -2)).swapaxes(-1, -2), np.moveaxis(offsets, -1, 1))
    assert not views.score.flags.c_contiguous
    assert not views.offsets.flags.c_contiguous
    assert_same(Decoder(SPEC)(views), Decoder(SPEC)(found))


def test_winners_are_left_as_they_were_and_may_not_be_written_to(random_winners: RandomWinners) -> None:
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


def test_a_decoder_with_heads_decodes_winners_too(random_heads: RandomHeads, random_winners: RandomWinners) -> None:
    found = random_winners(SPEC, 6)
    assert_same(Decoder(SPEC, random_heads(SPEC, 7, 1))(found), Decoder(SPEC)(found))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", WINNER_NAMES)
@pytest.mark.parametrize("batch", [None, 2])
def test_nan_and_infinity_in_winners_are_refused_by_name(
    random_winners: RandomWinners, name: str, value: float, batch: int | None
) -> None:
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
def test_winners_of_wrong_shapes_are_refused(random_winners: RandomWinners, reshape: Any) -> None:
    found = random_winners(SPEC, 2)
    with pytest.raises(EdgeError, match=r"map 'offsets' has shape \(.*needed is \(5, 2, 3\)"):
        Decoder(SPEC)(replace(found, offsets=reshape(found.offsets)))


def test_winners_need_a_batch_of_their_score(random_winners: RandomWinners) -> None:
    found = random_winners(SPEC, 2, batch=3)
    for wrong in (replace(found, offsets=found.offsets[:2]), replace(found, score=found.score[0])):
        with pytest.raises(EdgeError, match="'offsets' has shape"):
            Decoder(SPEC)(wrong)
    for wrong in (Winners(found.score[:0], found.offsets[:0]), Winners(found.score[None], found.offsets[None])):
        with pytest.raises(EdgeError, match="'score' has shape"):
            Decoder(SPEC)(wrong)


def test_winners_are_bound_by_name(random_winners: RandomWinners) -> None:
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
    assert outputs(MAP_NAMES, SPEC) is Maps
    assert outputs(MAP_NAMES[:3], replace(SPEC, num_nb=0)) is Maps
    assert outputs(FEATURE_NAMES, SPEC) is Features
    assert outputs(WINNER_NAMES, SPEC) is Winners
    assert outputs({"other", *reversed(FEATURE_NAMES)}, SPEC) is Features
    assert outputs({"other", *reversed(WINNER_NAMES)}, SPEC) is Winners
    # What says most comes first.
    assert outputs((*WINNER_NAMES, *FEATURE_NAMES, *MAP_NAMES), SPEC) is Maps
    assert outputs((*WINNER_NAMES, *FEATURE_NAMES, *MAP_NAMES[:3]), SPEC) is Features
    for names in ((), ("score",), ("features",), ("offsets",), FEATURE_NAMES[1:] + WINNER_NAMES[1:], MAP_NAMES[:-1]):
        with pytest.raises(EdgeError) as refusal:
            outputs(names, SPEC)
        choices = f"{', '.join(MAP_NAMES)} or {', '.join(FEATURE_NAMES)} or {', '.join(WINNER_NAMES)} are needed"
        assert str(refusal.value) == f"outputs {', '.join(sorted(names))}; {choices}"
