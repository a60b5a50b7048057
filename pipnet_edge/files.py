"""Files of this machine: how they are written whole and hashed, and the folders of caches and settings."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipnet_edge.errors import EdgeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROGRAM = "pipnet-edge"


@contextlib.contextmanager
def opened(path: Path, largest: int) -> Iterator[IO[bytes]]:
    """A regular file of at most so many bytes, to be read; a link to one is followed.

    Raises EdgeError for a folder, a device or a pipe, none of which is read or waited for, and for a larger file;
    OSError with the system's reason.
    """
    # Without O_NONBLOCK, a pipe is waited for until somebody writes into it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise EdgeError(f"{path} is no regular file")
        if found.st_size > largest:
            raise EdgeError(f"{path} has {found.st_size} bytes; at most {largest} are read")
        yield file


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; a device or a pipe at that path is written to.

    Raises EdgeError with the system's reason.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        # A link stays a link. The scratch file's name cannot be foreseen, and nothing that is there is taken for it.
        final = path.resolve()
        scratch = final.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with scratch.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(final)
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
    except OSError as e:
        raise EdgeError(f"cannot write {path}: {e.strerror}") from e


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes an array as a .npy file, whole or not at all. Raises EdgeError with the reason, which numpy hides."""
    import numpy as np

    content = io.BytesIO()
    np.save(content, array)
    write(path, content.getvalue())


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Holds what can be made again: $XDG_CACHE_HOME/pipnet-edge, else ~/.cache/pipnet-edge. It may not exist."""
    return _home("XDG_CACHE_HOME", ".cache")


def config_folder() -> Path:
    """Holds what the user has set: $XDG_CONFIG_HOME/pipnet-edge, else ~/.config/pipnet-edge. It may not exist."""
    return _home("XDG_CONFIG_HOME", ".config")


def _home(variable: str, usual: str) -> Path:
    """An absolute path, because a worker may run in another folder."""
    return Path(os.environ.get(variable) or Path.home() / usual).absolute() / PROGRAM
