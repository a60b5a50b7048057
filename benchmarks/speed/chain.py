"""The whole chain, from a clip's file to drawn faces, timed or counted; beside it, how well the faces were followed.

The clip is made here, and its faces' landmarks are known here alone; the target gets the clip's file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import __version__, npz
from pipnet_edge.benchmarks.accuracy import labels, tracking
from pipnet_edge.benchmarks.accuracy.parity import crops_of
from pipnet_edge.benchmarks.accuracy.tracking import Quality, Truth
from pipnet_edge.benchmarks.pictures import clip as clips
from pipnet_edge.benchmarks.speed import bench, result
from pipnet_edge.benchmarks.speed.bench import Plan, Step
from pipnet_edge.benchmarks.speed.result import Facts, Settings, State
from pipnet_edge.bundle import Bundle, DetectorBundle, Variant
from pipnet_edge.defaults import installed
from pipnet_edge.errors import EdgeError
from pipnet_edge.npz import Form
from pipnet_edge.spec import ModelSpec
from pipnet_edge.targets.emulated.count import count_chain
from pipnet_edge.targets.emulated.emulator import ready
from pipnet_edge.targets.emulated.instructions import Count
from pipnet_edge.targets.emulated.way import core
from pipnet_edge.targets.place import Place
from pipnet_edge.video.level import EYES
from pipnet_edge.worker.call import Call, Lost, here, infer
from pipnet_edge.worker.protocol import CHAIN, Chain, Event, First, Frames, Loaded, Machine

VERSION = 1
# Bytes of what a worker found in the clip.
LARGEST = 64 << 20


@dataclass(frozen=True)
class Film:
    """The clip. path: its file; truth: its landmarks, which are `of` the faces' labels or found by a variant."""

    path: Path
    truth: Truth
    of: str


@dataclass(frozen=True)
class Chained:
    """One variant's chain with a number of threads, timed on the target itself.

    detector: the variant that found the faces. samples: milliseconds by stage (worker.protocol.CHAIN) of every frame in
    whole passes through the clip, 0 where it had none. fps: frames a second where reading, tracking and drawing
    overlap. quality: how well the faces were followed. Others as in result.Measured.
    """

    target: str
    variant: str
    detector: str
    arithmetic: str
    threads: int
    runtime: str | None
    cpus: tuple[int, ...]
    load_ms: float | None
    first_ms: float | None
    peak_bytes: int | None
    fps: float | None
    samples: Mapping[str, tuple[float, ...]]
    states: tuple[State, ...]
    quality: Quality | None
    failure: str | None

    @property
    def frames(self) -> NDArray[np.float64]:
        """Milliseconds of each frame."""
        return np.asarray(np.sum([self.samples[name] for name in CHAIN], axis=0), np.float64)

    @property
    def detecting(self) -> NDArray[np.bool_]:
        """The frames in which faces were looked for."""
        return np.array(self.samples["detect"]) > 0

    @property
    def tracked(self) -> NDArray[np.bool_]:
        """The frames in which faces were followed and not looked for."""
        return ~self.detecting & (np.array(self.samples["landmarks"]) > 0)

    def warnings(self, facts: Facts) -> tuple[str, ...]:
        """As result.warnings; landmarks should take the same time in all frames in which faces were only followed."""
        alike = np.array(self.samples["landmarks"])[self.tracked]
        return (*result.conditions(self.states, self.threads, facts), *result.unsteady(alike))


@dataclass(frozen=True)
class ChainCounted:
    """One variant's chain under emulation: instructions by stage of a tracked frame, and of a detecting one."""

    target: str
    variant: str
    detector: str
    cpu: str
    runtime: str | None
    tracked: Mapping[str, Count]
    detecting: Mapping[str, Count]
    failure: str | None


@dataclass(frozen=True)
class ChainResult:
    """One `bench --chain`. detector: a hash of its bundle's manifest. clip: how many frames, and what truth is of."""

    version: int
    tool: str
    created: str
    network: str
    bundle: str
    detector: str
    clip: Mapping[str, int | str]
    settings: Settings
    facts: Mapping[str, Facts]
    measured: tuple[Chained, ...]
    counted: tuple[ChainCounted, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def film(folder: Path, bundle: Bundle, faces: Path) -> Film:
    """Makes the clip in a folder, from two faces with 68 labels: the first and the last of faces/labels.txt.

    Of a network with other landmarks, truth is what a float variant finds in these faces, at rest and without
    noise. Raises EdgeError if none runs here.
    """
    found = labels.read_labels(faces / "labels.txt", faces)
    assert found.points is not None
    chosen = [0, len(found.images) - 1]
    images, points, of = [found.images[i] for i in chosen], found.points[chosen], "labels"
    if points.shape[1] != bundle.spec.num_lms:
        floats = tuple(variant for variant in bundle.variants if variant.precision == "fp32")
        if not floats:
            raise EdgeError("no fp32 variant in this bundle; its landmarks would be the truth for the others")
        of, _ = installed(replace(bundle, variants=floats, tuned={}))[0]
        crops = crops_of(images, bundle.spec.input_size)
        points = infer(here, bundle.folder, of, 1, crops).landmarks.points.astype(np.float64)
    path = folder / "clip.avi"
    clips.write(path, list(crops_of(images, 256)))
    return Film(path, clips.truth(points), of)


def partner(detector: DetectorBundle, variant: Variant) -> Variant:
    """The detector's variant for the same runtime, in the same precision if there is one. Raises EdgeError if not."""
    found = [other for other in detector.variants if other.runtime == variant.runtime]
    found.sort(key=lambda other: other.precision != variant.precision)
    if not found:
        raise EdgeError(f"{detector.folder} has no variant for {variant.runtime}; make the detector again for it")
    return found[0]


def run(
    bundle: Bundle,
    detector: DetectorBundle,
    faces: Path,
    plan: Plan,
    where: Sequence[Place],
    step: Step = lambda *_: None,
    keep: bool = False,
) -> tuple[ChainResult, Mapping[str, EdgeError]]:
    """Benches the chain of a bundle and a detector at all places, as bench.gather does it.

    faces: a folder as for `film`. Returns the result and the errors by place.
    """
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        step("clip", 0, 1)
        shown = film(Path(folder), bundle, faces)

        def measure(call: Call, place: Place, machine: Machine, pause: Callable[[float], object]) -> Iterator[Chained]:
            def one(variant: Variant, threads: int) -> tuple[Chained, bool]:
                return _measure(call, place.name, bundle, detector, variant, threads, plan, shown)

            return bench.each(place.name, bundle, plan, machine, step, pause, one)

        def untimed(place: Place) -> Iterator[ChainCounted]:
            return _counts(place, bundle, detector, plan, shown, step)

        found = bench.gather(where, plan.cpus, measure, untimed, keep)
    ordered = [row for place in where for row in found.rows[place.name]]
    outcome = ChainResult(
        version=VERSION,
        tool=__version__,
        created=bench.now(),
        network=bundle.title,
        bundle=bundle.sha256,
        detector=detector.sha256,
        clip={"frames": clips.COUNT, "width": clips.WIDTH, "height": clips.HEIGHT, "truth": shown.of},
        settings=plan.settings,
        facts={place.name: found.facts.get(place.name, {}) for place in where},
        measured=tuple(row for row in ordered if isinstance(row, Chained)),
        counted=tuple(row for row in ordered if isinstance(row, ChainCounted)),
    )
    return outcome, found.errors


def _measure(
    call: Call,
    target: str,
    bundle: Bundle,
    detector: DetectorBundle,
    variant: Variant,
    threads: int,
    plan: Plan,
    shown: Film,
) -> tuple[Chained, bool]:
    """One run, and whether the connection was lost."""
    samples: dict[str, list[float]] = {stage: [] for stage in CHAIN}
    states: list[State] = []
    loaded: Loaded | None = None
    first: First | None = None

    def listen(event: Event) -> None:
        nonlocal loaded, first
        if isinstance(event, Loaded):
            loaded = event
        elif isinstance(event, First):
            first = event
        elif isinstance(event, Frames):
            states.append(bench.state_of(event))
            for stage in CHAIN:
                samples[stage] += event.stages[stage]

    failure, lost, peak, fps, quality, finder = None, False, None, None, None, ""
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        out = Path(folder, "out.npz")
        try:
            finder = partner(detector, variant).name
            job = Chain(
                bundle=str(bundle.folder),
                variant=variant.name,
                detector=str(detector.folder),
                detector_variant=finder,
                threads=threads,
                clip=str(shown.path),
                frames=clips.COUNT,
                out=str(out),
                warmup=plan.settings.warmup,
                seconds=plan.settings.seconds,
                count=plan.settings.count,
                cpus=plan.cpus or None,
            )
            answer = call(job, listen)
            peak, fps = answer.peak_bytes, answer.fps
            quality = _quality(out, bundle.spec, shown.truth)
        except EdgeError as e:
            failure, lost = " ".join(str(e).replace(str(out), "what the worker gave").split()), isinstance(e, Lost)
    if not failure and len(samples["source"]) % clips.COUNT:
        failure = f"the worker timed {len(samples['source'])} frames of a clip that has {clips.COUNT}"
    run = Chained(
        target=target,
        variant=variant.name,
        detector=finder,
        arithmetic=loaded.arithmetic if loaded else variant.precision,
        threads=threads,
        runtime=loaded.version if loaded else None,
        cpus=first.cpus if first else (),
        load_ms=loaded.milliseconds if loaded else None,
        first_ms=first.milliseconds if first else None,
        peak_bytes=peak,
        fps=fps,
        samples={stage: tuple(values) for stage, values in samples.items()},
        states=tuple(states),
        quality=quality,
        failure=failure,
    )
    return run, lost


def _quality(path: Path, spec: ModelSpec, truth: Truth) -> Quality:
    """How well the faces were followed, by a worker's file. Raises EdgeError if it is none."""
    forms = {
        "id": Form((clips.COUNT, "K"), (np.int64,)),
        "points": Form((clips.COUNT, "K", spec.num_lms, 2)),
        "score": Form((clips.COUNT, "K")),
    }
    found = npz.read(path, forms, LARGEST)
    if not np.isfinite(found["points"]).all():
        raise EdgeError(f"{path}: points hold NaN or infinity")
    face = spec.mean_face
    return tracking.judge(found["id"], found["points"], truth, face.nme_pair or EYES.get(face.name))


def _counts(
    place: Place, bundle: Bundle, detector: DetectorBundle, plan: Plan, shown: Film, step: Step
) -> Iterator[ChainCounted]:
    device, emulator, variants = place.device, ready(), plan.named(bundle)
    assert device is not None
    for index, variant in enumerate(variants):
        step(f"{place.name} {variant.name}, emulated", index, len(variants))
        row = ChainCounted(place.name, variant.name, "", core(device), None, {}, {}, None)
        try:
            row = replace(row, detector=partner(detector, variant).name)
            found = count_chain(
                device, emulator, bundle.folder, variant.name, detector.folder, row.detector, shown.path
            )
            row = replace(row, runtime=found.version, tracked=found.tracked, detecting=found.detecting)
        except EdgeError as e:
            row = replace(row, failure=" ".join(str(e).split()))
        yield row


# --- Summaries for commands.

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def statistics(run: Chained) -> dict[str, Any]:
    """Milliseconds of frames: medians of tracked and of detecting ones, the mean and quantiles of all, with empty ones.

    stages: medians of each stage over the tracked frames; of detect, over the detecting ones.
    """
    frames, tracked, detecting = run.frames, run.tracked, run.detecting
    if run.failure or not frames.size:
        return {}
    return {
        "tracked": _median(frames[tracked]),
        "detecting": _median(frames[detecting]),
        "mean": float(frames.mean()),
        **{name: float(np.quantile(frames, quantile)) for name, quantile in QUANTILES.items()},
        "detections": float(detecting.mean()),
        "stages": {
            name: _median(np.array(run.samples[name])[detecting if name == "detect" else tracked]) for name in CHAIN
        },
    }


def _median(values: NDArray[np.float64]) -> float | None:
    return float(np.median(values)) if values.size else None


def summary(found: ChainResult) -> dict[str, Any]:
    """Statistics and warnings of measured runs, in their order."""
    return {
        "measured": [
            {"target": run.target, "variant": run.variant, "threads": run.threads, "kind": "measured"}
            | statistics(run)
            | {"warnings": run.warnings(found.facts[run.target])}
            for run in found.measured
        ]
    }


def failures(found: ChainResult) -> list[str]:
    """Runs that failed, and trackers that lose faces, one line each."""
    lines = [f"{run.variant}: {run.failure}" for run in found.measured if run.failure]
    lines += [f"{row.variant}: {row.failure}" for row in found.counted if row.failure]
    for run in found.measured:
        if run.quality and (why := run.quality.failure):
            lines.append(f"{run.variant} on {run.target} {why}")
    return lines
