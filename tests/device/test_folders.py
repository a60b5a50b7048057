"""A folder replaces another whole or not at all, whenever its program is killed, and beside other programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipnet_edge import folders
from pipnet_edge.errors import EdgeError

# Replaces a folder and kills itself at the so-manyth thing that it asks of the system. "two renames": as on a system
# that cannot exchange two folders.
KILLED = """
import os, pathlib, signal, sys
from pipnet_edge import folders
at, how, target = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
if how == "two renames":
    folders._exchange = lambda one, other: False
count = 0
def hook(event, arguments):
    global count
    if event.startswith(("os.", "open", "shutil.", "fcntl.", "tempfile.", "ctypes.")):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
with folders.replacing(target, lambda final: None) as new:
    (new / "deep").mkdir()
    for name in ("a", "deep/b"):
        (new / name).write_text("new")
"""
HELD = """
import pathlib, sys
from pipnet_edge import folders
with folders.replacing(pathlib.Path(sys.argv[1]), lambda final: None) as new:
    (new / "a").write_text(sys.argv[2])
    (new / "b").write_text(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
"""


def anything(_: Path) -> None:
    pass


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_killed_at_any_moment(tmp_path: Path, how: str) -> None:
    old, new = {"a": "old", "deep/b": "old"}, {"a": "new", "deep/b": "new"}
    place, seen = tmp_path / "bundle", set[str]()
    for at in range(1, 200):
        for child in tmp_path.iterdir():
            subprocess.run(["rm", "-r", str(child)], check=True)
        (place / "deep").mkdir(parents=True)
        for name in old:
            (place / name).write_text("old")
        status = subprocess.run([sys.executable, "-c", KILLED, str(at), how, str(place)], check=False).returncode
        if how == "exchange":
            assert tree(place) in (old, new)
        folders.sweep(place)
        assert tree(place) in (old, new)
        assert os.listdir(tmp_path) == ["bundle"]
        seen.add(tree(place)["a"])
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0
    assert seen == {"old", "new"}
    assert at > 20


def start(place: Path, text: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HELD, str(place), text]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


def test_what_a_killed_program_left_is_removed_but_not_what_a_living_one_has(tmp_path: Path) -> None:
    place, mine = tmp_path / "bundle", tmp_path / ".bundle-holiday"
    for folder in (mine, tmp_path / ".bundle-holidays", tmp_path / ".other-abcdefgh"):
        folder.mkdir()
        (folder / "cat.jpg").write_text("cat")
    kept = {path.name for path in tmp_path.iterdir()}
    living, dying = start(place, "living"), start(place, "dying")
    assert len(list(tmp_path.iterdir())) == len(kept) + 2
    dying.kill()
    dying.wait()
    with folders.replacing(place, anything) as new:
        assert len(list(tmp_path.iterdir())) == len(kept) + 2  # the living one's and this one's
        (new / "a").write_text("third")
    living.communicate("\n")
    assert living.returncode == 0
    assert tree(place) == {"a": "living", "b": "living"}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"bundle"}


@pytest.mark.parametrize("exists", [True, False])
def test_programs_that_end_at_the_same_time(tmp_path: Path, exists: bool) -> None:
    place = tmp_path / "bundle"
    for _ in range(5):
        if not exists:
            subprocess.run(["rm", "-rf", str(place)], check=True)
        programs = [start(place, str(number)) for number in range(4)]
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        assert [program.wait(20) for program in programs] == [0] * 4
        found = tree(place)
        assert found["a"] == found["b"]
        assert os.listdir(tmp_path) == ["bundle"]


def test_the_place_is_checked_before_and_after(tmp_path: Path) -> None:
    """What somebody puts there meanwhile is not taken away."""
    place, seen = tmp_path / "bundle", []

    def check(final: Path) -> None:
        seen.append(final)
        if final.exists():
            raise EdgeError("is taken")

    def work() -> None:
        with folders.replacing(place, check):
            place.mkdir()
            (place / "cat.jpg").write_text("cat")

    with pytest.raises(EdgeError, match="is taken"):
        work()
    assert seen == [place, place]
    assert tree(tmp_path) == {"bundle/cat.jpg": "cat"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    place = tmp_path / "b[ab]*"
    program = start(place, "x")
    program.kill()
    program.wait()
    with folders.replacing(place, anything) as new:
        (new / "a").write_text("1")
    assert os.listdir(tmp_path) == ["b[ab]*"]


def test_a_file_in_place_of_the_folder_above(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EdgeError, match=r"^cannot write into .*/file: File exists$"),
        folders.replacing(tmp_path / "file" / "bundle", anything),
    ):
        pytest.fail("the work began")
