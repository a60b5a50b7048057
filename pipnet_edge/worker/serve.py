"""Runs a network in a process of its own: `python -m pipnet_edge.worker` reads one JSON job and writes JSON lines.

A runtime that crashes takes down a worker, not the command. Jobs (`do`):

    probe   runtime                                             a tiny inference
    facts                                                       facts of the machine and the runtimes there
    infer   bundle, variant, threads, crops, out [, maps, cpus] crops (n, S, S, 3) uint8 from a .npy file; landmarks
                                                                and, if asked for, maps into an .npz file
    time    bundle, variant, threads, crops, warmup, seconds, count [, cpus]   the timing loop; every sample is written
    count   bundle, variant, frames [, crops]                   frames with marks between their stages
    cpus                                                        which CPUs there are, alike ones together

Without crops, those of the bundle's golden.npz are taken. Lines are {"event": …}: "loaded", "progress", "first",
"samples", then "done" with the job's result, or "error" with an EdgeError's text and code.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipnet_edge import host
from pipnet_edge.errors import EdgeError

Event = dict[str, Any]
Job = Mapping[str, Any]

STAGES = ("preprocess", "inference", "decode")
TELL = 0.25  # seconds between two events with samples
MARK = 0x9E7  # nothing that getpriority knows the priority of


def probe(job: Job) -> Iterator[Event]:
    """{"version"}: the runtime's name and version, after it has computed a convolution rightly."""
    from pipnet_edge.runtimes.probe import probe as run_probe

    yield {"event": "done", "version": run_probe(job["runtime"])}


def facts(_: Job) -> Iterator[Event]:
    """The machine's facts, as host.facts gives them, and under "runtimes" the runtimes that are installed."""
    from pipnet_edge import runtimes

    found = [name for name in runtimes.RUNTIMES if not runtimes.is_missing(name)]
    yield {"event": "done", **host.facts(), "runtimes": found}


def cpus(_: Job) -> Iterator[Event]:
    """{"groups"}: numbers of the CPUs that a process may use, those that are alike together, the fastest first."""
    yield {"event": "done", "groups": [group.cpus for group in host.clusters()]}


def infer(job: Job) -> Iterator[Event]:
    """Writes points (n, L, 2), score and cell (n, L) and, with "maps", map_score … into the .npz `out`.

    Maps are those of decode.Maps, or of decode.Winners where the network gives no more.

    cpus: what host.pin takes.
    """
    _keep_to_cpus(job)
    import numpy as np

    from pipnet_edge.decode import Features

    bundle, crops, session, decode, loaded = _open(job)
    heads = bundle.read_heads(job["variant"]) if job.get("maps") else None
    yield loaded
    arrays: dict[str, list[Any]] = {}
    for index, crop in enumerate(crops):
        maps = session.run(crop)
        landmarks = decode(maps)
        found = {"points": landmarks.points, "score": landmarks.score, "cell": landmarks.cell}
        if job.get("maps"):
            dense = heads.maps(maps) if heads and isinstance(maps, Features) else maps
            found |= {f"map_{name}": value for name, value in vars(dense).items()}
        for name, value in found.items():
            arrays.setdefault(name, []).append(np.array(value))
        yield {"event": "progress", "done": index + 1, "of": len(crops)}
    session.close()
    stacked: Any = {name: np.stack(values) for name, values in arrays.items()}
    np.savez(job["out"], **stacked)
    yield {"event": "done"}


def timing(job: Job) -> Iterator[Event]:
    """The one timing loop. Samples are milliseconds of each stage, one a frame, and nothing is dropped.

    preprocess: from a picture in memory and a face's rectangle to the crop (none without OpenCV, where frames start at
    the crop); inference: crop to maps; decode: maps to landmarks. A frame is their sum, without a gap. After `warmup`
    frames it runs for at least `seconds` and at least `count` frames over the crops in turn; "samples" events tell what
    was taken since the last one and the machine's state, between two frames. cpus: what host.pin takes.
    """
    _keep_to_cpus(job)
    _, crops, session, decode, loaded = _open(job)
    frames, prepare = _frames(crops, job["threads"])
    yield loaded
    clock = time.perf_counter

    def frame(index: int) -> tuple[float, float, float, float]:
        picture = frames[index % len(frames)]
        t0 = clock()
        crop = prepare(picture) if prepare else picture
        t1 = clock()
        maps = session.run(crop)
        t2 = clock()
        decode(maps)
        return t0, t1, t2, clock()

    def stages(samples: list[tuple[float, float, float, float]]) -> dict[str, list[float]]:
        """Clock readings of frames as milliseconds by stage, to a tenth of a microsecond."""
        taken = {name: [round((t[i + 1] - t[i]) * 1e3, 4) for t in samples] for i, name in enumerate(STAGES)}
        return taken if prepare else taken | {STAGES[0]: []}

    first = frame(0)
    yield {"event": "first", "milliseconds": (first[2] - first[1]) * 1e3, "cpus": host.allowed_cpus()}
    for index in range(1, job["warmup"]):
        frame(index)
    yield {"event": "samples", "at": 0.0, "stages": stages([]), "state": host.state()}
    taken = 0
    samples: list[tuple[float, float, float, float]] = []
    start = told = clock()
    while taken < job["count"] or clock() - start < job["seconds"]:
        samples.append(frame(taken))
        taken += 1
        if clock() - told > TELL:
            yield {"event": "samples", "at": clock() - start, "stages": stages(samples), "state": host.state()}
            samples, told = [], clock()
    yield {"event": "samples", "at": clock() - start, "stages": stages(samples), "state": host.state()}
    session.close()
    yield {"event": "done", "peak_bytes": host.peak_bytes()}


def counting(job: Job) -> Iterator[Event]:
    """Frames like those that are timed, on one thread, each with a mark before every stage and one behind the last.

    A mark is a system call that fails without any effect; who counts instructions sees it (targets/emulated/icount.c).
    """
    import ctypes

    _, crops, session, decode, loaded = _open({**job, "threads": 1})
    frames, prepare = _frames(crops, 1)
    mark = ctypes.CDLL(None).getpriority
    yield loaded
    for index in range(job["frames"]):
        mark(MARK, 0)
        given = frames[index % len(frames)]
        crop = prepare(given) if prepare else given
        mark(MARK, 1)
        maps = session.run(crop)
        mark(MARK, 2)
        decode(maps)
        mark(MARK, 3)
    session.close()
    yield {"event": "done"}


def _keep_to_cpus(job: Job) -> None:
    """Has to come before any thread is started."""
    if job.get("cpus"):
        host.pin(job["cpus"], job["threads"])


def _frames(crops: Any, threads: int) -> tuple[list[Any], Callable[[Any], Any] | None]:
    """What a frame begins with, and how a crop is cut from it: pictures in which the face is half as large again.

    Without OpenCV: the crops, and nothing to cut.
    """
    try:
        import cv2
    except ImportError:
        return list(crops), None
    from pipnet_edge.preprocess import Rect, cut

    cv2.setNumThreads(threads)
    side, margin = crops.shape[1], crops.shape[1] // 4
    large = side * 3 // 2
    rect = Rect(margin, margin, margin + large, margin + large)
    pictures = [
        cv2.copyMakeBorder(cv2.resize(crop, (large, large)), margin, margin, margin, margin, cv2.BORDER_CONSTANT)
        for crop in crops
    ]
    return pictures, lambda picture: cut(picture, rect, side)


def _open(job: Job) -> tuple[Any, Any, Any, Any, Event]:
    """The bundle, the crops, a session, its decoder and the "loaded" event."""
    import numpy as np

    from pipnet_edge import bundle as bundles
    from pipnet_edge import runtimes

    bundle = bundles.read(Path(job["bundle"]))
    crops = np.load(job["crops"], allow_pickle=False) if "crops" in job else bundle.read_golden()[0]
    side = bundle.spec.input_size
    if crops.dtype != np.uint8 or crops.shape[1:] != (side, side, 3) or not len(crops):
        raise EdgeError(f"crops are {crops.dtype} {crops.shape}, this bundle takes uint8 (n, {side}, {side}, 3)")
    variant = bundle.variant(job["variant"])
    adapter = runtimes.adapter(variant.runtime)
    start = time.perf_counter()
    session = bundle.open_session(job["variant"], job["threads"])
    loaded = {"event": "loaded", "milliseconds": (time.perf_counter() - start) * 1e3, "version": adapter.version()}
    loaded["arithmetic"] = runtimes.arithmetic(variant.runtime, variant.precision, host.features())
    return bundle, crops, session, bundle.decoder(variant.name), loaded


JOBS: dict[str, Callable[[Job], Iterator[Event]]] = {
    "probe": probe,
    "facts": facts,
    "infer": infer,
    "time": timing,
    "count": counting,
    "cpus": cpus,
}


def serve(lines: TextIO, job: Job) -> int:
    """Does one job and writes its events. Returns the exit status: 0, or the code of an EdgeError."""

    def write(event: Event) -> None:
        lines.write(json.dumps(event) + "\n")
        lines.flush()

    try:
        if job.get("do") not in JOBS:
            raise EdgeError(f"no job {job.get('do')!r}; allowed: {', '.join(JOBS)}")
        for event in JOBS[job["do"]](job):
            write(event)
    except EdgeError as e:
        write({"event": "error", "message": str(e), "code": e.code})
        return e.code
    return 0


def main() -> None:
    # Some runtimes print to stdout from C; the JSON lines get a descriptor of their own and stdout goes to stderr.
    with os.fdopen(os.dup(1), "w") as lines:
        os.dup2(2, 1)
        sys.exit(serve(lines, json.load(sys.stdin)))


if __name__ == "__main__":
    main()
