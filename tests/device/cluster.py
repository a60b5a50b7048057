"""A Dask scheduler and its workers as processes of their own, for tests that end them or show them other files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pipnet_edge.benchmarks.accuracy import chunks, drift, labels
from pipnet_edge.bundle import Bundle

SCHEDULER, WORKER = (
    ("distributed.cli.dask_scheduler", "--no-dashboard"),
    ("distributed.cli.dask_worker", "--no-dashboard"),
)
LOCAL = ("--host", "127.0.0.1")


@contextlib.contextmanager
def process(
    words: tuple[str, ...], log: Path, before: tuple[str, ...] = (), **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of Dask; the end of the block kills it."""
    with log.open("wb") as stream:
        started = subprocess.Popen(
            [*before, sys.executable, "-P", "-m", *words], stdout=stream, stderr=stream, env=os.environ | environment
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def scheduler(folder: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its address and its process."""
    file = folder / "scheduler.json"
    with process(
        (*SCHEDULER, *LOCAL, "--port", "0", "--scheduler-file", str(file)), folder / "scheduler.log", **environment
    ) as started:
        until(file.exists)
        until(file.read_text)
        yield json.loads(file.read_text())["address"], started


@contextlib.contextmanager
def worker(
    address: str, folder: Path, before: tuple[str, ...] = (), **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of one thread without a nanny, which the scheduler knows."""
    log = folder / "worker.log"
    words = (*WORKER, *LOCAL, "--no-nanny", "--nthreads", "1", "--local-directory", str(folder), address)
    with process(words, log, before, **environment) as started:
        until(lambda: "Starting established connection" in log.read_text())
        yield started


def pretends(folder: Path, package: str) -> Mapping[str, str]:
    """An environment in which a package is said to be of version 9.9."""
    about = folder / "other" / f"{package}-9.9.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n")
    paths = str(about.parent), os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def write_faces(bundle: Bundle, folder: Path, count: int) -> drift.Faces:
    """Golden crops as so many picture files, no two of them the same."""
    cv2 = pytest.importorskip("cv2")
    crops, _ = bundle.read_golden()
    folder.mkdir()
    for index in range(count):
        crop = crops[index % len(crops)].copy()
        crop[0, 0] = index % 251
        cv2.imwrite(str(folder / f"{index:04}.png"), crop[:, :, ::-1])
    return drift.Faces(labels.image_folder(folder), bundle.spec.input_size)


def measured(bundle: Bundle, faces: drift.Faces, cache: Path, spread: chunks.Spread) -> drift.Measured:
    return drift.run(bundle, faces, drift.choose(bundle, (), "null-fp32"), cache, spread)
