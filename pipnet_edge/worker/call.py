"""A worker process and what passes between it and a command, wherever the process runs.

A target offers one function, a `Call`: it takes a job of pipnet_edge.worker whose paths (bundle, crops, out) are this
machine's, sees to it that the worker finds them where it runs, and brings back what the worker wrote.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.decode import MAP_NAMES, WINNER_NAMES, Landmarks, Maps, Winners
from pipnet_edge.errors import EdgeError

Job = Mapping[str, Any]
Event = dict[str, Any]
Listen = Callable[[Event], None]


class Lost(EdgeError):
    """The connection to the target broke; nothing more can be done there."""


def ignore(_: Event) -> None:
    """Listens to nothing."""


class Call(Protocol):
    """Does one worker job and returns its "done" event, with what "loaded" told under "loaded".

    Every event before that is given to `listen` as it comes. Raises EdgeError with the worker's own message, or, when
    the worker died, with how it died.
    """

    def __call__(self, job: Job, listen: Listen = ignore) -> Event: ...


def converse(
    command: Sequence[str],
    job: Job,
    listen: Listen = ignore,
    environment: Mapping[str, str] | None = None,
    died: Callable[[int, str], str] | None = None,
) -> Event:
    """A Call to the worker that `command` starts, which is killed if this is interrupted.

    died makes a message of the exit status (negative: a signal) and the stderr of a worker that did not end well.
    """
    done: Event | None = None
    loaded: Event = {}
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            # A worker that dies at once closes the pipe; its exit status tells more than the broken pipe.
            with contextlib.suppress(BrokenPipeError), worker.stdin as stdin:
                json.dump(job, stdin)
            for line in worker.stdout:
                if not line.endswith("\n"):
                    break  # it died while it wrote
                event = json.loads(line)
                if event["event"] == "error":
                    raise EdgeError(event["message"], event["code"])
                if event["event"] == "done":
                    done = event
                    continue
                if event["event"] == "loaded":
                    loaded = event
                listen(event)
            worker.wait()
        finally:
            worker.kill()
            worker.wait()
        if worker.returncode or done is None:
            stderr.seek(0)
            raise EdgeError((died or how_it_died)(worker.returncode, stderr.read()))
    return {**done, "loaded": loaded}


def how_it_died(status: int, stderr: str) -> str:
    """Names the signal or exit status of a process on this machine, and its last line of stderr."""
    how = f"ended with status {status}"
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"crashed with {names.get(-status, f'signal {-status}')}"
    return f"the runtime {how}: {last_line(stderr)}"


def last_line(stderr: str) -> str:
    return (stderr.strip().splitlines() or ["nothing on stderr"])[-1][:300]


def machine(event: Mapping[str, Any]) -> Event:
    """The facts of the machine in the "done" event of a facts job, without what belongs to the worker."""
    return {name: value for name, value in event.items() if name not in ("event", "loaded", "runtimes")}


@dataclass(frozen=True)
class Inference:
    """landmarks and, if asked for, maps with a batch axis; version names the runtime that ran.

    A network that evaluates its offset heads at winning cells alone has no more than those to give.
    """

    landmarks: Landmarks
    maps: Maps | Winners | None
    version: str


def infer(
    call: Call,
    bundle: Path,
    variant: str,
    threads: int,
    crops: NDArray[np.uint8],
    maps: bool = False,
    listen: Listen = ignore,
) -> Inference:
    """Runs a variant over crops (n, S, S, 3) uint8 RGB on a target."""
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        given, out = Path(folder, "crops.npy"), Path(folder, "out.npz")
        np.save(given, crops)
        job = {"do": "infer", "bundle": str(bundle), "variant": variant, "threads": threads, "maps": maps}
        done = call({**job, "crops": str(given), "out": str(out)}, listen)
        with np.load(out, allow_pickle=False) as arrays:
            return Inference(
                Landmarks(arrays["points"], arrays["score"], arrays["cell"]),
                _maps(arrays) if maps else None,
                done["loaded"]["version"],
            )


def _maps(arrays: Mapping[str, NDArray[np.float32]]) -> Maps | Winners:
    kind, names = (Winners, WINNER_NAMES) if "map_offsets" in arrays else (Maps, MAP_NAMES)
    return kind(**{name: arrays[f"map_{name}"] for name in names})
