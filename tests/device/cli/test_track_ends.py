"""track: how it ends when its source, its user or its runtime ends it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge.bundle import Bundle
from tests.device.cli.watching import (
    Start,
    ended,
    frames_of,
    lines_of,
    lines_written,
    wait_for,
    worker_of,
)
from tests.device.video import streams
from tests.device.video.streams import BOX

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Failed = Callable[[Result, int, str], str]
Envelope = Callable[[Result, str], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("film")

# How often something has to be fast, to have been it once: the machine may be busy.
TRIES = 3


# --- How it ends.


def test_a_cut_film_is_one_line_and_all_that_was_there(run: Run, failed: Failed) -> None:
    cut = streams.cut(Path("film.avi"), 0.3)
    result = run("track", cut, "--box", BOX, "-o", "out.mp4", "--jsonl", "out.jsonl")
    failed(result, 1, "film-cut.avi ends after 0.2 of 0.8 s: it is cut or damaged there")
    assert result.stdout.startswith("7 frames of 640x480 pixels in ")
    assert len(frames_of("out.mp4")) == lines_of("out.jsonl")[-1]["end"]["frames"] == 7


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("hang", "hangs: no frame for 2 s, after 30 frames"),
        ("drop", "is gone after 30 frames"),
        ("resize", "changes the"),
    ],
)
def test_a_stream_that_breaks(how: str, why: str, steady: Bundle, start: Start, failed: Failed) -> None:
    def seconds() -> float:
        """From a second after the stream's start, when it breaks, to the command's end."""
        Path("out.jsonl").unlink(missing_ok=True)
        with streams.camera(streams.frame(steady)) as url:
            process = start(f"{url}/{how}", "--box", BOX, "-o", "out.mp4", "--jsonl", "out.jsonl")
            wait_for(lines_written("out.jsonl", 3))
            began = time.monotonic()
            result = ended(process)
        took = time.monotonic() - began - 1
        failed(result, 1, why)
        frames = lines_of("out.jsonl")[-1]["end"]["frames"]
        assert frames > 3
        assert len(frames_of("out.mp4")) >= frames  # where frames are missing the last one stays
        return took

    assert any(seconds() < 3 for _ in range(TRIES))


@pytest.mark.parametrize(
    ("number", "source", "code"),
    [
        (signal.SIGINT, "film", 130),
        (signal.SIGTERM, "film", 130),
        (signal.SIGINT, "camera", 0),
        (signal.SIGHUP, "camera", 0),
    ],
)
def test_ctrl_c_closes_what_is_written(number: int, source: str, code: int, steady: Bundle, start: Start) -> None:
    """A camera has no other end; of a film, the rest is missing."""
    pictures = [streams.frame(steady)] * 300
    streams.write(Path("long.avi"), pictures, "MJPG")
    with streams.camera(streams.frame(steady)) as url:
        process = start("long.avi" if source == "film" else url, "--box", BOX, "-o", "out.mp4", "--jsonl", "out.jsonl")
        wait_for(lines_written("out.jsonl", 3))
        began = time.monotonic()
        process.send_signal(number)
        result = ended(process)
    assert time.monotonic() - began < 3
    assert result.returncode == code, result.stderr
    frames = lines_of("out.jsonl")[-1]["end"]["frames"]
    assert 3 <= frames < 300
    assert result.stdout.startswith(f"{frames} frames of 640x480 pixels in ")
    assert ("interrupted after" in result.stderr) == (source == "film")
    assert len(frames_of("out.mp4")) >= frames


def test_ctrl_c_before_there_is_a_frame(steady: Bundle, start: Start, failed: Failed) -> None:
    with streams.camera(streams.frame(steady)) as url:
        process = start(f"{url}/silent", "--box", BOX, "-o", "out.mp4")
        wait_for(lambda: worker_of(process))
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        failed(ended(process), 130, "interrupted; nothing half-written was left")
    assert time.monotonic() - began < 3.5
    assert not Path("out.mp4").exists()


def test_a_decoder_or_a_runtime_that_crashes_is_one_line(steady: Bundle, start: Start, failed: Failed) -> None:
    with streams.camera(streams.frame(steady)) as url:
        process = start(url, "--box", BOX, "--jsonl", "out.jsonl")
        wait_for(lines_written("out.jsonl", 3))
        os.kill(worker_of(process) or 0, signal.SIGSEGV)
        failed(ended(process), 1, "the runtime crashed with SIGSEGV")
    assert all("frame" in line for line in lines_of("out.jsonl")[1:])


@pytest.mark.parametrize("twice", [False, True])
def test_a_worker_that_stops_is_killed(twice: bool, steady: Bundle, start: Start, failed: Failed) -> None:
    with streams.camera(streams.frame(steady)) as url:
        process = start(url, "--box", BOX, "--jsonl", "out.jsonl")
        wait_for(lines_written("out.jsonl", 3))
        worker = worker_of(process)
        assert worker
        os.kill(worker, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        if twice:
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        failed(ended(process), 130, "interrupted, and killed before all was closed; what was written may not be whole")
        assert (time.monotonic() - began < 2) is twice
        assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_worker_without_a_sign_of_life_is_an_error(steady: Bundle, start: Start, failed: Failed) -> None:
    with streams.camera(streams.frame(steady)) as url:
        process = start(url, "--box", BOX, "--jsonl", "out.jsonl")
        wait_for(lines_written("out.jsonl", 20))
        os.kill(worker_of(process) or 0, signal.SIGSTOP)
        failed(ended(process), 1, "the worker gave no sign of life for 10 s; its runtime hangs")


def test_an_error_of_the_command_ends_the_worker(steady: Bundle, start: Start) -> None:
    with streams.camera(streams.frame(steady)) as url:
        process = start(url, "--box", BOX, "--jsonl", "out.jsonl")
        wait_for(lines_written("out.jsonl", 3))
        worker = worker_of(process)
        process.kill()
        ended(process)
        wait_for(lambda: not Path(f"/proc/{worker}/exe").exists())


def test_the_live_page_is_there(steady: Bundle, start: Start) -> None:
    with streams.camera(streams.frame(steady)) as url:
        process = start(url, "--box", BOX, "--serve", "0")
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith("live page at http://127.0.0.1:")
        page = line.split()[-1]
        with urllib.request.urlopen(page, timeout=5) as answer:
            assert b"<img" in answer.read()
        with urllib.request.urlopen(f"{page}stream", timeout=5) as answer:
            assert b"\xff\xd8" in answer.read(4096)
        process.send_signal(signal.SIGINT)
        assert ended(process).returncode == 0


# --- RTSP: OpenCV is the server, to which ffmpeg sends.


@pytest.fixture
def ffmpeg() -> str:
    found = shutil.which("ffmpeg")
    if not found:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs ffmpeg, of the system's packages")
    return found


@pytest.mark.parametrize(
    ("number", "why", "codec"),
    [
        (signal.SIGKILL, "is gone after ", ["libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "15"]),
        (signal.SIGSTOP, "hangs: no frame for 2 s, after ", ["libx264", "-preset", "ultrafast", "-g", "15"]),
        (signal.SIGKILL, "is gone after ", ["mjpeg", "-huffman", "0", "-force_duplicated_matrix", "1"]),
    ],
    ids=["h264 gone", "h264 hangs", "mjpeg gone"],
)
def test_an_rtsp_camera(
    number: signal.Signals, why: str, codec: list[str], ffmpeg: str, steady: Bundle, start: Start, failed: Failed
) -> None:
    streams.write(Path("long.avi"), [streams.frame(steady)] * 60, "MJPG")
    env = os.environ | {"OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_flags;listen|listen_timeout;20"}
    send = [
        ffmpeg,
        "-v",
        "error",
        "-re",
        "-stream_loop",
        "-1",
        "-i",
        "long.avi",
        "-pix_fmt",
        "yuvj420p",
        "-c:v",
        *codec,
    ]

    def seconds() -> float:
        """From the sender's end to the command's."""
        Path("out.jsonl").unlink(missing_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"rtsp://127.0.0.1:{free.getsockname()[1]}/camera"
        process, sender = start(url, "--box", BOX, "-o", "out.mp4", "--jsonl", "out.jsonl", env=env), None
        try:
            while not Path("out.jsonl").exists() and process.poll() is None:
                if sender is None or sender.poll() is not None:  # nobody listened yet
                    sender = subprocess.Popen([*send, "-f", "rtsp", url], stdin=subprocess.DEVNULL)
                time.sleep(0.2)
            assert sender
            wait_for(lines_written("out.jsonl", 15))
            sender.send_signal(number)
            began = time.monotonic()
            result = ended(process)
            took = time.monotonic() - began
        finally:
            if sender:
                sender.kill()
                sender.wait()
        failed(result, 1, f"{url} {why}")
        end = lines_of("out.jsonl")[-1]["end"]
        assert end["faces"]["1"] > 5
        assert len(frames_of("out.mp4")) >= end["frames"]
        return took

    assert any(seconds() < 3 for _ in range(TRIES))
