"""An annotated video: what is in it, what is refused, and that it plays however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.video.ahead import Ahead
from pipnet_edge.video.sink import Video
from pipnet_edge.video.source import Frame
from pipnet_edge.video.track import Tracked
from tests.device.video import moving

NOBODY = Tracked((), False)


def played(path: Path) -> list[NDArray[Any]]:
    """The frames of a video, RGB."""
    video = cv2.VideoCapture(str(path))
    found = []
    while (read := video.read())[0]:
        found.append(read[1][:, :, ::-1])
    video.release()
    return found


def grey(level: int, index: int, time: float, width: int = 320, height: int = 240) -> Frame:
    return Frame(np.full((height, width, 3), level, np.uint8), time, index)


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "FMP4"), (".MP4", "FMP4"), (".mkv", "FMP4"), (".avi", "MJPG")])
def test_a_video_has_every_frame_with_its_faces(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"out{suffix}"
    sink = Video(path, 29.97)
    one = moving.face(7, 160, 130, 110, turned=0.3)
    for index in range(40):
        sink.write(grey(100 + index, index, index / 29.97), Tracked((one,), False), {})
    sink.close()
    sink.close()
    assert list(tmp_path.iterdir()) == [path]
    found = played(path)
    assert len(found) == 40
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(29.97)
    assert int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode() in (codec, codec.lower(), "mp4v")
    for index in (0, 20, 39):
        picture = found[index].astype(int)
        assert picture.shape == (240, 320, 3)
        assert np.median(picture) == pytest.approx(100 + index, abs=6)
        # Each landmark, each side of the square and the name are greener than the grey around them.
        green = picture[:, :, 1] - picture[:, :, 0]
        points = one.points.astype(int)
        assert (green[points[:, 1], points[:, 0]] > 20).mean() > 0.9
        along = np.linspace([0.1, 0], [0.9, 0], 20, dtype=np.float32)
        for side in (along, along[:, ::-1], 1 - along, 1 - along[:, ::-1]):
            x, y = one.crop.to_picture(side).astype(int).T
            assert (green[y, x] > 20).mean() > 0.8
        left, top = one.crop.to_picture(np.zeros(2, np.float32)).astype(int)
        assert (green[top - 16 : top - 4, left : left + 12] > 20).sum() > 8
        assert abs(green[:40, 240:]).max() < 20


def test_the_pictures_themselves_stay_as_they_are(tmp_path: Path) -> None:
    sink = Video(tmp_path / "a.mp4", 30)
    for frame, tracked in moving.frames(3):
        before = frame.picture.copy()
        sink.write(frame, tracked, {})
        assert (frame.picture == before).all()
    sink.close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("out.gif", "cannot write a video as out.gif: OpenCV writes no videos of that kind; allowed: .mp4 (mp4v)"),
        ("out.webm", "OpenCV's VP8 and VP9 take several times as long as tracking; allowed"),
        ("out.h264", "OpenCV's packages have no such encoder"),
        ("out.mov", "cannot write a video as out.mov; allowed: .mp4 (mp4v), .mkv (mp4v), .avi (MJPG)"),
        ("out", "cannot write a video as out; allowed"),
        ("folder.mp4", "it is a folder"),
        ("pipe.mp4", "it is no regular file"),
        ("nowhere/out.mp4", "No such file or directory"),
        ("file/out.mp4", "Not a directory"),
        (f"{'n' * 260}.mp4", "File name too long"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EdgeError) as refused:
        Video(tmp_path / name, 30)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1001])
def test_rates_that_cannot_be_are_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(EdgeError, match="frames a second; allowed: above 0, up to 1000"):
        Video(tmp_path / "a.mp4", fps)


@pytest.mark.parametrize(("name", "size"), [("a.mp4", (8192, 64)), ("a.mkv", (64, 8192)), ("a.avi", (1, 1))])
def test_sizes_that_no_codec_takes_are_refused_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, size: tuple[int, int]
) -> None:
    sink = Video(tmp_path / name, 30)
    with pytest.raises(EdgeError, match=rf"{size[0]}x{size[1]} pixels a frame; \w+ allows 2 to \d+ on each side"):
        sink.write(grey(1, 0, 0, *size), NOBODY, {})
    sink.close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_another_size_ends_the_video_and_what_is_there_plays(tmp_path: Path) -> None:
    sink = Video(tmp_path / "a.mp4", 30)
    for index in range(5):
        sink.write(grey(90, index, index / 30), NOBODY, {})
    with pytest.raises(EdgeError, match=r"a\.mp4 ends after 5 frames: the frames change from 320x240 to 322x240"):
        sink.write(grey(90, 5, 5 / 30, 322), NOBODY, {})
    with pytest.raises(EdgeError, match="has ended"):
        sink.write(grey(90, 6, 6 / 30), NOBODY, {})
    sink.close()
    assert len(played(tmp_path / "a.mp4")) == 5


def test_odd_sizes_lose_their_last_column_and_row(tmp_path: Path) -> None:
    sink = Video(tmp_path / "a.mp4", 30)
    sink.write(grey(90, 0, 0, 321, 241), NOBODY, {})
    sink.close()
    assert played(tmp_path / "a.mp4")[0].shape == (240, 320, 3)


@pytest.mark.parametrize(
    ("times", "written"),
    [
        ([0, 0.1, 0.2, 0.3], [0, 1, 2, 3]),
        ([4, 4.1, 4.5, 4.6], [0, 1, 1, 1, 1, 2, 3]),  # the frame before a gap fills it
        ([0, 0.04, 0.08, 0.12, 0.16], [0, 1, 2, 3, 4]),  # none is left out
        ([0, 0.1, 1000, 1000.1], [0, *[1] * 51, 2, 3]),  # no longer than 5 s
        ([0, -5, 0.1], [0, 1, 2]),
    ],
)
def test_frames_are_repeated_where_none_came_and_never_left_out(
    tmp_path: Path, times: list[float], written: list[int]
) -> None:
    sink = Video(tmp_path / "a.avi", 10)
    for index, time in enumerate(times):
        sink.write(grey(50 * index + 20, index, time), NOBODY, {})
    sink.close()
    assert [round((picture.mean() - 20) / 50) for picture in played(tmp_path / "a.avi")] == written


# --- Files.


def test_a_video_that_is_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path, link = tmp_path / "a.mp4", tmp_path / "link.mp4"
    path.write_bytes(b"old")
    link.symlink_to(path)
    sink = Video(link, 30)
    for frame, tracked in moving.frames(20):
        sink.write(frame, tracked, {})
        assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.part.mp4", "link.mp4"]
    sink.close()
    assert link.is_symlink()
    assert len(played(path)) == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "link.mp4"]


def test_without_a_frame_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"old")
    Video(tmp_path / "a.mp4", 30).close()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_link_in_the_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"kept")
    sink = Video(tmp_path / "a.mp4", 30)
    (tmp_path / "a.part.mp4").symlink_to(tmp_path / "precious")
    sink.write(grey(90, 0, 0), NOBODY, {})
    sink.close()
    assert (tmp_path / "precious").read_bytes() == b"kept"


def test_what_was_kept_ahead_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    sink = Video(path, 30)
    for frame, tracked in moving.frames(30):
        sink.write(frame, tracked, {})
    during = (tmp_path / "a.part.mp4").stat()
    sink.close()
    after = path.stat()
    assert after.st_blocks * 512 < after.st_size + 65536
    if during.st_blocks * 512 < during.st_size + 1_000_000:
        pytest.skip("the disk keeps nothing ahead")


def test_a_place_that_is_taken_meanwhile_is_told_and_what_was_written_stays(tmp_path: Path) -> None:
    sink = Video(tmp_path / "a.mp4", 30)
    sink.write(grey(90, 0, 0), NOBODY, {})
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(EdgeError, match=r"a\.mp4: Is a directory; what was written is .*a\.part\.mp4$"):
        sink.close()
    sink.close()
    assert len(played(tmp_path / "a.part.mp4")) == 1


def test_what_does_not_play_is_told_and_has_not_the_name(tmp_path: Path) -> None:
    sink = Video(tmp_path / "a.mp4", 30)
    sink.write(grey(90, 0, 0), NOBODY, {})
    (tmp_path / "a.part.mp4").unlink()
    with pytest.raises(EdgeError, match=r"cannot write .*a\.mp4: what was written, .*a\.part\.mp4, does not play"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


# --- Ends before its time. Each runs in a process of its own, on a small disk.

WRITES = """
import os, sys
from pathlib import Path
import pipnet_edge.video.ahead as ahead
from pipnet_edge.errors import EdgeError
from pipnet_edge.video.sink import Lines, Video
from tests.device.video import moving

path, how = Path(sys.argv[1]), sys.argv[2]
if how == "looking":
    ahead._fallocate = lambda: None
video, lines, told = Video(path, 30), Lines(path.with_name("out.jsonl")), set()
if how == "started":
    path.with_name("junk").write_bytes(bytes(4 << 20))
for number, (frame, tracked) in enumerate(moving.frames(900)):
    if number == 40 and how == "filled":
        try:
            with path.with_name("junk").open("wb", buffering=0) as junk:
                while True:
                    junk.write(bytes(4096))
        except OSError:
            pass
    for sink in (video, lines):
        try:
            sink.write(frame, tracked, {})
        except EdgeError as e:
            if "has ended" not in str(e):
                print(type(sink).__name__, number, e)
                told.add(sink)
    if video in told:
        break
video.close()
lines.close()
"""
ROOT = Path(__file__).resolve().parents[3]


def run(prefix: Sequence[str], program: str, path: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", program, str(path), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = path.parent if path.parent.name != "disk" else path.parent.parent
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def on_a_small_disk(tmp_path: Path, isolated: tuple[str, ...], name: str, how: str) -> list[str]:
    """What WRITES printed; its files are under tmp_path/out."""
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=5m none disk && "$@"; code=$?; cp -r disk out; exit $code'
    done = run([*isolated, "sh", "-c", script, "sh"], WRITES, tmp_path / "disk" / name, how)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("suffix", "how"), [*product((".mp4", ".mkv", ".avi"), ("fills", "filled")), (".mp4", "looking")]
)
def test_what_was_written_before_the_disk_was_full_plays(
    tmp_path: Path, isolated: tuple[str, ...], suffix: str, how: str
) -> None:
    """fills: by itself; filled: to the last block, by somebody else; looking: where a system keeps no blocks ahead."""
    told = on_a_small_disk(tmp_path, isolated, f"out{suffix}", how)
    kind, number, rest = told[-1].split(" ", 2)
    assert kind == "Video"
    assert rest == f"{tmp_path}/disk/out{suffix} ends after {number} frames: No space left on device"
    assert len(played(tmp_path / "out" / f"out{suffix}")) == int(number) >= (40 if how == "filled" else 10)
    lines = (tmp_path / "out" / "out.jsonl").read_text()
    assert lines.endswith("}\n")
    assert [line[:2] for line in lines.splitlines()] == ['{"'] * len(lines.splitlines())
    assert not (tmp_path / "out" / f"out.part{suffix}").exists()


def test_a_disk_without_room_for_a_frame(tmp_path: Path, isolated: tuple[str, ...]) -> None:
    told = on_a_small_disk(tmp_path, isolated, "out.mp4", "started")
    assert told == [f"Video 0 cannot write {tmp_path}/disk/out.mp4: No space left on device"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["junk", "out.jsonl"]


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_these_play_even_if_the_program_is_killed(tmp_path: Path, suffix: str) -> None:
    program = WRITES.replace("900", "120").replace("video.close()", "os.kill(os.getpid(), 9)")
    done = run([], program, tmp_path / f"out{suffix}", "killed")
    assert done.returncode == -signal.SIGKILL
    assert 80 < len(played(tmp_path / f"out.part{suffix}")) <= 120
    assert not (tmp_path / f"out{suffix}").exists()


def test_room_is_kept_for_the_index_of_a_long_video(tmp_path: Path) -> None:
    """A frame takes fewer bytes in the index than are kept for it."""
    sink = Video(tmp_path / "a.mp4", 1000)
    for index in range(6000):
        sink.write(grey(90, index, index / 1000, 16, 16), NOBODY, {})
    sink.close()
    content = (tmp_path / "a.mp4").read_bytes()
    index = len(content) - content.rindex(b"moov")
    assert 4 * 6000 < index < 64 * 6000


def test_ahead_says_what_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    ahead = Ahead(tmp_path / "a", 1 << 60)
    with pytest.raises(OSError, match=r"File too large|No space left"):
        ahead.keep(0)
    ahead.close()
    assert (tmp_path / "a").stat().st_size == 0
