"""Loads what a checkpoint's file holds, by torch or safetensors: no code in it runs, and its memory is bounded."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import re
import resource
import struct
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import safetensors.torch
import torch
from safetensors import SafetensorError

from pipnet_edge.converters.checkpoint import nesting, zips
from pipnet_edge.errors import EdgeError
from pipnet_edge.words import one_line

LARGEST_PICKLE = 64_000_000  # bytes; that of a trained PIPNet has 50 kB, with its optimizer's state 200 kB
LARGEST_HEADER = 16_000_000
PROTOCOL = 2  # torch.save's; torch reads the steps of no other without running code
MEMORY, MEMORY_PER_BYTE = 1 << 28, 4  # what loading may take: bytes, and bytes for each of the file
CHUNK = 1 << 20
# What torch and safetensors raise for a damaged file, depending on the place.
TORN = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AssertionError),
    *(
        AttributeError,
        ImportError,
        ArithmeticError,
        MemoryError,
        BufferError,
        zipfile.BadZipFile,
        struct.error,
        SafetensorError,
    ),
)


class Aside:
    """Stands for data beside the weights that nobody here reads, whatever it would be made of."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _dict(*_: object) -> dict[object, object]:
    return {}


def _list(*_: object) -> list[object]:
    return []


def _aside(*modules: str, names: str) -> tuple[tuple[type[Aside], str], ...]:
    return tuple((Aside, f"{module}.{name}") for module in modules for name in names.split())


# What torch may make beside its own: plain data. Most of it as Aside, so that no constructor of a library is called.
PLAIN: tuple[Callable[..., object] | tuple[Callable[..., object], str], ...] = (
    # Configurations, which may hold the weights too. They take attributes and nothing else.
    argparse.Namespace,
    types.SimpleNamespace,
    # torch fills only real dicts and lists. What a defaultdict would call later is named in it, as a class.
    (_dict, "collections.defaultdict"),
    (_list, "collections.deque"),
    *_aside("builtins", names="list dict int float str bool bytes"),
    # What torch's own list lacks of Python's numbers, sets and dates.
    *_aside("builtins", names="frozenset slice range"),
    *_aside("decimal", "fractions", names="Decimal Fraction"),
    *_aside("datetime", names="datetime date time timedelta timezone"),
    # NumPy 1 and 2. The real ones believe the sizes and flags that a file says.
    *_aside("numpy.core.multiarray", "numpy._core.multiarray", names="scalar _reconstruct"),
    *_aside("numpy", names="ndarray dtype"),
    # Paths of any system; Python 3.13 has them in a module of their own.
    *_aside("pathlib", "pathlib._local", names="Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"),
)


def read(path: Path, is_safetensors: bool, trust_pickle: bool = False) -> object:
    """What a file holds, its tensors on the CPU; those of zip archives and of safetensors are mapped, not read.

    trust_pickle lets the file run code. Raises EdgeError for what is no checkpoint, for a damaged one, and for names
    of classes and functions that are no plain data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns about is refused by whoever asked for it
            if is_safetensors:
                _check_header(path)
                with _limited(path):
                    return safetensors.torch.load_file(path)
            if trust_pickle:
                return torch.load(path, map_location="cpu", weights_only=False)
            is_zip = _check(path)
            with torch.serialization.safe_globals(list(PLAIN)), _limited(path):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as e:
        raise EdgeError(f"cannot read {path}: {e.strerror or one_line(e)}") from e
    except TORN as e:
        if trust_pickle and isinstance(e, AttributeError | ImportError):
            raise EdgeError(f"{path} needs code that is not installed here: {one_line(e)}") from e
        # torch says the name in its message alone.
        if isinstance(e, pickle.UnpicklingError) and (name := re.search(r"GLOBAL (\S+) (was not|whose)", str(e))):
            raise EdgeError(
                f"{path} holds {name[1]!r:.80}, which may run code when it is loaded; save the state_dict() alone "
                "instead, or give --trust-pickle if you trust whoever made the file"
            ) from e
        if isinstance(e, SafetensorError):
            raise EdgeError(f"{path} is not a safetensors file, or a truncated one: {one_line(e)}") from e
        what = "safetensors file" if is_safetensors else "PyTorch checkpoint"
        raise EdgeError(f"{path} is not a {what}, or a truncated one") from e


@contextlib.contextmanager
def _limited(path: Path) -> Iterator[None]:
    """Inside, this process gets as much memory as loading the file may take; beyond that, MemoryError and the like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:  # another system than Linux
        yield
        return
    most = taken + MEMORY + MEMORY_PER_BYTE * path.stat().st_size
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *limits]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _check(path: Path) -> bool:
    """Whether a file is a zip archive, and a sound one; else it is of torch before 1.6, or nothing."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        pickles = io.BytesIO(_pickle(path, file) if is_zip else file.read(LARGEST_PICKLE))
    start = pickles.getvalue()[:2]
    if start[:1] == pickle.PROTO and start[1:] != bytes([PROTOCOL]):
        raise EdgeError(
            f"{path} was pickled with protocol {start[1]}, which torch does not load without running code; save it "
            f"again with torch.save's own protocol, {PROTOCOL}"
        )
    # The older form: a magic number, a version, the system, the object and the keys of its storages.
    for _ in range(1 if is_zip else 5):
        nesting.check(pickles, str(path))
    return is_zip


def _pickle(path: Path, file: IO[bytes]) -> bytes:
    """The pickle of a zip archive, data.pkl. Raises for archives that are damaged or not as torch writes them."""
    entries = zips.entries(file)
    name = next((e.filename for e in entries if e.filename == "data.pkl" or e.filename.endswith("/data.pkl")), "")
    if any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries):
        raise EdgeError(f"{path} is compressed inside, as torch does not write it; load it in torch and save it again")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise EdgeError(f"{path}: its parts are larger than the file")
    with zipfile.ZipFile(file) as archive:
        if (size := archive.getinfo(name).file_size) > LARGEST_PICKLE:
            raise EdgeError(f"{path} holds {size:,} bytes beside its tensors; allowed: {LARGEST_PICKLE:,}")
        for entry in archive.infolist():  # torch does not look at the checksums
            if not entry.CRC:
                del entry.CRC  # torch can be told to leave them out; zipfile then does not look either
            try:
                with archive.open(entry) as part:
                    while part.read(CHUNK):
                        pass
            except zipfile.BadZipFile as e:
                raise EdgeError(f"{path} is damaged: its part {entry.filename!r:.80} is not what was saved") from e
        order = f"{name.removesuffix('data.pkl')}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise EdgeError(f"{path} was written by a big-endian machine; save it again on another")
        return archive.read(name)


def _check_header(path: Path) -> None:
    """The length of a header, and the header, in JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    if length > min(LARGEST_HEADER, path.stat().st_size - 8):
        raise ValueError
