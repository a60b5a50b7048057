"""Variants timed here and on targets that fail in every way, and several places in one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge import __version__, host
from pipnet_edge.benchmarks.speed import bench
from pipnet_edge.benchmarks.speed import result as results
from pipnet_edge.benchmarks.speed.bench import Plan
from pipnet_edge.benchmarks.speed.result import Measured, Settings
from pipnet_edge.bundle import Bundle, Parity
from pipnet_edge.errors import EdgeError
from pipnet_edge.runtimes import null
from pipnet_edge.targets.devices import device
from pipnet_edge.targets.place import Place
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol
from pipnet_edge.worker.protocol import STAGES

QUICK = Settings(warmup=1, seconds=0, count=4)
HERE = Place("local", "local")
FACTS = protocol.Machine({"cores": 2}, ("null",))
ONE = Plan(threads=(1,), settings=QUICK)


def quiet(*_: object) -> None:
    """Shows no steps."""


def sweep(call: calls.Call, bundle: Bundle, plan: Plan = ONE) -> list[Measured]:
    return list(bench.sweep(call, "board", bundle, plan, FACTS, quiet))


def predicted(name: str) -> Place:
    return Place(name, "predicted", device(name))


# --- What is planned.


def test_all_variants_whose_runtime_is_there(null_bundle: Bundle) -> None:
    fp32, fp16 = null_bundle.variants
    other = replace(null_bundle, variants=(fp32, replace(fp16, name="ncnn-fp16", runtime="ncnn")))
    assert Plan().chosen(other, ["null", "onnx"]) == [fp32]
    assert Plan().chosen(null_bundle, ["null"]) == [fp32, fp16]


def test_a_variant_that_is_named_is_taken_whatever_is_installed(null_bundle: Bundle) -> None:
    """Its failure is told, in place of silence."""
    assert Plan(variants=("null-fp16",)).chosen(null_bundle, []) == [null_bundle.variants[1]]
    with pytest.raises(EdgeError, match="has no variant 'x', only null-fp32"):
        Plan(variants=("x",)).chosen(null_bundle, ["null"])


def test_no_runtime_at_all(null_bundle: Bundle) -> None:
    with pytest.raises(EdgeError, match=r"none of this bundle's runtimes is installed: null$"):
        Plan().chosen(null_bundle, ["onnx", "ncnn"])


@pytest.mark.parametrize(
    ("given", "cores", "counts"),
    [
        ((), 1, (1,)),
        ((), 2, (1, 2)),
        ((), 3, (1, 2)),
        ((), 8, (1, 2, 4)),
        ((), 0, (1,)),
        ((8, 1, 3), 2, (2, 1)),
        ((9,), None, (9,)),
    ],
)
def test_thread_counts(given: tuple[int, ...], cores: int | None, counts: tuple[int, ...]) -> None:
    assert Plan(threads=given).thread_counts(cores) == counts


# --- One place.


def test_a_sweep_times_every_variant_with_every_thread_count(null_bundle: Bundle) -> None:
    steps: list[tuple[str, int, int]] = []
    plan = Plan(threads=(1, 2), settings=QUICK)
    runs = list(bench.sweep(calls.here, "board", null_bundle, plan, FACTS, lambda *step: steps.append(step)))
    expected = [("null-fp32", 1), ("null-fp32", 2), ("null-fp16", 1), ("null-fp16", 2)]
    assert [(run.variant, run.threads) for run in runs] == expected
    assert steps[0] == ("board null-fp32, 1 thread", 0, 4)
    assert steps[3] == ("board null-fp16, 2 threads", 3, 4)
    run = runs[0]
    assert (run.target, run.failure, run.runtime) == ("board", None, null.version())
    assert {stage: len(samples) for stage, samples in run.samples.items()} == dict.fromkeys(STAGES, 4)
    assert run.frames.shape == (4,)
    assert run.cpus == host.clusters()[0].cpus
    assert run.load_ms is not None
    assert run.first_ms is not None
    assert min(run.load_ms, run.first_ms, run.frames.min()) > 0
    assert run.peak_bytes is not None
    assert run.peak_bytes > 10e6
    assert run.states[0].at == 0.0 < run.states[-1].at
    assert run.arithmetic == "fp32"
    assert run.size == null_bundle.variants[0].size


def test_every_sample_is_kept_in_its_order(null_bundle: Bundle) -> None:
    told: list[list[float]] = []

    def listened(job: Any, listen: calls.Listen = calls.ignore) -> Any:
        def both(event: protocol.Event) -> None:
            if isinstance(event, protocol.Samples):
                told.append(list(event.stages["inference"]))
            listen(event)

        return calls.here(job, both)

    plan = replace(ONE, variants=("null-fp32",), settings=Settings(warmup=1, seconds=0.6, count=1))
    (run,) = sweep(listened, null_bundle, plan)
    assert len([samples for samples in told if samples]) > 1
    assert run.stage("inference").tolist() == [sample for samples in told for sample in samples]
    assert len(run.states) == len(told)


def test_cpus_are_passed_on(null_bundle: Bundle) -> None:
    last = host.allowed_cpus()[-1]
    (run, _) = sweep(calls.here, null_bundle, replace(ONE, cpus=(last,)))
    assert run.cpus == (last,)
    (run, _) = sweep(calls.here, null_bundle, replace(ONE, cpus=()))
    assert run.cpus == tuple(host.allowed_cpus())


def test_parity_comes_from_the_manifest(null_bundle: Bundle) -> None:
    first, second = null_bundle.variants
    known = replace(null_bundle, variants=(replace(first, parity=Parity("torch", 3, 0.25, 0.5, 0)), second))
    assert [run.px for run in sweep(calls.here, known)] == [0.25, None]


def test_a_variant_that_fails_does_not_end_the_sweep(bundle: Bundle) -> None:
    (bundle.folder / "null-fp32" / "golden.npz").write_bytes(b"")
    failed, good = sweep(calls.here, bundle)
    assert "was changed after it was written" in (failed.failure or "")
    assert (failed.variant, failed.frames.size, failed.runtime, failed.peak_bytes) == ("null-fp32", 0, None, None)
    assert failed.states == ()
    assert (good.variant, good.failure, good.frames.size) == ("null-fp16", None, 4)


class Board:
    """A board whose worker runs here, and whose connection breaks in the job of that number."""

    def __init__(self, last: int, after: str = "samples", error: Callable[[str], EdgeError] = calls.Lost) -> None:
        self.last, self.after, self.error = last, after, error
        self.jobs: list[protocol.Job[Any]] = []

    def __call__(self, job: Any, listen: calls.Listen = calls.ignore) -> Any:
        self.jobs.append(job)

        def cut(event: protocol.Event) -> None:
            listen(event)
            # The first event with samples has none yet.
            named, at = type(event).__name__.lower(), getattr(event, "at", None)
            if len(self.jobs) == self.last and named == self.after and at != 0.0:
                raise self.error("the connection to pi@board was lost")

        return calls.here(job, cut)


def test_a_lost_connection_keeps_the_samples_so_far_and_ends_the_sweep(null_bundle: Bundle) -> None:
    board = Board(last=1)
    (run,) = sweep(board, null_bundle)
    assert len(board.jobs) == 1
    assert run.failure == "the connection to pi@board was lost"
    assert run.frames.size == 4
    assert run.runtime == null.version()
    assert run.peak_bytes is None
    assert results.warnings(run, {})[0] == f"ended early: {run.failure}"


def test_a_lost_connection_keeps_the_runs_before_it(null_bundle: Bundle) -> None:
    first, second = sweep(Board(last=2, after="loaded"), null_bundle)
    assert (first.failure, first.frames.size) == (None, 4)
    assert (second.failure, second.frames.size) == ("the connection to pi@board was lost", 0)
    assert second.load_ms is not None


def test_a_worker_that_died_keeps_its_samples_and_the_others_run(null_bundle: Bundle) -> None:
    first, second = sweep(Board(last=1, error=EdgeError), null_bundle)
    assert (first.frames.size, second.frames.size) == (4, 4)
    assert (first.failure is None, second.failure is None) == (False, True)


def test_measure_raises_what_went_wrong(null_bundle: Bundle, bundle: Bundle) -> None:
    crops, _ = null_bundle.read_golden()
    run = bench.measure(null_bundle, "null-fp32", 1, crops[:1], QUICK)
    assert (run.target, run.frames.size) == ("local", 4)
    with pytest.raises(EdgeError, match="this crop is none of them"):
        bench.measure(null_bundle, "null-fp32", 1, np.zeros_like(crops), QUICK)


def test_rests_are_between_runs_alone(null_bundle: Bundle) -> None:
    rests: list[float] = []
    plan = replace(ONE, settings=replace(QUICK, rest=7.0))
    list(bench.sweep(calls.here, "board", null_bundle, plan, FACTS, quiet, rests.append))
    assert rests == [7.0]


def test_a_worker_that_times_nothing_or_not_all(null_bundle: Bundle) -> None:
    state = protocol.State()

    def telling(*counts: tuple[int, int]) -> calls.Call:
        def call(job: Any, listen: calls.Listen = calls.ignore) -> Any:
            for cuts, frames in counts:
                stages = {"preprocess": (1.0,) * cuts, "inference": (1.0,) * frames, "decode": (1.0,) * frames}
                listen(protocol.Samples(0.0, stages, state))
            return protocol.Peak(None)

        return call

    (run, _) = sweep(telling(), null_bundle)
    assert run.failure == "the worker timed no frame"
    (run, _) = sweep(telling((2, 2), (0, 2)), null_bundle)
    assert run.failure == "the worker did not time the same stages of all frames"
    assert run.frames.size == 0
    (run, _) = sweep(telling((2, 2), (1, 1)), null_bundle)
    assert (run.failure, run.frames.size) == (None, 3)


# --- Several places.


def test_a_result_tells_where_it_comes_from(null_bundle: Bundle) -> None:
    found, errors = bench.run(null_bundle, ONE, [HERE])
    assert errors == {}
    assert [(run.target, run.variant) for run in found.measured] == [("local", "null-fp32"), ("local", "null-fp16")]
    assert (found.counted, found.predicted) == ((), ())
    assert found.facts == {"local": results.facts_of(host.facts())}
    assert found.bundle == null_bundle.sha256
    assert (found.version, found.tool, found.settings) == (results.VERSION, __version__, QUICK)
    assert found.network == "resnet18, 5 landmarks, 96 px"
    assert found.created.endswith("+00:00")


def test_places_are_kept_in_their_order(null_bundle: Bundle) -> None:
    """The null runtime cannot be predicted, which each of its rows says."""
    found, errors = bench.run(null_bundle, ONE, [predicted("rpi5"), HERE, predicted("rpi4")])
    assert errors == {}
    assert list(found.facts) == ["rpi5", "local", "rpi4"]
    assert [row.target for row in found.predicted] == ["rpi5", "rpi5", "rpi4", "rpi4"]
    assert {row.ms for row in found.predicted} == {None}
    assert all("cannot be predicted" in row.note for row in found.predicted)
    assert found.facts["rpi4"] == {
        "device": "Raspberry Pi 4 Model B",
        "soc": "BCM2711",
        "cores": "4",
        "clusters": found.facts["rpi4"]["clusters"],
        "memory_gb_s": found.facts["rpi4"]["memory_gb_s"],
    }
    assert found.facts["rpi4"]["clusters"].startswith("4 Cortex-A72 at ")


def test_a_place_that_fails_leaves_the_others(null_bundle: Bundle) -> None:
    plan = replace(ONE, variants=("null-fp16",))  # a variant that is named must be predictable
    found, errors = bench.run(null_bundle, plan, [predicted("rpi4"), HERE])
    assert [run.variant for run in found.measured] == ["null-fp16"]
    assert list(errors) == ["rpi4"]
    assert "cannot be predicted" in str(errors["rpi4"])
    assert "local" in found.facts


def test_when_every_place_fails_the_first_error_is_raised(null_bundle: Bundle) -> None:
    with pytest.raises(EdgeError, match="'null' cannot be predicted"):
        bench.run(null_bundle, replace(ONE, variants=("null-fp16",)), [predicted("rpi4"), predicted("rpi5")])
    with pytest.raises(EdgeError, match="has no variant 'x'"):
        bench.run(null_bundle, replace(ONE, variants=("x",)), [HERE])


@pytest.fixture
def no_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can be reached: an ssh that fails as the real one does."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho 'ssh: Could not resolve hostname gone: Name or service not known' >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")


@pytest.mark.usefixtures("no_ssh")
def test_boards_that_cannot_be_reached_leave_this_machine(null_bundle: Bundle) -> None:
    boards = [Place(name, "ssh", device(name), f"pi@{name}") for name in ("rpi4", "rpi5")]
    found, errors = bench.run(null_bundle, ONE, [*boards, HERE])
    assert set(errors) == {"rpi4", "rpi5"}
    assert [run.target for run in found.measured] == ["local", "local"]
    assert (found.facts["rpi4"], found.facts["rpi5"]) == ({}, {})
    with pytest.raises(EdgeError, match="pi@rpi"):
        bench.run(null_bundle, ONE, boards)


def test_a_defect_on_one_place_is_not_swallowed(null_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench, "state_of", defect)
    with pytest.raises(ZeroDivisionError):
        bench.run(null_bundle, ONE, [HERE])
