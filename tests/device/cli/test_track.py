"""track: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipnet_edge import draw
from pipnet_edge.bundle import Bundle
from tests.device.cli.watching import (
    COUNT,
    EMPTY,
    Start,
    ended,
    frames_of,
    lines_of,
)
from tests.device.video import streams
from tests.device.video.streams import BOX

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Failed = Callable[[Result, int, str], str]
Envelope = Callable[[Result, str], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("film")


# --- What is written.


def test_a_film(run: Run) -> None:
    result = run("track", "film.avi", "--box", BOX)
    assert result.returncode == 0, result.stderr
    first, why, video = result.stdout.splitlines()
    assert first.startswith(f"{COUNT} frames of 640x480 pixels in ")
    assert f" a second), 1 face, 1 lost, looked for in 1 frame, by null-fp32 (null (numpy {np.__version__})), " in first
    assert why.startswith("null-fp32: not measured on ")
    assert video == "video      film-landmarks.mp4"
    film, drawn = frames_of("film.avi"), frames_of("film-landmarks.mp4")
    assert len(drawn) == len(film) == COUNT
    # The middles of the dots become greener, and stay as they are where nobody is found.
    rows, columns = streams.POINTS[:, 1].astype(int), streams.POINTS[:, 0].astype(int)
    away = [
        np.abs(picture[rows, columns] - np.array(draw.GREEN)).mean()
        for picture in (film[10], drawn[10], film[-1], drawn[-1])
    ]
    assert away[1] < away[0] - 30
    assert abs(away[3] - away[2]) < 8


def test_json_lines_and_numbers(run: Run, envelope: Envelope) -> None:
    result = run("track", "film.avi", "--box", BOX, "--jsonl", "film.jsonl", "--threads", "1", "--json")
    found = envelope(result, "track")
    head, *frames, last = lines_of("film.jsonl")
    assert "schema" in head
    assert [line["frame"] for line in frames] == list(range(COUNT))
    assert [len(line["faces"]) for line in frames] == [1] * (COUNT - EMPTY) + [0] * EMPTY
    np.testing.assert_allclose(frames[3]["faces"][0]["points"], streams.POINTS, atol=0.1)
    assert set(frames[0]["ms"]) == {"read", "detect", "track"}
    assert last["end"]["frames"] == COUNT
    assert (found["frames"], found["faces"], found["lost"], found["passed_over"]) == (COUNT, 1, 1, 0)
    assert (found["source"], found["video"], found["lines"], found["variant"]) == (
        "film.avi",
        None,
        "film.jsonl",
        "null-fp32",
    )
    assert (found["trouble"], found["was_stopped"], found["is_live"]) == (None, False, False)
    assert not Path("film-landmarks.mp4").exists()


def test_json_lines_on_stdout_are_all_that_is_there(run: Run) -> None:
    result = run("track", "film.avi", "--box", BOX, "--jsonl", "-", "-o", "out.mp4")
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == COUNT + 2
    assert f"{COUNT} frames of 640x480 pixels in " in result.stderr
    assert len(frames_of("out.mp4")) == COUNT


def test_seconds_faces_and_raw(run: Run, envelope: Envelope) -> None:
    options = ("--seconds", "0.2", "--raw", "--faces", "1", "--every", "3", "--box", BOX)
    assert envelope(run("track", "bundle", "film.avi", *options, "--json"), "track")["frames"] == 6


def test_a_folder_of_frames(run: Run, steady: Bundle) -> None:
    Path("frames").mkdir()
    for index in range(5):
        cv2.imwrite(f"frames/{index}.png", streams.frame(steady)[:, :, ::-1])
    result = run("track", "frames", "--box", BOX, "--fps", "10", "--jsonl", "out.jsonl")
    assert result.returncode == 0, result.stderr
    assert [line["t"] for line in lines_of("out.jsonl")[1:-1]] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_stdin_reaches_the_worker(start: Start) -> None:
    with open("film.avi", "rb") as film:
        result = ended(start("-", "--box", BOX, stdin=film))
    assert result.returncode == 0, result.stderr
    assert len(frames_of("stdin-landmarks.mp4")) == COUNT
    process = start("-", "--box", BOX, "--jsonl", "piped.jsonl", stdin=subprocess.PIPE)
    process.stdin.buffer.write(Path("film.avi").read_bytes())  # type: ignore[union-attr]
    result = ended(process)
    assert result.returncode == 0, result.stderr
    counts = lines_of("piped.jsonl")[-1]["end"]
    passed_over = [line for line in result.stdout.splitlines() if "passed over, for newer ones" in line]
    assert counts["frames"] + (int(passed_over[0].split()[0]) if passed_over else 0) == COUNT


def test_without_a_box_there_has_to_be_a_detector(run: Run, here: Run, failed: Failed, tmp_path: Path) -> None:
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    failed(run("track", "film.avi", env=env), 1, "there is no face detector at ")
    failed(here("track", "film.avi", "--detector", "nothing"), 1, "there is no face detector at nothing")
    failed(
        here("track", "film.avi", "--detector", "bundle"), 1, "bundle is a bundle of landmarks; a face detector's is"
    )
    failed(here("track", "film.avi", "--threshold", "2"), 1, "threshold 2; a number from 0 to 1 is needed")


def test_stdin_and_stdout_that_are_closed(start: Start, failed: Failed) -> None:
    failed(ended(start("-", "--box", BOX, preexec_fn=lambda: os.close(0))), 1, "stdin is ")
    failed(
        ended(start("film.avi", "--box", BOX, "--jsonl", "-", preexec_fn=lambda: os.close(1))), 1, "stdout is closed"
    )


def test_the_next_runtime_is_taken_and_said(
    make_bundle: Callable[..., Bundle], tmp_path: Path, packages: Callable[[str, str], None], run: Run, failed: Failed
) -> None:
    made = streams.steady(make_bundle, tmp_path / "two")
    first, second = made.variants
    replace(made, variants=(replace(first, name="onnx-fp32", runtime="onnx"), second)).write_manifest()
    packages("onnxruntime", "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    said = "the runtime crashed with SIGILL: its package is built for another CPU"
    result = run("track", "two", "film.avi", "--box", BOX)
    assert result.returncode == 0, result.stderr
    assert ", by null-fp16 (null" in result.stdout
    assert f"\nnot onnx-fp32: {said}\n" in result.stdout
    failed(run("track", "two", "film.avi", "--box", BOX, "--variant", "onnx-fp32"), 1, f"onnx-fp32: {said}")


# --- What is refused, in one line and before there is any work.


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothing.mp4"], "there is no source nothing.mp4: no file, folder, camera or URL"),
        (["film.avi", "film.avi"], "film.avi is no bundle; BUNDLE comes first, then SOURCE"),
        (["bundle", "film.avi", "more"], "3 arguments; give [BUNDLE] SOURCE"),
        (["bundle"], "bundle is a folder without pictures"),
        (["film.avi", "--seconds", "0"], "--seconds 0; allowed: above 0, at most"),
        (["film.avi", "--seconds", "nan"], "--seconds nan; allowed: above 0"),
        (["film.avi", "--size", "640x480"], "--size is for cameras, and film.avi is none"),
        (["0", "--size", "640"], "--size 640; a width and height in pixels are needed, such as 640x480"),
        (["film.avi", "--fps", "10"], "--fps is for cameras and folders, and film.avi is neither"),
        (["film.avi", "--serve", "x"], "--serve x; a port from 0 to 65535 is needed, such as 8080, or HOST:PORT"),
        (["film.avi", "--serve", "70000"], "--serve 70000; a port from 0 to 65535 is needed"),
        (["film.avi", "--serve", "192.0.2.7:80"], "cannot serve a page on 192.0.2.7:80: "),
        (["film.avi", "-o", "film.avi"], "cannot write film.avi: it is what is read; give another name"),
        (["film.avi", "-o", "out.gif"], "cannot write a video as out.gif"),
        (["film.avi", "-o", "no/out.mp4"], "cannot write no/out.mp4: No such file or directory"),
        (["film.avi", "-o", "a.mp4", "--jsonl", "a.mp4"], "cannot write a.mp4: it is written to already"),
        (["bundle", "-o", "bundle/a.mp4"], "cannot write bundle/a.mp4 into the folder that is read"),
        (["film.avi", "--detector", "d"], "--box and a detector; where there is a box, nothing is detected"),
        (["film.avi", "--variant", "ncnn-int8"], "ncnn-int8"),
        (["film.avi", "--box", "700,0,9,9"], "--box 700,0,9,9 lies outside the picture of 640x480 pixels"),
        (["rtsp://me:secret@127.0.0.1:1/"], "rtsp://…@127.0.0.1:1/ does not open: no server answers with a video"),
        (["9"], "there is no camera /dev/video9"),
    ],
)
def test_what_is_refused(arguments: list[str], why: str, here: Run, failed: Failed) -> None:
    box = [] if "--box" in arguments else ["--box", BOX]
    outputs = [] if {"-o", "--jsonl", "--serve"} & {*arguments} else ["--jsonl", "out.jsonl"]
    result = here("track", *arguments, *box, *outputs)
    assert "secret" not in failed(result, 1, why)
    assert not Path("out.jsonl").exists()


def test_a_bundle_that_does_not_know_when_there_is_a_face(null_bundle: Bundle, here: Run, failed: Failed) -> None:
    failed(here("track", null_bundle.folder, "film.avi"), 1, "the bundle has no presence threshold")
