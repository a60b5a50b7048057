"""A command that goes on while a test looks at what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from tests.device.video import streams

Result = subprocess.CompletedProcess[str]
Start = Callable[..., subprocess.Popen[str]]
TRACK = (sys.executable, "-P", "-m", "pipnet_edge.cli", "track")
# Frames of the film: a face, and nobody in the last of them.
COUNT, EMPTY = 24, 4


def ended(process: subprocess.Popen[str], seconds: float = 20) -> Result:
    out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def frames_of(path: str) -> list[streams.Picture]:
    video, found = cv2.VideoCapture(path), []
    while True:
        there, picture = video.read()
        if not there:
            return found
        found.append(picture[:, :, ::-1])


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def lines_written(path: str, count: int) -> Callable[[], bool]:
    return lambda: Path(path).exists() and len(Path(path).read_text().splitlines()) > count


def worker_of(process: subprocess.Popen[str]) -> int | None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else None
