"""Where frames come from: what a source is, and which kind of source a name means."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import MOST_PIXELS, PICTURE_SUFFIXES, image_size, pictures_in, read_picture
from pipnet_edge.strict import printable
from pipnet_edge.video.level import LONGEST

STDIN, PICAMERA = "-", "picamera2"
SCHEMES = ("http", "https", "rtsp", "rtsps")
# Frames a second of a folder, where none are given, and the most of any source.
FPS, MOST_FPS = 30.0, 1000.0


@dataclass(frozen=True)
class Frame:
    """One picture of a source: (H, W, 3) uint8 RGB, and its time in seconds since the source's first.

    index: 0, 1, 2 … of the frames that the source gave; of a live source some are passed over, and theirs are missing.
    """

    picture: NDArray[np.uint8]
    time: float
    index: int


@dataclass(frozen=True)
class Footage:
    """A source that is open. name: what messages call it. width, height: of its frames, all of them.

    fps: frames a second, None if it does not tell. count: how many frames there will be, as it says, which may be
    wrong; None if nobody knows. is_live: frames come when they come, and what is not taken in time is of no use.
    frames: ends where the source ends, and raises EdgeError where it should not have ended. close() it to free it.
    """

    name: str
    width: int
    height: int
    fps: float | None
    count: int | None
    is_live: bool
    frames: Generator[Frame, None, None]


@dataclass(frozen=True)
class Asked:
    """What a user asks for. Refuses what no source could be when it is built (EdgeError), in the words of `track`.

    name: a file, a folder of frames, a camera's number or /dev/video0, a URL, picamera2, or - for the open descriptor.
    size: width and height of a camera's frames; the camera has the last word. fps: of a camera, or of a folder.
    """

    name: str
    descriptor: int | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= side <= LONGEST for side in self.size):
            raise EdgeError(f"--size {self.size[0]}x{self.size[1]}; allowed: 1 to {LONGEST} pixels on a side")
        if self.fps is not None and not 0 < self.fps <= MOST_FPS:
            raise EdgeError(f"--fps {self.fps:g}; allowed: above 0, at most {MOST_FPS:g}")
        if self.size is not None and not self.is_camera:
            raise EdgeError(f"--size is for cameras, and {self.shown} is none")
        if self.fps is not None and not self.is_camera and not Path(self.name).is_dir():
            raise EdgeError(f"--fps is for cameras and folders, and {self.shown} is neither")

    @property
    def shown(self) -> str:
        """The name for messages; a password in a URL is left out."""
        name = re.sub(r"(?<=://)[^/@]*@", "…@", self.name)
        return "stdin" if name == STDIN else printable(name)[:200] or "''"

    @property
    def scheme(self) -> str | None:
        """The scheme of a URL."""
        scheme, slashes, _ = self.name.partition("://")
        return scheme.lower() if slashes else None

    @property
    def is_camera(self) -> bool:
        return self.name == PICAMERA or self.name.isdecimal() or self.name.startswith("/dev/")


def opened(asked: Asked) -> Footage:
    """Opens a source. Raises EdgeError for what is none, in one line that says why."""
    from pipnet_edge.video import capture

    if asked.name == STDIN:
        return capture.stdin(asked)
    if asked.name == PICAMERA:
        from pipnet_edge.video import picamera

        return picamera.camera(asked)
    if asked.is_camera:
        return capture.camera(asked)
    if asked.scheme:
        if asked.scheme not in SCHEMES:
            raise EdgeError(f"{asked.shown} is a URL of {asked.scheme}; allowed: {', '.join(SCHEMES)}")
        return capture.stream(asked)
    path = Path(asked.name)
    try:
        found = os.stat(asked.name)  # the path of nothing would be that of this folder
    except (OSError, ValueError):
        raise EdgeError(f"there is no source {asked.shown}: no file, folder, camera or URL") from None
    if stat.S_ISDIR(found.st_mode):
        return _folder(path, asked)
    if not stat.S_ISREG(found.st_mode):
        raise EdgeError(f"{asked.shown} is no regular file; a video through a pipe is read from stdin: -")
    if not found.st_size:
        raise EdgeError(f"{asked.shown} is an empty file")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise EdgeError(f"{asked.shown} is a picture; a video or a folder of pictures is needed")
    return capture.file(str(path.absolute()), asked.shown)


def check_size(name: str, width: int, height: int) -> None:
    """Raises EdgeError for frames that are too large, before there is memory for one."""
    if min(width, height) < 1:
        raise EdgeError(f"{name} opens, but has no frames that can be decoded")
    if max(width, height) > LONGEST or width * height > MOST_PIXELS:
        most = f"{LONGEST} on a side and {MOST_PIXELS // 10**6} megapixels"
        raise EdgeError(f"{name} has frames of {width}x{height} pixels; at most {most} are read")


def changed(name: str, before: tuple[int, int], now: tuple[int, int], index: int) -> EdgeError:
    """What is raised where frames change their size: no video can be written on."""
    sizes = f"from {before[0]}x{before[1]} to {now[0]}x{now[1]}"
    return EdgeError(f"{name} changes the size of its frames {sizes} after {index} frames; it was read up to there")


def plausible(fps: float) -> float | None:
    """A rate as decoders tell it, None where it is none."""
    return fps if math.isfinite(fps) and 0 < fps <= MOST_FPS else None


def _folder(folder: Path, asked: Asked) -> Footage:
    """A folder of frames, in the order of their names."""
    paths = pictures_in(folder)
    if not paths:
        raise EdgeError(f"{asked.shown} is a folder without pictures ({', '.join(PICTURE_SUFFIXES)})")
    size, fps = image_size(paths[0]), asked.fps or FPS
    check_size(asked.shown, *size)

    def frames() -> Generator[Frame, None, None]:
        for index, path in enumerate(paths):
            picture = read_picture(path)
            height, width = picture.shape[:2]
            if (width, height) != size:
                raise changed(asked.shown, size, (width, height), index)
            yield Frame(picture, index / fps, index)

    return Footage(asked.shown, *size, fps, len(paths), False, frames())
