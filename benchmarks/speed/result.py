"""The result of a bench: raw samples and the machine's facts. Statistics are computed when they are shown.

There are three kinds of numbers. Each has a type of its own, so that none can be taken for another: Measured (a clock
on the machine itself), Counted (instructions under an emulator, never a time) and Predicted (a model's, with an
interval).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import strict
from pipnet_edge.benchmarks.limits import Limit
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import opened
from pipnet_edge.host import THROTTLED
from pipnet_edge.output import SCHEMA
from pipnet_edge.targets.emulated.instructions import Count
from pipnet_edge.words import counted
from pipnet_edge.worker.protocol import STAGES

# 1: measured, counted and predicted rows, with the facts of each target.
VERSION = 1
LARGEST = 32 << 20  # bytes of a file: 12 hours of samples at 30 frames a second
Facts = Mapping[str, str]


@dataclass(frozen=True)
class State:
    """A machine, `at` seconds after the first timed frame. mhz: per clock domain. throttled: the firmware's bits."""

    at: float
    mhz: tuple[int, ...]
    celsius: float | None
    throttled: int | None
    load: float | None


@dataclass(frozen=True)
class Measured:
    """One variant with a number of threads, timed on the target itself.

    samples: milliseconds by stage (worker.protocol.STAGES) in the order taken; a stage may have none. load_ms: from
    files to a ready session. first_ms: its first inference. cpus: the CPUs that the process was kept to. arithmetic:
    what the runtime really computes in. px: the variant's parity, in pixels of the crop, from the manifest. failure:
    why it could not run or why it ended early; samples that came before stay.
    """

    target: str
    variant: str
    arithmetic: str
    size: int
    threads: int
    px: float | None
    runtime: str | None
    cpus: tuple[int, ...]
    load_ms: float | None
    first_ms: float | None
    peak_bytes: int | None
    samples: Mapping[str, tuple[float, ...]]
    states: tuple[State, ...]
    failure: str | None

    def stage(self, name: str) -> NDArray[np.float64]:
        return np.asarray(self.samples.get(name, ()), np.float64)

    @property
    def frames(self) -> NDArray[np.float64]:
        """Milliseconds from picture to landmarks, one a frame."""
        stages = [samples for name in STAGES if (samples := self.stage(name)).size]
        return np.sum(stages, axis=0) if stages else np.empty(0)

    def frame(self, quantile: float) -> float:
        """A quantile in [0, 1] of frames."""
        return float(np.quantile(self.frames, quantile))


@dataclass(frozen=True)
class Counted:
    """One variant under emulation of the target's core: parity there, and instructions per frame by stage.

    px, flips: landmarks' distance in pixels of the crop and changed cells over `images` golden crops.
    """

    target: str
    variant: str
    size: int
    cpu: str
    runtime: str | None
    images: int
    px: float | None
    flips: int | None
    stages: Mapping[str, Count]
    failure: str | None

    @property
    def frame(self) -> Count:
        """The sum of all stages."""
        return sum(self.stages.values(), Count(0, 0, 0))


@dataclass(frozen=True)
class Predicted:
    """The prediction for one variant: ms to run the network, its interval, and the nearest published timing."""

    target: str
    variant: str
    size: int
    threads: int
    ms: float | None
    low: float | None
    high: float | None
    anchor: str | None
    anchor_source: str | None
    anchored: float | None
    note: str


@dataclass(frozen=True)
class Settings:
    """How runs are measured: `warmup` frames that do not count, then at least `seconds` and at least `count` frames."""

    warmup: int = 8
    seconds: float = 2.0
    count: int = 50
    rest: float = 0.0


# Enough for a median, not for a tail.
QUICK = Settings(seconds=1.0, count=30)


@dataclass(frozen=True)
class Result:
    """One `pipnet-edge bench`: network and bundle (a hash of its manifest), the targets' facts, and what was found."""

    version: int
    tool: str
    created: str
    network: str
    bundle: str
    settings: Settings
    facts: Mapping[str, Facts]
    measured: tuple[Measured, ...]
    counted: tuple[Counted, ...]
    predicted: tuple[Predicted, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def facts_of(facts: Mapping[str, Any]) -> Facts:
    """A machine's facts (host.facts) as text."""
    return {key: " ".join(value) if isinstance(value, list) else str(value) for key, value in facts.items()}


def read(path: Path) -> Result:
    """A result that `bench --output` or `bench --json` wrote. Raises EdgeError for anything else."""
    envelope = read_envelope(path)
    if envelope["command"] != "bench":
        command = strict.printable(envelope["command"])[:60]
        raise EdgeError(f"{path} is a result of {command}; one of `pipnet-edge bench` is needed")
    return of_envelope(envelope, path)


def read_envelope(path: Path) -> dict[str, Any]:
    """The output of any command with --json: {"schema", "command", "result", …}. Raises EdgeError for anything else."""
    try:
        with opened(path, LARGEST) as file:
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        raise EdgeError(f"there is no result {path}") from None
    except OSError as e:
        raise EdgeError(f"{path} is not a result: {e.strerror}") from e
    data = strict.json_object(text, f"{path} is not a result: it")
    if data.get("schema") != SCHEMA or not isinstance(data.get("command"), str):
        raise EdgeError(f"{path} is not what a command of pipnet-edge printed with --json")
    if not isinstance(data.get("result"), dict):
        raise EdgeError(f"{path} holds no result of {strict.printable(data['command'])[:60]}")
    return data


def of_envelope(envelope: Mapping[str, Any], path: Path) -> Result:
    """The result in an envelope of bench. `path` is for messages."""
    data = dict(envelope["result"])
    if "clip" in data:
        raise EdgeError(f"{path} is a result of bench --chain; one of bench without it is needed")
    if data.get("version") != VERSION:
        raise EdgeError(f"{path} has version {data.get('version')!r:.20}, this program reads version {VERSION}")
    # The summary is for other readers; here it is computed from the samples.
    found = strict.read(Result, {key: value for key, value in data.items() if key != "summary"}, str(path))
    for run in found.measured:
        if len({len(samples) for name, samples in run.samples.items() if samples}) > 1:
            raise EdgeError(f"{path}: {run.variant} has stages with different numbers of samples")
        if (run.frames <= 0).any():
            raise EdgeError(f"{path}: {run.variant} has frames that took no time")
        if run.target not in found.facts:
            raise EdgeError(f"{path}: there are no facts of {run.target}, on which {run.variant} was measured")
    return found


# --- Can a measured run be trusted?

THROTTLE_ADVICE = "cool the board and use its own power supply"
STEADY, NOISY, SLOWED, BUSY = 0.05, 0.25, 0.9, 0.5


def warnings(run: Measured, facts: Facts) -> tuple[str, ...]:
    """Why a measured run should not be trusted and what to do, one sentence per reason; empty for a good run."""
    found = [f"ended early: {run.failure}"] if run.failure and run.frames.size else []
    return (*found, *conditions(run.states, run.threads, facts), *unsteady(run.frames))


def conditions(states: Sequence[State], threads: int, facts: Facts) -> list[str]:
    """What is wrong with the machine on which a run with so many threads was measured; sentences as in warnings."""
    found = _clock(states)
    governor = facts.get("governor", "performance")
    if governor != "performance":
        found.append(f"governor {governor}: set it to performance")
    if (load := _other_load(states, threads, facts)) is not None:
        found.append(f"load {load:.1f} with {counted(threads, 'thread')}: end other work")
    return found


def unsteady(frames: NDArray[np.float64]) -> list[str]:
    """Why frames that should be alike, in milliseconds, are not; sentences as in warnings."""
    found = []
    if frames.size >= 20:
        quarter = frames.size // 4
        change = float(np.median(frames[-quarter:]) / np.median(frames[:quarter])) - 1
        if abs(change) > STEADY:
            how = "slower" if change > 0 else "faster"
            found.append(f"drifting: {abs(change):.0%} {how} at the end than at the start: measure longer")
        spread = float(np.quantile(frames, 0.9) / np.quantile(frames, 0.5)) - 1
        if spread > NOISY:
            found.append(f"noisy: p90 {spread:.0%} above p50: end other work, or pin cores with --cores")
    return found


def other_load(run: Measured, facts: Facts) -> float | None:
    """The load of a run beside which there was other work, its own included; None if there was none."""
    return _other_load(run.states, run.threads, facts)


def _other_load(states: Sequence[State], threads: int, facts: Facts) -> float | None:
    loads = [state.load for state in states if state.load is not None]
    cores = facts.get("cores", "")
    allowed = max(BUSY * int(cores) if cores.isdecimal() else 0, threads + BUSY)
    return load if loads and (load := float(np.mean(loads))) > allowed else None


def _clock(states: Sequence[State]) -> list[str]:
    # Bits 0 to 3 are the present state. The other bits are about all time since the board started, not about this run.
    bits = 0
    for state in states:
        bits |= (state.throttled or 0) & 0xF
    found = [f"{name}: {THROTTLE_ADVICE}" for bit, name in THROTTLED.items() if bits >> bit & 1]
    # The first state is read before the first frame, when a governor may still have the clock low.
    domains = len(states[-1].mhz) if states else 0
    clocks = [state.mhz for state in states[1:] if state.mhz and len(state.mhz) == domains]
    if len(clocks) > 1:
        highest = np.max(clocks, axis=0)
        lowest = np.min(clocks, axis=0)
        if (lowest < SLOWED * highest).any():
            found.append(
                f"clock between {lowest.min()} and {highest.max()} MHz: set governor performance, cool the board"
            )
    return found


# --- Two results side by side.


@dataclass(frozen=True)
class Change:
    """One measured run beside the same run of an earlier result: medians of frames in ms."""

    target: str
    variant: str
    threads: int
    before: float
    now: float

    @property
    def ratio(self) -> float:
        """Above 1: faster now."""
        return self.before / self.now

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


def compare(before: Result, now: Result) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """The runs that both results have on the same targets, and one sentence per fact in which the two differ."""
    earlier = {(run.target, run.variant, run.threads): run for run in before.measured if run.frames.size}
    changes = [
        Change(run.target, run.variant, run.threads, earlier[key].frame(0.5), run.frame(0.5))
        for run in now.measured
        if run.frames.size and (key := (run.target, run.variant, run.threads)) in earlier
    ]
    if not changes:
        raise EdgeError("nothing to compare: no variant was measured on the same target with as many threads before")
    notes = [
        f"{target}: {name} was {a or 'not told'}, now {b or 'not told'}"
        for target in dict.fromkeys(change.target for change in changes)
        for name, a, b in _differences(before.facts.get(target, {}), now.facts.get(target, {}))
    ]
    notes += [f"{name} was {a}, now {b}" for name, a, b in _between(before, now) if a != b]
    return tuple(changes), tuple(notes)


def _differences(before: Facts, now: Facts) -> list[tuple[str, str | None, str | None]]:
    names = dict.fromkeys((*before, *now))
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def _between(before: Result, now: Result) -> tuple[tuple[str, str, str], ...]:
    return (
        ("pipnet-edge", before.tool, now.tool),
        ("network", before.network, now.network),
        ("bundle", before.bundle[:12], now.bundle[:12]),
    )


# --- Summaries and limits for commands.


def summary(result: Result) -> dict[str, Any]:
    """Statistics of measured runs, in their order: milliseconds of frames, frames per second and warnings."""
    rows = []
    for run in result.measured:
        quantiles = {name: run.frame(q) for name, q in QUANTILES.items()} if run.frames.size else {}
        rows.append(
            {
                "target": run.target,
                "variant": run.variant,
                "threads": run.threads,
                "kind": "measured",
                **quantiles,
                "warnings": warnings(run, result.facts[run.target]),
            }
        )
    return {"measured": rows}


QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
UNITS = {**dict.fromkeys(QUANTILES, "ms"), "memory": "MB"}  # of what can be limited


def _statistic(run: Measured, name: str) -> float:
    """Milliseconds of a quantile, or megabytes of memory; infinite if the system does not tell it."""
    return run.frame(QUANTILES[name]) if name in QUANTILES else (run.peak_bytes or np.inf) / 1e6


def failures(result: Result, limits: Sequence[Limit]) -> list[str]:
    """Runs that failed and limits that are broken, one line each."""
    found = [f"{run.variant}: {run.failure}" for run in result.measured if run.failure]
    found += [f"{run.variant}: {run.failure}" for run in result.counted if run.failure]
    if limits and not result.measured:
        found.append(f"{limits[0]} was not checked, as nothing was measured")
    for run in result.measured:
        for limit in limits:
            if run.frames.size and not (value := _statistic(run, limit.metric)) <= limit.most:
                where = f"{run.variant} with {counted(run.threads, 'thread')} on {run.target}"
                found.append(f"{where}: {limit} is broken by {value:.4g}")
    return found
