"""The commands against a board: a real sshd on loopback (see conftest.py)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.speed import result as results
from pipnet_edge.bundle import Bundle
from pipnet_edge.errors import CHECK_FAILED
from pipnet_edge.targets.ssh import board

Clean = Any  # conftest.StandIn
INTERRUPTED = 130


@pytest.fixture
def start(clean: Clean, tmp_path: Path) -> Any:
    """start("bench", …): a command that reaches the board, with settings of its own."""

    def begin(*words: object) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            board.OPTIONS: shlex.join(clean.options),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }
        command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *map(str, words)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )

    return begin


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit status, stdout, the lines of stderr that tell no progress)."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, "\n".join(line for line in err.splitlines() if not line.startswith("["))


def test_bench_on_two_boards_is_one_table(clean: Clean, bundle: Bundle, start: Any, tmp_path: Path) -> None:
    assert finish(start("targets", "--save", "rpi4=board"))[0] == 0
    words = ("bench", bundle.folder, "--variant", "null-fp32", "--threads", 1, "--seconds", 0.2, "-o", "shelf.json")
    code, out, err = finish(start(*words, "--target", "rpi4", "--target", "rpi5", "--host", "rpi5=board"))
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith("null-fp32")]
    assert ["rpi4" in row for row in rows] == [True, False]
    assert all("measured" in row for row in rows)
    found = results.read(tmp_path / "shelf.json")
    assert [run.target for run in found.measured] == ["rpi4", "rpi5"]
    assert all(run.frames.size >= 50 for run in found.measured)
    assert found.facts["rpi4"]["python"]
    clean.wait_until_quiet()
    assert clean.files() == []


def test_a_board_that_cannot_be_reached_does_not_spoil_the_others(
    clean: Clean, bundle: Bundle, start: Any, tmp_path: Path
) -> None:
    words = ("bench", bundle.folder, "--variant", "null-fp32", "--threads", 1, "--seconds", 0.2, "-o", "shelf.json")
    hosts = ("--target", "rpi4", "--target", "rpi5", "--host", "rpi4=ssh://board:1", "--host", "rpi5=board")
    code, _, err = finish(start(*words, *hosts))
    assert code == CHECK_FAILED
    assert err.startswith("pipnet-edge bench: rpi4: cannot connect to ssh://board:1: ")
    assert [run.target for run in results.read(tmp_path / "shelf.json").measured] == ["rpi5"]


def test_samples_before_a_cut_are_kept(clean: Clean, bundle: Bundle, start: Any, tmp_path: Path) -> None:
    words = ("bench", bundle.folder, "--host", "board", "--variant", "null-fp32", "--threads", "1", "--seconds", 600)
    running = start(*words, "-o", "cut.json")
    wait_for_a_worker(clean)
    time.sleep(1)
    for pid, line in clean.processes().items():
        if line.startswith("sshd:"):
            os.kill(pid, signal.SIGKILL)
    code, out, err = finish(running)
    assert code == CHECK_FAILED
    assert "the connection to board was lost while 'time null-fp32' ran there" in err
    (run,) = results.read(tmp_path / "cut.json").measured
    assert run.frames.size > 10
    assert run.failure
    assert "ended early: the connection to board was lost" in out
    clean.wait_until_quiet()
    assert clean.files() == []


def test_an_interrupt_leaves_nothing_here_or_there(clean: Clean, bundle: Bundle, start: Any, tmp_path: Path) -> None:
    running = start("bench", bundle.folder, "--host", "board", "--threads", "1", "--seconds", 600, "-o", "never.json")
    wait_for_a_worker(clean)
    running.send_signal(signal.SIGINT)
    code, out, err = finish(running)
    assert (code, out) == (INTERRUPTED, "")
    assert err == "pipnet-edge bench: interrupted; nothing half-written was left"
    assert list(tmp_path.glob("*.json")) == []
    clean.wait_until_quiet()
    assert clean.files() == []


def wait_for_a_worker(clean: Clean) -> None:
    end = time.monotonic() + 30
    while not any("pipnet_edge.worker" in line for line in clean.processes().values()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_tuning_a_board_is_kept_here(clean: Clean, bundle: Bundle, start: Any, tmp_path: Path) -> None:
    here = shutil.copytree(bundle.folder, tmp_path / "bundle")
    words = ("--variant", "null-fp32", "--threads", 1, "--seconds", 0, "--count", 5, "--json")
    code, out, err = finish(start("bench", here, "--tune", "--host", "board", *words))
    assert (code, err) == (0, "")
    (found,) = json.loads(out)["result"]["tuned"]
    assert (found["target"], found["tried"][0]["chosen"]) == ("board", True)
    assert set(bundles.read(here).tuned) == {found["device"]}


def test_parity_and_doctor(clean: Clean, bundle: Bundle, start: Any) -> None:
    code, out, err = finish(start("parity", bundle.folder, "--host", "board", "--variant", "null-fp16", "--json"))
    assert (code, err) == (0, "")
    found = json.loads(out)["result"]
    assert (found["target"], found["kind"]) == ("board", "measured")
    assert [row["flips"] for row in found["rows"]] == [0]
    code, out, err = finish(start("doctor", "--host", "board", "--json"))
    assert code in (0, CHECK_FAILED), err
    assert json.loads(out)["result"]["target"] == "board"
    assert json.loads(out)["result"]["machine"]["python"]
