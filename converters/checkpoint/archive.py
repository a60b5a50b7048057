"""Opens a checkpoint's file: the object in it, and where in the file the numbers of its tensors lie."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipnet_edge import strict
from pipnet_edge.converters.checkpoint import pickled, zips
from pipnet_edge.converters.checkpoint.pickled import Made
from pipnet_edge.converters.checkpoint.stored import MOST_AXES, Span, Stored, storage
from pipnet_edge.errors import EdgeError

LARGEST_PICKLE = 64_000_000  # bytes; that of a trained PIPNet has 50 kB, with its optimizer's state 200 kB
LARGEST_HEADER = 16_000_000
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry, up to the lengths of what lies before its content
# How torch's files began before they were zip archives: a magic number and a version, each a pickle of its own.
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class _Header:
    """What a safetensors file says of a tensor; data_offsets: its first byte and the one after it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Archive:
    """root: the object as pickled.read gives it, or a dict of Stored; spans: its storages by key."""

    root: object
    spans: Mapping[str, Span]


def read(path: Path, is_safetensors: bool) -> Archive:
    """Reads all of a file but the numbers of its tensors. Raises EdgeError for what is no checkpoint, or truncated."""
    try:
        with path.open("rb") as file:
            if is_safetensors:
                return _safetensors(path, file)
            return _zip(path, file) if file.read(4) == b"PK\x03\x04" else _legacy(path, file)
    except OSError as e:
        raise EdgeError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, LookupError, struct.error) as e:
        raise EdgeError(f"{path} is not a PyTorch checkpoint, or a truncated one") from e


def _zip(path: Path, file: IO[bytes]) -> Archive:
    """Archives as torch writes them: FOLDER/data.pkl, and each storage as FOLDER/data/KEY, not compressed."""
    size = path.stat().st_size
    entries = {entry.filename: entry for entry in zips.entries(file)}
    name = next((name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")), "")
    folder = name.removesuffix("data.pkl")
    if any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries.values()):
        raise EdgeError(f"{path} is compressed inside, as torch does not write it; load it in torch and save it again")
    if sum(entry.file_size for entry in entries.values()) > size:
        raise EdgeError(f"{path}: its parts are larger than the file")
    if not all(0 <= entry.header_offset < size for entry in entries.values()):
        raise ValueError
    spans: dict[str, Span] = {}
    for entry_name, entry in entries.items():
        if entry_name.startswith((f"{folder}data/", f"{folder}byteorder", name)):
            file.seek(entry.header_offset)
            before = sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
            start = entry.header_offset + LOCAL_HEADER.size + before
            # torch can be told to leave checksums out; they are 0 then.
            spans[entry_name] = Span(start, entry.file_size, entry.CRC or None)
    if f"{folder}byteorder" in spans and spans[f"{folder}byteorder"].read(path) != b"little":
        raise EdgeError(f"{path} was written by a big-endian machine; save it again on another")
    if spans[name].size > LARGEST_PICKLE:
        raise EdgeError(f"{path} holds {spans[name].size:,} bytes beside its tensors; allowed: {LARGEST_PICKLE:,}")
    start = f"{folder}data/"
    root = pickled.read(io.BytesIO(spans[name].read(path)), str(path))
    return Archive(root, {name.removeprefix(start): span for name, span in spans.items() if name.startswith(start)})


def _legacy(path: Path, file: IO[bytes]) -> Archive:
    """Files of torch before 1.6: five pickles (the fourth is the object), then the storages, each after its length."""
    file.seek(0)
    head = io.BytesIO(file.read(LARGEST_PICKLE))
    if pickled.read(head, str(path)) != MAGIC or pickled.read(head, str(path)) != VERSION:
        raise ValueError
    about, root, keys = (pickled.read(head, str(path)) for _ in range(3))
    if not isinstance(about, dict) or about.get("little_endian") is not True or not isinstance(keys, list):
        raise ValueError
    if not all(type(key) in (str, int) for key in keys):
        raise ValueError
    sizes = _item_sizes(root)
    end, position, spans = path.stat().st_size, head.tell(), {}
    for key in map(str, keys):
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        span = Span(position + 8, count * sizes[key])
        position = span.start + span.size
        if count < 0 or position > end:
            raise ValueError
        spans[key] = span
    return Archive(root, spans)


def _item_sizes(root: object) -> dict[str, int]:
    """The bytes of one number for each storage that an object refers to."""
    sizes, seen, left = {}, set[int](), [root]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if found := storage(node):
            sizes[found[0]] = found[2]
        elif isinstance(node, Made):
            left += [node.arguments, node.items, node.members, node.state]
        elif isinstance(node, dict):
            left += node.values()
        elif isinstance(node, tuple | list):
            left += node
    return sizes


def _safetensors(path: Path, file: IO[bytes]) -> Archive:
    """The length of a header, the header in JSON (dtype, shape and place of each tensor), and the numbers."""
    (length,) = struct.unpack("<Q", file.read(8))
    end = path.stat().st_size
    if length > min(LARGEST_HEADER, end):
        raise ValueError
    header = strict.json_object(file.read(length).decode(), f"{path}: its header")
    header.pop("__metadata__", None)
    tensors = {name: strict.read(_Header, about, f"{path}: tensor {name[:60]!r}") for name, about in header.items()}
    return Archive({name: _of_header(path, about, 8 + length, end) for name, about in tensors.items()}, {})


def _of_header(path: Path, about: _Header, data: int, end: int) -> Stored:
    start, stop = about.data_offsets
    if not 0 <= start <= stop <= end - data:
        raise EdgeError(f"{path}: bytes {start} to {stop} of its tensors do not lie in it")
    if len(about.shape) > MOST_AXES or any(n < 0 for n in about.shape):
        raise EdgeError(f"{path}: a tensor has a shape of {len(about.shape)} axes that torch does not have")
    strides = tuple(math.prod(about.shape[axis:]) for axis in range(1, len(about.shape) + 1))
    dtype = SAFETENSORS.get(about.dtype, about.dtype[:20])
    return Stored("", dtype, about.shape, strides, 0, Span(data + start, stop - start))
