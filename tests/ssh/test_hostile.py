"""Boards that say what no board says, or nothing: a program in place of ssh plays them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge.bundle import Bundle
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.ssh import board as ssh
from pipnet_edge.targets.ssh import wire
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import limits, protocol

HELLO = (
    b'{"far": "hello", "folder": "/x", "python": "/p", "version": "3.11.2", "machine": "aarch64", "bits": 64, '
    b'"venv": true, "ensurepip": true, "packages": ["numpy"]}\n'
)
LOADED = b'{"event": "loaded", "milliseconds": 1.0, "version": "x", "arithmetic": "fp32"}\n'
DONE = b'{"event": "done", "version": "x"}\n'
ENDED = b'{"far": "ended", "status": 0, "stderr": ""}\n'
STATE = b'"state": {"mhz": [], "celsius": null, "throttled": null, "load": null}}\n'
# It has all files already, and answers every other request as it was told.
BOARD = """#!{python}
import os, sys, time
def say(name):
    path = os.path.join({folder!r}, name)
    if os.path.exists(path):
        sys.stdout.buffer.write(open(path, "rb").read())
    sys.stdout.flush()
say("hello")
for line in sys.stdin.buffer:
    if line.startswith(b'{{"ask": "place"'):
        print('{{"far": "placed", "lacking": [], "free": 1000000000}}', flush=True)
    elif line.startswith(b'{{"ask": '):
        say(line.split(b'"')[3].decode())
time.sleep({lingers})
"""
Play = Callable[..., Any]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """play(run=…, take=…, hello=…, stop=…): a board that answers so, found where ssh is looked for."""

    def install(*, lingers: float = 0, **replies: bytes) -> None:
        for name, reply in ({"hello": HELLO, "stop": ENDED} | replies).items():
            (tmp_path / name).write_bytes(reply)
        path = tmp_path / "ssh"
        path.write_text(BOARD.format(python=sys.executable, folder=str(tmp_path), lingers=lingers))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return install


def refused(work: Callable[[], object]) -> str:
    """The message of the EdgeError that `work` raises: one line that can be printed, and soon."""
    start = time.monotonic()
    with pytest.raises(EdgeError) as caught:
        work()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert time.monotonic() - start < 20
    return str(caught.value)


def ask(job: protocol.Job[Any]) -> Any:
    with ssh.connect("board") as board:
        return board.call(job)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (b'{"event": "done", "version": "\xff\xfe"}\n', "the board wrote a line that is not UTF-8"),
        (b'{"event": ' + b"[" * 100_000 + b"\n", "what the worker wrote is no JSON"),
        (b'{"event": "' + b"x" * protocol.LONGEST, f"a line of more than {protocol.LONGEST} bytes"),
        (b"\x1b[2J\n", "the board wrote a line that is no message: ?[2J"),
        (DONE + DONE, "the worker went on after its answer"),
        (b'{"event": "progress", "done": 9, "of": 2}\n', "done is 9; 0 to 2 are allowed"),
        (b'{"event": "progress", "done": 1, "of": ' + b"9" * 400 + b"}\n", "of is 9"),
        (b'{"event": "error", "message": "x", "code": 0}\n', "code 0; 1 and 3 are allowed"),
        (b'{"event": 3}\n', "the worker told of 3"),
        (b"[]\n", "the board wrote a line that is no message: []"),
        (b'{"far": "taken", "bytes": 1e12}\n', "int is needed"),
        (b'{"far": "taken", "bytes": 1000000000000}\n', "at most"),
        (b'{"far": "ended", "status": -4, "stderr": ""}\n', "the runtime crashed with SIGILL"),
        (ENDED, "ended with status 0"),
        (b'{"far": "placed", "lacking": [], "free": 1}\n', "Ended is needed"),
        (LOADED * 10_000, f"the worker wrote more than {limits.LINES} lines"),
        ((LOADED[:-2] + b" " * 1_000_000 + b"}\n") * 30, f"the worker wrote more than {limits.TEXT} characters"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_no_worker_says(play: Play, run: bytes, message: str) -> None:
    play(run=run)
    said = refused(lambda: ask(protocol.Probe("null")))
    assert message in said
    assert said.startswith("board: ")


@pytest.mark.parametrize(
    "stages",
    [
        b'{"preprocess": [], "inference": [NaN], "decode": [1.0]}',
        b'{"preprocess": [], "inference": [1e999], "decode": [1.0]}',
        b'{"preprocess": [], "inference": [-1.0], "decode": [1.0]}',
        b'{"preprocess": [], "inference": [0.0], "decode": [1.0]}',
        b'{"preprocess": [1.0], "inference": [1.0, 2.0], "decode": [1.0, 2.0]}',
        b'{"preprocess": [], "inference": [1.0], "decode": []}',
        b'{"preprocess": [], "inference": {}, "decode": [1.0]}',
    ],
)
def test_samples_that_are_none(play: Play, stages: bytes) -> None:
    play(run=b'{"event": "samples", "at": 0.5, "stages": ' + stages + b", " + STATE)
    assert "sample" in refused(lambda: ask(protocol.Facts()))


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (
            b'{"far": "failed", "errno": "ENOENT", "reason": "No such file", "path": "/x/out.npz", "free": 1}\n',
            "cannot",
        ),
        (b'{"far": "taken", "bytes": 0}\n', "what the worker gave is not readable"),
        (b'{"far": "taken", "bytes": 9}\nno zip at', "what the worker gave is not readable"),
        (b'{"far": "put"}\n', "Taken is needed"),
    ],
)
def test_results_that_are_none(play: Play, bundle: Bundle, take: bytes, message: str) -> None:
    play(run=LOADED + DONE + ENDED, take=take)
    crops = np.zeros((1, 96, 96, 3), np.uint8)

    def infer() -> None:
        with ssh.connect("board") as board:
            calls.infer(board.call, bundle.folder, "null-fp32", 1, crops)

    assert message in refused(infer)


def test_a_board_that_does_not_answer(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOON", 1.0)
    play(run=b"", stop=b'{"far": "ended", "status": -9, "stderr": ""}\n')
    assert refused(lambda: ask(protocol.Probe("null"))) == "board: 'probe null' did not answer within 1 s"


def test_a_board_that_does_not_greet(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "REPLY", 1.0)
    play(hello=b"Welcome\n")
    assert (
        refused(lambda: ask(protocol.Facts())) == "board: connected, but there is no reply within 1 s; is it very busy?"
    )


@pytest.mark.parametrize("words", [("doctor",), ("bench", "{bundle}"), ("parity", "{bundle}")], ids=lambda w: w[0])
@pytest.mark.parametrize("replies", [{}, {"hello": b""}], ids=["at work", "connecting"])
def test_an_interrupt_does_not_wait_for_a_board(
    play: Play, bundle: Bundle, words: Sequence[str], replies: dict[str, bytes], tmp_path: Path
) -> None:
    """One that hangs, and would not go."""
    play(lingers=600, run=b"", **replies)
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *(word.format(bundle=bundle.folder) for word in words)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--host", "board"], text=True, **options) as running:  # type: ignore[call-overload]
        time.sleep(2)
        assert running.poll() is None
        start = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=30)
    assert time.monotonic() - start < 3
    assert "interrupted; nothing half-written was left" in stderr
    assert "Traceback" not in stderr
    while _running(tmp_path / "ssh"):
        assert time.monotonic() - start < 4
        time.sleep(0.05)


def _running(program: Path) -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if os.fsencode(program) in path.read_bytes():
                found.append(path)
    return found
