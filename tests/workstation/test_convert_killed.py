"""What convert leaves when it is killed: an older bundle, no process, and nothing after the next convert."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge.converters import demo

CONVERT = ["convert", str(demo.CHECKPOINT), "--data", "300w", "--precision", "fp32", "-o", "bundle"]


def living(mark: str) -> list[int]:
    """Processes that have this in their environment. One that only waits to be reaped has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A convert in `folder`, whose processes, and their children, have the folder's path as a mark."""
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "CONVERT_TEST": str(folder)}
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *CONVERT, *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def await_step(run: subprocess.Popen[str], step: str) -> None:
    assert run.stderr
    assert any(step in line for line in run.stderr)


@pytest.mark.parametrize(("to", "step"), [("tflite", "tflite-fp32"), ("onnx", "parity")])
def test_killed(tmp_path: Path, to: str, step: str) -> None:
    (tmp_path / "bundle").mkdir()
    assert started(tmp_path, "--to", "onnx", "--input-size", "64").wait() == 0
    older = bundles.read(tmp_path / "bundle")
    run = started(tmp_path, "--to", to, "--input-size", "96")
    await_step(run, step)
    time.sleep(1 if to == "tflite" else 0.2)  # its converter, or a worker, runs
    run.send_signal(signal.SIGKILL)
    run.communicate()
    deadline = time.monotonic() + 3
    while living(str(tmp_path)):
        assert time.monotonic() < deadline, "a process lives on"
        time.sleep(0.05)
    assert bundles.read(tmp_path / "bundle") == older
    assert older.damaged() == {}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [bool(re.fullmatch(r"\.bundle-\w{8}", name)) for name in names] == [True, False, False]
    assert started(tmp_path, "--to", "onnx", "--input-size", "96").wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []
    newer = bundles.read(tmp_path / "bundle")
    assert (newer.spec.input_size, newer.damaged()) == (96, {})


@pytest.mark.parametrize("step", ["load", "export", "tflite-fp32", "parity"])
def test_interrupted(tmp_path: Path, step: str) -> None:
    """All is gone within 3 seconds. Python itself then takes a second to forget torch, longer on a busy machine."""
    run = started(tmp_path, "--to", "tflite")
    await_step(run, step)
    time.sleep(0.1)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 3
    while [path.name for path in tmp_path.iterdir()] != ["tmp"] or living(str(tmp_path)) not in ([], [run.pid]):
        assert time.monotonic() < deadline, "something is left"
        time.sleep(0.05)
    _, stderr = run.communicate(timeout=20)
    assert run.returncode == 130, stderr
    assert "interrupted; nothing half-written was left" in stderr
    assert list((tmp_path / "tmp").iterdir()) == []
