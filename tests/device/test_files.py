"""Files are written whole or not at all, and lie where the user's system keeps such files."""

from __future__ import annotations

import errno
import os
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
@pytest.mark.parametrize("when", ["write_bytes", "replace"])
def test_nothing_half_written_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, when: str
) -> None:
    path = tmp_path / "result.json"
    files.write(path, b"before")

    def stop(scratch: Path, *_: object) -> None:
        with scratch.open("wb") as file:
            file.write(b"ha")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, when, stop)
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else EdgeError
        with pytest.raises(expected) as told:
            files.write(path, b"half")
    if expected is EdgeError:
        assert str(told.value) == f"cannot write {path}: No space left on device"
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == [(path, b"before")]


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
