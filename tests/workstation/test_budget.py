"""A budget is read as written, and a search returns only what it measured to be within it, in few measurements."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.converters import Quantize
from pipnet_edge.converters.quantize import budget
from pipnet_edge.converters.quantize.budget import MEASUREMENTS, Budget, Outcome, affordable, parse, search
from pipnet_edge.converters.within_budget import within_budget
from pipnet_edge.errors import EdgeError

drifts = st.floats(0, 10, allow_nan=False)


def names(count: int) -> list[str]:
    return [f"layer{i}" for i in range(count)]


def falling(needed: int, order: list[str]) -> Outcome:
    """A search on a drift of 1 until the first `needed` layers are in float, then of 0."""
    return search(order, lambda kept: float(not set(order[:needed]) <= kept), 0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5px", Budget("px", 0.5)),
        ("0.02nme", Budget("nme", 0.02)),
        (" 1. PX ", Budget("px", 1.0)),
        (".25 NME", Budget("nme", 0.25)),
        ("1e-3px", Budget("px", 0.001)),
        ("0px", Budget("px", 0.0)),
        ("none", None),
        (" None", None),
    ],
)
def test_budgets(text: str, expected: Budget | None) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "px", "0.5", "-1px", "nanpx", "infpx", "1e999px", "0.5mm", "0,5px", "0.5px px", "1_0px", "٣px", "1\npx2"],
)
def test_other_budgets_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse(text)
    message = str(caught.value)
    assert repr(text) in message
    assert "px or nme" in message
    assert "\n" not in message


@given(st.floats(0, 1e6), st.sampled_from(budget.METRICS))
def test_any_number_is_read_as_python_reads_it(limit: float, metric: str) -> None:
    assert parse(f"{limit!r}{metric}") == Budget(metric, limit)


@given(st.text(max_size=20))
def test_any_text_is_a_budget_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except EdgeError:
        return
    if found is None:
        assert text.strip().lower() == "none"
        return
    assert found.limit >= 0
    assert text.strip().lower().endswith(found.metric)


@given(st.lists(drifts, min_size=1, max_size=300), drifts)
def test_whatever_the_drift_only_what_was_measured_is_returned(curve: list[float], limit: float) -> None:
    """curve[k]: the drift with the first k layers in float, in no order at all."""
    order, calls = names(len(curve) - 1), []

    def drift(kept: frozenset[str]) -> float:
        assert kept == frozenset(order[: len(kept)])
        calls.append((len(kept), curve[len(kept)]))
        return curve[len(kept)]

    found = search(order, drift, limit)
    assert found.steps == tuple(calls)
    assert len(calls) == len(dict(calls)) <= MEASUREMENTS
    assert found.kept == tuple(order[: len(found.kept)])
    assert (len(found.kept), found.after) in calls
    assert calls[0] == (0, found.before)
    assert found.satisfied == (found.after <= limit)
    # The fewest of those measured, and all layers when none will do.
    enough = [count for count, value in calls if value <= limit]
    assert len(found.kept) == (min(enough) if enough else len(order))


@given(st.integers(0, 60), st.data())
def test_a_drift_that_only_falls_gives_nearly_the_fewest_layers(total: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(0, total))
    found = falling(needed, names(total))
    assert found.satisfied
    # Doubling comes to 16 in six measurements; the four left close a gap of 8, and all but close the wider ones.
    assert needed <= len(found.kept) <= needed + (0 if needed <= 16 else 1 if needed <= 32 else 6)


def test_the_steps_of_one_search() -> None:
    assert falling(6, names(52)).steps == ((0, 1.0), (1, 1.0), (2, 1.0), (4, 1.0), (8, 0.0), (6, 0.0), (5, 1.0))
    assert falling(0, names(52)).steps == ((0, 0.0),)


def test_not_enough_with_all_layers_is_said() -> None:
    found = search(names(5), lambda kept: 3.0 - 0.1 * len(kept), 1.0)
    assert not found.satisfied
    assert found.kept == tuple(names(5))
    assert (found.before, found.after) == (3.0, 2.5)
    assert [count for count, _ in found.steps] == [0, 1, 2, 4, 5]
    assert not search([], lambda _: 3.0, 1.0).satisfied
    assert search([], lambda _: 1.0, 1.0) == Outcome((), 1.0, 1.0, True, ((0, 1.0),))


def test_nan_is_never_within_the_limit() -> None:
    assert not search(names(3), lambda _: float("nan"), 1.0).satisfied


def test_progress_and_json() -> None:
    said: list[tuple[str, int, int]] = []
    order = names(4)
    found = search(order, lambda kept: 1.0 - len(kept) / 4, 0.5, lambda *step: said.append(step))
    assert said == [(f"{count} of 4 layers in float", i, MEASUREMENTS) for i, (count, _) in enumerate(found.steps)]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == {
        "kept": ["layer0", "layer1"],
        "before": 1.0,
        "after": 0.5,
        "satisfied": True,
        "steps": [[0, 1.0], [1, 0.75], [2, 0.5]],
    }


# --- What is made and judged for a search.


def made(kept: tuple[str, ...]) -> SimpleNamespace:
    """In place of a bundle of one variant; its drift falls by 1 px a layer, and its time grows by 1 ms."""
    return SimpleNamespace(kept=kept, variants=(SimpleNamespace(name="onnx-int8"),))


def judged(bundle: SimpleNamespace) -> dict[str, float]:
    return {"px": 5.0 - len(bundle.kept), "nme": 0.0, "ms": float(len(bundle.kept))}


def test_trials_are_made_with_the_first_layers_in_their_order() -> None:
    order = ("d", "a", "c", "b", "e", "f")
    first, best = within_budget(lambda: order, made, judged, Budget("px", 2.0))
    assert (first.kept, first.bundle.kept, first.drift, first.milliseconds) == ((), (), 5.0, 0.0)
    assert (best.kept, best.bundle.kept, best.drift, best.milliseconds) == (order[:3], order[:3], 2.0, 3.0)


def test_the_search_is_said() -> None:
    said: list[str] = []
    within_budget(lambda: ("a", "b", "c"), made, judged, Budget("px", 4.0), lambda what, *_: said.append(what))
    assert said == [
        "drifts 5px, over 4px: ranking layers to keep in float",
        *("0 of 3 layers in float", "1 of 3 layers in float"),
    ]


def test_layers_are_not_ranked_if_none_has_to_go_back() -> None:
    """Ranking takes minutes. The limit says which metric counts."""
    first, best = within_budget(lambda: pytest.fail("ranked"), made, judged, Budget("nme", 0.0))
    assert first is best
    assert (first.kept, first.drift) == ((), 0.0)


def test_a_limit_that_no_trial_keeps_is_an_error_that_says_what_would_pass() -> None:
    message = (
        r"^drifts 5px \(limit 0.5px\), at best 3px with 2 layers in float; half of the multiply-adds have to stay in "
        r"int8. --max-drift 3.00px or none allows that$"
    )
    with pytest.raises(EdgeError, match=message) as caught:
        within_budget(lambda: ("a", "b"), made, judged, Budget("px", 0.5))
    assert caught.value.code == 3


@given(st.floats(1e-6, 1e6))
def test_what_would_pass_is_no_less_than_what_was_measured(drift: float) -> None:
    def at(_: SimpleNamespace) -> dict[str, float]:
        return {"px": drift, "ms": 1.0}

    with pytest.raises(EdgeError) as caught:
        within_budget(lambda: ("a",), made, at, Budget("px", drift / 2))
    found = parse(str(caught.value).partition("--max-drift ")[2].partition(" ")[0])
    assert found
    assert drift <= found.limit <= 1.011 * drift


def test_half_of_the_multiply_adds_stay_in_int8() -> None:
    macs = {"a": 1.0, "b": 4.0, "c": 1.0, "d": 2.0, "e": 2.0}
    assert affordable(("a", "b", "c", "d", "e"), macs) == ("a", "b")
    assert affordable(("e", "d", "a", "c", "b"), macs) == ("e", "d", "a")
    assert affordable(("b", "d", "a"), macs) == ()
    assert affordable((), {}) == ()


def test_a_budget_needs_a_judge() -> None:
    with pytest.raises(EdgeError, match=r"^a budget of 0.5px needs a judge"):
        Quantize({}, budget=parse("0.5px"))


@pytest.mark.timeout(20)
def test_an_endless_number_is_refused_at_once() -> None:
    with pytest.raises(EdgeError, match="--max-drift '9999"):
        parse("9" * 200_000)
