"""Sources: every frame of a file in its order, what is said of a source that is none, and of one that breaks."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipnet_edge.errors import EdgeError
from pipnet_edge.video import capture, source
from pipnet_edge.video.source import Asked, Frame, opened
from tests.device.video import moving, streams

COUNT = 45
PICTURES = [np.roll(moving.noise(320, 240), 7 * index, axis=1) for index in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of the same frames: FFV1, which loses nothing, MJPG and mp4v."""
    made = tmp_path_factory.mktemp("videos")
    streams.write(made / "exact.mkv", PICTURES, "FFV1")
    streams.write(made / "some.avi", PICTURES, "MJPG")
    streams.write(made / "some.mp4", PICTURES, "mp4v", fps=12.5)
    return made


def read(name: str | Path, **options: object) -> list[Frame]:
    return list(opened(Asked(str(name), **options)).frames)  # type: ignore[arg-type]


def broken(name: str | Path) -> tuple[list[Frame], str]:
    """The frames before it broke, and why it did."""
    frames = list[Frame]()
    with pytest.raises(EdgeError) as caught:
        frames.extend(opened(Asked(str(name))).frames)
    assert str(caught.value).isprintable()
    return frames, str(caught.value)


# --- Files.


def test_every_pixel_of_every_frame_in_rgb(folder: Path) -> None:
    frames = read(folder / "exact.mkv")
    assert [frame.index for frame in frames] == list(range(COUNT))
    for frame, picture in zip(frames, PICTURES, strict=True):
        np.testing.assert_array_equal(frame.picture, picture)


@pytest.mark.parametrize(("name", "fps"), [("exact.mkv", 30), ("some.avi", 30), ("some.mp4", 12.5)])
def test_times_are_the_files_own(folder: Path, name: str, fps: float) -> None:
    found = opened(Asked(str(folder / name)))
    assert (found.width, found.height, found.fps, found.count, found.is_live) == (320, 240, fps, COUNT, False)
    times = [frame.time for frame in found.frames]
    np.testing.assert_allclose(times, np.arange(COUNT) / fps, atol=0.001)  # Matroska counts milliseconds


def test_a_name_that_looks_like_a_protocol(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(folder / "some.avi", tmp_path / "file:a%03d.avi")
    monkeypatch.chdir(tmp_path)
    assert len(read("file:a%03d.avi")) == COUNT


@pytest.mark.parametrize("name", ["exact.mkv", "some.avi"])
def test_a_cut_file_is_read_up_to_there(folder: Path, name: str) -> None:
    path = streams.cut(folder / name, 0.5)
    frames, why = broken(path)
    assert 0.4 * COUNT <= len(frames) <= 0.6 * COUNT
    length = COUNT / 30
    assert why == f"{path} ends after {len(frames) / 30:.1f} of {length:.1f} s: it is cut or damaged there"


def test_a_garbled_file_ends_or_is_read(folder: Path, tmp_path: Path) -> None:
    """No decoder finds every wrong byte; none of them ends this process."""
    content = bytearray((folder / "some.avi").read_bytes())
    random = np.random.default_rng(0)
    for at in random.integers(len(content) // 3, 2 * len(content) // 3, 400).tolist():
        content[at] ^= 0x5A
    (tmp_path / "garbled.avi").write_bytes(content)
    frames = list[Frame]()
    with contextlib.suppress(EdgeError):
        frames.extend(opened(Asked(str(tmp_path / "garbled.avi"))).frames)
    assert len(frames) > COUNT // 4
    assert all(frame.picture.shape == (240, 320, 3) for frame in frames)


# --- What is no source.


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing", "there is no source nothing: no file, folder, camera or URL"),
        ("", "there is no source '': no file, folder, camera or URL"),
        ("nu\0ll", "there is no source nu?ll: no file"),
        ("empty.mp4", "empty.mp4 is an empty file"),
        ("text.mp4", "text.mp4 does not open: it is no video that OpenCV can read, or cut off"),
        ("some-cut.mp4", "some-cut.mp4 does not open: it is no video that OpenCV can read, or cut off"),
        ("list.m3u8", "list.m3u8 does not open: it is no video"),
        ("face.png", "face.png is a picture; a video or a folder of pictures is needed"),
        ("bare", "bare is a folder without pictures (.bmp, .jpeg, .jpg, .png, .webp)"),
        ("pipe", "pipe is no regular file; a video through a pipe is read from stdin: -"),
        ("ftp://x/y", "ftp://x/y is a URL of ftp; allowed: http, https, rtsp, rtsps"),
        ("http://127.0.0.1:1/x", "http://127.0.0.1:1/x does not open: no server answers with a video"),
        ("rtsp://a:b@127.0.0.1:1/", "rtsp://…@127.0.0.1:1/ does not open: no server answers with a video"),
        ("17", "there is no camera /dev/video17"),
        ("/dev/video17", "there is no camera /dev/video17"),
        ("/dev/null", "camera /dev/null gives no video that OpenCV can read, or another program has it"),
    ],
)
def test_what_is_no_source(folder: Path, name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("no video\n" * 1000)
    shutil.copy(streams.cut(folder / "some.mp4", 0.6), "some-cut.mp4")
    Path("list.m3u8").write_text(f"#EXTM3U\n#EXTINF:2,\n{folder / 'some.mp4'}\n#EXT-X-ENDLIST\n")
    cv2.imwrite("face.png", PICTURES[0])
    Path("bare").mkdir()
    os.mkfifo("pipe")
    start = time.monotonic()
    with pytest.raises(EdgeError) as caught:
        opened(Asked(name))
    assert str(caught.value).startswith(why)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("0", {"size": (0, 480)}, "--size 0x480; allowed: 1 to 16384 pixels on a side"),
        ("0", {"fps": 0.0}, "--fps 0; allowed: above 0, at most 1000"),
        ("0", {"fps": float("nan")}, "--fps nan; allowed: above 0"),
        ("film.mp4", {"size": (640, 480)}, "--size is for cameras, and film.mp4 is none"),
        ("film.mp4", {"fps": 30.0}, "--fps is for cameras and folders, and film.mp4 is neither"),
        ("-", {"fps": 30.0}, "--fps is for cameras and folders, and stdin is neither"),
    ],
)
def test_what_cannot_be_asked(name: str, options: dict[str, object], why: str) -> None:
    with pytest.raises(EdgeError) as caught:
        Asked(name, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(why)


def test_frames_too_large_are_refused_before_there_is_memory_for_one() -> None:
    source.check_size("film", 16384, 6103)
    for width, height in ((16385, 100), (16384, 6104)):
        with pytest.raises(EdgeError, match=f"film has frames of {width}x{height} pixels; at most 16384 on a side and"):
            source.check_size("film", width, height)
    with pytest.raises(EdgeError, match="film opens, but has no frames that can be decoded"):
        source.check_size("film", 0, 1)


# --- Folders.


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    for index in range(12):
        cv2.imwrite(str(tmp_path / f"{index:03}.png"), PICTURES[index][:, :, ::-1])
    return tmp_path


def test_a_folder_in_the_order_of_its_names(frames: Path) -> None:
    found = read(frames, fps=10.0)
    assert [(frame.index, frame.time) for frame in found] == [(index, index / 10) for index in range(12)]
    np.testing.assert_array_equal(found[7].picture, PICTURES[7])
    assert [frame.time for frame in read(frames)] == [index / 30 for index in range(12)]


def test_a_picture_of_another_size(frames: Path) -> None:
    cv2.imwrite(str(frames / "005.png"), PICTURES[5][:100])
    before, why = broken(frames)
    assert len(before) == 5
    assert why.endswith(
        "changes the size of its frames from 320x240 to 320x100 after 5 frames; it was read up to there"
    )


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_picture_that_is_none(frames: Path, content: bytes | None) -> None:
    path = frames / "005.png"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    before, why = broken(frames)
    assert len(before) == 5
    assert why == f"{path} is not an image that OpenCV can read, or is cut off"


# --- Streams.


def test_jpegs_come_whole_and_cut_ones_are_left_out() -> None:
    with streams.camera(PICTURES[0]) as url:
        found = opened(Asked(f"{url}/cut"))
        assert (found.width, found.height, found.count, found.is_live) == (320, 240, None, True)
        frames = [frame for frame, _ in zip(found.frames, range(20), strict=False)]
        found.frames.close()
    assert [frame.index for frame in frames] == list(range(20))
    # Where a frame is left out, the next comes two frame times later; half grey ones would be far from the picture.
    for frame in frames:
        difference = np.abs(frame.picture.astype(int) - PICTURES[0])[streams.WIDE :].mean()
        assert difference < 60
    assert frames[-1].time - frames[0].time > 22 / 30


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("drop", "is gone after 30 frames: unplugged, or closed by its server"),
        ("hang", "hangs: no frame for 2 s, after 30 frames"),
        ("resize", "changes the size of its frames from 320x240 to 320x120 after 30 frames; it was read up to there"),
    ],
)
def test_streams_that_break(how: str, why: str) -> None:
    with streams.camera(PICTURES[0]) as url:
        start = time.monotonic()
        frames, said = broken(f"{url}/{how}")
        seconds = time.monotonic() - start
    assert len(frames) == 30
    assert said == f"{url}/{how} {why}"
    assert seconds - 1 < 3


def test_frames_that_are_not_asked_for_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "LATE", 0.2)
    with streams.camera(PICTURES[0]) as url:
        frames = opened(Asked(url)).frames
        for _ in range(3):
            next(frames)
            time.sleep(0.3)
        frames.close()


def test_a_server_that_says_nothing() -> None:
    with streams.camera(PICTURES[0]) as url, pytest.raises(EdgeError, match="does not open: no server answers"):
        opened(Asked(f"{url}/silent"))


# --- stdin.


def piped(*content: bytes, pause: float = 0.0) -> int:
    """A descriptor from which a process's output is read, one part after the other."""
    read_end, write_end = os.pipe()
    if not os.fork():
        try:
            os.close(read_end)
            for part in content:
                view = memoryview(part)
                while view:
                    view = view[os.write(write_end, view) :]
                time.sleep(pause)
        finally:
            os._exit(0)
    os.close(write_end)
    return read_end


def test_stdin_through_a_pipe_is_live_and_may_end(folder: Path) -> None:
    descriptor = piped((folder / "some.avi").read_bytes())
    found = opened(Asked("-", descriptor))
    assert (found.name, found.is_live) == ("stdin", True)
    assert len(list(found.frames)) == COUNT
    os.close(descriptor)


def test_jpegs_of_a_camera_through_a_pipe_come_at_once() -> None:
    """As rpicam-vid gives them, 30 a second; FFmpeg likes to look at five seconds of them first."""
    jpeg = cv2.imencode(".jpg", PICTURES[0])[1].tobytes()
    descriptor = piped(*[jpeg] * 300, pause=1 / 30)
    start = time.monotonic()
    found = opened(Asked("-", descriptor))
    frames = [next(found.frames) for _ in range(3)]
    assert time.monotonic() - start < 2.5
    found.frames.close()
    os.close(descriptor)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert "OPENCV_FFMPEG_CAPTURE_OPTIONS" not in os.environ


def test_stdin_from_a_file_is_a_file(folder: Path) -> None:
    with (folder / "some.mp4").open("rb") as file:
        found = opened(Asked("-", file.fileno()))
        assert (found.is_live, found.count) == (False, COUNT)
        assert len(list(found.frames)) == COUNT


@pytest.mark.parametrize("content", [b"", b"no video\n" * 1000])
def test_stdin_that_is_no_video(content: bytes) -> None:
    descriptor = piped(content)
    with pytest.raises(EdgeError, match="stdin does not open: it is no video that OpenCV can read, or cut off"):
        opened(Asked("-", descriptor))
    os.close(descriptor)


def test_stdin_that_is_closed_or_a_terminal() -> None:
    with pytest.raises(EdgeError, match="stdin is closed; pipe a video in"):
        opened(Asked("-", 1000))
    main, terminal = os.openpty()
    with pytest.raises(EdgeError, match="stdin is no video; pipe one in, as in `rpicam-vid"):
        opened(Asked("-", terminal))
    os.close(main)
    os.close(terminal)


# --- The Pi's own camera.

PICAMERA2 = """
import numpy
class Picamera2:
    def create_video_configuration(self, main, controls):
        assert main["format"] == "BGR888"
        self.asked = main["size"], controls
        return main
    def configure(self, main):
        self.main = {"size": (main["size"][0] // 2 * 2, main["size"][1])}
    def camera_configuration(self):
        return {"main": self.main}
    def start(self):
        self.count = 0
    def capture_array(self, stream):
        width, height = self.main["size"]
        self.count += 1
        return numpy.full((height, width, 3), (self.count, 2, 3), numpy.uint8)
    def stop(self):
        self.count = None
    def close(self):
        assert self.count is None
"""


def test_picamera2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the calls of its manual: the real one needs a Pi."""
    with pytest.raises(EdgeError, match=r"picamera2 cannot be imported .*`rpicam-vid --codec mjpeg -t 0 -o - \| pip"):
        opened(Asked("picamera2"))
    (tmp_path / "picamera2.py").write_text(PICAMERA2)
    monkeypatch.syspath_prepend(tmp_path)
    found = opened(Asked("picamera2", size=(321, 240), fps=30.0))
    assert (found.width, found.height, found.is_live) == (320, 240, True)
    frames = [next(found.frames) for _ in range(3)]
    found.frames.close()
    monkeypatch.delitem(sys.modules, "picamera2")
    assert [frame.picture[0, 0].tolist() for frame in frames] == [[1, 2, 3], [2, 2, 3], [3, 2, 3]]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert 0 == frames[0].time <= frames[1].time <= frames[2].time
