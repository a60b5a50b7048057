"""Runs a network in a process of its own: `python -m pipnet_edge.worker` reads one JSON job and writes JSON lines.

A runtime that crashes takes down a worker, not the command. Jobs (`do`):

    probe   runtime                                             a tiny inference
    facts                                                       facts of the machine
    infer   bundle, variant, threads, crops, out [, maps]       crops (n, S, S, 3) uint8 from a .npy file; landmarks
                                                                and, if asked for, maps into an .npz file
    time    bundle, variant, threads, crops, warmup, seconds, count   the timing loop; every sample is written

Lines are {"event": …}: "loaded", "progress", "done" with the job's result, or "error" with an EdgeError's text and
code.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipnet_edge.errors import EdgeError

Event = dict[str, Any]
Job = Mapping[str, Any]


def probe(job: Job) -> Iterator[Event]:
    """{"version"}: the runtime's name and version, after it has computed a convolution rightly."""
    from pipnet_edge.runtimes.probe import probe as run_probe

    yield {"event": "done", "version": run_probe(job["runtime"])}


def facts(_: Job) -> Iterator[Event]:
    """The machine's facts, as host.facts gives them."""
    from pipnet_edge import host

    yield {"event": "done", **host.facts()}


def infer(job: Job) -> Iterator[Event]:
    """Writes points (n, L, 2), score and cell (n, L) and, with "maps", map_score … into the .npz `out`."""
    import numpy as np

    from pipnet_edge.decode import MAP_NAMES

    crops, session, decode, loaded = _open(job)
    yield loaded
    arrays: dict[str, list[Any]] = {}
    for index, crop in enumerate(crops):
        maps = session.run(crop)
        landmarks = decode(maps)
        found = {"points": landmarks.points, "score": landmarks.score, "cell": landmarks.cell}
        if job.get("maps"):
            found |= {f"map_{name}": getattr(maps, name) for name in MAP_NAMES}
        for name, value in found.items():
            arrays.setdefault(name, []).append(np.array(value))
        yield {"event": "progress", "done": index + 1, "of": len(crops)}
    session.close()
    stacked: Any = {name: np.stack(values) for name, values in arrays.items()}
    np.savez(job["out"], **stacked)
    yield {"event": "done"}


def timing(job: Job) -> Iterator[Event]:
    """Samples in milliseconds: "inference" (crop to maps) and "decode" (maps to landmarks), one pair a frame.

    After `warmup` frames it runs for at least `seconds` and at least `count` frames, over the crops in turn.
    """
    crops, session, decode, loaded = _open(job)
    yield loaded
    clock = time.perf_counter
    inference: list[float] = []
    decoding: list[float] = []
    for index in range(job["warmup"]):
        decode(session.run(crops[index % len(crops)]))
    start = clock()
    while len(inference) < job["count"] or clock() - start < job["seconds"]:
        crop = crops[len(inference) % len(crops)]
        t0 = clock()
        maps = session.run(crop)
        t1 = clock()
        decode(maps)
        t2 = clock()
        inference.append((t1 - t0) * 1e3)
        decoding.append((t2 - t1) * 1e3)
    session.close()
    yield {"event": "done", "inference": inference, "decode": decoding}


def _open(job: Job) -> tuple[Any, Any, Any, Event]:
    import numpy as np

    from pipnet_edge import bundle as bundles
    from pipnet_edge import runtimes
    from pipnet_edge.decode import Decoder

    bundle = bundles.read(Path(job["bundle"]))
    crops = np.load(job["crops"], allow_pickle=False)
    side = bundle.spec.input_size
    if crops.dtype != np.uint8 or crops.shape[1:] != (side, side, 3) or not len(crops):
        raise EdgeError(f"crops are {crops.dtype} {crops.shape}, this bundle takes uint8 (n, {side}, {side}, 3)")
    start = time.perf_counter()
    session = bundle.open_session(job["variant"], job["threads"])
    loaded = {"event": "loaded", "milliseconds": (time.perf_counter() - start) * 1e3}
    loaded["version"] = runtimes.adapter(bundle.variant(job["variant"]).runtime).version()
    return crops, session, Decoder(bundle.spec), loaded


JOBS: dict[str, Callable[[Job], Iterator[Event]]] = {"probe": probe, "facts": facts, "infer": infer, "time": timing}


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
