"""What a file is, told from its content: names mislead, and each wrong kind deserves its own advice."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO

from pipnet_edge.converters.checkpoint import zips
from pipnet_edge.errors import EdgeError
from pipnet_edge.words import one_line


class Kind(StrEnum):
    """What a file is, in words that follow "it is"."""

    ONNX = "an ONNX file"
    TORCH = "a PyTorch checkpoint"
    SAFETENSORS = "a safetensors file"
    TORCHSCRIPT = "a TorchScript archive"
    EXPORTED = "a torch.export archive"
    NUMPY = "a NumPy file"
    ZIP = "a zip archive"
    GZIP = "a gzip file"
    PACKED = "a packed archive"
    TAR = "a tar archive"
    TFLITE = "a TFLite file"
    HDF5 = "an HDF5 file"
    NCNN = "an ncnn or pnnx parameter file"
    LFS = "a Git LFS pointer"
    HTML = "an HTML page"
    PICTURE = "a picture"
    EMPTY = "empty"


_NEEDED = "a state_dict or a five-map ONNX file is needed"
_ORIGINAL = "give the state_dict or the five-map ONNX file that it was made from"
_INSIDE = "unpack it and give the checkpoint inside"
ADVICE = {
    Kind.ONNX: "give it a name that ends in .onnx",
    Kind.ZIP: _INSIDE,
    Kind.GZIP: _INSIDE,
    Kind.PACKED: _INSIDE,
    Kind.TAR: _INSIDE,
    Kind.TFLITE: _ORIGINAL,
    Kind.NCNN: _ORIGINAL,
    Kind.LFS: "fetch the file itself with `git lfs pull`",
    Kind.HTML: "the download gave a page instead of the file",
}
STARTS = {
    b"\x1f\x8b": Kind.GZIP,
    b"BZh": Kind.PACKED,
    b"\xfd7zXZ\x00": Kind.PACKED,
    b"\x28\xb5\x2f\xfd": Kind.PACKED,  # zstd
    b"7z\xbc\xaf\x27\x1c": Kind.PACKED,
    b"Rar!\x1a\x07": Kind.PACKED,
    b"\x93NUMPY": Kind.NUMPY,
    b"\x89HDF\r\n\x1a\n": Kind.HDF5,
    b"7767517\n": Kind.NCNN,
    b"7767517\r\n": Kind.NCNN,
    b"version https://git-lfs.github.com/spec/": Kind.LFS,
    b"\xff\xd8\xff": Kind.PICTURE,
    b"\x89PNG\r\n\x1a\n": Kind.PICTURE,
    b"\x80\x02": Kind.TORCH,  # pickles, as torch wrote them before it took zip archives
    b"\x80\x03": Kind.TORCH,
    b"\x80\x04": Kind.TORCH,
    b"\x80\x05": Kind.TORCH,
}
HEAD = 512  # bytes; a tar archive says what it is at 257
# Fields of an ONNX ModelProto that lie before its graph in files, with the wire type of each.
ONNX_IR_VERSION, ONNX_GRAPH, ONNX_FIELDS = 1, 7, {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 25: 2}


def of(path: Path) -> Kind | None:
    """What a file is, by its content; None if that says nothing. Raises EdgeError if it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            if head.startswith(b"PK\x03\x04"):
                return _zip(file)
            return _head(head) or (Kind.ONNX if _is_onnx(file) else None)
    except OSError as e:
        raise EdgeError(f"{path} cannot be read: {e.strerror or one_line(e)}") from e


def refusal(path: Path, kind: Kind) -> EdgeError:
    """The error for a file of a kind that is not read."""
    return EdgeError(f"{path} is {kind}; {ADVICE.get(kind, _NEEDED)}")


def _head(head: bytes) -> Kind | None:
    for start, kind in STARTS.items():
        if head.startswith(start):
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return Kind.HTML
    # Its header's length as 8 bytes, and the header, JSON.
    if head[8:10] == b'{"' and head[4:8] == b"\x00" * 4:
        return Kind.SAFETENSORS
    if head[4:8] == b"TFL3":
        return Kind.TFLITE
    if head[257:262] == b"ustar":
        return Kind.TAR
    return None if head else Kind.EMPTY


def _zip(file: IO[bytes]) -> Kind:
    try:
        names = [entry.filename for entry in zips.entries(file)]
    except ValueError:
        return Kind.TORCH  # a truncated one most likely; its reader says so
    return _archive([name.partition("/")[2] or name for name in names])


def _archive(members: Sequence[str]) -> Kind:
    """What a zip archive is by its members, without the folder that torch puts them in."""
    if "archive_format" in members or "serialized_exported_program.json" in members:
        return Kind.EXPORTED
    if "constants.pkl" in members:
        return Kind.TORCHSCRIPT
    if "data.pkl" in members:
        return Kind.TORCH
    return Kind.NUMPY if members and all(name.endswith(".npy") for name in members) else Kind.ZIP


def _is_onnx(file: IO[bytes]) -> bool:
    """Whether the file starts as an ONNX ModelProto does, up to its graph."""
    file.seek(0)
    seen = set()
    for _ in range(1000):
        tag = _varint(file)
        field, wire = (tag or 0) >> 3, (tag or 0) & 7
        if tag is None or ONNX_FIELDS.get(field) != wire:
            return False
        seen.add(field)
        if field == ONNX_GRAPH:
            return ONNX_IR_VERSION in seen
        value = _varint(file)
        if value is None:
            return False
        if wire == 2:  # that many bytes follow
            file.seek(value, 1)
    return False


def _varint(file: IO[bytes]) -> int | None:
    """A number as protobuf writes it. None where there is none of at most 63 bits."""
    value = 0
    for shift in range(0, 63, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    return None
