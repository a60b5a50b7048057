"""A folder takes the place of another, whole or not at all, even if the program is killed meanwhile.

The new folder is made in a hidden scratch folder beside the place where it will lie, so that the last step is a rename.
A lock in the scratch folder says whether its program still runs; if not, the next program removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pipnet_edge.errors import EdgeError

# What lies in a scratch folder. Nobody else has a file of the lock's name.
LOCK, NEW, OLD = "pipnet-edge.lock", "new", "old"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux, renameat2(2)
# How often the last step is tried while other programs put folders at the same place.
ATTEMPTS = 100


@contextlib.contextmanager
def replacing(folder: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A new empty folder. It replaces `folder` if the block ends well, and is removed if it does not.

    check: gets the place before the block and before the last step, and raises EdgeError for what may not be replaced.
    If two programs end at the same time, what the later one made stays. Raises EdgeError if nothing can be written.
    """
    final = folder.absolute()
    check(final)
    made = [parent for parent in final.parents if not parent.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch, lock = _scratch(final)
    except OSError as e:
        raise EdgeError(f"cannot write into {final.parent}: {e.strerror}") from e
    try:
        new = scratch / NEW
        new.mkdir()
        yield new
        _to_disk(new)
        _put(new, final, scratch / OLD, check)
    finally:
        _remove(scratch)
        lock.close()
        if not final.exists():
            # Deepest first. A folder stays if another program has put a file into it.
            with contextlib.suppress(OSError):
                for parent in made:
                    parent.rmdir()


def sweep(final: Path) -> None:
    """Removes what killed programs left beside `final`; an older folder goes back there if nothing is there now."""
    name = re.compile(rf"\.{re.escape(final.name)}-[a-z0-9_]{{8}}")
    for scratch in [path for path in final.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]:
        with _taken(scratch) as is_left:
            if is_left:
                if not os.path.lexists(final) and (scratch / OLD).is_dir():
                    (scratch / OLD).rename(final)
                _remove(scratch)


def _remove(scratch: Path) -> None:
    """Removes a scratch folder, the lock last: what is left if this is killed can still be told from other things."""
    with contextlib.suppress(OSError):
        for path in list(scratch.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink()
        shutil.rmtree(scratch)


def _scratch(final: Path) -> tuple[Path, IO[bytes]]:
    """A new scratch folder with its lock, which is held as long as the file is open."""
    import fcntl

    with _alone(final.parent):
        sweep(final)
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        lock = (scratch / LOCK).open("xb")
        with contextlib.suppress(OSError):  # a file system without locks: nobody can tell, so nobody removes it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return scratch, lock


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Between the making of a scratch folder and its lock, no other program may look at it."""
    import fcntl

    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _taken(scratch: Path) -> Iterator[bool]:
    """Whether the program that made a scratch folder has ended. If so, the folder is this program's for the block."""
    import fcntl

    try:
        lock = (scratch / LOCK).open("rb+")
    except OSError:
        # Whoever is killed before there is a lock, or after it was removed, leaves an empty folder.
        with contextlib.suppress(OSError):
            scratch.rmdir()
        yield False
        return
    with lock:
        is_left = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            is_left = False
        yield is_left


def _put(new: Path, final: Path, old: Path, check: Callable[[Path], None]) -> None:
    """Moves `new` to `final`. What was there is then at `new` or `old`."""
    for attempt in range(ATTEMPTS):
        check(final)
        try:
            if not os.path.lexists(final):
                new.rename(final)
            elif not _exchange(new, final):
                final.rename(old)
                try:
                    new.rename(final)
                except BaseException:
                    if os.path.lexists(final):  # another program's
                        shutil.rmtree(old)
                    else:
                        old.rename(final)
                    raise
        except OSError as e:
            # Another program was faster: the place is taken now, or is free.
            is_race = e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) and new.exists()
            if not is_race or attempt == ATTEMPTS - 1:
                raise
        else:
            break


def _exchange(one: Path, other: Path) -> bool:
    """Lets two folders change places in one step. False if the system cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if function is None:
        return False
    if function(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _to_disk(folder: Path) -> None:
    """Waits until a folder and all in it are on the disk: otherwise the rename may get there before the files do."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
