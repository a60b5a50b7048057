"""Tuning: which variant, with how many threads on which CPUs, runs a bundle fastest on a machine."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate
from statistics import median
from typing import Any

from pipnet_edge import bundle as bundles
from pipnet_edge import host
from pipnet_edge.benchmarks.speed import bench
from pipnet_edge.benchmarks.speed import result as results
from pipnet_edge.benchmarks.speed.bench import Plan, Step
from pipnet_edge.benchmarks.speed.result import Measured
from pipnet_edge.bundle import Bundle, Parity, Tuned
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets import place as places
from pipnet_edge.targets.place import Place
from pipnet_edge.words import counted
from pipnet_edge.worker import protocol
from pipnet_edge.worker.call import Call, Lost
from pipnet_edge.worker.protocol import Machine

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Rounds of all variants, of the best variants with all threads and CPUs, and of the finalists.
COARSE, FINE, FINAL = 2, 1, 5
VARIANTS, FINALISTS = 3, 6
NEAR = 1.25  # a finalist took at most so many times as long as the fastest before
# Equally fast: slower by at most LEVEL, or by as much as the rounds differ, but never by more than NOISE.
LEVEL, NOISE = 0.03, 0.10


@dataclass(frozen=True)
class Candidate:
    """One way to run a bundle. cpus: the numbers of the CPUs to keep to, ascending."""

    variant: str
    threads: int
    cpus: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.variant}, {counted(self.threads, 'thread')} on CPUs {host.cpu_list(self.cpus)}"


@dataclass
class Trial:
    """The results of a candidate. times: median milliseconds of a frame, by the number of the round."""

    candidate: Candidate
    times: dict[int, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def ms(self) -> float:
        """The median of its last rounds; infinite if it failed."""
        return math.inf if self.failure else median(list(self.times.values())[-FINAL:])

    @property
    def best(self) -> float:
        """Its fastest round: other work on the machine only ever slows it down."""
        return math.inf if self.failure else min(self.times.values())

    def ratios(self, other: Trial) -> list[float]:
        """Its time divided by another trial's, for each of the last rounds that both were in."""
        common = [number for number in self.times if number in other.times][-FINAL:]
        return [self.times[number] / other.times[number] for number in common] or [self.ms / other.ms]


Clock = Callable[[Candidate], float]


class Trials:
    """All trials, timed by a clock that gives milliseconds or raises EdgeError."""

    def __init__(self, clock: Clock, step: Step) -> None:
        self.tried: dict[Candidate, Trial] = {}
        self._clock, self._step, self._rounds = clock, step, 0

    def run(self, candidates: Iterable[Candidate], rounds: int) -> None:
        """Rounds of all candidates in turns, forwards and backwards. A candidate that fails is not tried again."""
        trials = [self.tried.setdefault(candidate, Trial(candidate)) for candidate in candidates]
        for turn in range(rounds):
            self._rounds += 1
            for index, trial in enumerate(reversed(trials) if turn % 2 else trials):
                if trial.failure:
                    continue
                self._step(str(trial.candidate), turn * len(trials) + index, rounds * len(trials))
                try:
                    trial.times[self._rounds] = self._clock(trial.candidate)
                except Lost:
                    raise
                except EdgeError as e:
                    trial.failure = " ".join(str(e).split())

    def ranked(self) -> list[Trial]:
        """The trials that did not fail, by their fastest round. Raises the first failure if all failed."""
        found = sorted((trial for trial in self.tried.values() if not trial.failure), key=lambda trial: trial.best)
        if not found:
            raise EdgeError(next(trial.failure for trial in self.tried.values() if trial.failure))
        return found


def search(
    variants: Sequence[str],
    groups: Sequence[Sequence[int]],
    counts: Sequence[int],
    clock: Clock,
    step: Step = lambda *_: None,
) -> tuple[Candidate, list[Trial]]:
    """The candidate to take and all trials, the fastest first and failures last.

    groups: the numbers of equal CPUs, the fastest group first. counts: numbers of threads (none: COUNTS and one a CPU),
    at most one a CPU. Each count is tried on all CPUs and on the fewest of the fastest groups that have enough CPUs.
    First come all variants with the fewest and the most threads of the fastest group, then the best VARIANTS with all
    counts, then the FINALISTS.
    """
    reach = [tuple(sorted(cpus)) for cpus in accumulate(map(tuple, groups))]
    most = len(reach[-1])
    counts = sorted({min(count, most) for count in counts or (*COUNTS, most)})

    def home(count: int) -> tuple[int, ...]:
        return next(cpus for cpus in reach if count <= len(cpus))

    trials = Trials(clock, step)
    extremes = dict.fromkeys((counts[0], max((c for c in counts if c <= len(reach[0])), default=counts[0])))
    trials.run([Candidate(name, count, home(count)) for name in variants for count in extremes], COARSE)
    leading = list(dict.fromkeys(trial.candidate.variant for trial in trials.ranked()))[:VARIANTS]
    wider = [
        Candidate(name, c, cpus) for name in leading for c in counts for cpus in dict.fromkeys((home(c), reach[-1]))
    ]
    trials.run([candidate for candidate in wider if candidate not in trials.tried], FINE)
    ranked = trials.ranked()
    finalists = [trial for trial in ranked[:FINALISTS] if trial.best <= NEAR * ranked[0].best]
    trials.run([trial.candidate for trial in finalists], FINAL)
    finalists = [trial for trial in finalists if not trial.failure] or trials.ranked()[:1]
    fastest = min(finalists, key=lambda trial: trial.ms)
    others = [trial for trial in trials.tried.values() if trial is not fastest]
    others.sort(key=lambda trial: math.inf if trial.failure else median(trial.ratios(fastest)))
    return settle(finalists, fastest).candidate, [fastest, *others]


def settle(finalists: Sequence[Trial], fastest: Trial) -> Trial:
    """The trial with the fewest threads among those that are equally fast, as far as their rounds can tell."""
    level = []
    for trial in finalists:
        ratios = trial.ratios(fastest)
        middle = median(ratios)
        spread = median(abs(ratio - middle) for ratio in ratios)
        if middle - 1 <= min(max(LEVEL, spread), NOISE):
            level.append(trial)
    return min(level, key=lambda trial: (trial.candidate.threads, trial.ms))


@dataclass(frozen=True)
class Found:
    """The result of tuning on a target. machine: its name from host.name. trials: the fastest first, failures last.
    chosen: not always the fastest.

    px: each variant's parity from the manifest. warnings: why the timings should not be trusted.
    """

    target: str
    machine: str
    tuned: Tuned
    chosen: Candidate
    trials: Sequence[Trial]
    px: Mapping[str, float | None]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        fastest = self.trials[0]
        tried = [
            {
                **asdict(trial.candidate),
                "ms": None if trial.failure else trial.ms,
                "ratio": None if trial.failure else median(trial.ratios(fastest)),
                "chosen": trial.candidate == self.chosen,
                "failure": trial.failure,
            }
            for trial in self.trials
        ]
        found = {"target": self.target, "device": self.machine, "tuned": asdict(self.tuned), "tried": tried}
        return found | {"warnings": list(self.warnings)}


def tune(call: Call, target: str, bundle: Bundle, plan: Plan, name: str, machine: Machine, step: Step) -> Found:
    """Tunes a bundle for the machine behind `call`. name: from host.name. machine: its facts.

    Only the plan's variants and threads are tried, on its cpus if they are not "big". Each round takes a share of the
    plan's seconds and count, so that finalists get all of them.
    """
    settings = plan.settings
    quick = replace(settings, seconds=settings.seconds / FINAL, count=math.ceil(settings.count / FINAL), rest=0.0)
    groups = list(bench.check_cpus(call, target, () if isinstance(plan.cpus, str) else plan.cpus))
    everything = tuple(sorted(cpu for group in groups for cpu in group))
    if not isinstance(plan.cpus, str):
        groups = [sorted(set(plan.cpus or everything))]
    names = [variant.name for variant in plan.chosen(bundle, machine.runtimes)]
    runs: dict[Candidate, Measured] = {}

    def clock(candidate: Candidate) -> float:
        if runs and settings.rest:
            time.sleep(settings.rest)
        one = Plan((candidate.variant,), (candidate.threads,), candidate.cpus, quick)
        (run,) = bench.sweep(call, target, bundle, one, machine, lambda *_: None)
        if run.failure:
            call(protocol.Facts())  # raises when the connection is lost
            raise EdgeError(run.failure)
        runs[candidate] = run
        return run.frame(0.5)

    chosen, trials = search(names, groups, plan.threads, clock, lambda what, *at: step(f"{target} {what}", *at))
    (ms,) = (trial.ms for trial in trials if trial.candidate == chosen)
    run, created = runs[chosen], datetime.now(UTC).isoformat(timespec="seconds")
    cpus = () if chosen.cpus == everything else chosen.cpus
    facts = results.facts_of(machine.facts)
    tuned = Tuned(chosen.variant, chosen.threads, cpus, round(ms, 4), ran(run, runs.values(), facts), created)
    px = {
        variant.name: variant.parity.px_mean if isinstance(variant.parity, Parity) else None
        for variant in bundle.variants
    }
    return Found(target, name, tuned, chosen, trials, px, results.warnings(run, facts))


def ran(chosen: Measured, runs: Collection[Measured], facts: results.Facts) -> str:
    """What ran, and the load that was beside it in most of the runs."""
    busy = [load for run in runs if (load := results.other_load(run, facts)) is not None]
    return f"{chosen.runtime}, under load {median(busy):.1f}" if 2 * len(busy) > len(runs) else chosen.runtime or ""


def run(
    bundle: Bundle, plan: Plan, where: Sequence[Place], step: Step = lambda *_: None, keep: bool = False
) -> tuple[list[Found], Mapping[str, EdgeError]]:
    """Tunes a bundle for every place, one after the other, and writes the results into its manifest at the end.

    keep: boards keep the pushed files. Returns the results, and the errors of places without one. Raises the first of
    these errors if no place has a result. Raises EdgeError if a place cannot be timed or the bundle cannot be written.
    """
    for place in where:
        if place.kind != "measured":
            raise EdgeError(f"--tune needs a machine to time; {place.name} is {place.kind}: give --host USER@HOST")
    if not os.access(bundle.folder, os.W_OK):
        raise EdgeError(f"cannot write into {bundle.folder}, where --tune keeps what it finds")
    found: list[Found] = []
    errors: dict[str, EdgeError] = {}
    for place in where:
        try:
            with places.calling(place, keep) as call:
                machine = call(protocol.Facts())
                name = _name(machine.facts, place, found)
                found.append(tune(call, place.name, bundle, plan, name, machine, step))
        except EdgeError as e:
            errors[place.name] = e
    if not found:
        raise next(iter(errors.values()))
    write(bundle, {each.machine: each.tuned for each in found})
    return found, errors


def _name(facts: Mapping[str, object], place: Place, before: Sequence[Found]) -> str:
    machine = host.name(facts)
    if machine is None:
        raise EdgeError(f"{place.name} tells neither its board nor its CPU, so that nothing could be kept for it")
    for other in before:
        if other.machine == machine:
            raise EdgeError(f"{place.name} is a {machine} like {other.target}, whose tuning counts for both")
    return machine


def write(bundle: Bundle, tuned: Mapping[str, Tuned]) -> None:
    """Adds tuned settings, by machine, to the manifest as it is now: another run may have tuned it meanwhile.

    Raises EdgeError when it is another bundle's by now.
    """
    now = bundles.read(bundle.folder)
    if replace(now, tuned=bundle.tuned) != bundle:
        raise EdgeError(f"{bundle.folder} was changed while it was tuned; nothing was written, tune it again")
    replace(now, tuned={**now.tuned, **tuned}).write_manifest()
