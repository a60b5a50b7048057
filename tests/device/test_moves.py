"""Generated clips: the face lies where they say, and each can be made again."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.benchmarks.pictures.moves import FPS, MOVES, NOISE, Pose, background, clip, pasted

# Where the marks of the crop below have their middles, normalised to it.
MARKS = np.array([[0.25, 0.25], [0.75, 0.375], [0.5, 0.75]])


@pytest.fixture(scope="module")
def crop() -> NDArray[np.uint8]:
    """A red, a green and a blue mark on black."""
    made = np.zeros((256, 256, 3), np.uint8)
    for channel, (x, y) in enumerate((MARKS * 256).astype(int).tolist()):
        made[y - 8 : y + 8, x - 8 : x + 8, channel] = 255
    return made


@pytest.mark.parametrize("pose", [Pose(320, 240, 256), Pose(200, 300, 150, 0.7), Pose(400, 200, 300, -2.0)])
def test_a_face_is_pasted_where_its_pose_says(crop: NDArray[np.uint8], pose: Pose) -> None:
    grey = np.full((480, 640, 3), 90, np.uint8)
    picture = pasted(grey, crop, pose).astype(float)
    rows, columns = np.indices((480, 640)) + 0.5
    for channel, (x, y) in enumerate(pose.to_picture(MARKS).tolist()):
        # The crop is black elsewhere, and what is around it grey.
        others = np.delete(picture, channel, axis=2).max(axis=2)
        weight = np.where(others < 90, picture[..., channel], 0)
        assert (columns * weight).sum() / weight.sum() == pytest.approx(x, abs=0.1)
        assert (rows * weight).sum() / weight.sum() == pytest.approx(y, abs=0.1)
    changed = (picture != 90).any(axis=2)
    assert changed.sum() == pytest.approx(pose.side**2, rel=0.02)


@pytest.mark.parametrize("move", MOVES)
def test_the_face_stays_in_the_picture(move: str) -> None:
    corners = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]])
    places = np.array([MOVES[move](frame / FPS).to_picture(corners) for frame in range(300)])
    assert places.min() > 0
    assert (places.max(axis=(0, 1)) < [640, 480]).all()


def test_moves_are_what_their_names_say() -> None:
    def most(move: str) -> tuple[float, float, float]:
        """Pixels a frame, and the range of sizes and degrees, in the first two seconds."""
        poses = [MOVES[move](frame / FPS) for frame in range(61)]
        away = [float(np.hypot(b.x - a.x, b.y - a.y)) for a, b in itertools.pairwise(poses)]
        sides, turned = [pose.side for pose in poses], np.degrees([pose.turned for pose in poses])
        return max(away), max(sides) / min(sides), float(np.ptp(turned))

    assert most("still") == (0, 1, 0)
    assert most("roll") == (0, 1, pytest.approx(90))
    fast, slow = most("fast"), most("slow")
    assert fast == (pytest.approx(20, abs=2), pytest.approx(1.25**2, rel=0.02), pytest.approx(40, abs=1))
    assert all(a < b / 2 for a, b in zip((slow[0], slow[2]), (fast[0], fast[2]), strict=True))


def test_a_clip_is_made_again_from_its_seed(crop: NDArray[np.uint8]) -> None:
    def digest(seed: int) -> str:
        return hashlib.sha256(b"".join(picture.tobytes() for _, picture, _ in clip("fast", crop, 3, seed))).hexdigest()

    assert digest(1) == digest(1) != digest(2)
    frames = list(clip("still", crop, 3, 1))
    assert [time for time, _, _ in frames] == [0, 1 / FPS, 2 / FPS]
    # Frames differ by noise, outside the black and white crop, where none is cut off.
    one, other = (picture[:, :150].astype(float) for _, picture, _ in frames[:2])
    plain = (one.min(axis=2) > 20) & (one.max(axis=2) < 235)
    assert (one - other)[plain].std() == pytest.approx(NOISE * 2**0.5, rel=0.05)
    assert background(3).std() > 40
