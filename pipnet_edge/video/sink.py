"""Where tracked frames go: an annotated video and JSON lines. docs/video.md has the schema of the lines.

A sink is written to from one thread. What was written before an error, or before it is closed, is whole.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipnet_edge import draw
from pipnet_edge.errors import EdgeError
from pipnet_edge.video.ahead import Ahead
from pipnet_edge.video.source import Frame
from pipnet_edge.video.track import Face, Tracked
from pipnet_edge.words import counted

if TYPE_CHECKING:
    import cv2

SCHEMA = "pipnet-edge-track/1"

# Suffix to the code of the codec, and to what OpenCV's packages do not write well.
CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
REFUSED = {
    **dict.fromkeys((".gif", ".apng", ".webp"), "OpenCV writes no videos of that kind"),
    **dict.fromkeys((".h264", ".264", ".h265", ".265", ".hevc", ".av1"), "OpenCV's packages have no such encoder"),
    ".webm": "OpenCV's VP8 and VP9 take several times as long as tracking",
}
# The longest sides in pixels that a codec takes.
LONGEST = {"mp4v": 8191, "MJPG": 16384}
FASTEST = 1000

# A frame is repeated until the next comes, but not for more than so many seconds.
LONGEST_PAUSE = 5


class Sink(Protocol):
    """Takes each frame, what was tracked in it, and the milliseconds that each stage took, by the stage's name."""

    def write(self, frame: Frame, tracked: Tracked, milliseconds: Mapping[str, float]) -> None:
        """Raises EdgeError if it cannot take the frame; it is closed then."""

    def close(self) -> None:
        """Ends what was written so that it can be read. Closing again does nothing."""


class Video:
    """A video of the frames with their faces drawn, at a constant rate; where frames are missing the last one stays.

    It is written beside its path, as name.part.mp4, and has its own name once it is closed. A path or rate that cannot
    be is refused before anything is written, as EdgeError; the file itself begins with the first frame.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._codec = _codec(path)
        if not 0 < fps <= FASTEST:
            raise EdgeError(f"{path}: {fps:g} frames a second; allowed: above 0, up to {FASTEST}")
        # A link stays a link.
        self._path, self._final = path, path.resolve()
        self._part = self._final.with_name(f"{self._final.stem}.part{self._final.suffix}")
        _check_writable(path, self._part)
        self._fps, self._frames, self._start = fps, 0, 0.0
        self._shape: tuple[int, ...] = ()
        self._out: tuple[cv2.VideoWriter, Ahead] | None = None
        self._drawn: cv2.typing.MatLike | None = None
        self._ended = False

    def write(self, frame: Frame, tracked: Tracked, milliseconds: Mapping[str, float]) -> None:
        """Raises EdgeError for a frame of another size than the first, and if the disk is full."""
        import cv2

        if self._ended:
            raise EdgeError(f"{self._path} has ended")
        height, width = frame.picture.shape[:2]
        if self._out is None:
            self._out = self._open(width, height)
            self._shape, self._start = frame.picture.shape, frame.time
        if frame.picture.shape != self._shape:
            was = f"{self._shape[1]}x{self._shape[0]}"
            raise self._end(f"the frames change from {was} to {width}x{height} pixels")
        for _ in range(self._missing(frame.time)):
            self._put()
        self._drawn = cv2.cvtColor(draw.faces(frame.picture, tracked.faces), cv2.COLOR_RGB2BGR)
        self._put()

    def close(self) -> None:
        """Raises EdgeError if what was written does not play."""
        if self._out is None:
            return
        writer, ahead = self._out
        self._out, self._ended = None, True
        writer.release()
        ahead.close()
        if not self._frames:
            self._part.unlink(missing_ok=True)
            return
        if not _plays(self._part):
            raise EdgeError(f"cannot write {self._path}: what was written, {self._part}, does not play")
        try:
            self._part.replace(self._final)
        except OSError as e:
            raise EdgeError(f"cannot write {self._path}: {e.strerror}; what was written is {self._part}") from e

    def _open(self, width: int, height: int) -> tuple[cv2.VideoWriter, Ahead]:
        import cv2

        longest = LONGEST[self._codec]
        if not 2 <= min(width, height) <= max(width, height) <= longest:
            size = f"{width}x{height} pixels"
            raise EdgeError(f"{self._path}: {size} a frame; {self._codec} allows 2 to {longest} on each side")
        # Nothing that is there, as a link would be, is written into.
        self._part.unlink(missing_ok=True)
        code = cv2.VideoWriter.fourcc(*self._codec)
        writer = cv2.VideoWriter(str(self._part), cv2.CAP_FFMPEG, code, self._fps, (width, height))
        if not writer.isOpened():
            raise EdgeError(f"cannot write {self._path}: OpenCV does not open it as {self._codec}")
        return writer, Ahead(self._part, width * height)

    def _missing(self, time: float) -> int:
        """How many frames would have been between the last one and this."""
        missing = round((time - self._start) * self._fps) - self._frames
        most = round(LONGEST_PAUSE * self._fps)
        if missing > most:
            self._start += (missing - most) / self._fps
        return max(0, min(missing, most))

    def _put(self) -> None:
        assert self._out is not None
        assert self._drawn is not None
        writer, ahead = self._out
        try:
            ahead.keep(self._frames)
        except OSError as e:
            raise self._end(str(e.strerror)) from e
        writer.write(self._drawn)
        self._frames += 1

    def _end(self, why: str) -> EdgeError:
        """Ends the file before its time. The error says what is there."""
        self.close()
        if not self._frames:
            return EdgeError(f"cannot write {self._path}: {why}")
        return EdgeError(f"{self._path} ends after {counted(self._frames, 'frame')}: {why}")


class Lines:
    """JSON lines: the schema, then a line a frame, then the counts. path: a file, or - for the descriptor stdout.

    A path that cannot be written is refused before anything is written, as EdgeError; the file begins with the first
    frame. Each line is written at once and whole.
    """

    def __init__(self, path: Path, stdout: int = 1) -> None:
        self._path, self._stdout = path, stdout
        self._is_stdout = str(path) == "-"
        if not self._is_stdout:
            _check_writable(path, None)
        self._file: int | None = None
        self._ended = False
        self._whole = self._frames = self._detections = self._lost = 0
        self._seen, self._last = Counter[int](), set[int]()

    def write(self, frame: Frame, tracked: Tracked, milliseconds: Mapping[str, float]) -> None:
        """Raises EdgeError with the system's reason, a full disk among them; the line is not there then."""
        if self._ended:
            raise EdgeError(f"{self._path} has ended")
        if self._file is None:
            self._file = self._open()
            self._put({"schema": SCHEMA})
        self._put(
            {
                "frame": frame.index,
                "t": round(frame.time, 6),
                "faces": [_face(face) for face in tracked.faces],
                "detected": tracked.detected,
                "ms": {name: round(value, 3) for name, value in milliseconds.items()},
            }
        )
        ids = {face.id for face in tracked.faces}
        self._frames += 1
        self._detections += tracked.detected
        self._lost += len(self._last - ids)
        self._seen.update(ids)
        self._last = ids

    def close(self) -> None:
        """Writes the counts. Raises EdgeError as `write`."""
        if self._file is None:
            return
        faces = {str(face): count for face, count in sorted(self._seen.items())}
        counts = {"frames": self._frames, "detections": self._detections, "faces": faces, "lost": self._lost}
        self._put({"end": counts})
        self._close()

    def _open(self) -> int:
        if self._is_stdout:
            return os.dup(self._stdout)
        try:
            return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as e:
            raise EdgeError(f"cannot write {self._path}: {e.strerror}") from e

    def _put(self, line: dict[str, Any]) -> None:
        content = f"{json.dumps(line, allow_nan=False, separators=(',', ':'))}\n".encode()
        assert self._file is not None
        left = memoryview(content)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as e:
            # What is there of the line goes.
            if stat.S_ISREG(os.fstat(self._file).st_mode) and not self._is_stdout:
                os.ftruncate(self._file, self._whole)
            self._close()
            what = "stdout" if self._is_stdout else self._path
            raise EdgeError(f"{what} ends after {counted(self._frames, 'frame')}: {e.strerror}") from e
        self._whole += len(content)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._ended = None, True


def _face(face: Face) -> dict[str, Any]:
    return {
        "id": face.id,
        "new": face.is_new,
        "score": round(face.score, 4),
        "crop": face.crop.to_picture(draw.CORNERS).astype(float).round(2).tolist(),
        "points": face.points.astype(float).round(2).tolist(),
    }


def _codec(path: Path) -> str:
    """The codec of a video's suffix. Raises EdgeError that says what is allowed."""
    suffix = path.suffix.lower()
    if suffix in CODECS:
        return CODECS[suffix]
    allowed = ", ".join(f"{name} ({codec})" for name, codec in CODECS.items())
    why = f": {REFUSED[suffix]}" if suffix in REFUSED else ""
    raise EdgeError(f"cannot write a video as {path.name or path}{why}; allowed: {allowed}")


def _check_writable(path: Path, beside: Path | None) -> None:
    """Raises EdgeError, before any work, if a file cannot be written at a path, or `beside` it.

    A video is a regular file. Lines may go to a pipe or a device too.
    """
    try:
        mode = path.stat().st_mode if path.exists() else None
        if mode is not None and (stat.S_ISDIR(mode) or (beside and not stat.S_ISREG(mode))):
            raise EdgeError(f"cannot write {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
        if beside is not None:
            beside.unlink(missing_ok=True)
            beside.open("xb").close()
            beside.unlink()
        elif mode is None:
            path.open("xb").close()
            path.unlink()
        elif not os.access(path, os.W_OK):
            raise EdgeError(f"cannot write {path}: {os.strerror(errno.EACCES)}")
    except OSError as e:
        raise EdgeError(f"cannot write {path}: {e.strerror}") from e


def _plays(path: Path) -> bool:
    """Whether a video opens and has a frame."""
    import cv2

    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return bool(video.read()[0])
    finally:
        video.release()
