"""JSON lines: their schema, read strictly, and that what is there is whole however the program ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge import draw, strict
from pipnet_edge.errors import EdgeError
from pipnet_edge.video.sink import SCHEMA, Lines
from pipnet_edge.video.source import Frame
from pipnet_edge.video.track import Face, Tracked
from tests.device.video import moving

ROOT = Path(__file__).resolve().parents[3]
PICTURE = np.zeros((4, 4, 3), np.uint8)
Point = tuple[float, float]


# --- docs/video.md, as a strict reader has it.


@dataclass(frozen=True)
class Header:
    schema: str


@dataclass(frozen=True)
class LineFace:
    id: int
    new: bool
    score: float
    crop: tuple[Point, Point, Point, Point]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Line:
    frame: int
    t: float
    faces: tuple[LineFace, ...]
    detected: bool
    ms: Mapping[str, float]


@dataclass(frozen=True)
class Counts:
    frames: int
    detections: int
    faces: Mapping[str, int]
    lost: int


@dataclass(frozen=True)
class End:
    end: Counts


def read(text: str) -> tuple[list[Line], Counts | None]:
    """The frames of a whole or an unfinished file, and its counts."""
    assert text.endswith("\n")
    first, *rest = [strict.json_object(line, "a line") for line in text.splitlines()]
    assert strict.read(Header, first, "the first line") == Header("pipnet-edge-track/1")
    ended = bool(rest) and "end" in rest[-1]
    lines = [strict.read(Line, line, "a line") for line in (rest[:-1] if ended else rest)]
    return lines, strict.read(End, rest[-1], "the last line").end if ended else None


def written(path: Path, content: Iterable[tuple[Frame, Tracked, Mapping[str, float]]]) -> str:
    lines = Lines(path)
    for frame, tracked, milliseconds in content:
        lines.write(frame, tracked, milliseconds)
    lines.close()
    lines.close()
    return path.read_text()


def test_a_line_says_all_of_a_frame(tmp_path: Path) -> None:
    face = moving.face(3, 100, 80, turned=0.2, is_new=True)
    text = written(
        tmp_path / "a.jsonl",
        [
            (Frame(PICTURE, 0.5666666666, 17), Tracked((face,), True), {"read": 1.23456, "track": 13}),
            (Frame(PICTURE, 0.6, 19), Tracked((), False), {}),
        ],
    )
    (first, second), counts = read(text)
    assert (first.frame, first.t, first.detected, first.ms) == (17, 0.566667, True, {"read": 1.235, "track": 13})
    (found,) = first.faces
    assert (found.id, found.new, found.score) == (3, True, 0.625)
    assert found.points == tuple((round(x, 2), round(y, 2)) for x, y in face.points.astype(float).tolist())
    assert np.array(found.crop) == pytest.approx(face.crop.to_picture(draw.CORNERS), abs=0.006)
    # From the top left one on, clockwise on the screen.
    (ax, ay), (bx, by), (cx, cy), _ = found.crop
    assert (bx - ax) * (cy - by) - (by - ay) * (cx - bx) == pytest.approx(face.crop.size**2, rel=0.01)
    assert bx - ax == pytest.approx(face.crop.size * np.cos(0.2), rel=0.01)
    assert (second.frame, second.faces, second.detected) == (19, (), False)
    assert counts == Counts(frames=2, detections=1, faces={"3": 1}, lost=1)
    assert json.loads(text.splitlines()[0]) == {"schema": SCHEMA}


def test_the_documented_lines_are_such_lines() -> None:
    text = (ROOT / "docs" / "video.md").read_text()
    lines, counts = read(text.partition("```json\n")[2].partition("```")[0])
    ids = [{face.id for face in line.faces} for line in lines]
    assert counts == Counts(len(lines), sum(line.detected for line in lines), {"1": 1}, len(ids[0] - ids[1]))
    table = text.partition("| `frame` |")[2].partition("\n\n")[0]
    for name in (field.name for kind in (Line, LineFace, End) for field in fields(kind)):
        assert f"`{name}`" in f"`frame`{table}"


def test_the_points_are_the_smoothed_ones(tmp_path: Path) -> None:
    face = moving.face(1, 100, 80)
    other = Face(1, face.points + 5, face.raw, face.score, face.crop, False)
    ((line,), _) = read(written(tmp_path / "a", [(Frame(PICTURE, 0, 0), Tracked((other,), False), {})]))
    assert np.array(line.faces[0].points) == pytest.approx(face.raw + 5, abs=0.006)


FACES = {number: moving.face(number, 100, 100) for number in range(1, 7)}


@given(
    st.lists(st.tuples(st.sets(st.integers(1, 6)), st.booleans(), st.floats(-1e6, 1e6), st.integers(0, 2**40))),
    st.dictionaries(st.text(), st.floats(0, 1e9)),
)
def test_what_is_counted_is_what_is_there(
    tmp_path_factory: pytest.TempPathFactory,
    content: list[tuple[set[int], bool, float, int]],
    milliseconds: dict[str, float],
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    given = [
        (Frame(PICTURE, time, index), Tracked(tuple(FACES[i] for i in ids), detected), milliseconds)
        for ids, detected, time, index in content
    ]
    if not given:
        Lines(path).close()
        assert not path.exists()
        return
    # Names of stages are the program's own; strict.read takes none that cannot be printed.
    text = written(path, given)
    lines = [json.loads(line) for line in text.splitlines()][1:-1]
    counts = json.loads(text.splitlines()[-1])["end"]
    ids = [{face["id"] for face in line["faces"]} for line in lines]
    assert ids == [each[0] for each in content]
    assert [line["frame"] for line in lines] == [each[3] for each in content]
    assert counts["frames"] == len(content)
    assert counts["detections"] == sum(each[1] for each in content)
    assert counts["faces"] == {str(i): sum(i in each for each in ids) for i in sorted(set().union(*ids))}
    assert counts["lost"] == sum(len(a - b) for a, b in pairwise(ids))


# --- Files, pipes and stdout.


def test_each_line_is_there_at_once_and_nothing_before_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    lines = Lines(path)
    assert path.read_text() == "old"
    for number, (frame, tracked) in enumerate(moving.frames(5), 1):
        lines.write(frame, tracked, {})
        found, counts = read(path.read_text())
        assert len(found) == number
        assert counts is None
    lines.close()
    assert read(path.read_text())[1] == Counts(5, 1, {"1": 5, "2": 5}, 0)
    with pytest.raises(EdgeError, match="has ended"):
        lines.write(frame, tracked, {})


@pytest.mark.parametrize(
    ("name", "says"),
    [("folder", "it is a folder"), ("none/a", "No such file or directory"), ("file/a", "Not a directory")],
)
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(EdgeError, match=f"cannot write {tmp_path / name}: {says}"):
        Lines(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found = list[str]()
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    lines = Lines(tmp_path / "pipe")
    for frame, tracked in moving.frames(50):
        lines.write(frame, tracked, {})
    lines.close()
    reader.join()
    assert len(read(found[0])[0]) == 50


WRITES = """
import sys
from pathlib import Path
from pipnet_edge.errors import EdgeError
from pipnet_edge.video.sink import Lines
from tests.device.video import moving
lines = Lines(Path(sys.argv[1]))
try:
    while True:
        for frame, tracked in moving.frames(40, 16, 16):
            lines.write(frame, tracked, {})
        if sys.argv[2] == "once":
            break
    lines.close()
except EdgeError as e:
    lines.close()
    sys.exit(str(e))
"""


def start(path: str, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITES, path, how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_stdout() -> None:
    text, errors = start("-", "once").communicate()
    assert errors == ""
    lines, counts = read(text)
    assert len(lines) == 40
    assert counts is not None


def test_a_reader_that_goes_is_one_line() -> None:
    process = start("-", "forever")
    assert process.stdout
    assert process.stderr
    for _ in range(5):
        process.stdout.readline()
    process.stdout.close()
    text = process.stderr.read()
    assert process.wait() == 1
    process.stderr.close()
    assert text.startswith("stdout ends after ")
    assert text.endswith(" frames: Broken pipe\n")


def test_what_is_there_when_the_program_is_killed_is_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    process = start(str(path), "forever")
    while not path.exists() or path.stat().st_size < 500_000:
        assert process.poll() is None
    process.kill()
    process.communicate()
    lines, counts = read(path.read_text())
    assert len(lines) > 100
    assert counts is None


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, isolated: tuple[str, ...]) -> None:
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=200k none disk && "$@"; code=$?; cp disk/a.jsonl .; exit $code'
    command = [*isolated, "sh", "-c", script, "sh", sys.executable, "-c", WRITES, "disk/a.jsonl", "forever"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    lines, counts = read((tmp_path / "a.jsonl").read_text())
    assert len(lines) > 50
    assert counts is None
    assert done.stderr == f"disk/a.jsonl ends after {len(lines)} frames: No space left on device\n"
