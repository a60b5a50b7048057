"""Bench: the variants of a bundle timed on a target, counted under emulation, or predicted."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import __version__
from pipnet_edge.benchmarks.accuracy import faces, parity
from pipnet_edge.benchmarks.speed.result import (
    VERSION,
    Counted,
    Facts,
    Measured,
    Predicted,
    Result,
    Settings,
    State,
    facts_of,
)
from pipnet_edge.bundle import AnyBundle, Bundle, Held, Parity, Variant
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import write_array
from pipnet_edge.host import cpu_list
from pipnet_edge.targets import place as places
from pipnet_edge.targets.emulated import way as emulated
from pipnet_edge.targets.emulated.count import count
from pipnet_edge.targets.emulated.emulator import ready
from pipnet_edge.targets.place import Place
from pipnet_edge.targets.predicted import model
from pipnet_edge.words import counted
from pipnet_edge.worker import protocol
from pipnet_edge.worker.call import Call, Lost, here
from pipnet_edge.worker.protocol import STAGES, Event, First, Loaded, Machine, Samples, Time

THREADS = (1, 2, 4)
EMULATED_CROPS = 2  # a frame takes seconds
Step = Callable[[str, int, int], None]
Run = TypeVar("Run")


@dataclass(frozen=True)
class Plan:
    """What to bench: variants by name (none: all), thread counts (none: 1, 2 and 4, but not more than cores), cpus as
    host.pin takes them, and how long."""

    variants: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    cpus: str | tuple[int, ...] = "big"
    settings: Settings = field(default_factory=Settings)

    def named(self, bundle: Held) -> list[Variant]:
        """The variants named, or all."""
        return [bundle.variant(name) for name in self.variants] or list(bundle.variants)

    def chosen(self, bundle: Held, installed: Sequence[str]) -> list[Variant]:
        """The variants named, or all whose runtime is installed."""
        found = [variant for variant in self.named(bundle) if self.variants or variant.runtime in installed]
        if not found:
            runtimes = dict.fromkeys(variant.runtime for variant in bundle.variants)
            raise EdgeError(f"none of this bundle's runtimes is installed: {', '.join(runtimes)}")
        return found

    def thread_counts(self, cores: int | None) -> tuple[int, ...]:
        """The counts given, at most one thread a core; cores: None if the machine does not tell."""
        given = dict.fromkeys(min(count, cores or count) for count in self.threads)
        return tuple(given) or tuple(count for count in THREADS if count <= (cores or 1)) or (1,)


def check_cpus(call: Call, target: str, cpus: Sequence[int]) -> tuple[Sequence[int], ...]:
    """The groups of CPUs that a process on the target may use. Raises EdgeError if `cpus` are not all among them."""
    groups = call(protocol.Cpus()).groups
    allowed = sorted(cpu for group in groups for cpu in group)
    if not set(cpus) <= set(allowed):
        raise EdgeError(f"CPUs {cpu_list(sorted(set(cpus)))} are not all on {target}; allowed: {cpu_list(allowed)}")
    return groups


def sweep(
    call: Call,
    target: str,
    bundle: Held,
    plan: Plan,
    machine: Machine,
    step: Step,
    pause: Callable[[float], object] = time.sleep,
) -> Iterator[Measured]:
    """Times every variant with every number of threads, each in a worker of its own.

    machine: the target's facts. pause: waits for so many seconds. Stops when the connection is lost, after the runs
    that were measured before.
    """

    def one(variant: Variant, threads: int) -> tuple[Measured, bool]:
        return _measure(call, target, bundle, variant, threads, plan.cpus, plan.settings)

    return each(target, bundle, plan, machine, step, pause, one)


def each(
    target: str,
    bundle: Held,
    plan: Plan,
    machine: Machine,
    step: Step,
    pause: Callable[[float], object],
    one: Callable[[Variant, int], tuple[Run, bool]],
) -> Iterator[Run]:
    """What `one` gives for every variant and number of threads; it also tells whether the connection was lost."""
    variants, cores = plan.chosen(bundle, machine.runtimes), machine.facts.get("cores")
    counts = plan.thread_counts(cores if isinstance(cores, int) else None)
    runs = [(variant, threads) for variant in variants for threads in counts]
    for index, (variant, threads) in enumerate(runs):
        step(f"{target} {variant.name}, {counted(threads, 'thread')}", index, len(runs))
        if index and plan.settings.rest:
            pause(plan.settings.rest)
        run, lost = one(variant, threads)
        yield run
        if lost:
            break


def measure(bundle: Held, variant: str, threads: int, crops: NDArray[np.uint8], settings: Settings) -> Measured:
    """Times one variant over crops (n, S, S, 3) uint8 RGB on this machine. Raises EdgeError when it cannot run."""
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        given = Path(folder, "crops.npy")
        write_array(given, crops)
        run, _ = _measure(here, "local", bundle, bundle.variant(variant), threads, "big", settings, given)
    if run.failure:
        raise EdgeError(run.failure)
    return run


def _measure(
    call: Call,
    target: str,
    bundle: Held,
    variant: Variant,
    threads: int,
    cpus: str | tuple[int, ...],
    settings: Settings,
    crops: Path | None = None,
) -> tuple[Measured, bool]:
    """One run (if it failed, with what came before the failure), and whether the connection was lost."""
    samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
    states: list[State] = []
    loaded: Loaded | None = None
    first: First | None = None

    def listen(event: Event) -> None:
        nonlocal loaded, first
        if isinstance(event, Loaded):
            loaded = event
        elif isinstance(event, First):
            first = event
        elif isinstance(event, Samples):
            states.append(state_of(event))
            for stage in STAGES:
                samples[stage] += event.stages[stage]

    job = Time(
        bundle=str(bundle.folder),
        variant=variant.name,
        threads=threads,
        warmup=settings.warmup,
        seconds=settings.seconds,
        count=settings.count,
        crops=str(crops) if crops else None,
        cpus=cpus or None,
    )
    failure, lost, peak = None, False, None
    try:
        peak = call(job, listen).peak_bytes
    except EdgeError as e:
        failure, lost = " ".join(str(e).split()), isinstance(e, Lost)
    counts = {len(taken) for taken in samples.values() if taken}
    if len(counts) > 1:
        failure, samples = "the worker did not time the same stages of all frames", {stage: [] for stage in STAGES}
    elif not (counts or failure):
        failure = "the worker timed no frame"
    run = Measured(
        target=target,
        variant=variant.name,
        arithmetic=loaded.arithmetic if loaded else variant.precision,
        size=variant.size,
        threads=threads,
        px=variant.parity.px_mean if isinstance(variant.parity, Parity) else None,
        runtime=loaded.version if loaded else None,
        cpus=first.cpus if first else (),
        load_ms=loaded.milliseconds if loaded else None,
        first_ms=first.milliseconds if first else None,
        peak_bytes=peak,
        samples={stage: tuple(values) for stage, values in samples.items()},
        states=tuple(states),
        failure=failure,
    )
    return run, lost


def state_of(event: Samples | protocol.Frames) -> State:
    """The machine's state in an event."""
    told = event.state
    return State(event.at, told.mhz, told.celsius, told.throttled, told.load)


def predictions(place: Place, bundle: Held, plan: Plan) -> Iterator[Predicted]:
    """The latency model's prediction for every variant on the place's device. If there is none, a note says why."""
    device = place.device
    assert device is not None
    for variant in plan.named(bundle):
        for threads in plan.thread_counts(device.core_count):
            row = Predicted(place.name, variant.name, variant.size, threads, None, None, None, None, None, None, "")
            try:
                found = model.predict_variant(device, bundle, variant.name, threads)
            except EdgeError as e:
                if plan.variants:
                    raise
                yield replace(row, note=str(e))
                continue
            yield replace(
                row,
                ms=found.ms,
                low=found.low,
                high=found.high,
                anchor=str(found.anchor) if found.anchor else None,
                anchor_source=found.anchor.source if found.anchor else None,
                anchored=found.anchored,
                note=found.note,
            )


def counts(place: Place, bundle: AnyBundle, plan: Plan, step: Step) -> Iterator[Counted]:
    """Every variant's parity and instructions under emulation of the place's device."""
    device = place.device
    assert device is not None
    emulator, variants = ready(), plan.named(bundle)
    for index, variant in enumerate(variants):
        step(f"{place.name} {variant.name}, emulated", index, len(variants))
        row = Counted(place.name, variant.name, variant.size, emulated.core(device), None, 0, None, None, {}, None)
        row = _checked(row, bundle, variant, emulated.Emulated(device, emulator))
        if row.failure is None:
            found = count(device, emulator, bundle.folder, variant.name)
            row = replace(row, runtime=found.version, stages=found.stages)
        yield row


def _checked(row: Counted, bundle: AnyBundle, variant: Variant, call: Call) -> Counted:
    """With the variant's parity: a detector's has no pixels between landmarks."""
    if isinstance(bundle, Bundle):
        (same,) = parity.check(bundle, [variant.name], call=call, most=EMULATED_CROPS)
        return replace(row, images=same.images, px=same.px_mean, flips=same.flips, failure=same.failure)
    (found,) = faces.check(bundle, [variant.name], call=call, most=EMULATED_CROPS)
    return replace(row, images=found.images, failure=found.failure)


@dataclass
class Found:
    """The results of several places. Each thread writes only those of its own place."""

    facts: dict[str, Facts] = field(default_factory=dict)
    rows: dict[str, list[Any]] = field(default_factory=dict)
    errors: dict[str, EdgeError] = field(default_factory=dict)


Untimed = Callable[[Place], Iterable[Any]]
Measure = Callable[[Call, Place, Machine, Callable[[float], object]], Iterable[Any]]


def gather(where: Sequence[Place], cpus: str | Sequence[int], measure: Measure, untimed: Untimed, keep: bool) -> Found:
    """The rows of all places: of those on machines of their own at the same time, then of those on this machine.

    measure: a machine's rows, with a function that waits for so many seconds; cpus are what it may ask for. untimed:
    those of a device that is emulated or predicted. keep: boards keep the pushed files. Raises the first error if no
    place gave anything.
    """
    found, opened, over = Found(), list[contextlib.ExitStack](), threading.Event()

    def visit(place: Place) -> None:
        rows = found.rows.setdefault(place.name, [])
        try:
            with contextlib.ExitStack() as own:
                opened.append(own)
                if place.kind != "measured":
                    found.facts[place.name] = device_facts(place)
                    rows += untimed(place)
                else:
                    call = own.enter_context(places.calling(place, keep))
                    machine = call(protocol.Facts())
                    found.facts[place.name] = facts_of(machine.facts)
                    if not isinstance(cpus, str):
                        check_cpus(call, place.name, cpus)
                    # One by one, so that the rows before a broken connection stay.
                    for row in measure(call, place, machine, over.wait):
                        rows.append(row)
        except EdgeError as e:
            found.errors[place.name] = e

    boards = [place for place in where if place.is_apart]
    pool = ThreadPoolExecutor(max_workers=len(boards) or 1)
    try:
        for done in [pool.submit(visit, place) for place in boards]:
            done.result()
        for place in where:
            if place not in boards:
                visit(place)
    except BaseException as e:
        # The other threads end when their connections are closed. One that connects now is not waited for.
        over.set()
        for own in opened:
            with contextlib.suppress(EdgeError):
                own.__exit__(type(e), e, e.__traceback__)
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    if found.errors and not any(found.rows.values()):
        raise next(iter(found.errors.values()))
    return found


def run(
    bundle: AnyBundle, plan: Plan, where: Sequence[Place], step: Step = lambda *_: None, keep: bool = False
) -> tuple[Result, Mapping[str, EdgeError]]:
    """Benches a bundle at all places, as `gather` does it. Returns the result and the errors by place."""

    def measure(call: Call, place: Place, machine: Machine, pause: Callable[[float], object]) -> Iterator[Measured]:
        return sweep(call, place.name, bundle, plan, machine, step, pause)

    def untimed(place: Place) -> Iterator[Counted | Predicted]:
        return predictions(place, bundle, plan) if place.kind == "predicted" else counts(place, bundle, plan, step)

    found = gather(where, plan.cpus, measure, untimed, keep)
    ordered = [row for place in where for row in found.rows[place.name]]
    result = Result(
        version=VERSION,
        tool=__version__,
        created=now(),
        network=bundle.title,
        bundle=bundle.sha256,
        settings=plan.settings,
        facts={place.name: found.facts.get(place.name, {}) for place in where},
        measured=tuple(row for row in ordered if isinstance(row, Measured)),
        counted=tuple(row for row in ordered if isinstance(row, Counted)),
        predicted=tuple(row for row in ordered if isinstance(row, Predicted)),
    )
    return result, found.errors


def now() -> str:
    """This moment, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def device_facts(place: Place) -> Facts:
    """The facts in a device's file."""
    device = place.device
    assert device is not None
    return {
        "device": device.title,
        "soc": device.soc,
        "cores": str(device.core_count),
        "clusters": " + ".join(f"{c.count} {c.type} at {c.mhz} MHz" for c in device.cores),
        "memory_gb_s": f"{device.memory_gb_s:g}",
    }
