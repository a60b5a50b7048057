"""A clip with all that tracking meets: a face that rests and moves, a cut, one that moves fast, leaves and returns.

Everything follows from the seeds. Where the faces are is known; what a tracker makes of the clip can be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipnet_edge.benchmarks.accuracy.tracking import Truth
from pipnet_edge.benchmarks.pictures.moves import FPS, MOVES, Picture, Points, Pose, background, noisy, pasted
from pipnet_edge.errors import EdgeError

WIDTH, HEIGHT = 640, 480
# Of the encoded pictures. Noise is costly to encode: a higher one makes files of tens of megabytes.
QUALITY = 60
# Seconds: the first face rests and then moves slowly; the second moves fast, leaves, is away, comes back and stays.
REST, SLOW = 1.5, 1.5
FAST, LEAVING, AWAY, COMING, STAYS = 1.5, 0.5, 0.3, 0.5, 0.5
# The second face is as large as this beside that of MOVES, and away is so many pixels to the right.
SMALL, ASIDE = 0.62, 360


@dataclass(frozen=True)
class Frame:
    """Which face (0 or 1) is shown at a time in seconds, where its crop lies, and whether it rests there."""

    time: float
    face: int
    pose: Pose
    rests: bool = False


def frames() -> tuple[Frame, ...]:
    """All frames. The faces' places have nothing in common, so that nobody is taken for the one before the cut."""
    return tuple(
        _first(index / FPS) if index < CUT else _second(index / FPS, (index - CUT) / FPS) for index in range(COUNT)
    )


# The first frame after the cut, and how many there are.
CUT = round((REST + SLOW) * FPS)
COUNT = CUT + round((FAST + LEAVING + AWAY + COMING + STAYS) * FPS)


def _first(time: float) -> Frame:
    pose = MOVES["slow"](max(time - REST, 0))
    return Frame(time, 0, replace(pose, x=pose.x - 140), rests=time < REST)


def _second(time: float, passed: float) -> Frame:
    # It stops where it is when it leaves, and comes back to there.
    pose = MOVES["fast"](0.3 + min(passed, FAST))
    goes = FAST + np.cumsum([0, LEAVING, AWAY, COMING])
    x = 440 + SMALL * (pose.x - 320) + float(np.interp(passed, goes, [0, ASIDE, ASIDE, 0]))
    return Frame(time, 1, replace(pose, x=x, side=SMALL * pose.side))


def truth(landmarks: Points) -> Truth:
    """Where the landmarks (2, L, 2) of the two faces, normalised to their crops, are in the clip."""
    shown = frames()
    points = np.array([frame.pose.to_picture(landmarks[frame.face]) for frame in shown])
    return Truth(
        points,
        np.asarray(((points >= 0) & (points < (WIDTH, HEIGHT))).all(axis=-1), np.bool_),
        np.array([frame.face for frame in shown]),
        np.array([frame.rests for frame in shown]),
    )


def write(path: Path, crops: Sequence[Picture], seed: int = 0) -> None:
    """Writes the clip with two faces, (S, S, 3) uint8 RGB, as an .avi of JPEGs; a camera's noise is in every frame.

    Raises EdgeError where it cannot be written.
    """
    import cv2

    random, behind = np.random.default_rng(seed), [background(seed + face) for face in range(2)]
    code = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, code, FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        raise EdgeError(f"cannot write a video as {path}")
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, QUALITY)
    for frame in frames():
        picture = noisy(pasted(behind[frame.face], crops[frame.face], frame.pose), random)
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
