"""Frames with faces in them, for the tests of what is done with them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.spec import mean_faces
from pipnet_edge.video.level import around
from pipnet_edge.video.source import Frame
from pipnet_edge.video.track import Face, Tracked

SHAPE = np.array(mean_faces()["aflw"].points)
EYES = (6, 11)


def face(number: int, x: float, y: float, size: float = 120, turned: float = 0.0, is_new: bool = False) -> Face:
    """A face whose middle is here, in pixels, and whose landmarks' longer side is `size`."""
    across = np.array([np.cos(turned), np.sin(turned)]) * size / np.ptp(SHAPE, axis=0).max()
    from_middle = (SHAPE - (SHAPE.min(axis=0) + SHAPE.max(axis=0)) / 2) @ np.array([across, [-across[1], across[0]]])
    points = (from_middle + np.array([x, y])).astype(np.float32)
    return Face(number, points, points, 0.625, around(points, EYES, 256), is_new)


def noise(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frames(count: int, width: int = 320, height: int = 240, fps: float = 30) -> Iterator[tuple[Frame, Tracked]]:
    """Noise that moves, which no codec makes small, and two faces."""
    still = noise(width, height)
    for index in range(count):
        two = face(1, 100 + index % 50, 120, is_new=index == 0), face(2, 230, 110, 90, 0.4, index == 0)
        yield Frame(np.roll(still, 7 * index, axis=1), index / fps, index), Tracked(two, index == 0)
