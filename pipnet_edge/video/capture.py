"""Sources that OpenCV opens: video files, streams, cameras. OpenCV is quiet about most of what goes wrong in them."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import image_header
from pipnet_edge.errors import EdgeError
from pipnet_edge.video.source import Asked, Footage, Frame, changed, check_size, plausible
from pipnet_edge.words import counted

# Seconds that a source has to open, and in which a stream must give its next frame. An RTSP camera takes 2 to open,
# and more if it has to be woken.
OPENING, SILENCE = 5.0, 2.0
LATE = 0.9 * SILENCE
# Where OpenCV takes options of FFmpeg from.
OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"

# A file that ends so many seconds, and such a part of its length, before the end that it tells of, is cut. Sound may
# go on after the pictures.
EARLY, EARLY_PART = 0.5, 0.05

Picture = NDArray[np.uint8]


def file(where: str, name: str) -> Footage:
    """A video file at an absolute path or a URL: every frame, at the time that the file gives it."""
    capture = _opened(where, name)
    fps, count = plausible(_number(capture, "FPS")), _count(capture)
    width, height = _size(capture, name)

    def frames() -> Generator[Frame, None, None]:
        at, step = 0.0, 1 / (fps or 30.0)
        for index, picture in enumerate(_pictures(capture, name, (width, height))):
            found = _number(capture, "POS_MSEC") / 1e3
            # Streams without a container tell no times, and broken files any.
            at = 0.0 if not index else found if at < found < at + 3600 else at + step
            yield Frame(picture, at, index)
        length = count / fps if count and fps else 0.0
        if length - at - step > max(EARLY, EARLY_PART * length):
            raise EdgeError(f"{name} ends after {at + step:.1f} of {length:.1f} s: it is cut or damaged there")

    return Footage(name, width, height, fps, count, False, frames())


def stdin(asked: Asked) -> Footage:
    """An encoded video from the descriptor: a file whole, what comes through a pipe as it comes."""
    descriptor = asked.descriptor
    try:
        if descriptor is None or os.isatty(descriptor):
            raise EdgeError("stdin is no video; pipe one in, as in `rpicam-vid --codec mjpeg -t 0 -o - | …`")
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        raise EdgeError("stdin is closed; pipe a video in") from None
    if is_file:
        return file(f"/dev/fd/{descriptor}", asked.shown)
    return _live(_opened(f"pipe:{descriptor}", asked.shown), asked.shown, may_end=True)


def stream(asked: Asked) -> Footage:
    """An rtsp or http URL. One that knows its number of frames is a file."""
    capture = _opened(asked.name, asked.shown)
    if _count(capture):
        capture.release()
        return file(asked.name, asked.shown)
    return _live(capture, asked.shown, may_end=False)


def camera(asked: Asked) -> Footage:
    """A camera by its number or device."""
    import cv2

    device = f"/dev/video{asked.name}" if asked.name.isdecimal() else asked.name
    name = f"camera {device}"
    if sys.platform == "linux":
        if not Path(device).is_char_device():
            raise EdgeError(f"there is no {name}")
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
    else:
        capture = cv2.VideoCapture(int(asked.name))
    if not capture.isOpened():
        raise EdgeError(f"{name} gives no video that OpenCV can read, or another program has it")
    if asked.size:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, asked.size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, asked.size[1])
    if asked.fps:
        capture.set(cv2.CAP_PROP_FPS, asked.fps)
    return _live(capture, name, may_end=False)


def _opened(where: str, name: str) -> Any:
    """What FFmpeg opens: an absolute path, a URL or pipe:3."""
    import cv2

    is_file = where.startswith("/")
    limits = {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: OPENING, cv2.CAP_PROP_READ_TIMEOUT_MSEC: SILENCE}
    parameters = [number for key, seconds in limits.items() for number in (key, int(1000 * seconds))]
    # A decoder with a thread a core gives a frame only after as many more have come.
    parameters += [] if is_file else [cv2.CAP_PROP_N_THREADS, 1]
    # Of pictures that come one by one through a pipe, FFmpeg would look at five seconds before it gives the first.
    is_asked = OPTIONS in os.environ
    if where.startswith("pipe:") and not is_asked:
        os.environ[OPTIONS] = "analyzeduration;500000"
    try:
        capture = cv2.VideoCapture(where, cv2.CAP_FFMPEG, parameters)
    finally:
        if not is_asked:
            os.environ.pop(OPTIONS, None)
    if not capture.isOpened():
        why = "no server answers with a video" if "://" in where else "it is no video that OpenCV can read, or cut off"
        raise EdgeError(f"{name} does not open: {why}")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # what is the default depends on the version
    return capture


def _live(capture: Any, name: str, may_end: bool) -> Footage:
    """A source whose frames are there when they come. may_end: its end is no failure."""
    import cv2

    width, height = _size(capture, name)
    # OpenCV scales a stream's frames silently to the size of the first, and hands out those that are cut half grey. So
    # JPEGs are taken as they come, and decoded here.
    is_jpeg = int(_number(capture, "FOURCC")) == cv2.VideoWriter.fourcc(*"MJPG")
    is_packets = is_jpeg and capture.getBackendName() == "FFMPEG" and capture.set(cv2.CAP_PROP_FORMAT, -1)
    decode = _jpeg if is_packets else None

    def frames() -> Generator[Frame, None, None]:
        index, first, last = 0, 0.0, time.monotonic()
        for picture in _pictures(capture, name, (width, height), decode):
            # When reading a stream has timed out, a decoder may hand out what it still has.
            if time.monotonic() - last > LATE:
                break
            now = time.monotonic()
            first = first or now
            yield Frame(picture, now - first, index)
            index += 1
            last = time.monotonic()  # what is done with a frame takes its own time
        after = f"after {counted(index, 'frame')}"
        if time.monotonic() - last > LATE:
            raise EdgeError(f"{name} hangs: no frame for {SILENCE:g} s, {after}")
        if not may_end:
            raise EdgeError(f"{name} is gone {after}: unplugged, or closed by its server")

    return Footage(name, width, height, plausible(_number(capture, "FPS")), None, True, frames())


def _pictures(
    capture: Any,
    name: str,
    size: tuple[int, int],
    decode: Callable[[str, Any, tuple[int, int], int], Any] | None = None,
) -> Generator[Picture, None, None]:
    """The pictures of a capture, in RGB, up to its end; it is released then, and when this is closed."""
    import cv2

    try:
        index = 0
        while True:
            read, found = capture.read()
            if not read:
                return
            picture = decode(name, found, size, index) if decode else found
            if picture is None:
                continue
            height, width = picture.shape[:2]
            if (width, height) != size:
                raise changed(name, size, (width, height), index)
            index += 1
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    except cv2.error as e:
        raise EdgeError(f"{name} cannot be decoded any more: {e.err}") from e
    finally:
        capture.release()


def _jpeg(name: str, packet: NDArray[np.uint8], size: tuple[int, int], index: int) -> Any:
    """The BGR picture of a JPEG, None if it is cut or none. Its size is looked at before there is memory for it."""
    import cv2

    header = image_header.read(packet.tobytes())
    if header is None:
        return None
    if (header.width, header.height) != size:
        raise changed(name, size, (header.width, header.height), index)
    return cv2.imdecode(packet.reshape(-1), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def _number(capture: Any, key: str) -> float:
    import cv2

    return float(capture.get(getattr(cv2, f"CAP_PROP_{key}")))


def _count(capture: Any) -> int | None:
    """How many frames there are; None for a stream, of which decoders tell any number."""
    count = _number(capture, "FRAME_COUNT")
    return int(count) if 0 < count < 1 << 40 else None


def _size(capture: Any, name: str) -> tuple[int, int]:
    width, height = int(_number(capture, "FRAME_WIDTH")), int(_number(capture, "FRAME_HEIGHT"))
    check_size(name, width, height)
    return width, height
