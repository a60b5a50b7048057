"""From a picture and a face box to the crop a network takes, and back from its landmarks to the picture.

Boxes are (x, y, width, height) in pixels of the picture. Crop policies follow the reference: `test` is its test crop
(lib/preprocess.py), the box widened symmetrically by 1.2; `demo` is the crop of lib/demo.py for a face detector's box:
a tenth more at the left, right and bottom, a tenth less at the top. The reference's demo scales landmarks by one pixel
more than it cut; here the landmarks use exactly the rectangle that was cut.
"""

from __future__ import annotations

import platform
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import confined, image_header
from pipnet_edge.errors import EdgeError
from pipnet_edge.image_header import Header
from pipnet_edge.spec import CROPS
from pipnet_edge.words import megabytes

Box = tuple[float, float, float, float]

# The suffixes of pictures' names, in lower or upper case.
PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

# A picture that is read has at most so many pixels, and its file at most so many bytes: 4 for each of them.
MOST_PIXELS, MOST_BYTES = 100_000_000, 400_000_000

# The formats in which only EXIF can turn a picture, and the words that stand before it in them.
PLAIN, EXIF = ("bmp", "gif", "jpeg", "netpbm", "png", "webp"), (b"Exif", b"eXIf", b"EXIF")

# The formats whose pixels may be more than their headers say, because what is inside has a size of its own. A process
# apart decodes them, which may take so many bytes, and so many more for each pixel that the header says.
APART, BYTES, BYTES_A_PIXEL, SECONDS = ("avif",), 400_000_000, 16, 20.0
DECODE = """
import os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a thread a core takes memory, and none is of use
import cv2, numpy
cv2.setNumThreads(1)
picture = cv2.imdecode(numpy.fromfile(sys.argv[1], numpy.uint8), cv2.IMREAD_COLOR)
sys.exit("no picture") if picture is None else numpy.save(sys.argv[2], picture)
"""

# The machines where OpenCV hands resizing to KleidiCV, which reads up to a row past the end of its source
# (opencv#29794), and rounds otherwise than OpenCV does on x86: up to LEVELS of 255, on a part of the pixels.
READS_ON, LEVELS = ("aarch64", "arm64"), 2

# Computed as in lib/demo.py. It is a little less than 0.1, which matters if a tenth of a side is a whole pixel.
DEMO_MARGIN = (1.2 - 1) / 2


@dataclass(frozen=True)
class Rect:
    """The pixels cut from a picture: columns left to right - 1, rows top to bottom - 1."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def whole(cls, picture: NDArray[np.uint8]) -> Rect:
        """All of an (H, W, 3) picture."""
        return cls(0, 0, picture.shape[1], picture.shape[0])

    def to_picture(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Landmarks (..., 2) normalised to this rectangle as pixels (x, y) of the picture."""
        size = np.array([self.right - self.left, self.bottom - self.top], dtype=np.float32)
        return points * size + np.array([self.left, self.top], dtype=np.float32)


def check_pixels(what: str, pixels: object, size: tuple[int, int] | None = None) -> None:
    """Raises EdgeError unless this is an (H, W, 3) uint8 array; size: the only (W, H). Runtimes do not look."""
    if isinstance(pixels, np.ndarray):
        height, width, *channels = pixels.shape if pixels.ndim == 3 else (0, 0)
        fits = min(height, width) > 0 if size is None else (width, height) == size
        if fits and channels == [3] and pixels.dtype == np.uint8:
            return
    found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else f"a {type(pixels).__name__}"
    needed = "(H, W, 3)" if size is None else f"({size[1]}, {size[0]}, 3)"
    raise EdgeError(f"the {what} is {found}; uint8 {needed}, red green blue, is needed")


def crop_rect(box: Box, width: int, height: int, policy: str, name: str = "box") -> Rect:
    """The rectangle that a policy cuts for a face box, limited to a picture of width x height pixels.

    name: what messages call the box. Raises EdgeError for an unknown policy and for a box that is not in pixels, has
    no size or lies outside the picture.
    """
    x, y, w, h = box
    name = f"{name} {x:g},{y:g},{w:g},{h:g}"
    if not all(abs(number) <= MOST_PIXELS for number in box):
        raise EdgeError(f"{name}; four numbers in pixels, at most {MOST_PIXELS:g}, are needed: x,y,width,height")
    if w <= 0 or h <= 0:
        raise EdgeError(f"{name} is empty; x,y,width,height in pixels are needed, the last two above 0")
    if max(map(abs, box)) <= 1:
        meant = ",".join(f"{number * size:.0f}" for number, size in zip(box, (width, height) * 2, strict=True))
        raise EdgeError(f"{name} is in fractions; in pixels, as is needed, of this {width}x{height} picture: {meant}")
    if min(w, h) < 1:
        raise EdgeError(f"{name} is too small; a width and height of at least 1 pixel are needed")
    if policy == "test":
        # This order and this (1.2 - 1) / 2 matter: otherwise edges on a whole pixel come out one lower or higher.
        margin_x, margin_y = (x + w - x) * (1.2 - 1) / 2, (y + h - y) * (1.2 - 1) / 2
        left, top, right, bottom = x - margin_x, y - margin_y, x + w + margin_x, y + h + margin_y
    elif policy == "demo":
        left, top, right, bottom = (
            x - int(w * DEMO_MARGIN),
            y + int(h * DEMO_MARGIN),
            x + w - 1 + int(w * DEMO_MARGIN),
            y + h - 1 + int(h * DEMO_MARGIN),
        )
    else:
        raise EdgeError(f"crop policy {policy!r}; allowed: {', '.join(CROPS)}")
    rect = Rect(int(max(left, 0)), int(max(top, 0)), int(min(right, width - 1)), int(min(bottom, height - 1)))
    if rect.right - rect.left < 1 or rect.bottom - rect.top < 1:
        outside = x >= width or y >= height or x + w <= 0 or y + h <= 0
        why = "lies outside" if outside else "leaves less than a pixel of"
        raise EdgeError(f"{name} {why} the picture of {width}x{height} pixels")
    return rect


def cut(picture: NDArray[np.uint8], rect: Rect, side: int) -> NDArray[np.uint8]:
    """Cuts a rectangle from an (H, W, 3) uint8 picture, resized to (side, side, 3), bilinear as the reference does.

    On 64-bit Arm, pixels may differ by LEVELS from those of other machines.
    """
    return resized(picture[rect.top : rect.bottom, rect.left : rect.right], side, side)


def resized(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """An (H, W, 3) uint8 picture as (height, width, 3), bilinear, contiguous; machines differ as for `cut`."""
    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    if platform.machine() in READS_ON:
        picture = with_room(picture)
    import cv2

    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def with_room(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of an (H, W, 3) picture with two rows' memory, and at least 256 bytes, behind it: zeros to be read."""
    size = crop.size
    memory = np.empty(size + max(2 * crop.shape[1] * 3, 256), np.uint8)
    memory[size:] = 0
    copy = memory[:size].reshape(crop.shape)
    copy[:] = crop
    return copy


def pictures_in(folder: Path, below: bool = False) -> list[Path]:
    """The files in a folder (with `below` also in the folders inside it) that have a picture's suffix, sorted by path.

    Names that begin with a dot and folders called __MACOSX are left out: operating systems keep notes on files there.
    """

    def is_picture(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return (
            path.suffix.lower() in PICTURE_SUFFIXES
            and not any(part.startswith(".") or part == "__MACOSX" for part in parts)
            and path.is_file()
        )

    return sorted(path for path in (folder.rglob("*") if below else folder.glob("*")) if is_picture(path))


def read_picture(path: Path) -> NDArray[np.uint8]:
    """An image file as (H, W, 3) uint8 RGB, turned as its EXIF says.

    Raises EdgeError when it is not one, and before taking memory for it when it has over MOST_PIXELS or MOST_BYTES.
    """
    return _decoded(path, *_content(path))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture that read_picture gives. Raises EdgeError for a file that is not an image.

    It is decoded only where the header may not say it: if there is EXIF, because that may turn the picture.
    """
    data, header = _content(path)
    if header.format in PLAIN and not any(word in data for word in EXIF):
        return header.width, header.height
    height, width = _decoded(path, data, header).shape[:2]
    return width, height


def _content(path: Path) -> tuple[bytes, Header]:
    """An image file's bytes and what its header says. Raises EdgeError for what is no image, or too large a one."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise EdgeError(f"{path} is a folder; an image is needed")
        if not stat.S_ISREG(found.st_mode):
            raise EdgeError(f"{path} is no regular file; an image is needed")
        if found.st_size > MOST_BYTES:
            raise EdgeError(f"{path} has {megabytes(found.st_size)}; an image has at most {megabytes(MOST_BYTES)}")
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise EdgeError(f"there is no image {path}") from None
    except OSError as e:
        raise EdgeError(f"cannot read the image {path}: {e.strerror}") from e
    header = image_header.read(data)
    if header is None or min(header.width, header.height) < 1:
        raise EdgeError(f"{path} is not an image that OpenCV can read, or is cut off")
    if header.width * header.height > MOST_PIXELS:
        size = f"{header.width}x{header.height} pixels"
        raise EdgeError(f"{path} has {size}; an image has at most {MOST_PIXELS // 10**6} megapixels")
    return data, header


def _decoded(path: Path, data: bytes, header: Header) -> NDArray[np.uint8]:
    import cv2

    try:
        # Decoded from memory: imread fills the missing part of a cut-off JPEG with grey.
        picture = (
            _decoded_apart(data, header)
            if header.format in APART
            else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        )
    except cv2.error as e:
        raise EdgeError(f"{path} is not an image that OpenCV can read: {e.err}") from e
    if picture is None:
        raise EdgeError(f"{path} is not an image that OpenCV can read, or is cut off")
    return np.ascontiguousarray(picture[:, :, ::-1], dtype=np.uint8)


def _decoded_apart(data: bytes, header: Header) -> NDArray[np.uint8] | None:
    """(H, W, 3) uint8 BGR, or None if it is no picture or wants more memory than its header gives reason to."""
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        given, made, log = (Path(folder, name) for name in ("image", "picture.npy", "log"))
        given.write_bytes(data)
        memory = BYTES + BYTES_A_PIXEL * header.width * header.height
        with log.open("wb") as output:
            program = (sys.executable, "-P", "-c", DECODE, str(given), str(made))
            status = confined.run(program, Path(folder), output, memory, SECONDS)
        picture: NDArray[np.uint8] | None = np.load(made) if status == 0 else None
        return picture
