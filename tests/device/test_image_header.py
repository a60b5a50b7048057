"""Pictures' sizes from their headers: equal to what OpenCV decodes, and known before it takes memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipnet_edge import image_header
from pipnet_edge.errors import EdgeError
from pipnet_edge.image_header import Header
from pipnet_edge.preprocess import image_size, read_picture

WIDTH, HEIGHT = 80, 48
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SUFFIXES = {
    **{".png": "png", ".jpg": "jpeg", ".webp": "webp", ".bmp": "bmp", ".gif": "gif", ".tiff": "tiff", ".avif": "avif"},
    **{".pbm": "netpbm", ".pgm": "netpbm", ".ppm": "netpbm", ".pfm": "netpbm", ".pam": "pam"},
    **{".hdr": "hdr", ".sr": "sun", ".jp2": "jpeg2000"},
}


def encoded(suffix: str) -> bytes:
    picture = PICTURE.astype(np.float32) if suffix in (".hdr", ".pfm") else PICTURE
    done, data = cv2.imencode(suffix, picture[..., 0] if suffix in (".pbm", ".pgm") else picture)
    assert done
    return data.tobytes()


FILES = {suffix: encoded(suffix) for suffix in SUFFIXES}
FILES["lossy.webp"] = cv2.imencode(".webp", PICTURE, [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def exif(orientation: int) -> bytes:
    """A TIFF block that holds nothing but the orientation."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def jpeg_with(orientation: int) -> bytes:
    segment = b"Exif\0\0" + exif(orientation)
    return FILES[".jpg"][:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + FILES[".jpg"][2:]


def png_with(orientation: int) -> bytes:
    return FILES[".png"][:33] + chunk(b"eXIf", exif(orientation)) + FILES[".png"][33:]


def webp_with(orientation: int) -> bytes:
    first = FILES["lossy.webp"][12:]
    wide, high = (struct.pack("<I", side - 1)[:3] for side in (WIDTH, HEIGHT))
    extended = b"VP8X" + struct.pack("<II", 10, 8) + wide + high
    body = b"WEBP" + extended + first + b"EXIF" + struct.pack("<I", len(exif(orientation))) + exif(orientation)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_with(orientation: int, order: str = "<", big: bool = False) -> bytes:
    """A grey TIFF of one strip, little or big endian, classic or BigTIFF."""
    tags = {256: WIDTH, 257: HEIGHT, 258: 8, 259: 1, 262: 1, 273: 512, 274: orientation, 277: 1, 278: HEIGHT}
    tags[279] = WIDTH * HEIGHT
    mark = b"II" if order == "<" else b"MM"
    kind, value = (4, "I") if order == "<" else (3, "H")
    number = struct.calcsize(order + value)
    if big:
        head = mark + struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(tags))
        rows = [struct.pack(order + "HHQ" + value, tag, kind, 1, n) + bytes(8 - number) for tag, n in tags.items()]
        end = bytes(8)
    else:
        head = mark + struct.pack(order + "HIH", 42, 8, len(tags))
        rows = [struct.pack(order + "HHI" + value, tag, kind, 1, n) + bytes(4 - number) for tag, n in tags.items()]
        end = bytes(4)
    content = head + b"".join(rows) + end
    return content + bytes(512 - len(content)) + PICTURE[..., 0].tobytes()


TURNED = {f"{make.__name__} {o}": make(o) for make in (jpeg_with, png_with, webp_with, tiff_with) for o in (1, 3, 6, 8)}
TURNED |= {"MM 6": tiff_with(6, ">"), "BigTIFF 6": tiff_with(6, big=True), "big MM 1": tiff_with(1, ">", big=True)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_headers_say_the_size(suffix: str) -> None:
    assert image_header.read(FILES[suffix]) == Header(SUFFIXES[suffix], WIDTH, HEIGHT)


@pytest.mark.parametrize("name", [*FILES, *TURNED])
def test_image_size_is_that_of_the_picture(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes((FILES | TURNED)[name])
    height, width = read_picture(path).shape[:2]
    assert image_size(path) == (width, height) == ((HEIGHT, WIDTH) if name[-1] in "68" else (WIDTH, HEIGHT))


Edits = st.lists(
    st.tuples(st.sampled_from(["set", "flip", "cut", "add", "copy"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[str, float, int]], reach: int) -> bytes:
    """The file with some bytes changed, most of them in its first `reach` bytes."""
    content = bytearray(data)
    for what, place, value in edits:
        at = int(place * (min(reach, len(content)) - 1))
        if what == "set":
            content[at] = value
        elif what == "flip":
            content[at] ^= 1 << value % 8
        elif what == "cut":
            del content[at : at + 1 + value % 4]
        elif what == "add":
            content[at:at] = bytes([value] * (1 + value % 4))
        else:
            content[at : at + 8] = content[value : value + 8]
    return bytes(content)


@given(name=st.sampled_from([*FILES, *TURNED]), edits=Edits, reach=st.sampled_from([40, 160, 100_000]))
@settings(max_examples=600, deadline=None)
def test_no_picture_is_larger_than_its_header_says(name: str, edits: list[tuple[str, float, int]], reach: int) -> None:
    data = edited((FILES | TURNED)[name], edits, reach)
    header = image_header.read(data)
    if header is None or header.width * header.height > 10**6:
        return
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return
    assert picture is None or sorted(picture.shape[:2]) == sorted((header.width, header.height))


@given(st.binary(max_size=200), st.sampled_from([*FILES.values(), b""]), st.integers(0, 40))
def test_any_bytes_have_a_header_or_none(noise: bytes, data: bytes, kept: int) -> None:
    header = image_header.read(data[:kept] + noise)
    assert header is None or header.format in set(SUFFIXES.values())


@pytest.mark.parametrize("text", [b"P6\n80#48\n255\n", b"P6\n1#80 48\n255\n", b"P6#\n80 48\n255\n"])
def test_comments_right_after_a_number(text: bytes) -> None:
    """OpenCV reads on in some of them: 80 x 48."""
    assert image_header.read(text + bytes(3 * 80 * 48)) is None
    assert image_header.read(b"P6\n# 1 1\n80\t#\n48\n255\n" + bytes(3 * 80 * 48)) == Header("netpbm", 80, 48)


# --- What is refused, and how soon.


def sized(suffix: str, width: int, height: int) -> list[bytes]:
    """Where and how a file of the kind says its size."""
    binary = {
        **{".jpg": [(">HH", height, width)], ".gif": [("<HH", width, height)], ".bmp": [("<ii", width, height)]},
        **{suffix: [(">II", width, height)] for suffix in (".avif", ".jp2", ".sr")},
        ".tiff": [("<HHII", 256, 4, 1, width), ("<HHII", 257, 4, 1, height)],
    }
    if suffix == ".png":
        return [chunk(b"IHDR", struct.pack(">II", width, height) + FILES[".png"][24:29])]
    if suffix == ".webp":
        return [b"".join((side - 1).to_bytes(3, "little") for side in (width, height))]
    if suffix in binary:
        return [struct.pack(*numbers) for numbers in binary[suffix]]
    return [str(width).encode(), str(height).encode()]


def large(suffix: str) -> bytes:
    """A file whose header says 40000 x 30000 pixels, and that holds the few of the small one."""
    data = {".webp": webp_with(1), ".tiff": tiff_with(1)}.get(suffix, FILES[suffix])
    for small, big in zip(sized(suffix, WIDTH, HEIGHT), sized(suffix, 40000, 30000), strict=True):
        assert small in data
        data = data.replace(small, big, 1)
    return data


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_over_100_megapixels_are_refused_by_the_header(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(large(suffix))
    for read in (read_picture, image_size):
        with pytest.raises(EdgeError, match=rf"x{suffix} has 40000x30000 pixels; an image has at most 100 megapixels"):
            read(path)


def test_parts_that_are_longer_than_the_file(tmp_path: Path) -> None:
    """OpenCV would take 2 GB for this chunk."""
    path = tmp_path / "x.png"
    path.write_bytes(FILES[".png"][:33] + struct.pack(">I", 0x7FFFFFF0) + b"fdAT" + FILES[".png"][33:])
    with pytest.raises(EdgeError, match=r"x\.png is not an image that OpenCV can read, or is cut off"):
        read_picture(path)
    tiled = tiff_with(1).replace(struct.pack("<HHII", 258, 4, 1, 8), struct.pack("<HHII", 322, 4, 1, 1 << 24))
    tiled = tiled.replace(struct.pack("<HHII", 259, 4, 1, 1), struct.pack("<HHII", 323, 4, 1, 1 << 24))
    assert image_header.read(tiled) is None
    deep = b"".join(struct.pack(">I4s", 8 * (5000 - i), b"trak") for i in range(5000))
    assert image_header.read(struct.pack(">I4s", 16, b"ftyp") + b"avifavif" + deep) is None


def test_a_picture_that_is_larger_than_its_boxes_say(tmp_path: Path) -> None:
    """OpenCV would take 500 MB for it, up to 3.5 GB for larger ones, and shrink the picture to the size in the box."""
    side = 6000
    done, data = cv2.imencode(".avif", np.full((side, side, 3), 90, np.uint8), [cv2.IMWRITE_AVIF_SPEED, 10])
    assert done
    path = tmp_path / "x.avif"
    path.write_bytes(data.tobytes().replace(struct.pack(">II", side, side), struct.pack(">II", WIDTH, HEIGHT)))
    for read in (read_picture, image_size):
        with pytest.raises(EdgeError, match=r"x\.avif is not an image that OpenCV can read, or is cut off"):
            read(path)
    path.write_bytes(data.tobytes())
    assert image_size(path) == (side, side)


def test_what_is_no_file_or_too_long_a_one(tmp_path: Path) -> None:
    (tmp_path / "long.png").touch()
    os.truncate(tmp_path / "long.png", 10_000_000_000)
    os.mkfifo(tmp_path / "fifo.png")
    for path, message in (
        (tmp_path / "long.png", r"long\.png has 10000\.0 MB; an image has at most 400\.0 MB"),
        (tmp_path / "fifo.png", r"fifo\.png is no regular file; an image is needed"),
        (Path("/dev/zero"), r"/dev/zero is no regular file; an image is needed"),
        (tmp_path, r"is a folder; an image is needed"),
        (tmp_path / "missing.png", r"there is no image .*missing\.png"),
        (tmp_path / "long.png" / "x.png", r"there is no image .*x\.png"),
        (tmp_path / ("x" * 300), r"cannot read the image .*x: File name too long"),
    ):
        for read in (read_picture, image_size):
            with pytest.raises(EdgeError, match=message) as caught:
                read(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".avif", ".tiff"])
def test_refusing_takes_no_memory(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(large(suffix))
    code = (
        "import resource, sys; from pathlib import Path; from pipnet_edge.preprocess import read_picture; import cv2\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_picture(Path(sys.argv[1]))\n"
        "except Exception as e: print(type(e).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    name, more = done.stdout.split()
    assert name == "EdgeError"
    assert int(more) < 50_000  # KB
