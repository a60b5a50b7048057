"""Drift over a Dask cluster, on the null runtime: what it finds and keeps is what processes find and keep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge.benchmarks.accuracy import chunks, cluster, drift
from pipnet_edge.bundle import Bundle
from pipnet_edge.errors import EdgeError
from tests.device.cluster import measured, until, write_faces

distributed = pytest.importorskip("distributed", reason="drift --dask needs Dask")
psutil = pytest.importorskip("psutil")

COUNT = 400


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    """A cluster of two worker processes."""
    with distributed.LocalCluster(
        2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as started:
        yield started


@pytest.fixture
def faces(null_bundle: Bundle, tmp_path: Path) -> drift.Faces:
    return write_faces(null_bundle, tmp_path / "faces", COUNT)


def kept(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def rows(found: drift.Measured) -> list[Any]:
    return [row.to_json() for row in found.rows]


def busy(local: Any) -> Any:
    """A worker's state that has a chunk in work, or None."""
    return next((state for state in local.scheduler.workers.values() if state.processing), None)


def runtimes_of(pid: int) -> list[Any]:
    """The workers of pipnet-edge that a Dask worker has started."""
    return [child for child in psutil.Process(pid).children() if "pipnet_edge.worker" in child.cmdline()]


def test_a_cluster_finds_and_keeps_what_processes_do(
    local: Any, null_bundle: Bundle, faces: drift.Faces, tmp_path: Path
) -> None:
    notes = list[str]()
    mine = measured(null_bundle, faces, tmp_path / "mine", chunks.processes(1))
    found = measured(null_bundle, faces, tmp_path / "its", cluster.over(local.scheduler_address, notes.append))
    assert rows(found) == rows(mine)
    for name, landmarks in mine.landmarks.items():
        for field in ("points", "score", "cell"):
            assert np.array_equal(getattr(found.landmarks[name], field), getattr(landmarks, field))
    assert len(kept(tmp_path / "mine")) == -(-COUNT // chunks.CHUNK)
    assert kept(tmp_path / "its") == kept(tmp_path / "mine")
    assert notes == []
    # Neither of them does again what the other has done.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()}
    again = measured(null_bundle, faces, tmp_path / "mine", cluster.over(local.scheduler_address, notes.append))
    assert rows(again) == rows(mine)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()} == written


def test_a_worker_that_dies_in_the_middle_costs_time_alone(
    local: Any, null_bundle: Bundle, faces: drift.Faces, tmp_path: Path
) -> None:
    lost = list[str]()

    def kill() -> None:
        until(lambda: busy(local))
        address = busy(local).address
        pid = next(w.pid for w in local.workers.values() if w.worker_address == address)
        until(lambda: runtimes_of(pid))
        os.kill(pid, signal.SIGKILL)
        lost.append(address)

    killer = threading.Thread(target=kill)
    killer.start()
    found = measured(null_bundle, faces, tmp_path / "its", cluster.over(local.scheduler_address, lambda _: None))
    killer.join()
    assert lost[0] not in local.scheduler.workers
    events = (event for _, event in local.scheduler.get_events("all") if event.get("worker") == lost[0])
    assert any(event["processing-tasks"] for event in events if event["action"] == "remove-worker")
    mine = measured(null_bundle, faces, tmp_path / "mine", chunks.processes(1))
    assert rows(found) == rows(mine)
    assert kept(tmp_path / "its") == kept(tmp_path / "mine")


def test_a_runtime_that_crashes_leaves_the_dask_worker_alone(
    local: Any, null_bundle: Bundle, faces: drift.Faces, tmp_path: Path
) -> None:
    before = {worker.pid for worker in local.workers.values()}

    def kill() -> None:
        until(lambda: any(map(runtimes_of, before)))
        next(found for pid in before for found in runtimes_of(pid)).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EdgeError, match=r"^the runtime crashed with SIGKILL: "):
        measured(null_bundle, faces, tmp_path / "its", cluster.over(local.scheduler_address, lambda _: None))
    killer.join()
    assert {worker.pid for worker in local.workers.values()} == before


def test_the_command_speaks_to_its_scheduler_alone(
    local: Any, null_bundle: Bundle, faces: drift.Faces, tmp_path: Path
) -> None:
    start = [sys.executable, "-P", "-m", "pipnet_edge.cli", "drift", str(null_bundle.folder), "--json"]
    more = ["--reference", "null-fp32", "--images", str(faces.labels.images[0].parent)]
    host, _, port = local.scheduler_address.removeprefix("tcp://").rpartition(":")
    seen, listens = set[Any](), list[Any]()
    out = str(tmp_path / "out")
    with subprocess.Popen(
        [*start, *more, "--dask", local.scheduler_address, "-o", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        watched = psutil.Process(command.pid)
        while command.poll() is None:
            try:
                held = watched.net_connections("inet")
            except psutil.Error:
                break  # it has ended
            listens += [each for each in held if each.status == psutil.CONN_LISTEN]
            seen |= {each.raddr for each in held if each.raddr}
        told, error = command.communicate()
    assert command.returncode == 0, error
    assert seen == {(host, int(port))}
    assert listens == []
    result = json.loads(told)["result"]
    mine = subprocess.run([*start, *more, "-o", out], capture_output=True, text=True, check=True)
    assert json.loads(mine.stdout)["result"] == result


def test_an_interrupted_command_ends_and_says_what_it_kept(
    local: Any, null_bundle: Bundle, faces: drift.Faces, tmp_path: Path
) -> None:
    words = [
        sys.executable,
        "-P",
        "-m",
        "pipnet_edge.cli",
        "drift",
        str(null_bundle.folder),
        "-o",
        str(tmp_path / "out"),
    ]
    more = ["--images", str(faces.labels.images[0].parent), "--dask", local.scheduler_address]
    with subprocess.Popen([*words, *more], stderr=subprocess.PIPE, text=True) as command:
        until(lambda: (tmp_path / "out/cache").exists() and kept(tmp_path / "out/cache"))
        command.send_signal(signal.SIGINT)
        error = command.communicate(timeout=10)[1]
    assert command.returncode == 130
    assert error.splitlines()[-1].startswith(
        "pipnet-edge drift: interrupted; chunks of faces that were finished are kept in "
    )
    assert "Traceback" not in error
    until(lambda: busy(local) is None)
