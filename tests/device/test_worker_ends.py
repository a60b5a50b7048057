"""What is said of workers that die."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol


def refused(message: str, work: Callable[[], object]) -> EdgeError:
    with pytest.raises(EdgeError, match=message) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return caught.value


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """python(script): a shell script that is started in the worker's place."""

    def install(script: str) -> None:
        path = tmp_path / "python"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return install


@pytest.mark.parametrize("name", ["SEGV", "KILL", "ABRT", "ILL"])
def test_a_signal_and_the_last_line_are_reported(python: Callable[[str], None], name: str) -> None:
    python(f"read job\necho 'loading' >&2\necho 'bad tensor 7' >&2\nkill -{name} $$\n")
    refused(f"crashed with SIG{name}: bad tensor 7$", lambda: calls.here(protocol.Facts()))


def test_a_native_crash_in_the_real_worker(packages: Callable[[str, str], None]) -> None:
    packages("ncnn", "import os, sys\nprint('assert failed: w > 0', file=sys.stderr, flush=True)\nos.abort()\n")
    refused("crashed with SIGABRT", lambda: calls.here(protocol.Probe("ncnn")))


def test_an_exception_in_the_real_worker(packages: Callable[[str, str], None]) -> None:
    packages("ncnn", "raise RuntimeError('built for another CPU')\n")
    refused(
        "^ncnn is installed but cannot be imported: RuntimeError: built for another CPU$",
        lambda: calls.here(protocol.Probe("ncnn")),
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 7\n", "ended with status 7: nothing on stderr"),
        ("read job\nkill -ILL $$\n", "crashed with SIGILL: its package is built for another CPU"),
        ("exit 0\n", "ended with status 0: nothing on stderr"),
        (
            'read job\necho \'{"event": "progress", "done": 1, "of": 2}\'\n',
            "ended with status 0",
        ),
        # Killed in the middle of a line, as by the kernel when memory runs out.
        ('read job\nprintf \'{"event": "done", "infer\'\nkill -KILL $$\n', "crashed with SIGKILL"),
        # Native code writes what it likes.
        ("read job\nprintf 'bad \\377\\376 name\\n' >&2\nkill -SEGV $$\n", "crashed with SIGSEGV"),
    ],
    ids=["status", "illegal", "nothing", "no result", "half a line", "bytes"],
)
def test_however_a_worker_ends_it_is_one_line(python: Callable[[str], None], script: str, message: str) -> None:
    python(script)
    refused(message, lambda: calls.here(protocol.Facts()))


def test_a_worker_that_does_not_read_its_job(python: Callable[[str], None]) -> None:
    python("kill -SEGV $$\n")
    refused("crashed with SIGSEGV", lambda: calls.here(protocol.Probe("x" * 1_000_000)))


def test_an_interrupted_command_ends_its_worker(python: Callable[[str], None], tmp_path: Path) -> None:
    python(f'echo $$ > {tmp_path}/pid\necho \'{{"event": "progress", "done": 1, "of": 2}}\'\nexec sleep 60\n')

    def interrupt(_: protocol.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calls.here(protocol.Facts(), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_exit_codes_travel(python: Callable[[str], None]) -> None:
    event = json.dumps({"event": "error", "message": "limit broken", "code": CHECK_FAILED})
    python(f"read job\necho '{event}'\nexit {CHECK_FAILED}\n")
    assert refused("^limit broken$", lambda: calls.here(protocol.Facts())).code == CHECK_FAILED


def test_every_signal_has_a_name(python: Callable[[str], None]) -> None:
    python(f"read job\nkill -{signal.SIGRTMIN + 1} $$\n")
    refused("crashed with", lambda: calls.here(protocol.Facts()))
