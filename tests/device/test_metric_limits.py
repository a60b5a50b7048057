"""Limits of drift as they are written: METRIC<=NUMBER."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.benchmarks.accuracy.metrics import METRICS, UNITS
from pipnet_edge.benchmarks.limits import Limit, parse
from pipnet_edge.errors import EdgeError


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nme<=0.03", Limit("nme", 0.03)),
        ("px_mean<=0.30", Limit("px_mean", 0.3)),
        ("px_p95<=1e-3", Limit("px_p95", 0.001)),
        (" flips <= 1.2 ", Limit("flips", 1.2)),
        ("px_max<=5.", Limit("px_max", 5.0)),
        ("noise<=.5", Limit("noise", 0.5)),
    ],
)
def test_limits(text: str, limit: Limit) -> None:
    assert parse(text, UNITS) == limit
    assert parse(str(limit), UNITS) == limit


@given(st.sampled_from(list(METRICS)), st.floats(0, 1e9))
def test_limits_round_trip(name: str, most: float) -> None:
    limit = parse(str(Limit(name, most)), UNITS)
    assert limit.metric == name
    assert limit.most == pytest.approx(most, rel=1e-5)


ALLOWED = "nme [%], fr [%], auc, px_mean [px], px_p50 [px], px_p95 [px], px_max [px], flips [%], noise [px]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nme",
        "nme<0.03",
        "nme>=1",
        "nme<=",
        "nme<=-1",
        "nme<=nan",
        "nme<=1px",
        "nme<=1,5",
        "<=1",
        "nme<=1e",
        "nme<=1 2",
    ],
)
def test_malformed_limits(text: str) -> None:
    with pytest.raises(EdgeError) as e:
        parse(text, UNITS)
    assert str(e.value) == f"--limit {text!r} is not METRIC<=NUMBER; metrics: {ALLOWED}"


def test_unknown_metric() -> None:
    with pytest.raises(EdgeError) as e:
        parse("px_p99<=1", UNITS)
    assert str(e.value) == f"--limit 'px_p99<=1': no metric 'px_p99'; allowed: {ALLOWED}"


@pytest.mark.timeout(20)
def test_an_endless_number_is_refused_at_once() -> None:
    with pytest.raises(EdgeError, match="--limit 'px_mean<=9999"):
        parse(f"px_mean<={'9' * 200_000}px", UNITS)
