"""What passes between a command and a worker: recorded talks, what is refused, and how a worker ends."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipnet_edge
from pipnet_edge.bundle import Bundle
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import device_half, protocol, serve

TALKS = Path(__file__).resolve().parents[1] / "golden" / "worker"
NAMES = sorted(path.stem for path in TALKS.glob("*.jsonl"))
REFUSED = json.loads((TALKS / "refused.json").read_text())


def talk(name: str) -> tuple[Any, list[str]]:
    """The job and the worker's lines."""
    job, *lines = (TALKS / f"{name}.jsonl").read_text().splitlines(keepends=True)
    return protocol.read_job(job), lines


# --- Lines.


@pytest.mark.parametrize("name", NAMES)
def test_recorded_lines_are_read_and_written_again(name: str) -> None:
    job, lines = talk(name)
    assert (TALKS / f"{name}.jsonl").read_text().startswith(protocol.write_job(job))
    assert [protocol.write_event(protocol.read_event(line, job)) for line in lines] == lines
    assert all(line.startswith(protocol.EVENT) for line in lines)


def test_every_job_and_event_is_recorded() -> None:
    assert {type(talk(name)[0]) for name in NAMES} == set(protocol.JOBS.values())
    told = {json.loads(line)["event"] for name in NAMES for line in talk(name)[1]}
    assert told == {*protocol.EVENTS, protocol.DONE}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["line"][:60])
def test_what_is_refused(case: dict[str, str]) -> None:
    job = talk(case["job"])[0] if case["job"] else None
    with pytest.raises(EdgeError) as caught:
        protocol.read_event(case["line"], job) if job else protocol.read_job(case["line"])
    assert case["why"] in str(caught.value)
    assert str(caught.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(name=st.sampled_from(NAMES), data=st.data())
def test_no_line_gives_anything_but_an_edge_error(name: str, data: st.DataObject) -> None:
    """Recorded lines of which one field is another."""
    job, lines = talk(name)
    line = json.loads(data.draw(st.sampled_from(lines)))
    line[data.draw(st.sampled_from(sorted(line)))] = data.draw(JSON)
    try:
        found = protocol.read_event(json.dumps(line), job)
    except EdgeError:
        return
    assert protocol.read_event(protocol.write_event(found), job) == found


@given(st.binary())
def test_bytes_that_are_no_line(content: bytes) -> None:
    with pytest.raises(EdgeError):
        protocol.read_job(content.decode(errors="replace"))


# --- Following.


@pytest.mark.parametrize("name", [name for name in NAMES if name != "refusal"])
def test_a_talk_is_followed_to_its_answer(name: str) -> None:
    job, lines = talk(name)
    events: list[protocol.Event] = []
    answer = calls.follow(lines, job, events.append)
    assert isinstance(answer, job.ANSWER)
    assert [protocol.write_event(event) for event in (*events, answer)] == lines


def test_a_refusal_is_raised_and_silence_is_no_answer() -> None:
    job, lines = talk("refusal")
    with pytest.raises(EdgeError, match="no runtime 'tensorrt'") as caught:
        calls.follow(lines, job)
    assert caught.value.code == 1
    assert calls.follow([], job) is None


def test_a_line_without_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "endless"
    script.write_text("#!/bin/sh\nread job\nyes | tr -d '\\n'\n")
    script.chmod(0o755)
    with pytest.raises(EdgeError, match=f"a line of more than {protocol.LONGEST} bytes"):
        calls.start([str(script)], protocol.Facts())


def test_what_a_worker_leaves_is_looked_at(monkeypatch: pytest.MonkeyPatch, null_bundle: Bundle) -> None:
    crops, _ = null_bundle.read_golden()

    def leaving(**arrays: Any) -> Callable[..., protocol.Version]:
        def call(job: Any, listen: calls.Listen = calls.ignore) -> Any:
            np.savez(job.out, **arrays)
            return protocol.Version("x")

        return call

    def refused(call: Any, message: str) -> None:
        with pytest.raises(EdgeError, match=message):
            calls.infer(call, null_bundle.folder, "null-fp32", 1, crops)

    points, score, cell = np.zeros((3, 5, 2), np.float32), np.zeros((3, 5), np.float32), np.zeros((3, 5), int)
    good = {"points": points, "score": score, "cell": cell}
    assert calls.infer(leaving(**good), null_bundle.folder, "null-fp32", 1, crops).version == "x"
    refused(leaving(**{**good, "points": points[:2]}), r"what the worker gave: points has shape \(2, 5, 2\)")
    refused(leaving(**{**good, "cell": cell + 9}), "cells that the map of 3 x 3 has not")
    refused(leaving(**{**good, "score": score + np.nan}), "score holds NaN or infinity")
    refused(leaving(points=points), "what the worker gave is not readable: it has no array 'score'")
    monkeypatch.setattr(calls, "LARGEST", 100)
    refused(leaving(**good), "what the worker gave has .* bytes; at most 100 are read|at most 100")

    def nothing(job: Any, listen: calls.Listen = calls.ignore) -> Any:
        return protocol.Version("x")

    refused(nothing, "what the worker gave is not readable")


def test_files_that_a_job_cannot_have_are_an_error(null_bundle: Bundle, tmp_path: Path) -> None:
    """Whoever reads the lines, in whatever language, gets an end."""
    lines, bundle = io.StringIO(), str(null_bundle.folder)
    for job in (
        protocol.Infer(bundle, "null-fp32", 1, str(tmp_path / "out.npz"), str(tmp_path / "no.npy")),
        protocol.Infer(bundle, "null-fp32", 1, str(tmp_path / "no" / "out.npz")),
    ):
        assert serve.serve(lines, protocol.write_job(job)) == 1
        last = protocol.read_event(lines.getvalue().splitlines()[-1], job)
        assert isinstance(last, protocol.Error)
        assert re.fullmatch("cannot use .*: No such file or directory", last.message)


def test_workers_end_with_the_block_that_has_them(slow: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    """Also where another thread waits for one."""
    for name, value in slow.items():
        monkeypatch.setenv(name, value)
    with ThreadPoolExecutor(1) as pool:
        with calls.Workers() as workers:
            visit = pool.submit(workers.call, protocol.Probe("ncnn"))
            found = pids(tmp_path / "pids")
        with pytest.raises(EdgeError, match="crashed with SIGKILL"):
            visit.result(20)
    gone(found)
    with pytest.raises(EdgeError, match="crashed with SIGKILL"):
        workers.call(protocol.Facts())


# --- A worker's life.

SLOW = """
import os, subprocess, sys, time
__version__ = "1"
child = subprocess.Popen(["sleep", "600"])
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """The environment of a worker whose runtime starts a process and then takes its time."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "ncnn.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PIDS": str(tmp_path / "pids")}


def pids(path: Path) -> list[int]:
    end = time.monotonic() + 60
    while not path.is_file() or len(path.read_text().split()) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    return [int(word) for word in path.read_text().split()]


def gone(found: list[int]) -> None:
    end = time.monotonic() + 20
    while any(map(lives, found)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_end_of_stdin_ends_a_worker_and_what_it_started(slow: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "pipnet_edge.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=slow, text=True) as worker:
        assert worker.stdin is not None
        worker.stdin.write(protocol.write_job(protocol.Probe("ncnn")))
        worker.stdin.flush()
        found = pids(tmp_path / "pids")
        for _ in range(3):  # signs of life
            worker.stdin.write("\n")
            worker.stdin.flush()
            time.sleep(0.1)
        assert all(map(lives, found))
        worker.stdin.close()
        assert worker.wait(20) == -signal.SIGKILL
    gone(found)


def test_a_command_that_is_killed_takes_its_worker_along(slow: dict[str, str], tmp_path: Path) -> None:
    """It cannot clean up, but its end of the pipe is closed."""
    script = (
        "from pipnet_edge.worker import call, protocol\n"
        "try:\n    call.here(protocol.Probe('ncnn'))\nfinally:\n    print('cleaned up')\n"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", script], env=slow, stdout=subprocess.PIPE) as command:
        found = pids(tmp_path / "pids")
        command.kill()
        assert command.stdout is not None
        assert command.stdout.read() == b""
    gone(found)


# --- The device half.


def test_the_device_half_is_all_that_a_worker_needs(tmp_path: Path, null_bundle: Bundle) -> None:
    for name, path in device_half.files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / name)
    assert not [path for path in tmp_path.rglob("*") if re.search("cli|converters|benchmarks|targets", path.name)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    crops, _ = null_bundle.read_golden()

    def there(job: Any, listen: calls.Listen = calls.ignore) -> Any:
        return calls.start([sys.executable, *calls.WORKER], job, listen, environment)

    shown = "import pipnet_edge; print(pipnet_edge.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", shown], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert "null" in there(protocol.Facts()).runtimes
    assert calls.infer(there, null_bundle.folder, "null-fp32", 1, crops).landmarks.points.shape == (3, 5, 2)


def test_the_device_half_imports_nothing_else_of_the_package() -> None:
    """An installed copy beside it would hide a file that is left out."""
    known = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name, _ in device_half.files()}
    used = set()
    for _, path in device_half.files():
        for node in ast.walk(ast.parse(path.read_text())) if path.suffix == ".py" else ():
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipnet_edge"):
                used |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & modules()
    assert used <= known


def modules() -> set[str]:
    """All modules of the package."""
    folder = Path(pipnet_edge.__file__).parent
    paths = (path.relative_to(folder.parent).with_suffix("") for path in folder.rglob("*.py"))
    return {".".join(path.parts).removesuffix(".__init__") for path in paths}
