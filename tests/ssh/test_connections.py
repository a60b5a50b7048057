"""Connections that end, and hosts that cannot be reached: a real sshd on loopback (see conftest.py)."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge.bundle import Bundle
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.ssh import board as ssh
from pipnet_edge.targets.ssh import wire
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol

Clean = Any  # conftest.StandIn


def refused(work: Callable[[], object]) -> str:
    """The message of the EdgeError that `work` raises: one line."""
    with pytest.raises(EdgeError) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def greet(clean: Clean, host: str = "board", **options: Any) -> None:
    with clean.connect(host, **options):
        pass


def forever(bundle: Bundle) -> protocol.Time:
    """A job that takes its time."""
    return protocol.Time(str(bundle.folder), "null-fp32", 1, warmup=1, seconds=600, count=1)


def kind(event: protocol.Event) -> str:
    return type(event).__name__.lower()


# --- Connections that end.


def run_until_cut(clean: Clean, bundle: Bundle, cut: Callable[[], None], options: tuple[str, ...] = ()) -> str:
    """The message when `cut` is called after samples came. Samples until then have reached the listener."""
    samples: list[float] = []

    def listen(event: protocol.Event) -> None:
        if isinstance(event, protocol.Samples) and event.stages["decode"]:
            samples.extend(event.stages["decode"])
            assert any("pipnet_edge.worker" in line for line in clean.processes().values())
            cut()

    def visit() -> None:
        with ssh.connect("board", options=(*clean.options, *options)) as board:
            try:
                board.call(forever(bundle), listen)
            except calls.Lost:
                # It says so again, at once.
                assert "was lost" in refused(lambda: board.call(protocol.Facts()))
                raise

    message = refused(visit)
    assert samples
    return message


def sessions(clean: Clean) -> list[int]:
    """The server's processes of this connection."""
    return [pid for pid, line in clean.processes().items() if line.startswith("sshd:")]


def test_a_connection_that_is_cut(clean: Clean, bundle: Bundle) -> None:
    def cut() -> None:
        for pid in sessions(clean):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    message = run_until_cut(clean, bundle, cut)
    assert message.startswith("the connection to board was lost while 'time null-fp32' ran there (")
    assert re.search("closed|reset|[Bb]roken", message)


def test_a_connection_that_falls_silent(clean: Clean, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet says that the other end is gone; both ends notice by themselves."""
    monkeypatch.setattr(wire, "BEAT", 0.5)
    monkeypatch.setattr(wire, "PATIENCE", 4.0)
    stopped: list[int] = []

    def cut() -> None:
        stopped.extend(pid for pid in sessions(clean) if pid not in stopped)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    message = run_until_cut(clean, bundle, cut, ("-o", "ServerAliveInterval=1"))
    try:
        assert re.search("was lost .*(Timeout, server 127.0.0.1 not responding|no sign of life)", message)
        end = time.monotonic() + 20
        while any("sshd" not in line for line in clean.processes().values()):
            assert time.monotonic() < end, clean.processes()
            time.sleep(0.1)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_command_that_is_interrupted(clean: Clean, bundle: Bundle, number: signal.Signals) -> None:
    script = (
        "import sys\n"
        "from pipnet_edge.targets.ssh import board as ssh\n"
        "from pipnet_edge.worker.protocol import read_job\n"
        "with ssh.connect('board') as board:\n"
        "    board.call(read_job(sys.argv[1]), lambda event: print(type(event).__name__.lower(), flush=True))\n"
    )
    command = [sys.executable, "-P", "-c", script, protocol.write_job(forever(bundle))]
    environment = {**os.environ, ssh.OPTIONS: shlex.join(clean.options)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        assert [run.stdout.readline().strip() for _ in range(3)] == ["loaded", "first", "samples"]
        assert len(clean.files()) > 10
        run.send_signal(number)
        assert run.wait(30) != 0
    clean.wait_until_quiet()
    assert clean.files() == []


def test_a_listener_that_raises(clean: Clean, bundle: Bundle) -> None:
    """The worker is ended, and the board can be used again."""

    def enough(event: protocol.Event) -> None:
        raise LookupError(kind(event))

    with clean.connect() as board:
        with pytest.raises(LookupError, match="loaded"):
            board.call(forever(bundle), enough)
        assert not any("pipnet_edge.worker" in line for line in clean.processes().values())
        assert board.call(protocol.Facts()).facts["machine"]


def test_another_thread_closes_the_connection(clean: Clean, bundle: Bundle) -> None:
    """As an interrupted command does, whose boards are at work in threads."""
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with clean.connect() as board:
            visit = pool.submit(board.call, forever(bundle), lambda _: started.set())
            assert started.wait(60)
        with pytest.raises(calls.Lost):
            visit.result(60)


def test_a_far_end_that_is_killed(clean: Clean, bundle: Bundle) -> None:
    """It cannot clean up; the worker ends with its next line, and the next session removes what lies there."""

    def kill(_: protocol.Event) -> None:
        for pid, line in clean.processes().items():
            if "sys.stdin.buffer.read" in line and not line.startswith("sshd"):
                with contextlib.suppress(ProcessLookupError):  # it ended with the one before
                    os.kill(pid, signal.SIGKILL)

    with clean.connect() as board, pytest.raises(calls.Lost, match="was lost while 'time null-fp32' ran there"):
        board.call(forever(bundle), kill)
    clean.wait_until_quiet()
    for path in (clean.home / ".cache/pipnet-edge").glob("session-*"):
        os.utime(path, (0, 0))
    greet(clean)


# --- Hosts that cannot be reached.


@pytest.mark.parametrize(
    ("host", "advice", "words"),
    [
        ("locked", "no key that it accepts; check .* `ssh-copy-id locked`", "Permission denied"),
        ("stranger", "its host key is not known; connect once by hand, `ssh stranger`", "Host key verification failed"),
        ("reinstalled", "its host key is not the one in known_hosts", "Host key verification failed"),
        ("unresolved", "there is no such name", "Could not resolve hostname"),
        ("closed", "no ssh server listens; on the board: sudo systemctl enable --now ssh", "Connection refused"),
        ("barred", "`ssh -v barred true` tells more", "ssh ended without a word"),
    ],
)
def test_hosts_that_cannot_be_reached(clean: Clean, host: str, advice: str, words: str) -> None:
    message = refused(lambda: greet(clean, host))
    assert message.startswith(f"cannot connect to {host}: ")
    assert re.search(advice, message)
    assert words in message


@pytest.mark.parametrize(
    "host",
    ["", "-oProxyCommand=touch", "pi@-oProxyCommand", "two words", "new\nline", "$(touch x)", "a;b", "a`b`", "@a"],
)
def test_host_names_that_are_none(host: str) -> None:
    with pytest.raises(EdgeError, match="is no host; allowed"), ssh.connect(host):
        pass


@pytest.mark.parametrize("host", ["rpi4", "pi@rpi4.local", "ssh://pi@10.0.0.2:2222", "me.too@fe80::1%eth0", "[::1]"])
def test_host_names(host: str) -> None:
    assert ssh.HOST.fullmatch(host)


def test_a_machine_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeError, match="no ssh in PATH"), ssh.connect("rpi4"):
        pass
