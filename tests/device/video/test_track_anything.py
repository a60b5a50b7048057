"""What holds for the tracker whatever a detector and a network say."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.detect.boxes import Found
from pipnet_edge.spec import MeanFace, ModelSpec
from pipnet_edge.video.level import LevelCrop
from pipnet_edge.video.track import SAME, Reading, Rules, Tracker

FACE = MeanFace("five", ((0.2, 0.3), (0.8, 0.3), (0.5, 0.6), (0.0, 0.0), (1.0, 1.0)), (0, 1))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)
SIZES = ((480, 640), (64, 48), (1, 1))

NEAR = st.floats(-100, 700)
ANYWHERE = NEAR | st.floats(-1e30, 1e30)
SIDES = st.floats(0, 300) | st.floats(-1e30, 1e30)
BOXES = st.builds(Found, st.tuples(ANYWHERE, ANYWHERE, SIDES, SIDES), st.floats(-1, 2))
SCORES = st.floats(-1, 1.5)
# What a network sees in a crop: something that lies in it, or anything.
LANDMARKS = st.lists(st.tuples(ANYWHERE, ANYWHERE), min_size=5, max_size=5).map(np.float32)
SEEN = st.tuples(st.none() | LANDMARKS, SCORES)
FRAMES = st.tuples(
    st.sampled_from([SIZES[0], SIZES[0], SIZES[0], *SIZES]),
    st.floats(-1, 5),
    st.lists(BOXES, max_size=6),
    st.lists(SEEN, min_size=1, max_size=8),
)


def corners(points: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(np.float64)


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    shared = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)) if shared else 0.0


@given(
    frames=st.lists(FRAMES, max_size=30),
    wanted=st.integers(1, 4),
    every=st.integers(1, 6),
    presence=st.floats(0.1, 0.9),
)
def test_whatever_is_seen(
    frames: list[tuple[tuple[int, int], float, list[Found], list[tuple[NDArray[np.float32] | None, float]]]],
    wanted: int,
    every: int,
    presence: float,
) -> None:
    now: dict[str, list[Found]] = {}
    seen: list[tuple[NDArray[np.float32] | None, float]] = []
    readings: list[Reading] = []

    def detect(picture: NDArray[np.uint8]) -> list[Found]:
        return now["boxes"]

    def read(picture: NDArray[np.uint8], crop: LevelCrop) -> Reading:
        points, score = seen[len(readings) % len(seen)]
        inside = crop.to_picture(np.array(FACE.points, np.float32) * 0.8 + 0.1)
        readings.append(Reading(inside if points is None else points, score))
        return readings[-1]

    track = Tracker(detect, read, SPEC, Rules(presence, faces=wanted, every=every))
    ids, gone, last = set[int](), set[int](), 0
    for size, time, boxes, seen_now in frames:
        now["boxes"], seen[:] = boxes, seen_now
        readings.clear()
        found = track(np.zeros((*size, 3), np.uint8), time)
        present = [face.id for face in found.faces]
        # Ids: the oldest first, none given twice, none that returns, new ones told of and counted on.
        assert present == sorted(set(present))
        assert gone.isdisjoint(present)
        new = [face.id for face in found.faces if face.is_new]
        assert set(new) == set(present) - ids
        assert new == list(range(last + 1, last + 1 + len(new)))
        last, gone, ids = last + len(new), gone | (ids - set(present)), set(present)
        assert not new or found.detected
        # Never more than wanted, nor more work than they are worth.
        assert len(present) <= wanted
        assert len(readings) <= 2 * wanted + 4 * wanted * found.detected
        # Each is what was read, and there.
        for face in found.faces:
            assert face.score >= presence
            assert any(face.raw is reading.points and face.score == reading.score for reading in readings)
            assert np.isfinite(face.points).all()
        # No two on one face.
        areas = [corners(face.raw) for face in found.faces]
        assert all(overlap(a, b) <= SAME + 1e-6 for a, b in combinations(areas, 2))
