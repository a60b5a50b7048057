"""What tuning finds on machines that are not here, whose times are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pipnet_edge.benchmarks.speed import tune
from pipnet_edge.benchmarks.speed.tune import Candidate, Trial
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker import call as calls

BIG, LITTLE = (4, 5, 6, 7), (0, 1, 2, 3)


def machine(
    base: Mapping[str, float], clustered: bool = True, wobble: float = 0.0
) -> tuple[tune.Clock, list[Candidate]]:
    """A clock and what it was asked. Threads share the work as far as they gain; little CPUs hold all others up."""
    asked: list[Candidate] = []

    def clock(candidate: Candidate) -> float:
        asked.append(candidate)
        if candidate.variant not in base:
            raise EdgeError(f"{candidate.variant} crashed")
        ms = base[candidate.variant] * (0.3 + 0.7 / candidate.threads)
        mixed = clustered and not set(candidate.cpus) <= set(BIG)
        return ms * (2 if mixed else 1) * (1 + wobble * (-1) ** len(asked))

    return clock, asked


def test_the_fast_cluster_is_found() -> None:
    clock, asked = machine({"a": 10, "b": 8, "c": 20, "d": 30, "e": 40})
    chosen, trials = tune.search(list("abcde"), [BIG, LITTLE], (), clock)
    assert chosen == trials[0].candidate == Candidate("b", 4, BIG)
    assert Candidate("b", 8, tuple(range(8))) in asked
    assert Candidate("b", 4, tuple(range(8))) in asked
    assert {candidate.threads for candidate in asked if candidate.variant == "e"} == {1, 4}
    assert max(asked.count(candidate) for candidate in set(asked)) == tune.COARSE + tune.FINAL
    assert [trial.ms for trial in trials] == sorted(trial.ms for trial in trials)


def test_all_cpus_where_they_are_alike() -> None:
    chosen, trials = tune.search(["a"], [range(8)], (), machine({"a": 10}, clustered=False)[0])
    assert chosen == Candidate("a", 8, tuple(range(8)))
    assert {trial.candidate.threads for trial in trials} == {1, 2, 3, 4, 6, 8}


def test_threads_that_are_asked_for_are_all_that_is_tried() -> None:
    chosen, trials = tune.search(["a"], [BIG, LITTLE], (3, 2), machine({"a": 10})[0])
    assert chosen == Candidate("a", 3, BIG)
    assert {trial.candidate.threads for trial in trials} == {2, 3}


def test_threads_are_at_most_one_a_cpu() -> None:
    _, trials = tune.search(["a"], [BIG, LITTLE], (2, 9, 100_000), machine({"a": 10})[0])
    assert {trial.candidate.threads for trial in trials} == {2, 8}


def test_rounds_are_in_turns() -> None:
    clock, asked = machine({"a": 10, "b": 10.2})
    tune.search(["a", "b"], [(0,)], (), clock)
    assert [candidate.variant for candidate in asked[:4]] == ["a", "b", "b", "a"]
    assert [candidate.variant for candidate in asked[4:]] == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]


def test_a_variant_that_fails_is_told_and_not_tried_again() -> None:
    clock, asked = machine({"a": 10})
    chosen, trials = tune.search(["broken", "a"], [(0,)], (), clock)
    assert chosen.variant == "a"
    assert (trials[-1].candidate.variant, trials[-1].failure) == ("broken", "broken crashed")
    assert [candidate.variant for candidate in asked].count("broken") == 1
    with pytest.raises(EdgeError, match=r"^broken crashed$"):
        tune.search(["broken"], [(0,)], (), clock)


def test_a_lost_connection_ends_it() -> None:
    def lost(_: Candidate) -> float:
        raise calls.Lost("gone")

    with pytest.raises(calls.Lost):
        tune.search(["a", "b"], [(0,)], (), lost)


def rounds(threads: int, *times: float) -> Trial:
    return Trial(Candidate("a", threads, (0, 1, 2, 3)), dict(enumerate(times)))


@pytest.mark.parametrize(
    ("fewer", "threads"),
    [
        ((1.02, 1.02, 1.02, 1.02, 1.02), 1),  # nothing that matters
        ((1.05, 1.05, 1.05, 1.05, 1.05), 2),  # little, but in every round
        ((1.00, 1.12, 0.97, 1.06, 1.15), 1),  # within what the rounds differ by
        ((1.00, 1.40, 1.20, 1.60, 0.90), 2),  # too much, however they differ
    ],
)
def test_differences_within_noise_prefer_fewer_threads(fewer: Sequence[float], threads: int) -> None:
    fastest = rounds(2, 1, 1, 1, 1, 1)
    assert tune.settle([fastest, rounds(1, *fewer)], fastest).candidate.threads == threads


def test_a_noisy_round_does_not_decide() -> None:
    chosen, _ = tune.search(["a", "b"], [(0, 1)], (), machine({"a": 10, "b": 13}, clustered=False, wobble=0.05)[0])
    assert chosen == Candidate("a", 2, (0, 1))
