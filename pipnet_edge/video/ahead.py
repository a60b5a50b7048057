"""Room on the disk for what has still to be written into a video, so that it can always be ended.

A video's index is written when it ends, and without it an .mp4 does not play. OpenCV says nothing of a disk that is
full, and FFmpeg writes nothing more after the first write that fails. So no write may fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

# FFmpeg writes in pieces of a quarter of this, and a frame takes fewer bytes in an index than its entry here.
PIECES, ENTRY = 1 << 20, 64
# A coded pixel has fewer bytes.
PIXEL = 3

# Of fallocate(2): blocks are taken, the file's size stays.
KEEP_SIZE = 1


class Ahead:
    """Keeps blocks of the disk behind the end of a file that is being written, where the system has them.

    Elsewhere it only looks how much is free, and a disk that somebody else fills in the same moment is not seen.
    pixels: of a frame.
    """

    def __init__(self, path: Path, pixels: int) -> None:
        self._path, self._needs = path, PIECES + PIXEL * pixels
        self._file = os.open(path, os.O_RDWR)
        self._allocate = _fallocate()
        self._kept = -1

    def keep(self, frames: int) -> None:
        """Sees that another frame can be written after so many, and the file be ended then. Raises OSError if not."""
        needs = self._needs + ENTRY * frames
        if self._allocate is None:
            if shutil.disk_usage(self._path).free < needs:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        size = os.fstat(self._file).st_size
        if size == self._kept:
            return
        error = self._allocate(self._file, size, needs)
        if error in (errno.EOPNOTSUPP, errno.ENOSYS):
            self._allocate = None
            self.keep(frames)
        elif error:
            raise OSError(error, os.strerror(error))
        self._kept = size

    def close(self) -> None:
        """Gives back what the file did not need, if the disk is still there. It has to be ended before."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, os.fstat(self._file).st_size)
        os.close(self._file)


def _fallocate() -> Callable[[int, int, int], int] | None:
    """Takes blocks for a file from an offset on; returns an error's number, or 0. None where the system has no such."""
    libc = ctypes.CDLL(None, use_errno=True)
    # With offsets of 64 bits on 32-bit machines too, where both are there.
    found = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if found is None:
        return None
    found.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64

    def allocate(file: int, offset: int, size: int) -> int:
        return ctypes.get_errno() if found(file, KEEP_SIZE, offset, size) else 0

    return allocate
