"""This machine: a worker in a child process."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.decode import MAP_NAMES, Landmarks, Maps
from pipnet_edge.errors import EdgeError

Progress = Callable[[int, int], None]


def call(job: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Does one worker job (pipnet_edge.worker) and returns its "done" event, with what "loaded" told under "loaded".

    Raises EdgeError with the worker's own message, or, when the worker died, with the signal and its last line of
    stderr.
    """
    events: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        command = [sys.executable, "-P", "-m", "pipnet_edge.worker"]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
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
                events[event["event"]] = event
                if event["event"] == "progress" and progress:
                    progress(event["done"], event["of"])
            worker.wait()
        finally:
            worker.kill()
            worker.wait()
        if "error" in events:
            raise EdgeError(events["error"]["message"], events["error"]["code"])
        if worker.returncode or "done" not in events:
            stderr.seek(0)
            raise EdgeError(_how_it_died(worker.returncode, stderr.read()))
    return {**events["done"], "loaded": events.get("loaded", {})}


def _how_it_died(status: int, stderr: str) -> str:
    last = (stderr.strip().splitlines() or ["nothing on stderr"])[-1][:300]
    how = f"ended with status {status}"
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"crashed with {names.get(-status, f'signal {-status}')}"
    return f"the runtime {how}: {last}"


@dataclass(frozen=True)
class Inference:
    """landmarks and, if asked for, maps with a batch axis; version names the runtime that ran."""

    landmarks: Landmarks
    maps: Maps | None
    version: str


def infer(
    bundle: Path,
    variant: str,
    threads: int,
    crops: NDArray[np.uint8],
    maps: bool = False,
    progress: Progress | None = None,
) -> Inference:
    """Runs a variant over crops (n, S, S, 3) uint8 RGB."""
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        given, out = Path(folder, "crops.npy"), Path(folder, "out.npz")
        np.save(given, crops)
        job = {"do": "infer", "bundle": str(bundle), "variant": variant, "threads": threads, "maps": maps}
        done = call({**job, "crops": str(given), "out": str(out)}, progress)
        with np.load(out, allow_pickle=False) as arrays:
            return Inference(
                Landmarks(arrays["points"], arrays["score"], arrays["cell"]),
                Maps(**{name: arrays[f"map_{name}"] for name in MAP_NAMES}) if maps else None,
                done["loaded"]["version"],
            )


def measure(
    bundle: Path, variant: str, threads: int, crops: NDArray[np.uint8], warmup: int, seconds: float, count: int
) -> dict[str, Any]:
    """The worker's timing loop: {"inference": [ms …], "decode": [ms …], "loaded": {…}}."""
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        given = Path(folder, "crops.npy")
        np.save(given, crops)
        job = {"do": "time", "bundle": str(bundle), "variant": variant, "threads": threads, "crops": str(given)}
        return call({**job, "warmup": warmup, "seconds": seconds, "count": count})
