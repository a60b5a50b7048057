"""Files are written whole or not at all, and lie where the user's system keeps such files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipnet_edge import files
from pipnet_edge.errors import EdgeError


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for content in (b"a long first text", b"short", b""):
        files.write(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    assert files.file_sha256(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_nothing_half_written_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, when: str
) -> None:
    path = tmp_path / "result.json"
    files.write(path, b"before")

    def stop(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 2
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*((os, when) if when == "fsync" else (Path, when)), stop)
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else EdgeError
        with pytest.raises(expected) as told:
            files.write(path, b"half")
    if expected is EdgeError:
        assert str(told.value) == f"cannot write {path}: No space left on device"
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == [(path, b"before")]


def test_a_full_disk(tmp_path: Path) -> None:
    """A file of at most 4096 bytes is all that the process may write."""
    path = tmp_path / "result.json"
    files.write(path, b"before")
    script = (
        "import pathlib, resource, signal, sys\n"
        "from pipnet_edge import errors, files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    files.write(pathlib.Path(sys.argv[1]), bytes(10_000))\n"
        "except errors.EdgeError as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == [(path, b"before")]


def test_the_scratch_file_cannot_be_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies at its name is not written to, were it a link or a file."""
    names, goal = [], tmp_path / "goal"
    goal.write_bytes(b"mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: names.append("x") or "x")
    (tmp_path / ".x.part").symlink_to(goal)
    with pytest.raises(EdgeError, match="File exists"):
        files.write(tmp_path / "z.html", b"page")
    assert names
    assert goal.read_bytes() == b"mine"
    monkeypatch.undo()
    files.write(tmp_path / ("n" * 255), b"a name as long as names can be")


def test_links_pipes_and_devices(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "deep" / "link.json"
    link.parent.mkdir()
    link.symlink_to("../real.json")
    for _ in range(2):  # where it leads is not there, and is there
        files.write(link, b"{}")
        assert link.is_symlink()
        assert real.read_bytes() == b"{}"
    files.write(Path("/dev/null"), b"nothing")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(EdgeError, match=r"^cannot write /dev/full: No space left on device$"):
        files.write(Path("/dev/full"), b"{}")
    with pytest.raises(EdgeError, match="Is a directory"):
        files.write(tmp_path, b"{}")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345")
    with files.opened(path, 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(EdgeError, match=r"data has 5 bytes; at most 4 are read$"), files.opened(path, 4):
        pytest.fail("it was opened")
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(EdgeError, match=f"^{name} is no regular file$"), files.opened(name, 5):
            pytest.fail("it was opened")


def test_a_folder_that_is_not_there_is_the_user_s_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "no" / "out.json"
    with pytest.raises(EdgeError, match=f"^cannot write {path}: No such file or directory$"):
        files.write(path, b"{}")


@pytest.mark.parametrize(
    ("variable", "folder", "usual"),
    [
        ("XDG_CACHE_HOME", files.cache_folder, ".cache"),
        ("XDG_CONFIG_HOME", files.config_folder, ".config"),
    ],
)
def test_folders_are_where_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, folder: object, usual: str
) -> None:
    assert callable(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, str(tmp_path / "own"))
    assert folder() == tmp_path / "own" / "pipnet-edge"
    for unset in (lambda: monkeypatch.setenv(variable, ""), lambda: monkeypatch.delenv(variable)):
        unset()
        assert folder() == tmp_path / usual / "pipnet-edge"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "near")
    assert folder() == tmp_path / "near" / "pipnet-edge"
    assert list(tmp_path.iterdir()) == []
