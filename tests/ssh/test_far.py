"""The far end of a connection, as text in a Python of its own: it hands on the recorded talks, and is read strictly."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.ssh import far, remote

TALKS = Path(__file__).resolve().parents[1] / "golden" / "worker"
# In place of the worker: it wants the recorded job, and gives what the worker of that talk gave.
REPLAY = """
import os, sys
line = os.read(0, 1 << 20).decode()
job, lines = open({talk!r}).read().split("\\n", 1)
assert line == job + "\\n", line
sys.stdout.write(lines)
sys.stdout.flush()
if {waits}:
    open({pid!r}, "w").write(str(os.getpid()))
    os.read(0, 1)  # the end of stdin
"""


class FarEnd:
    """remote.py, started as ssh starts it."""

    def __init__(self, home: Path) -> None:
        program = Path(remote.__file__).read_bytes()
        start = f"import sys; exec(sys.stdin.buffer.read({len(program)}))"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"XDG_CACHE_HOME": str(home), "PATH": "/usr/bin:/bin"},
        )
        self.send(program)
        self.say({"packages": ["json", "nothing"], "keep": False, "beat": 5.0, "patience": 30.0})

    def send(self, content: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def say(self, request: dict[str, Any]) -> None:
        self.send(json.dumps(request).encode() + b"\n")

    def hear(self) -> str:
        """The next line but for signs of life."""
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline().decode()) and isinstance(told(line), far.Alive):
            pass
        return line

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)


def told(line: str) -> far.Message | None:
    return far.read(line) if line.startswith(far.FAR) else None


def push(end: FarEnd, content: bytes, path: str) -> None:
    files = [[path, hashlib.sha256(content).hexdigest(), len(content)]]
    end.say({"ask": "place", "files": files})
    placed = told(end.hear())
    assert isinstance(placed, far.Placed)
    assert [list(entry) for entry in placed.lacking] == files
    end.say({"ask": "put", "files": files})
    end.send(content)
    assert isinstance(told(end.hear()), far.Put)


@pytest.mark.parametrize("name", sorted(path.stem for path in TALKS.glob("*.jsonl")))
def test_it_hands_on_the_recorded_talks(name: str, tmp_path: Path) -> None:
    end = FarEnd(tmp_path)
    hello = told(end.hear())
    assert isinstance(hello, far.Hello)
    assert (hello.packages, hello.bits) == (("json",), 64)
    assert Path(hello.folder).is_relative_to(tmp_path)
    script = REPLAY.format(talk=str(TALKS / f"{name}.jsonl"), waits=False, pid="")
    push(end, script.encode(), "code/pipnet_edge/worker.py")
    job, *lines = (TALKS / f"{name}.jsonl").read_text().splitlines(keepends=True)
    end.say({"ask": "run", "job": job})
    assert [end.hear() for _ in lines] == lines
    ended = told(end.hear())
    assert ended == far.Ended(0, "nothing on stderr")
    assert end.close() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_worker_has_its_stdin_open_until_the_end(tmp_path: Path) -> None:
    end = FarEnd(tmp_path / "home")
    end.hear()
    pid = tmp_path / "pid"
    script = REPLAY.format(talk=str(TALKS / "time.jsonl"), waits=True, pid=str(pid))
    push(end, script.encode(), "code/pipnet_edge/worker.py")
    job, *lines = (TALKS / "time.jsonl").read_text().splitlines(keepends=True)
    end.say({"ask": "run", "job": job})
    assert [end.hear() for _ in lines] == lines
    end.send(b"\n")
    while not pid.is_file() or not pid.read_text():
        pass
    assert Path(f"/proc/{pid.read_text()}").exists()
    assert end.close() == 0
    assert not Path(f"/proc/{pid.read_text()}").exists()


# --- What comes from a board is untrusted.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"far": "hello"}', "has no 'folder'"),
        ('{"far": "shell"}', "a board says 'shell'; allowed: python, hello"),
        ('{"far": ["put"]}', "a board says"),
        ('{"far": "put", "more": 1}', "unknown field 'more'"),
        ('{"far": "taken", "bytes": -1}', "offers -1 bytes"),
        ('{"far": "taken", "bytes": 99999999999}', "at most 1073741824 are read"),
        ('{"far": "taken", "bytes": true}', "int is needed"),
        ('{"far": "placed", "lacking": [["a", "b"]], "free": 1}', "3 are needed"),
        ('{"far": "failed", "errno": "ENOSPC", "reason": "no\\u001b[2J", "path": "/", "free": 1}', "cannot be printed"),
        ('{"far": ', "is no JSON"),
        ("3", "dict is needed"),
    ],
)
def test_what_is_refused(line: str, message: str) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        far.read(line)
    assert str(caught.value).isprintable()


def test_of_what_a_worker_complained_the_last_line_is_kept() -> None:
    line = json.dumps({"far": "ended", "status": -6, "stderr": "first\nlast \x1b[31mred\n"})
    assert far.read(line) == far.Ended(-6, "last ?[31mred")


@given(st.sampled_from(sorted(far.MESSAGES)), st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_no_message_gives_anything_but_an_edge_error(name: str, fields: dict[str, Any]) -> None:
    line = json.dumps({"far": name, **{key: value for key, value in fields.items() if key != "far"}})
    try:
        assert isinstance(far.read(line), far.MESSAGES[name])
    except EdgeError:
        return
