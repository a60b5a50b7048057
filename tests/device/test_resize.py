"""The resize that is written out is OpenCV's, bit for bit, on machines where OpenCV's own is the plain one."""

from __future__ import annotations

import platform

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.preprocess import RESIZED_OTHERWISE
from pipnet_edge.resize import bilinear

pytestmark = pytest.mark.skipif(platform.machine() in RESIZED_OTHERWISE, reason="OpenCV resizes otherwise here")

NOISE = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)


def agree(source: NDArray[np.uint8], side: int) -> None:
    found = bilinear(source, side)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, cv2.resize(source, (side, side), interpolation=cv2.INTER_LINEAR))


@given(
    top=st.integers(0, 300),
    left=st.integers(0, 300),
    height=st.integers(1, 400),
    width=st.integers(1, 600),
    side=st.integers(1, 400) | st.sampled_from([128, 224, 256, 320, 384]),
)
@settings(max_examples=400, deadline=None)
def test_random_rectangles(top: int, left: int, height: int, width: int, side: int) -> None:
    agree(NOISE[top : top + height, left : left + width], side)


@pytest.mark.parametrize("side", [32, 256])
@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (1, 2), (3, 3), (0.5, 0.5), (0.5, 2), (257 / 256, 257 / 256)])
def test_whole_factors_and_those_near_one(side: int, factor: tuple[float, float]) -> None:
    """OpenCV has ways of its own for some of them."""
    agree(NOISE[: int(side * factor[0]), : int(side * factor[1])], side)


@pytest.mark.parametrize("source", [NOISE[:1, :1], NOISE[:1], NOISE[:, :1], np.full((90, 70, 3), 255, np.uint8)])
def test_edges(source: NDArray[np.uint8]) -> None:
    for side in (1, 2, 37, 256):
        agree(source, side)


def test_the_largest_picture_takes_little_memory() -> None:
    """Only the rows that count are copied: this array has 3 TB of addresses and no memory."""
    row = np.lib.stride_tricks.as_strided(NOISE, (10**9, 1000, 3), (0, 3, 1))
    np.testing.assert_array_equal(bilinear(row, 64)[0], bilinear(row, 64)[-1])
