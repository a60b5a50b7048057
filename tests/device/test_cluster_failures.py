"""What drift says of a scheduler that is not there or dies, and of a cluster that lacks what it needs."""

from __future__ import annotations

import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipnet_edge.benchmarks.accuracy import chunks, cluster, drift
from pipnet_edge.bundle import Bundle
from pipnet_edge.errors import EdgeError
from tests.device.cluster import measured, pretends, scheduler, until, worker, write_faces

pytest.importorskip("distributed", reason="drift --dask needs Dask")

HIDES = ("unshare", "--map-root-user", "--mount", "sh", "-c")
FOLDERS = 'mount -t tmpfs none "$0"; exec "$@"'
BINDS = 'mount --bind "$0" "$1"; shift; exec "$@"'


@pytest.fixture
def faces(null_bundle: Bundle, tmp_path: Path) -> drift.Faces:
    return write_faces(null_bundle, tmp_path / "faces", 40)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A scheduler without workers."""
    with scheduler(tmp_path) as (found, _):
        yield found


@pytest.fixture(scope="module")
def mounts() -> None:
    if not shutil.which("unshare") or subprocess.run([*HIDES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare with user namespaces")


def command(bundle: Bundle, faces: drift.Faces, *more: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-P", "-m", "pipnet_edge.cli", "drift", bundle.folder, "--reference", "null-fp32"]
    words += ["--images", faces.labels.images[0].parent, *more]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=120)


def refused(bundle: Bundle, faces: drift.Faces, out: Path, address: str) -> str:
    """The one line of an error, without the cache's progress."""
    done = command(bundle, faces, "--dask", address, "-o", out)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if not re.match(r"\[\d+/\d+\] ", line))
    return line.removeprefix("pipnet-edge drift: ")


# --- The scheduler.


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("127.0.0.1:1", "TimeoutError|OSError: Timed out trying to connect to tcp://127.0.0.1:1 "),
        ("nobody.invalid:8786", "TimeoutError|OSError: Timed out trying to connect to tcp://nobody.invalid:8786 "),
        ("", "ValueError: missing port number in address "),
        ("scheduler", "ValueError: missing port number in address "),
        ("http://127.0.0.1:8786", "ValueError: unknown address scheme 'http'"),
        ("tcp://127.0.0.1:x\x1b[31m\n", "ValueError: "),
    ],
)
def test_a_scheduler_that_is_not_there(
    null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, given: str, reason: str
) -> None:
    start = time.monotonic()
    with pytest.raises(EdgeError) as raised:
        measured(null_bundle, faces, tmp_path / "cache", cluster.over(given, print))
    assert time.monotonic() - start < 10
    assert re.match(rf"the Dask scheduler .* does not answer: ({reason})", str(raised.value))
    assert str(raised.value).isprintable()


def test_it_is_one_line(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    line = refused(null_bundle, faces, tmp_path / "out", "tcp://127.0.0.1:1")
    assert line.startswith("the Dask scheduler tcp://127.0.0.1:1 does not answer: ")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", bytes(8), b"\1" + bytes(7)]
)
def test_what_listens_is_no_scheduler(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return
                held[-1].sendall(answer)

        threading.Thread(target=accept, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(EdgeError, match=r"^the Dask scheduler 127\.0\.0\.1:\d+ does not answer: "):
            measured(
                null_bundle, faces, tmp_path / "cache", cluster.over(f"127.0.0.1:{server.getsockname()[1]}", print)
            )
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_scheduler_that_dies_or_hangs(null_bundle: Bundle, tmp_path: Path, number: signal.Signals) -> None:
    many = write_faces(null_bundle, tmp_path / "faces", 500)
    cache = tmp_path / "out" / "cache"
    with scheduler(tmp_path) as (address, process), worker(address, tmp_path):
        words = [sys.executable, "-P", "-m", "pipnet_edge.cli", "drift", null_bundle.folder, "--dask", address]
        words += ["--images", tmp_path / "faces", "-o", tmp_path / "out"]
        with subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE, text=True) as started:
            until(lambda: cache.exists() and list(cache.glob("*.landmarks")))
            process.send_signal(number)
            start = time.monotonic()
            error = started.communicate(timeout=60)[1]
            assert time.monotonic() - start < 20
    assert started.returncode == 1
    said = [line for line in error.splitlines() if not line.startswith("[")]
    assert said == [f"pipnet-edge drift: the Dask scheduler {address} was lost; {cluster.KEPT}"]
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert measured(null_bundle, many, cache, chunks.processes(1)).rows
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(cache.iterdir())) > len(kept)


def test_a_scheduler_without_workers(
    null_bundle: Bundle, faces: drift.Faces, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ALONE", 1.0)
    with pytest.raises(EdgeError, match=r"^the Dask scheduler .* has had no worker for 1 s; chunks .* are kept, "):
        measured(null_bundle, faces, tmp_path / "cache", cluster.over(address, print))


# --- Other versions.


@pytest.mark.parametrize("package", ["distributed", "pipnet_edge"])
def test_a_scheduler_of_another_version(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, package: str) -> None:
    with scheduler(tmp_path, **pretends(tmp_path, package)) as (address, _):
        line = refused(null_bundle, faces, tmp_path / "out", address)
    name = package.replace("_", "-")
    assert re.fullmatch(rf"the Dask scheduler {address}: {name} is 9\.9, \S+ where the command runs", line)


@pytest.mark.parametrize("package", ["dask", "pipnet_edge"])
def test_a_worker_of_another_version(
    null_bundle: Bundle, faces: drift.Faces, address: str, tmp_path: Path, package: str
) -> None:
    with worker(address, tmp_path, **pretends(tmp_path, package)):
        line = refused(null_bundle, faces, tmp_path / "out", address)
    name = package.replace("_", "-")
    assert re.fullmatch(rf"the Dask worker tcp://\S+: {name} is 9\.9, \S+ where the command runs", line)


def test_a_worker_with_another_runtime(null_bundle: Bundle, faces: drift.Faces, address: str, tmp_path: Path) -> None:
    with worker(address, tmp_path, **pretends(tmp_path, "numpy")):
        line = refused(null_bundle, faces, tmp_path / "out", address)
    assert re.fullmatch(
        rf"null is numpy 9\.9, numpy {np.__version__} where the command runs \(on the Dask worker tcp://\S+\)", line
    )


# --- Other files.


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ("bundle", r"there is no bundle at \S+"),
        ("faces", r"there is no image \S+"),
        ("cache", r"cannot write \S+\.landmarks: "),
    ],
)
@pytest.mark.usefixtures("mounts")
def test_a_worker_that_does_not_see_the_files(
    make_bundle: Callable[..., Bundle], address: str, tmp_path: Path, hidden: str, said: str
) -> None:
    bundle, out = make_bundle(tmp_path / "bundle"), tmp_path / "out"
    faces = write_faces(bundle, tmp_path / "faces", 4)
    (out / "cache").mkdir(parents=True)
    folder = {"bundle": bundle.folder, "faces": tmp_path / "faces", "cache": out}[hidden]
    with worker(address, tmp_path, (*HIDES, FOLDERS, str(folder))):
        line = refused(bundle, faces, out, address)
    assert re.match(said, line)
    assert re.search(r" \(on the Dask worker tcp://\S+\)$", line)


@pytest.mark.usefixtures("mounts")
def test_a_worker_that_sees_other_files(make_bundle: Callable[..., Bundle], address: str, tmp_path: Path) -> None:
    bundle, other = make_bundle(tmp_path / "bundle"), make_bundle(tmp_path / "other", count=4)
    faces = write_faces(bundle, tmp_path / "faces", 4)
    with worker(address, tmp_path, (*HIDES, BINDS, str(other.folder), str(bundle.folder))):
        line = refused(bundle, faces, tmp_path / "out", address)
    assert line.startswith(f"{bundle.folder} is another bundle than where the command runs (on the Dask worker ")
    image = faces.labels.images[2]
    (tmp_path / "image").write_bytes(image.read_bytes() + b"\0")
    with worker(address, tmp_path, (*HIDES, BINDS, str(tmp_path / "image"), str(image))):
        line = refused(bundle, faces, tmp_path / "out", address)
    assert line.startswith(f"{image} is another file than where the command runs (on the Dask worker ")
    assert not list((tmp_path / "out" / "cache").iterdir())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs the features of an x86 CPU")
@pytest.mark.usefixtures("mounts")
def test_a_worker_on_another_cpu_is_said(null_bundle: Bundle, faces: drift.Faces, address: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : sse2\n")
    notes = list[str]()
    with worker(address, tmp_path, (*HIDES, BINDS, str(tmp_path / "cpuinfo"), "/proc/cpuinfo")):
        assert measured(null_bundle, faces, tmp_path / "cache", cluster.over(address, notes.append)).rows
    (note,) = notes
    assert note.startswith("1 of 1 chunk ran on CPUs with other features than this machine's: ")


# --- Options.


def test_jobs_are_the_clusters(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    done = command(null_bundle, faces, "--dask", "127.0.0.1:1", "--jobs", 2, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr == (
        "pipnet-edge drift: --jobs 2 with --dask; a cluster's workers run as many as they have threads\n"
    )


def test_without_dask(
    null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, without: Callable[..., dict[str, str]]
) -> None:
    words = [sys.executable, "-P", "-m", "pipnet_edge.cli", "drift", null_bundle.folder, "--dask", "127.0.0.1:1"]
    words += ["--images", faces.labels.images[0].parent, "-o", tmp_path / "out"]
    done = subprocess.run(
        [str(w) for w in words], env=without("distributed"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("pipnet-edge drift: --dask needs Dask: pip install 'pipnet-edge[dask]' (")
    assert len(done.stderr.splitlines()) == 1
