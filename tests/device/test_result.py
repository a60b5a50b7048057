"""Frames, summaries and limits of results, runs that should not be trusted, and two results side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge.benchmarks.limits import Limit, parse
from pipnet_edge.benchmarks.speed import result as results
from pipnet_edge.benchmarks.speed.result import Counted, Measured, Result, Settings, State
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Output
from pipnet_edge.output import envelope as wrapped
from pipnet_edge.targets.emulated.instructions import Count
from pipnet_edge.worker.protocol import STAGES

FACTS = {"machine": "aarch64", "cpu": "Cortex-A72", "cores": "4", "governor": "performance"}
COOL = State(0.0, (1800,), 50.0, 0, 1.0)


def measured(
    inference: tuple[float, ...] = (8.0,) * 40, states: tuple[State, ...] = (COOL, COOL), **more: Any
) -> Measured:
    """A good run: 40 frames of 10 ms on a cool machine that does nothing else."""
    samples = {"preprocess": (1.5,) * len(inference), "inference": inference, "decode": (0.5,) * len(inference)}
    fields: dict[str, Any] = {
        **{"target": "rpi4", "variant": "ncnn-fp32", "arithmetic": "fp32", "size": 6_000_000, "threads": 1},
        **{"px": 0.001, "runtime": "ncnn 1.0", "cpus": (0, 1, 2, 3), "load_ms": 30.0, "first_ms": 12.0},
        **{"peak_bytes": 90_000_000, "samples": samples, "states": states, "failure": None},
    }
    return Measured(**{**fields, **more})


def result(*runs: Measured, **more: Any) -> Result:
    fields: dict[str, Any] = {
        **{"version": results.VERSION, "tool": "0.1.0", "created": "2026-01-01T00:00:00+00:00"},
        **{"network": "resnet18, 68 landmarks, 256 px", "bundle": "a" * 64, "settings": Settings()},
        **{"facts": {"rpi4": FACTS}, "measured": runs, "counted": (), "predicted": ()},
    }
    return Result(**{**fields, **more})


def written(path: Path, found: Result, edit: Callable[[dict[str, Any]], object] = lambda data: None) -> Path:
    """What `bench -o` writes, after an edit of the result in it."""
    data = found.to_json() | {"summary": results.summary(found)}
    envelope = json.loads(json.dumps(wrapped("bench", Output(data))))
    edit(envelope["result"])
    path.write_text(json.dumps(envelope))
    return path


# --- Frames.


def test_frames_are_the_sum_of_their_stages() -> None:
    run = measured((8.0, 18.0, 28.0))
    assert run.frames.tolist() == [10.0, 20.0, 30.0]
    assert run.stage("inference").tolist() == [8.0, 18.0, 28.0]
    assert [run.frame(q) for q in (0, 0.5, 0.75, 1)] == [10.0, 20.0, 25.0, 30.0]


def test_a_stage_without_samples_takes_no_part() -> None:
    """A board without OpenCV begins with the crop."""
    run = measured(samples={"preprocess": (), "inference": (8.0, 9.0), "decode": (0.5, 0.5)})
    assert run.frames.tolist() == [8.5, 9.5]
    assert run.stage("preprocess").size == 0


def test_a_run_that_failed_at_once_has_no_frames() -> None:
    assert measured(samples={}).frames.size == 0
    assert measured(samples=dict.fromkeys(STAGES, ())).frames.size == 0


def test_counted_frames_are_the_sum_of_their_stages() -> None:
    stages = {"preprocess": Count(1, 2, 3), "inference": Count(10, 20, 30)}
    counted = Counted("rpi4", "ncnn-fp32", 1, "cortex-a72", None, 5, None, None, stages, None)
    assert counted.frame == Count(11, 22, 33)


# --- Files.


def test_the_summary_says_what_the_samples_say(tmp_path: Path) -> None:
    run = measured(tuple(float(ms) for ms in range(1, 101)))
    empty = measured(samples={}, failure="the runtime crashed with SIGILL")
    found = results.read_envelope(written(tmp_path / "r.json", result(run, empty)))["result"]["summary"]["measured"]
    assert found[0]["p50"] == pytest.approx(np.quantile(run.frames, 0.5))
    assert found[0]["p90"] == pytest.approx(np.quantile(run.frames, 0.9))
    assert found[0]["p99"] == pytest.approx(np.quantile(run.frames, 0.99))
    assert found[0]["warnings"] == list(results.warnings(run, FACTS)) != []
    assert "p50" not in found[1]


EDITS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda r: r.update(version=2), "has version 2, this program reads version 1"),
    (lambda r: r.update(version="x" * 99), "has version 'x"),
    (lambda r: r.pop("facts"), "has no 'facts'"),
    (lambda r: r.update(extra=1), "has an unknown field 'extra'"),
    (lambda r: r["measured"][0].update(threads="four"), "threads is 'four', int is needed"),
    (lambda r: r["measured"][0].pop("samples"), "has no 'samples'"),
    (lambda r: r["measured"][0]["samples"].update(decode=["x"]), "'x', a finite number is needed"),
    (lambda r: r["measured"][0]["samples"].update(decode=[0.5]), "has stages with different numbers of samples"),
    (lambda r: r["measured"][0]["samples"].update(decode=[-20.0] * 40), "has frames that took no time"),
    (lambda r: r["measured"][0].update(target="rpi5"), "there are no facts of rpi5"),
    (lambda r: r["facts"]["rpi4"].update(cores=4), "cores is 4, str is needed"),
    (lambda r: r["facts"]["rpi4"].update(cpu="\x1b[2J"), "which cannot be printed"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS, ids=[message for _, message in EDITS])
def test_a_result_that_was_changed_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = written(tmp_path / "r.json", result(measured()))
    assert results.read(path).measured == (measured(),)
    with pytest.raises(EdgeError) as caught:
        results.read(written(path, result(measured()), edit))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_facts_become_text() -> None:
    facts = {"cores": 4, "features": ["neon", "asimd"]}
    assert results.facts_of(facts) == {"cores": "4", "features": "neon asimd"}


# --- Runs that should not be trusted.


def clock(*mhz: tuple[int, ...]) -> tuple[State, ...]:
    return tuple(replace(COOL, mhz=domains) for domains in mhz)


def test_a_good_run_has_no_warning() -> None:
    assert results.warnings(measured(), FACTS) == ()
    # One slow frame in a hundred, a warmer board, and a clock that was low before the first frame.
    lively = measured(tuple(8.0 + (index % 3) * 0.1 + (index == 50) * 9 for index in range(100)))
    assert results.warnings(lively, FACTS) == ()
    states = (*clock((600,), (1800,), (1750,)), replace(COOL, celsius=75.0))
    assert results.warnings(measured(states=states), FACTS) == ()


def test_a_machine_that_tells_nothing_is_not_blamed() -> None:
    silent = State(0.0, (), None, None, None)
    assert results.warnings(measured(states=(silent, silent)), {}) == ()
    assert results.warnings(measured(states=()), {}) == ()


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x1, ["under-voltage"]),
        (0x2, ["clock capped"]),
        (0x4, ["throttled"]),
        (0x8, ["soft temperature limit"]),
        (0xF000F, ["under-voltage", "clock capped", "throttled", "soft temperature limit"]),
        (0xF0000, []),  # all of it happened, but not in this run
    ],
)
def test_throttling_is_told_bit_by_bit(bits: int, words: list[str]) -> None:
    states = (COOL, replace(COOL, throttled=bits), COOL)
    found = results.warnings(measured(states=states), FACTS)
    assert [warning.partition(":")[0] for warning in found] == words
    assert all(warning.endswith(results.THROTTLE_ADVICE) for warning in found)


def test_bits_of_several_moments_count_together() -> None:
    states = (replace(COOL, throttled=1), replace(COOL, throttled=4))
    assert len(results.warnings(measured(states=states), FACTS)) == 2


@pytest.mark.parametrize(
    ("states", "range_told"),
    [
        (clock((1800,), (1800,), (1500,)), "between 1500 and 1800 MHz"),
        (clock((1800, 2400), (1800, 2400), (1800, 1200)), "between 1200 and 2400 MHz"),
        (clock((600,), (1800,), (), (1000,)), "between 1000 and 1800 MHz"),
        (clock((1800, 2400), (2400,), (1200,)), "between 1200 and 2400 MHz"),  # a core was switched off
    ],
)
def test_a_clock_that_falls_is_told(states: tuple[State, ...], range_told: str) -> None:
    (found,) = results.warnings(measured(states=states), FACTS)
    assert range_told in found


def test_clusters_with_unlike_clocks_are_no_fall() -> None:
    assert results.warnings(measured(states=clock((1800, 2400), (1800, 2400), (1800, 2390))), FACTS) == ()


def test_the_governor_is_told() -> None:
    for governor in ("ondemand", "performance + schedutil"):
        (found,) = results.warnings(measured(), {**FACTS, "governor": governor})
        assert found == f"governor {governor}: set it to performance"


@pytest.mark.parametrize(
    ("load", "threads", "cores", "told"),
    [
        (1.0, 1, "4", False),
        (2.0, 1, "4", False),  # one other on four cores
        (3.0, 1, "4", True),
        (4.0, 4, "4", False),  # its own threads
        (5.0, 4, "4", True),
        (1.0, 1, "1", False),
        (2.0, 1, "1", True),
        (2.0, 1, "many", True),
    ],
)
def test_other_work_is_told(load: float, threads: int, cores: str, told: bool) -> None:
    states = (replace(COOL, load=load),) * 3
    found = results.warnings(measured(states=states, threads=threads), {**FACTS, "cores": cores})
    assert [warning.startswith(f"load {load:.1f} with {threads} thread") for warning in found] == [True] * told


def test_one_busy_moment_is_not_other_work() -> None:
    states = (*(COOL,) * 9, replace(COOL, load=9.0))
    assert results.warnings(measured(states=states), FACTS) == ()


def test_drifting_is_told_with_its_direction() -> None:
    (found,) = results.warnings(measured((*(8.0,) * 20, *(9.0,) * 20)), FACTS)
    assert found == "drifting: 10% slower at the end than at the start: measure longer"
    (found,) = results.warnings(measured((*(9.0,) * 20, *(8.0,) * 20)), FACTS)
    assert "9% faster" in found


def test_noise_is_told() -> None:
    (found,) = results.warnings(measured((8.0, 8.0, 8.0, 12.0) * 10), FACTS)
    assert found.startswith("noisy: p90 40% above p50")


def test_a_few_frames_say_nothing_of_drift_or_noise() -> None:
    assert results.warnings(measured((8.0, 8.0, 30.0)), FACTS) == ()


def test_a_run_that_ended_early_says_why() -> None:
    cut = measured(failure="the connection to pi@board was lost")
    assert results.warnings(cut, FACTS) == ("ended early: the connection to pi@board was lost",)
    # Without any frame it is a failure and nothing besides.
    assert results.warnings(measured(samples={}, failure="crashed"), FACTS) == ()


# --- Two results.


def test_compare_gives_medians_of_what_both_measured() -> None:
    before = result(measured(), measured(variant="mnn-fp32"), measured(threads=4))
    now = result(measured((3.0,) * 9), measured(threads=2), measured(variant="mnn-fp32", samples={}))
    changes, notes = results.compare(before, now)
    (change,) = changes
    assert (change.target, change.variant, change.threads) == ("rpi4", "ncnn-fp32", 1)
    assert (change.before, change.now, change.ratio) == (10.0, 5.0, 2.0)
    assert change.to_json()["ratio"] == 2.0
    assert notes == ()


def test_unlike_machines_are_named_fact_by_fact() -> None:
    before = result(measured())
    other = {"machine": "aarch64", "cpu": "Cortex-A76", "governor": "performance", "board": "Raspberry Pi 5"}
    now = result(measured(), facts={"rpi4": other}, tool="0.2.0", bundle="b" * 64, network="mobilenet_v2")
    _, notes = results.compare(before, now)
    assert notes == (
        "rpi4: cpu was Cortex-A72, now Cortex-A76",
        "rpi4: cores was 4, now not told",
        "rpi4: board was not told, now Raspberry Pi 5",
        "pipnet-edge was 0.1.0, now 0.2.0",
        "network was resnet18, 68 landmarks, 256 px, now mobilenet_v2",
        "bundle was aaaaaaaaaaaa, now bbbbbbbbbbbb",
    )


def test_machines_that_are_not_compared_are_not_named() -> None:
    facts = {"rpi4": FACTS, "rpi5": {"cpu": "a"}}
    before = result(measured(), facts=facts)
    now = result(measured(), facts=facts | {"rpi5": {"cpu": "b"}})
    assert results.compare(before, now)[1] == ()


@pytest.mark.parametrize(
    "now", [result(), result(measured(target="rpi5"), facts={"rpi5": FACTS}), result(measured(samples={}))]
)
def test_nothing_to_compare(now: Result) -> None:
    with pytest.raises(EdgeError, match="nothing to compare"):
        results.compare(result(measured()), now)


# --- Limits.


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("p50<=20", Limit("p50", 20.0)),
        (" p99 <= 1e3 ", Limit("p99", 1000.0)),
        ("memory<=0", Limit("memory", 0.0)),
    ],
)
def test_limits(text: str, limit: Limit) -> None:
    assert parse(text, results.UNITS) == limit


@pytest.mark.parametrize("text", ["", "p50", "p50<20", "p50<=", "p50<=x", "p50<=nan", "p50<=-1", "nme<=1", "<=3"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(EdgeError, match=r"^--limit .*: p50 \[ms\], p90 \[ms\], p99 \[ms\], memory \[MB\]$"):
        parse(text, results.UNITS)


@pytest.mark.parametrize(
    ("text", "broken"),
    [("p50<=10", False), ("p50<=9.9", True), ("p90<=10", False), ("memory<=90", False), ("memory<=89", True)],
)
def test_a_limit_holds_up_to_itself(text: str, broken: bool) -> None:
    found = results.failures(result(measured()), [parse(text, results.UNITS)])
    assert len(found) == broken
    if broken:
        assert found[0].startswith(f"ncnn-fp32 with 1 thread on rpi4: {text} is broken by ")


def test_memory_that_is_not_told_breaks_its_limit() -> None:
    assert results.failures(result(measured(peak_bytes=None)), [Limit("memory", 1000)]) != []


def test_failures_are_named_before_limits() -> None:
    lost = measured(variant="mnn-fp32", failure="lost", threads=4)
    assert results.failures(result(measured(), lost), [Limit("p50", 5)]) == [
        "mnn-fp32: lost",
        "ncnn-fp32 with 1 thread on rpi4: p50<=5 is broken by 10",
        "mnn-fp32 with 4 threads on rpi4: p50<=5 is broken by 10",
    ]
    counted = Counted("rpi4", "onnx-fp32", 1, "cortex-a72", None, 0, None, None, {}, "no such instruction")
    assert results.failures(result(counted=(counted,)), []) == ["onnx-fp32: no such instruction"]


def test_a_limit_that_nothing_was_measured_for_does_not_pass() -> None:
    assert results.failures(result(), [Limit("p50", 5)]) == ["p50<=5 was not checked, as nothing was measured"]
    assert results.failures(result(), []) == []
