"""The clip of `bench --chain`: what it shows, that its truth is where the faces are, and that it is made again."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.benchmarks.pictures import clip
from pipnet_edge.benchmarks.pictures.moves import FPS

# Where the marks of the crops below have their middles, normalised to them.
MARKS = np.array([[0.25, 0.25], [0.75, 0.375], [0.5, 0.75]])
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip of two white crops; the first has black marks, the second none."""
    crops = [np.full((256, 256, 3), 255, np.uint8) for _ in range(2)]
    for x, y in (MARKS * 256).astype(int).tolist():
        crops[0][y - 10 : y + 10, x - 10 : x + 10] = 0
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    clip.write(path, crops)
    return path


@pytest.fixture(scope="module")
def pictures(written: Path) -> list[Pixels]:
    video, found = cv2.VideoCapture(str(written)), []
    while (read := video.read())[0]:
        found.append(np.asarray(read[1], dtype=np.uint8))
    assert video.get(cv2.CAP_PROP_FPS) == FPS
    return found


def test_it_has_all_that_tracking_meets() -> None:
    truth = clip.truth(np.stack([MARKS, MARKS]))
    whole = truth.inside.all(axis=1)
    assert truth.appearances().max() == 3
    assert truth.face.tolist() == [0] * clip.CUT + [1] * (clip.COUNT - clip.CUT)
    away = np.flatnonzero(~truth.inside.any(axis=1))
    assert len(away) > 8
    assert whole[: away[0] - 8].all()
    assert whole[away[-1] + 8 :].sum() > 10
    steps = np.linalg.norm(np.diff(truth.points.mean(axis=1), axis=0), axis=1)
    assert steps[truth.rests[1:]].max() == 0 < steps[clip.CUT - 30 : clip.CUT - 1].min()
    second = slice(clip.CUT, away[0] - 8)
    assert steps[second].max() > 2 * steps[: clip.CUT - 1].max()


def test_nobody_is_taken_for_the_one_before_the_cut() -> None:
    points = clip.truth(np.stack([CORNERS, CORNERS])).points
    assert points[clip.CUT - 1, :, 0].max() < points[clip.CUT, :, 0].min()


def test_the_file_has_every_frame_and_the_face_is_where_its_truth_says(pictures: list[Pixels]) -> None:
    assert [picture.shape for picture in pictures] == [(clip.HEIGHT, clip.WIDTH, 3)] * clip.COUNT
    truth = clip.truth(np.stack([MARKS, MARKS]))
    for index in (0, 30, clip.CUT - 1):
        black = pictures[index].max(axis=2).astype(int)
        for x, y in truth.points[index].tolist():
            left, top = round(x) - 16, round(y) - 16
            rows, columns = np.nonzero(black[top : top + 32, left : left + 32] < 90)
            assert left + columns.mean() + 0.5 == pytest.approx(x, abs=0.5)
            assert top + rows.mean() + 0.5 == pytest.approx(y, abs=0.5)
    # The second crop is white all over.
    white = [int((picture.min(axis=2) > 225).sum()) for picture in pictures[clip.CUT :]]
    seen = clip.truth(np.stack([CORNERS, CORNERS])).inside[clip.CUT :]
    assert min(count for count, inside in zip(white, seen, strict=True) if inside.all()) > 5000
    assert max(count for count, inside in zip(white, seen, strict=True) if not inside.any()) < 1000


def test_a_camera_s_noise_is_in_every_frame(pictures: list[Pixels]) -> None:
    corner = np.array([picture[:100, 500:] for picture in pictures[: clip.CUT]], float)
    assert 1 < corner.std(axis=0).mean() < 8


def test_it_is_made_again_from_its_seed(written: Path, tmp_path: Path) -> None:
    crops = [np.full((8, 8, 3), 255, np.uint8)] * 2
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        clip.write(tmp_path / f"{name}.avi", crops, seed)
    one, again, two = ((tmp_path / f"{name}.avi").read_bytes() for name in ("one", "again", "two"))
    assert one == again != two
    assert written.stat().st_size < 20e6
