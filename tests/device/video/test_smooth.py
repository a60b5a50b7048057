"""The One-Euro filter: its formula, written once more a number at a time, and what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.video.smooth import Smoothed, smooth

Points = NDArray[np.float32]


class OneEuro:
    """One landmark, as Casiez and others give it for a number, but that x and y share a cutoff."""

    def __init__(self, value: list[float]) -> None:
        self.raw, self.value, self.speed = value, value, [0.0, 0.0]

    @staticmethod
    def mixed(cutoff: float, passed: float, new: list[float], old: list[float]) -> list[float]:
        alpha = 1 / (1 + 1 / (2 * math.pi * cutoff) / passed)
        return [alpha * a + (1 - alpha) * b for a, b in zip(new, old, strict=True)]

    def __call__(self, raw: list[float], passed: float, size: float) -> list[float]:
        slope = [(a - b) / size / passed for a, b in zip(raw, self.raw, strict=True)]
        self.speed = self.mixed(1.0, passed, slope, self.speed)
        self.value = self.mixed(0.05 + 60 * math.dist(self.speed, (0, 0)), passed, raw, self.value)
        self.raw = raw
        return self.value


def smoothed(frames: list[Points], times: list[float]) -> list[Points]:
    state: Smoothed | None = None
    found = []
    for points, time in zip(frames, times, strict=True):
        state = smooth(state, points, time)
        found.append(state.points)
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(st.floats(0.001, 2), min_size=1, max_size=12),
    amount=st.floats(0, 50),
)
def test_every_landmark_is_filtered_by_the_formula(seed: int, steps: list[float], amount: float) -> None:
    random = np.random.default_rng(seed)
    face = random.uniform(0, 200, (7, 2))
    frames = [(face + random.normal(0, amount, face.shape)).astype(np.float32) for _ in range(len(steps) + 1)]
    times = [5.0, *(5 + np.cumsum(steps)).tolist()]
    filters = [OneEuro(value) for value in frames[0].tolist()]
    for raw, found, passed in zip(frames[1:], smoothed(frames, times)[1:], np.diff(times).tolist(), strict=True):
        size = float(np.ptp(raw, axis=0).mean())
        expected = [one(value, passed, size) for one, value in zip(filters, raw.tolist(), strict=True)]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)


def test_a_turning_point_is_not_left_behind() -> None:
    """A circle: x rests where y is fastest."""
    face, turn = np.random.default_rng(3).uniform(0, 200, (68, 2)), np.arange(120) / 30 * 2 * math.pi * 0.8
    circle = 80 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    frames = [(face + step).astype(np.float32) for step in circle]
    behind = np.array(frames) - smoothed(frames, (np.arange(120) / 30).tolist())
    assert np.linalg.norm(behind[30:], axis=2).max() < 2


def test_a_face_at_rest_hardly_trembles_and_one_that_moves_is_not_left_behind() -> None:
    random = np.random.default_rng(1)
    face = random.uniform(0, 200, (68, 2))
    times = (np.arange(90) / 30).tolist()
    noise = random.normal(0, 0.5, (90, 68, 2))
    rest = np.array(smoothed([(face + n).astype(np.float32) for n in noise], times))
    assert np.abs(np.diff(rest, 2, axis=0)).mean() < 0.2 * np.abs(np.diff(noise, 2, axis=0)).mean()
    # 300 pixels a second, one and a half faces.
    moving = [face + n + [10 * index, 0] for index, n in enumerate(noise)]
    behind = np.array(moving) - smoothed([points.astype(np.float32) for points in moving], times)
    assert np.abs(behind[30:, :, 0].mean(axis=1)).max() < 1


def test_size_does_not_matter() -> None:
    random = np.random.default_rng(2)
    frames = (random.uniform(0, 200, (68, 2)) + random.normal(0, 5, (20, 68, 2))).astype(np.float32)
    times = (np.arange(20) / 30).tolist()
    near, far = smoothed(list(frames * 8), times), smoothed(list(frames), times)
    np.testing.assert_allclose(np.array(near) / 8, far, atol=1e-3)


@pytest.mark.parametrize("time", [1.0, 0.5, -3.0])
def test_it_begins_anew_where_time_does_not_go_on(time: float) -> None:
    first, second = np.zeros((5, 2), np.float32), np.ones((5, 2), np.float32)
    found = smooth(smooth(smooth(None, first, 0.9), first, 1.0), second, time)
    np.testing.assert_array_equal(found.points, second)
    assert not found.speed.any()
    assert found.time == time


def test_landmarks_that_are_all_one_point() -> None:
    with np.errstate(all="raise"):
        found = smooth(smooth(None, np.full((5, 2), 3, np.float32), 0), np.full((5, 2), 4, np.float32), 1)
    assert np.isfinite(found.points).all()
