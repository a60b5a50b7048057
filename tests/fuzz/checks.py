"""The first check of each format: what an input needs before a reader looks at anything else. All code of our own."""

from __future__ import annotations

import json
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

from tests.fuzz.mutators import pictures

# How other pictures than PNG, JPEG, WebP, AVIF and JPEG 2000 begin.
PICTURES = (b"BM", b"II*\0", b"MM\0*", b"P6", b"P7", b"GIF8", b"\x59\xa6\x6a\x95")
Check = Callable[[bytes], bool]


def json_with(**needed: Any) -> Check:
    """It is an object of JSON that has these values."""

    def check(data: bytes) -> bool:
        found = _json(data)
        return isinstance(found, dict) and all(found.get(key) == value for key, value in needed.items())

    return check


def json_naming(key: str, *names: str) -> Check:
    """It is an object of JSON, and one of these names stands under `key`."""

    def check(data: bytes) -> bool:
        found = _json(data)
        return isinstance(found, dict) and found.get(key) in names

    return check


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def json_lines(*lines: tuple[str, ...]) -> Check:
    """The first lines are such objects: each with one of the names under the key that comes before them."""

    def check(data: bytes) -> bool:
        found = data.split(b"\n")
        return len(found) >= len(lines) and all(
            json_naming(*needed)(line) for needed, line in zip(lines, found, strict=False)
        )

    return check


def archive(*members: str) -> Check:
    """It is a zip archive that has these members, whole."""

    def check(data: bytes) -> bool:
        try:
            with zipfile.ZipFile(BytesIO(data)) as found:
                for name in members:
                    with found.open(next(n for n in found.namelist() if n.endswith(name))) as member:
                        while member.read(1 << 16):
                            pass
                return True
        except Exception:  # of a broken archive, zipfile raises many kinds
            return False

    return check


def npy(data: bytes) -> bool:
    """It begins as a .npy file of a known version does."""
    return data[:7] in (b"\x93NUMPY\1", b"\x93NUMPY\2", b"\x93NUMPY\3")


def text(data: bytes) -> bool:
    """It is a text that is not blank."""
    try:
        return bool(data.decode("utf-8-sig").strip())
    except UnicodeDecodeError:
        return False


def toml(data: bytes) -> bool:
    """It is TOML."""
    try:
        return bool(tomllib.loads(data.decode()))
    except (ValueError, RecursionError):
        return False


def picture(data: bytes) -> bool:
    """The signature of a picture, and a whole header with a right checksum (PNG) or two whole segments (JPEG)."""
    if data.startswith(pictures.PNG):
        return data[12:16] == b"IHDR" and len(data) > 33 and struct.pack(">I", zlib.crc32(data[12:29])) == data[29:33]
    if data.startswith(b"\xff\xd8"):
        return len(pictures.segments(data)[0]) > 1
    return data.startswith(PICTURES) or data[8:12] == b"WEBP" or data[4:8] in (b"ftyp", b"jP  ")


def onnx(data: bytes) -> bool:
    """It is a protobuf message with a graph that has nodes."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return False
    return len(model.graph.node) > 0


def old_checkpoint(data: bytes) -> bool:
    """The magic number of checkpoints from before torch 1.6."""
    return data.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def either(*checks: Check) -> Check:
    return lambda data: any(check(data) for check in checks)
