"""How large an image file's picture is, from its header alone: before anybody takes memory for its pixels.

There is a reader for every format that OpenCV decodes. They are strict: where a decoder would guess, they give up.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import unpack_from

Size = tuple[int, int]

# A file of more parts (chunks, segments, boxes) than this is no picture that somebody made.
PARTS = 1_000_000
# The most pixels of a tile. Decoders of TIFF take memory for a whole one, however small the picture is.
TILE = 1 << 26


@dataclass(frozen=True)
class Header:
    """What a file's header says: the format, and width and height in pixels before EXIF turns them."""

    format: str
    width: int
    height: int


def read(data: bytes) -> Header | None:
    """The header of the image file with this content. None if it is in no format that OpenCV decodes, or is cut off."""
    for signature, name, size_of in FORMATS:
        if signature.match(data):
            try:
                width, height = size_of(data)
            except (struct.error, ValueError, OverflowError):
                return None
            return Header(name, width, height)
    return None


# --- One function a format. Where there is no size, it raises ValueError, or what unpack_from raises past the end.


def _png(data: bytes) -> Size:
    """W3C PNG, 5.3 and 11.2: chunks of length, name, content, checksum; the first is IHDR, the last IEND."""
    at = 8
    for _ in range(PARTS):
        length, name = unpack_from(">I4s", data, at)
        at += 12 + length
        if at > len(data):
            raise ValueError(f"{name!r} is longer than the file")  # decoders take memory for it before they look
        if name == b"IEND":
            break
    if data[12:16] != b"IHDR":
        raise ValueError("IHDR is not first")
    width, height = unpack_from(">II", data, 16)
    return width, height


def _jpeg(data: bytes) -> Size:
    """ITU T.81, B.1 and B.2: marker segments; a start of frame holds length, precision, height, width."""
    at = 2
    for _ in range(PARTS):
        at = data.index(b"\xff", at)
        while data[at : at + 1] == b"\xff":
            at += 1
        (marker,) = unpack_from("B", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = unpack_from(">HH", data, at + 4)
            return width, height
        if marker in (0xD9, 0xDA):
            break
        # Restart markers, TEM and the zero that follows an 0xFF in data stand alone.
        at += 1 if marker in (0x00, 0x01, *range(0xD0, 0xD8)) else 1 + max(2, *unpack_from(">H", data, at + 1))
    raise ValueError("no start of frame")


def _webp(data: bytes) -> Size:
    """RFC 9649, 2.5 to 2.7 and 3.4: RIFF, whose first chunk is VP8, VP8L or VP8X."""
    kind = data[12:16]
    if kind == b"VP8X":
        wide, wider, high, higher = unpack_from("<HBHB", data, 24)
        return (wide | wider << 16) + 1, (high | higher << 16) + 1
    if kind == b"VP8L" and data[20:21] == b"\x2f":
        (bits,) = unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no VP8")


def _bmp(data: bytes) -> Size:
    """BITMAPCOREHEADER (12 bytes long) or BITMAPINFOHEADER and later; a negative height means rows from the top."""
    (length,) = unpack_from("<I", data, 14)
    width, height = unpack_from("<HH" if length == 12 else "<ii", data, 18)
    return width, abs(height)


def _gif(data: bytes) -> Size:
    """GIF89a, 18: the logical screen, in which all frames lie."""
    width, height = unpack_from("<HH", data, 6)
    return width, height


def _tiff(data: bytes) -> Size:
    """TIFF 6.0, 2, and BigTIFF: the first directory's tags 256 and 257 (the picture), 322 and 323 (a tile)."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    (at,) = unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    found: dict[int, int] = {}
    kinds = {1: "B", 3: "H", 4: "I"} | ({16: "Q"} if big else {})
    for place in range(at, at + min(count, PARTS) * (20 if big else 12), 20 if big else 12):
        tag, kind, values = unpack_from(order + ("HHQ" if big else "HHI"), data, place)
        if tag in (256, 257, 322, 323) and tag not in found:
            if kind not in kinds or values != 1:
                raise ValueError(f"tag {tag} is no number")
            (found[tag],) = unpack_from(order + kinds[kind], data, place + (12 if big else 8))
    if not {256, 257} <= found.keys() or found.get(322, 1) * found.get(323, 1) > TILE:
        raise ValueError("no size, or too large a tile")
    return found[256], found[257]


def _netpbm(data: bytes) -> Size:
    """pbm(5), pgm(5), ppm(5) and pfm: width and height after the magic number, with white space and comments."""
    # A comment right after a number is refused: decoders disagree on where it begins.
    gap = rb"\s(?:\s|#[^\r\n]*[\r\n]){0,99}"
    return _numbers(re.match(rb"P[1-6Ff]" + gap + rb"(\d{1,9})" + gap + rb"(\d{1,9})\s", data))


def _pam(data: bytes) -> Size:
    """pam(5): lines of a name and a value, up to ENDHDR. None may come twice."""
    head = data[: data.index(b"ENDHDR", 0, 4096)]
    width, height = re.findall(rb"\bWIDTH\s+(\d{1,9})\s", head), re.findall(rb"\bHEIGHT\s+(\d{1,9})\s", head)
    if head.count(b"WIDTH") != 1 or head.count(b"HEIGHT") != 1:
        raise ValueError("two sizes, or none")
    return int(*width), int(*height)


def _hdr(data: bytes) -> Size:
    """Radiance: lines of text, an empty one, then `-Y height +X width`."""
    found = re.match(rb"#\?(?:[^\n]{1,100}\n){1,99}\n-Y (\d{1,9}) \+X (\d{1,9})\n", data)
    height, width = _numbers(found)
    return width, height


def _numbers(found: re.Match[bytes] | None) -> Size:
    if found is None:
        raise ValueError("no size")
    return int(found[1]), int(found[2])


def _sun(data: bytes) -> Size:
    """rasterfile(5): width and height after the magic number."""
    width, height = unpack_from(">II", data, 4)
    return width, height


def _avif(data: bytes) -> Size:
    """ISO/IEC 14496-12 and 23008-12: the largest of what the items (ispe) and tracks (tkhd) say."""
    found = []
    for name, start, end in _boxes(data):
        if name in (b"ispe", b"tkhd"):
            width, height = unpack_from(">II", data, start + 4 if name == b"ispe" else end - 8)
            found.append((width, height) if name == b"ispe" else (width >> 16, height >> 16))
    width, height = max(found, key=lambda size: size[0] * size[1])
    return width, height


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the content, end) of a file's boxes, and of those inside the ones that may hold sizes."""
    todo = [(0, len(data))]
    for _ in range(PARTS):
        if not todo:
            return
        at, end = todo.pop()
        length, name = unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            (length,) = unpack_from(">Q", data, start)
            start += 8
        stop = at + length if length else end
        if not start <= stop <= end:
            raise ValueError(f"{name!r} is longer than what holds it")
        yield name, start, stop
        inside = start + (4 if name == b"meta" else 0)
        todo += [(stop, end)] if stop < end else []
        todo += [(inside, stop)] if name in (b"meta", b"iprp", b"ipco", b"moov", b"trak") and inside < stop else []
    raise ValueError("too many boxes")


def _jp2(data: bytes) -> Size:
    """ISO/IEC 15444-1, annex I: boxes; jp2c holds the codestream."""
    return _codestream(data, next((at for name, at, _ in _boxes(data) if name == b"jp2c"), len(data)))


def _codestream(data: bytes, at: int = 0) -> Size:
    """ISO/IEC 15444-1, A.5.1: the marker SIZ is first; the picture lies between an offset and the grid's end."""
    marker, right, bottom, left, top = unpack_from(">I4xIIII", data, at)
    if marker != 0xFF4FFF51:
        raise ValueError("SIZ is not first")
    return right - left, bottom - top


FORMATS: tuple[tuple[re.Pattern[bytes], str, Callable[[bytes], Size]], ...] = tuple(
    (re.compile(signature, re.DOTALL), name, size_of)
    for signature, name, size_of in (
        (rb"\x89PNG\r\n\x1a\n", "png", _png),
        (rb"\xff\xd8\xff", "jpeg", _jpeg),
        (rb"RIFF....WEBP", "webp", _webp),
        (rb"BM", "bmp", _bmp),
        (rb"GIF8[79]a", "gif", _gif),
        (rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]", "tiff", _tiff),
        (rb"P[1-6Ff]\s", "netpbm", _netpbm),
        (rb"P7\s", "pam", _pam),
        (rb"#\?", "hdr", _hdr),
        (rb"\x59\xa6\x6a\x95", "sun", _sun),
        (rb"....ftyp", "avif", _avif),
        (rb"\0\0\0\x0cjP  \r\n\x87\n", "jpeg2000", _jp2),
        (rb"\xff\x4f\xff\x51", "jpeg2000", _codestream),
    )
)
