"""Changes of PNG chunks, checksums mended, and of JPEG segments."""

from __future__ import annotations

import struct
import zlib

from tests.fuzz.mutators import plain
from tests.fuzz.target import Random

PNG = b"\x89PNG\r\n\x1a\n"
CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"gAMA", b"IEND", b"sBIT")
SIDES = (0, 1, 2, 15, 4096, 9999, 10_000, 10_001, 30_000, 65_535, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1)
LONGEST = 1 << 31


def png(chance: Random, data: bytes, other: bytes) -> bytes:
    """A chunk changes, is left out, doubled, moved or added; checksums are right again."""
    parts = chunks(data)
    if not parts:
        return jpeg(chance, data, other)
    at = chance.randrange(len(parts))
    kind, content = parts[at]
    how = chance.randrange(8)
    if how <= 1 and parts[0][0] == b"IHDR" and len(parts[0][1]) >= 13:
        parts[0] = b"IHDR", _header(chance, parts[0][1])
    elif how == 2:
        parts[at] = kind, chance.choice(plain.BINARY)(chance, content, other)
    elif how == 3:
        del parts[at]
    elif how == 4:
        parts.insert(chance.randrange(len(parts)), parts[at])
    elif how == 5:
        parts.insert(chance.randrange(len(parts)), parts.pop(at))
    elif how == 6:
        parts.insert(at, (chance.choice(CHUNKS), chance.randbytes(chance.choice((0, 1, 8, 26, 300)))))
    else:
        parts[at] = chance.choice(CHUNKS), content
    claim = chance.randrange(len(parts)) if chance.random() < 0.1 and parts else None
    return PNG + b"".join(
        png_chunk(*part, chance.choice(SIDES) if i == claim else None) for i, part in enumerate(parts)
    )


def _header(chance: Random, content: bytes) -> bytes:
    width, height, depth, colour, packing, sieve, interlaced = struct.unpack(">IIBBBBB", content[:13])
    how = chance.randrange(5)
    if how == 0:
        width = chance.choice(SIDES)
    elif how == 1:
        height = chance.choice(SIDES)
    elif how == 2:
        width, height = chance.choice(SIDES), chance.choice(SIDES)
    elif how == 3:
        depth, colour = chance.choice((1, 2, 4, 8, 16, 3)), chance.choice((0, 2, 3, 4, 6, 1))
    else:
        interlaced = chance.choice((0, 1, 2))
    return struct.pack(">IIBBBBB", width, height, depth, colour, packing, sieve, interlaced)


def png_chunk(kind: bytes, content: bytes, claimed: int | None = None) -> bytes:
    """A chunk with a right checksum. claimed: the length that it states, if another."""
    length = len(content) if claimed is None else claimed
    return struct.pack(">I", length) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, as far as they can be read; none if it is no PNG."""
    found: list[tuple[bytes, bytes]] = []
    at = len(PNG)
    while data.startswith(PNG) and at + 12 <= len(data) and len(found) < 100:
        length = int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def jpeg(chance: Random, data: bytes, other: bytes) -> bytes:
    """A segment before the picture's data changes, is left out, doubled, moved or gets another size or marker."""
    parts, rest = segments(data)
    if not parts:
        return plain.number(chance, data, other)
    at = chance.randrange(len(parts))
    marker, content = parts[at]
    how = chance.randrange(7)
    if how <= 1:
        frames = [i for i, (kind, body) in enumerate(parts) if 0xC0 <= kind <= 0xC2 and len(body) >= 6]
        if frames:
            frame = chance.choice(frames)
            height, width = chance.choice(SIDES) & 0xFFFF, chance.choice(SIDES) & 0xFFFF
            parts[frame] = (
                parts[frame][0],
                parts[frame][1][:1] + struct.pack(">HH", height, width) + parts[frame][1][5:],
            )
    elif how == 2:
        parts[at] = marker, chance.choice(plain.BINARY)(chance, content, other)
    elif how == 3:
        del parts[at]
    elif how == 4:
        parts.insert(chance.randrange(len(parts)), parts[at])
    elif how == 5:
        parts[at] = chance.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xD8, 0xDB, 0xDD, 0xE1, 0xFE, 0xFF, 0x00)), content
    else:
        rest = chance.choice(plain.BINARY)(chance, rest, other)
    wrong = chance.randrange(len(parts)) if chance.random() < 0.15 and parts else None
    written = [
        _segment(*part, chance.choice((0, 1, 2, 65_535)) if i == wrong else None) for i, part in enumerate(parts)
    ]
    return b"\xff\xd8" + b"".join(written) + rest


def _segment(marker: int, content: bytes, claimed: int | None) -> bytes:
    length = min(len(content) + 2, 65_535) if claimed is None else claimed
    return bytes((0xFF, marker)) + struct.pack(">H", length) + content


def segments(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """(marker, content) of a JPEG's segments up to the start of its data, and all that follows."""
    found: list[tuple[int, bytes]] = []
    at = 2
    while data.startswith(b"\xff\xd8") and at + 4 <= len(data) and data[at] == 0xFF and len(found) < 100:
        if data[at + 1] == 0xDA:
            break
        length = int.from_bytes(data[at + 2 : at + 4])
        found.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + max(length, 2)
    return found, data[at:]


def other_kind(chance: Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one format before the rest of another."""
    cut = chance.choice((2, 8, 12, 26, 54))
    return other[:cut] + data[cut:]


ALL = (png, png, png, png, *plain.BINARY, other_kind)
