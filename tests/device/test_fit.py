"""The latency model's fit to published timings: its promised error, its file, and what it finds again."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.targets.devices import CORE_TYPES
from pipnet_edge.targets.predicted import fit as fit_latency
from pipnet_edge.targets.predicted.model import Fit, latency
from pipnet_edge.targets.predicted.networks import NETWORKS

ROWS = fit_latency.read()
FITS = fit_latency.fits(ROWS)
PROMISED = fit_latency.PROMISED


def test_promised_error_holds() -> None:
    errors = fit_latency.promised_errors(ROWS)
    error, count = errors["all"]
    assert error <= 0.20
    # Every row of these networks, each counted once.
    assert count > 200
    chosen = [r for r in ROWS if r["runtime"] == "ncnn" and r["precision"] != "int8" and r["network"] in PROMISED]
    assert count == len(chosen)
    for names in (PROMISED.values(), fit_latency.KINDS, ("Arm", "x86")):
        parts = [errors[name] for name in names]
        assert sum(size for _, size in parts) == count
        assert sum(part * size for part, size in parts) == pytest.approx(error * count)


def test_the_script_shows_the_error_required(capsys: pytest.CaptureFixture[str]) -> None:
    fit_latency.main()
    printed = capsys.readouterr().out
    error, count = fit_latency.promised_errors(ROWS)["all"]
    assert f"required: at most 20% over all rows; met with {error:.1%}\n" in printed
    assert f"all                  {error:6.1%} {count:5}\n" in printed
    assert len([line for line in printed.splitlines() if line.startswith(tuple(fit_latency.WINOGRAD))]) >= len(FITS)


def test_every_row_has_a_source_and_known_parts() -> None:
    assert len(ROWS) > 580
    for row in ROWS:
        assert row["source"].startswith("https://")
        assert row["core"] in CORE_TYPES
        assert row["network"] in NETWORKS
        assert row["memory"] in ("measured", "assumed")
        assert row["threads"] in ("1", "2", "4")


def test_committed_fits_are_what_the_script_finds() -> None:
    assert latency().share == fit_latency.SHARE
    assert [(f.runtime, f.precision, f.kind, f.winograd, f.rows, f.devices) for f in latency().fits] == [
        (f.runtime, f.precision, f.kind, f.winograd, f.rows, f.devices) for f in FITS
    ]
    committed = np.array([(f.a, f.b, f.error, f.low, f.high) for f in latency().fits])
    np.testing.assert_allclose(committed, [(f.a, f.b, f.error, f.low, f.high) for f in FITS], rtol=1e-3, atol=2e-3)


def test_the_file_written_is_the_file_read() -> None:
    again = tomllib.loads(fit_latency.to_toml(list(latency().fits)))
    assert again["fits"] == [vars(fit) for fit in latency().fits]


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 10), st.integers(0, 1000))
def test_factors_are_found_again(one: float, two: float, ratio: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    arithmetic, traffic = random.uniform(1, 100, (2, 80))
    kinds = np.array(["one", "two"] * 40)
    # So many devices that the kinds hardly draw each other nearer.
    devices = np.array([f"board {i}" for i in range(80)])
    ms = np.where(kinds == "one", one, two) * (arithmetic + ratio * traffic)
    data = fit_latency.Timings(devices, kinds, devices, arithmetic, traffic, ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_latency, "PULL", 0)
        found = fit_latency.factors(data)
    for kind, scale in (("one", one), ("two", two)):
        assert found[kind] == pytest.approx((scale, ratio * scale), rel=0.05, abs=0.05)
    drawn = fit_latency.factors(data)
    pull = (found["two"][0] / found["one"][0]) ** (0.5 / 41)
    np.testing.assert_allclose(drawn["one"], np.array(found["one"]) * pull)
    np.testing.assert_allclose(fit_latency.predicted(data, found), ms, rtol=0.05)


def test_a_left_out_device_has_no_say_in_its_prediction() -> None:
    data = fit_latency.timings(ROWS, "ncnn", "float")
    one = data.device == "Raspberry Pi 3B+"
    assert one.any()
    lied = replace(data, ms=np.where(one, 1000 * data.ms, data.ms))
    np.testing.assert_array_equal(fit_latency.left_out(lied)[one], fit_latency.left_out(data)[one])
    alike = (data.kind == "in-order") & ~one
    assert (fit_latency.left_out(lied)[alike] > fit_latency.left_out(data)[alike]).all()


def test_an_overclocked_board_is_left_out_with_its_kin() -> None:
    rows = [row for row in ROWS if row["device"].startswith("Raspberry Pi 5")]
    assert len({row["device"] for row in rows}) == 2
    assert set(fit_latency.timings(rows, "ncnn", "float").device) == {"Raspberry Pi 5"}


@pytest.mark.parametrize("fit", latency().fits, ids=lambda fit: f"{fit.runtime}-{fit.precision}-{fit.kind}")
def test_intervals_cover_the_share_they_state(fit: Fit) -> None:
    """The published timings, within the interval around the prediction that has seen them."""
    key = (fit.runtime, fit.precision, fit.kind)
    data = next(data for *other, data in fit_latency.selections(ROWS) if tuple(other) == key)
    data = data.where(data.kind == fit.kind)
    ratio = data.ms / (fit.a * data.arithmetic + fit.b * data.traffic)
    # The ends of an interval are themselves quantiles of few rows: one may be missed on top.
    missed = np.count_nonzero((ratio < fit.low) | (ratio > fit.high))
    assert missed <= (1 - latency().share) * len(ratio) + 1
    assert fit.low <= 1 <= fit.high


def test_intervals_are_not_wider_than_the_errors_make_them() -> None:
    for fit in latency().fits:
        assert fit.high / fit.low < 2.5 * (1 + fit.error) ** 4
