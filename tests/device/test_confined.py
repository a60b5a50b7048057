"""Real processes that take too much memory or time, and what is left of them when their parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipnet_edge import confined

HUNGRY = "b = bytearray(1 << 30); print(len(b))"
SLEEPER = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(300)"
STARTER = """
import sys
from pathlib import Path
from pipnet_edge import confined
with open("log", "wb") as log:
    confined.run([sys.executable, "-c", sys.argv[1]], Path.cwd(), log, 1 << 30, 300)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux limits memory and kills a dead parent's children")


def run(code: str, folder: Path, memory: int = 1 << 32, seconds: float = 60) -> tuple[int | None, str]:
    log = folder / "log"
    with log.open("wb") as output:
        status = confined.run([sys.executable, "-c", code], folder, output, memory, seconds)
    return status, log.read_text()


def is_alive(process: int) -> bool:
    """Whether it runs: one that only waits for its end to be read does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@linux
def test_memory_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    status, said = run(HUNGRY, tmp_path, memory=256 << 20)
    assert status == 1
    assert "MemoryError" in said
    assert run(HUNGRY, tmp_path) == (0, f"{1 << 30}\n")


def test_a_program_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"
    start = time.monotonic()
    assert run(code, tmp_path, seconds=3)[0] is None
    assert time.monotonic() - start < 30
    process = int((tmp_path / "pid").read_text())
    wait_for_the_end(process)


@linux
def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", STARTER, SLEEPER], cwd=tmp_path)
    until = time.monotonic() + 60
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    assert is_alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for_the_end(child)


def test_the_status_of_a_crash_is_its_signal(tmp_path: Path) -> None:
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGFPE)", tmp_path)[0] == -signal.SIGFPE


def wait_for_the_end(process: int) -> None:
    until = time.monotonic() + 10
    while is_alive(process):
        assert time.monotonic() < until, f"{process} still runs"
        time.sleep(0.05)
