"""The one way in which files of arrays are read: .npz and .npy files, untrusted.

What a file states, how many arrays, their types, shapes and sizes, is held against what is needed before any memory is
taken for it. Nothing is unpickled. Every fault is an EdgeError.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.files import opened

# Bytes of all arrays of a file together.
LARGEST = 512 << 20
# A zip file's directory: no file of arrays has so many members.
MEMBERS, DIRECTORY = 4096, 1 << 20
END, END_OF_64 = b"PK\x05\x06", b"PK\x06\x07"
# What numpy writes before an array: magic, version, the length of the text, and the text, which is a dict in Python.
START = struct.Struct("<6s2B")
TEXT = re.compile(
    rb"\{'descr': '([<>|][biufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,18},|\d{1,18}(?:, \d{1,18}){1,7})\), \}\s*\n"
)
LONGEST_TEXT = 4096
BLOCK = 1 << 20


@dataclass(frozen=True)
class Form:
    """What an array has to be.

    shape: a letter stands for any length from 1 on, the same wherever it stands among the arrays of a file. kinds: the
    types allowed, in this machine's byte order.
    """

    shape: tuple[int | str, ...]
    kinds: tuple[type[np.generic], ...] = (np.float32,)

    def __str__(self) -> str:
        lengths = ", ".join(map(str, self.shape)) + ("," if len(self.shape) == 1 else "")
        return f"({lengths}) of {' or '.join(kind.__name__ for kind in self.kinds)}"


@dataclass(frozen=True)
class _Stated:
    """What the text before an array states."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    in_columns: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read(path: Path, forms: Mapping[str, Form], largest: int = LARGEST) -> dict[str, NDArray[Any]]:
    """These arrays of an .npz file. largest: bytes of all of them together.

    Raises EdgeError when one is missing or is not what its form says, and when the file is damaged or no .npz file.
    """
    with _archive(path, largest) as archive:
        members = {member.filename: member for member in archive.infolist()}
        lacking = [name for name in forms if f"{name}.npy" not in members]
        if lacking:
            raise _Fault(f"it has no array {lacking[0]!r}")
        lengths: dict[str, int] = {}
        for name, form in forms.items():
            with _member(archive, members[f"{name}.npy"]) as file:
                _check(f"{path}: {name}", _stated(file, name), form, lengths)
        return _read(archive, {name: members[f"{name}.npy"] for name in forms}, largest)


def names(path: Path, largest: int = LARGEST) -> tuple[str, ...]:
    """The names of the arrays in an .npz file of at most so many bytes. Raises EdgeError when it is none."""
    with _archive(path, largest) as archive:
        return tuple(_named(archive))


def read_all(path: Path, largest: int = LARGEST) -> dict[str, NDArray[Any]]:
    """All arrays of numbers in an .npz file, whatever they are called. Raises EdgeError as `read` does."""
    with _archive(path, largest) as archive:
        return _read(archive, _named(archive), largest)


def read_array(path: Path, form: Form, largest: int = LARGEST) -> NDArray[Any]:
    """The array of an .npy file. Raises EdgeError when it is not what the form says, and for a damaged file."""
    with _faults_named(path), opened(path, largest + LONGEST_TEXT) as file:
        stated = _stated(file, "it")
        _check(str(path), stated, form, {})
        if file.tell() + stated.size != os.fstat(file.fileno()).st_size:
            raise _Fault("it is cut or has more behind its array")
        return _array(file, stated)


class _Fault(Exception):
    """Why a file cannot be read; the message has its name yet to come."""


@contextlib.contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    try:
        yield
    except _Fault as e:
        raise EdgeError(f"{path} is not readable: {e}") from None
    except OSError as e:
        raise EdgeError(f"{path} is not readable: {e.strerror or 'it is damaged'}") from None
    # What zipfile raises depends on the place that is damaged.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError, NotImplementedError):
        raise EdgeError(f"{path} is not readable: it is damaged") from None


@contextlib.contextmanager
def _archive(path: Path, largest: int) -> Iterator[zipfile.ZipFile]:
    with _faults_named(path), opened(path, largest + DIRECTORY) as file:
        # zipfile reads a directory of any size. Only the plain end that numpy writes is taken: no comment, no zip64.
        file.seek(max(0, os.fstat(file.fileno()).st_size - 42))
        end = file.read(42)[-42:].rjust(42)
        count, size = struct.unpack("<HI", end[-12:-6])
        if end[-22:-18] != END or end[:4] == END_OF_64 or end[-2:] != b"\0\0":
            raise _Fault("it is no .npz file, or is cut")
        if count > MEMBERS or size > DIRECTORY:
            raise _Fault(f"it states {count} arrays; at most {MEMBERS} are read")
        with zipfile.ZipFile(file) as archive:
            yield archive


def _named(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members = archive.infolist()
    if any(not member.filename.endswith(".npy") for member in members):
        raise _Fault("it holds something that is no array")
    return {member.filename.removesuffix(".npy"): member for member in members}


def _read(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], largest: int) -> dict[str, NDArray[Any]]:
    size = sum(member.file_size for member in members.values())
    if size > largest:
        raise _Fault(f"its arrays have {size} bytes; at most {largest} are read")
    arrays = {}
    for name, member in members.items():
        with _member(archive, member) as file:
            stated = _stated(file, name)
            if file.tell() + stated.size != member.file_size:
                raise _Fault(f"{name!r:.60} is cut or has more behind its array")
            arrays[name] = _array(file, stated)
    return arrays


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise _Fault(f"{member.filename!r:.60} is packed in a way that numpy does not use")
    return archive.open(member)


def _stated(file: IO[bytes], name: str) -> _Stated:
    """Reads what stands before an array's numbers."""
    start = file.read(START.size)
    magic, version, _ = START.unpack(start) if len(start) == START.size else (b"", 0, 0)
    if magic != b"\x93NUMPY" or version not in (1, 2, 3):
        raise _Fault(f"{name!r:.60} is no array")
    length = int.from_bytes(file.read(2 if version == 1 else 4), "little")
    text = TEXT.fullmatch(file.read(length)) if length <= LONGEST_TEXT else None
    if not text:
        raise _Fault(f"{name!r:.60} is no array of numbers")
    try:
        dtype = np.dtype(text[1].decode())
    except TypeError:
        raise _Fault(f"{name!r:.60} is no array of numbers") from None
    shape = tuple(int(number) for number in text[3].split(b",") if number)
    return _Stated(dtype, shape, text[2] == b"True")


def _check(where: str, stated: _Stated, form: Form, lengths: dict[str, int]) -> None:
    """Holds what is stated against a form. lengths: what the letters stand for so far."""
    needed = tuple(lengths.get(n, n) if isinstance(n, str) else n for n in form.shape)
    fits = len(stated.shape) == len(needed) and all(
        length > 0 if isinstance(n, str) else length == n for length, n in zip(stated.shape, needed, strict=True)
    )
    if not fits or not any(stated.dtype == kind for kind in form.kinds):
        raise EdgeError(f"{where} has shape {stated.shape} of {stated.dtype}, {Form(needed, form.kinds)} is needed")
    lengths |= {n: length for length, n in zip(stated.shape, needed, strict=True) if isinstance(n, str)}


def _array(file: IO[bytes], stated: _Stated) -> NDArray[Any]:
    array = np.empty(stated.shape, stated.dtype, order="F" if stated.in_columns else "C")
    place = array.reshape(-1, order="A").view(np.uint8)
    at = 0
    while at < len(place):
        block = file.read(min(BLOCK, len(place) - at))
        if not block:
            raise _Fault("it is cut")
        place[at : at + len(block)] = np.frombuffer(block, np.uint8)
        at += len(block)
    file.read(1)  # the end, where zipfile compares its checksum
    return array
