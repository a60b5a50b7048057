"""What is printed: clean text, and one line at most when stdout takes no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge.bundle import Bundle
from pipnet_edge.cli import render
from pipnet_edge.errors import USER_ERROR
from pipnet_edge.output import Output, Table

Run = Callable[..., subprocess.CompletedProcess[str]]
Failed = Callable[..., str]
COMMAND = (sys.executable, "-P", "-m", "pipnet_edge.cli")
ESCAPES = "\x1b[2J\x1b]0;owned\x07"


def started(words: Sequence[object], stdout: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "words", [("inspect", "{}"), ("inspect", "{}", "--json"), ("--help",), ("bench", "--help"), ("--version",)], ids=str
)
def test_a_full_disk(failed: Failed, null_bundle: Bundle, words: Sequence[str]) -> None:
    with open("/dev/full", "w") as full:
        done = started([word.format(null_bundle.folder) for word in words], full)
    failed(done, USER_ERROR, "cannot write to stdout: No space left on device")


def test_an_error_is_said_once_even_so(failed: Failed, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = started(["inspect", tmp_path, "--json"], full)
    failed(done, USER_ERROR, "manifest.json")


def test_a_reader_that_is_gone(null_bundle: Bundle) -> None:
    """As in `| head -1`: quiet, with the status that a shell gives for it."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        done = started(["inspect", null_bundle.folder], pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_terminal_that_knows_ascii_alone(failed: Failed, null_bundle: Bundle, tmp_path: Path) -> None:
    there = tmp_path / "f\u00e9lix"
    shutil.copytree(null_bundle.folder, there / "bundle")
    words = ["bench", there / "bundle", "--seconds", "0", "--count", "1", "-o", there / "r.json", "--threads", "1"]
    done = started(words, subprocess.PIPE, PYTHONIOENCODING="ascii")
    failed(done, USER_ERROR, "cannot write to stdout: ascii has no '\\xe9'; PYTHONIOENCODING=utf-8 has")
    done = started(["inspect", there], subprocess.PIPE, PYTHONIOENCODING="ascii")
    failed(done, USER_ERROR, "f\\xe9lix")
    assert started([*words, "--json"], subprocess.PIPE, PYTHONIOENCODING="ascii").returncode == 0


def test_text_from_outside_is_printed_clean_and_cut(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table([">name", "what"], [[f"a{ESCAPES}", "two\nlines"], ["b", "x" * 5_000]])
    render.emit(
        "inspect", Output({"a": ESCAPES}, (table, f"{ESCAPES}\nnext", "y" * 9_000), 1, f"no {ESCAPES}\nz"), False
    )
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert all(line.isprintable() for line in (*lines, *err.splitlines()))
    assert "a?[2J?]0;owned?  two lines" in lines
    assert lines[-3:-1] == ["?[2J?]0;owned?", "next"]
    assert [len(line) for line in lines if "xx" in line or "yy" in line] == [len("a?[2J?]0;owned?  ") + 300, 4_000]
    assert err == "pipnet-edge inspect: no ?[2J?]0;owned? z\n"
    render.emit("inspect", Output({"a": ESCAPES}, (), 1, ESCAPES), True)
    out, err = capsys.readouterr()
    assert json.loads(out)["result"] == {"a": ESCAPES}
    assert out.strip().isprintable()
    assert json.loads(out)["error"]["message"] in err


def test_the_steps_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    render.Progress().step(f"load {ESCAPES}", 0, 2)
    assert capsys.readouterr().err == "[1/2] load ?[2J?]0;owned?\n"


def test_a_result_with_escapes(run: Run, failed: Failed, null_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"schema": "pipnet-edge/1", "command": ESCAPES, "result": None}))
    for words in (("report", path, "-o", tmp_path / "x.html"), ("bench", null_bundle.folder, "--compare", path)):
        assert failed(run(*words), USER_ERROR, "holds no result of ?[2J?]0;owned?").isprintable()


def test_nested_files_are_one_line(run: Run, failed: Failed, null_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("a = " + "[" * 50_000)
    words = ("bench", null_bundle.folder, "--target", tmp_path / "deep.toml", "--predict")
    failed(run(*words), USER_ERROR, "deep.toml cannot be read as a device: maximum recursion depth exceeded")
    (tmp_path / "pipe.toml").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe.toml")
    failed(run(*words[:3], tmp_path / "pipe.toml", "--predict"), USER_ERROR, "pipe.toml is no regular file")
    deep = '{"schema": "pipnet-edge/1", "command": "drift", "result": {"a": ' + "[" * 900 + "]" * 900 + "}}"
    (tmp_path / "deep.json").write_text(deep)
    failed(run("report", tmp_path / "deep.json", "-o", tmp_path / "x.md"), USER_ERROR, "deep.json")
    with (tmp_path / "huge.json").open("wb") as huge:
        huge.truncate(1 << 33)
    failed(run("report", tmp_path / "huge.json"), USER_ERROR, "8589934592 bytes; at most ")
