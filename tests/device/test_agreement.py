"""Two float networks agree by their landmarks; where the reference's best cells all but tie, either is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipnet_edge.agreement import TIE, settled, ties
from pipnet_edge.benchmarks.accuracy import parity
from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import Decoder, Maps
from pipnet_edge.precisions import Limit

WHERE = (1, 3)  # crop and landmark
Ahead = Callable[[float], Maps]


@pytest.fixture
def maps(null_bundle: Bundle) -> Maps:
    """What the null runtime gives."""
    return null_bundle.read_golden()[1]


@pytest.fixture
def ahead(maps: Maps) -> Ahead:
    """ahead(gap): the same maps, but in one map the worst cell is ahead of the best by this share of its score."""

    def made(gap: float) -> Maps:
        score = maps.score.copy()
        flat = score[WHERE].reshape(-1)
        flat[flat.argmin()] = flat.max() + gap * np.abs(flat).max()
        return replace(maps, score=score)

    return made


@pytest.mark.parametrize(("gap", "tied"), [(0.9 * TIE, True), (1.1 * TIE, False)])
def test_a_tie_is_a_share_of_the_largest_score(null_bundle: Bundle, maps: Maps, ahead: Ahead, gap: float, tied: bool):
    decoder, reference = Decoder(null_bundle.spec), ahead(gap)
    wanted, found = decoder(reference), decoder(maps)
    assert np.argwhere(wanted.cell != found.cell).tolist() == [list(WHERE)]
    assert ties(reference.score, found.cell)[WHERE] == tied
    assert ties(reference.score, wanted.cell).all()
    judged = settled(decoder, reference, wanted, found.cell)
    assert np.array_equal(judged.cell, found.cell) == tied
    assert np.array_equal(judged.points, found.points) == tied
    assert np.array_equal(judged.points, wanted.points) != tied
    # Scores stay those of the reference.
    assert np.array_equal(judged.score, wanted.score)


def test_parity_passes_where_the_reference_ties(
    null_bundle: Bundle, ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, _ = null_bundle.read_golden()

    def checked(gap: float) -> parity.Row:
        monkeypatch.setattr(Bundle, "read_golden", lambda _: (crops, ahead(gap)))
        (row,) = parity.check(null_bundle, ["null-fp32"])
        return row

    row = checked(0.5 * TIE)
    assert (row.failure, row.flips, row.px_max) == (None, 0, 0.0)
    row = checked(2 * TIE)
    assert row.flips == 1
    assert row.failure
    assert "px at the worst landmark (limit 0.05)" in row.failure
    assert "of the landmarks in another cell (limit 0)" in row.failure


def test_a_limit_names_what_breaks_it() -> None:
    limit = Limit(0.25, 8.0, 0.02)
    assert limit.broken(0.25, 8.0, 0.02) == []
    assert limit.broken(0.3, 1.0, 0.5) == [
        "0.3 px between landmarks on average (limit 0.25)",
        "0.5 of the landmarks in another cell (limit 0.02)",
    ]
    assert len(limit.broken(float("nan"), float("nan"), float("nan"))) == 3
