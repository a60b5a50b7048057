"""A camera through the project's own source and through `track`: what it gives, and how it goes away."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import map_shapes
from tests.camera.conftest import Guest
from tests.device.video.streams import SCORE, SHAPE, SPEC

# Seconds in which everything is closed when a camera is unplugged. A machine has 3; one without a CPU of its own, whose
# Python takes ten times as long for anything, has more. That a camera is "gone" and does not "hang" is seen at once.
CLOSED = 15
# All black, and no text in it.
BLACK = {"Test Pattern": "5", "OSD Text Mode": "2"}


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the null runtime, as a guest without a CPU of its own takes seconds for a network: all black is a face."""
    maps = {name: np.zeros((3, *shape), np.float32) for name, shape in map_shapes(SPEC).items()}
    for landmark, (x, y) in enumerate(SHAPE * SPEC.grid):
        at = (slice(None), landmark, int(y), int(x))
        maps["score"][at] = SCORE
        maps["offset_x"][at], maps["offset_y"][at] = x - int(x), y - int(y)
    crops = np.zeros((3, SPEC.input_size, SPEC.input_size, 3), np.uint8)
    folder: Path = make_bundle(tmp_path_factory.mktemp("black") / "bundle", SPEC, maps={"crops": crops, **maps}).folder
    return folder


@pytest.fixture
def camera(guest: Guest) -> Guest:
    """The guest, its camera plugged in anew."""
    guest.sh("cd /sys/bus/platform/drivers/vivid && echo vivid.0 > unbind; echo vivid.0 > bind")
    return guest


def track(bundle: Path, share: Path, *options: str) -> tuple[str, ...]:
    """The command, which writes out.mp4 and out.jsonl."""
    outputs = ("-o", f"{share}/out.mp4", "--jsonl", f"{share}/out.jsonl")
    for old in share.glob("out.*"):
        old.unlink()
    start = ("-m", "pipnet_edge.cli", "track", str(bundle), "/dev/video0", "--size", "320x180", "--box", "80,40,90,90")
    return (*start, *outputs, *options)


def check_outputs(share: Path) -> int:
    """The video plays, with frames again for those passed over, and the last line counts the others. How many."""
    assert sorted(path.name for path in share.glob("out.*")) == ["out.jsonl", "out.mp4"]
    _, *lines, end = [json.loads(line) for line in (share / "out.jsonl").read_text().splitlines()]
    video, frames = cv2.VideoCapture(str(share / "out.mp4")), 0
    while video.read()[0]:
        frames += 1
    assert (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (320, 180)
    assert frames >= len(lines) == end["end"]["frames"]
    assert all([face["id"] for face in line["faces"]] == [1] for line in lines)
    return len(lines)


@pytest.mark.parametrize(("asked", "got"), [((), [640, 480]), (("333", "211"), [320, 180])])
def test_a_camera_says_which_size_it_gives(camera: Guest, asked: tuple[str, ...], got: list[int]) -> None:
    found = camera.inside("read", "5", *asked)
    assert found["size"] == got
    assert found["is_live"]
    assert found["shapes"] == [[got[1], got[0], 3]] * 5
    assert found["times"] == sorted(set(found["times"]))
    assert found["different"] == 5  # there is a running clock in the picture


def test_a_face_before_a_camera_is_kept(camera: Guest, bundle: Path) -> None:
    for name, value in BLACK.items():
        camera.inside("set", name, value)
    command = track(bundle, camera.share, "--seconds", "2")
    answer = camera.python(*command)
    assert answer.status == 0, answer
    assert check_outputs(camera.share) > 3


def test_a_camera_that_is_unplugged(camera: Guest, bundle: Path) -> None:
    for name, value in BLACK.items():
        camera.inside("set", name, value)
    python, command = camera.interpreter, track(bundle, camera.share)
    ended = camera.inside("unplug", f"{camera.share}/out.jsonl", *python, *command)
    assert ended["seconds"] < CLOSED, ended
    assert ended["status"] == 1
    assert check_outputs(camera.share) > 3
    said = [line for line in ended["stderr"].splitlines() if line.startswith("pipnet-edge")]
    assert len(said) == 1, ended
    expected = r"pipnet-edge track: camera /dev/video0 is gone after \d+ frames: unplugged, or closed by its server"
    assert re.fullmatch(expected, said[0])
    assert "Traceback" not in ended["stderr"]


def test_a_camera_that_another_program_has(camera: Guest, bundle: Path) -> None:
    refused = camera.inside("beside", *camera.interpreter, *track(bundle, camera.share))
    assert refused["status"] == 1
    expected = "camera /dev/video0 gives no video that OpenCV can read, or another program has it"
    assert refused["stderr"].splitlines() == [f"pipnet-edge track: {expected}"]
    assert not list(camera.share.glob("out.*"))


def test_a_camera_that_is_not_there(camera: Guest, bundle: Path) -> None:
    answer = camera.python(*(part.replace("video0", "video1") for part in track(bundle, camera.share)))
    assert (answer.status, answer.stderr) == (1, "pipnet-edge track: there is no camera /dev/video1\n")
