"""The entries of a zip archive. zipfile would read a directory of any size, 1 GB of memory for 60 MB of it."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import IO

LARGEST_DIRECTORY = 4_000_000  # bytes; a tensor takes about 60
# The end of an archive: its directory's size. Before it may stand the same for 64 bits, and where that stands.
END = struct.Struct("<4s8xI6x")
END_64 = struct.Struct("<4s36xQ8x4s16x")


def entries(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """The entries of an archive without a comment. Raises ValueError for a damaged one, and for far too many."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - END.size - END_64.size))
    tail = file.read().rjust(END_64.size + END.size, b"\0")
    signature, size = END.unpack(tail[END_64.size :])
    signature_64, size_64, locator = END_64.unpack(tail[: END_64.size])
    if (signature_64, locator) == (b"PK\6\6", b"PK\6\7"):
        size = size_64
    if signature != b"PK\5\6" or size > LARGEST_DIRECTORY:
        raise ValueError
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, LookupError, RuntimeError, OSError, struct.error, OverflowError) as e:
        raise ValueError from e
