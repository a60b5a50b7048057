"""A trained network follows faces that move: as well as with the true box, through any roll, and without trembling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy.labels import read_labels
from pipnet_edge.benchmarks.accuracy.parity import crops_of
from pipnet_edge.benchmarks.pictures.moves import clip
from pipnet_edge.converters.checkpoint import nets, read
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.decode import Decoder, Landmarks, Maps
from pipnet_edge.preprocess import Box, crop_rect, cut
from pipnet_edge.video.level import LevelCrop, cut_level
from pipnet_edge.video.track import Found, Reading, Rules, Tracker

FRAMES, EYES = 60, (36, 45)
# The true box is looked at in every so many frames.
SOME = 4
Points = NDArray[np.float64]


@dataclass
class Followed:
    """Landmarks (68, 2) in pixels: the labels, those read in the tracker's crops, and smoothed, of each frame.

    boxed: those read in the true box, upright, of every SOME frames.
    """

    truth: list[Points] = field(default_factory=list)
    raw: list[Points] = field(default_factory=list)
    smooth: list[Points] = field(default_factory=list)
    boxed: list[Points] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def percent(self, points: list[Points], order: int = 0) -> float:
        """The mean length of the error, or of its difference of that order, in per cent of the eyes' distance."""
        truth = np.array(self.truth if len(points) == len(self.truth) else self.truth[::SOME])
        eyes = np.linalg.norm(truth[:, EYES[0]] - truth[:, EYES[1]], axis=1).mean()
        return float(100 * np.linalg.norm(np.diff(np.array(points) - truth, order, axis=0), axis=2).mean() / eyes)


Follow = Callable[[str], list[Followed]]


@pytest.fixture(scope="module")
def follow(shared: Path, one_thread: None) -> Follow:
    """follow(move): two studio faces that move. The first box is the true one, and nothing is detected after it."""
    network = read.load(shared / "checkpoints/pip_mbv2_68.pth", read.Options(data="300w"))
    labels = read_labels(shared / "faces/studio68_test/labels.txt", shared / "faces/studio68_test/images", num_lms=68)
    assert labels.points is not None
    decode, spec = Decoder(network.spec), network.spec
    crops, truths = crops_of(labels.images[:2], 256), labels.points[:2]

    def landmarks(crop: NDArray[np.uint8]) -> Landmarks:
        with torch.inference_mode():
            maps = network.net(normalise(crop[None], spec))
        named = {name: value.numpy() for name, value in zip(nets.HEAD_KEYS, maps, strict=True)}
        return decode(Maps.from_outputs(named, spec))

    def read_crop(picture: NDArray[np.uint8], crop: LevelCrop) -> Reading:
        return Reading.of(landmarks(cut_level(picture, crop)), crop)

    def box_of(points: Points) -> Box:
        x, y, right, bottom = (float(value) for value in (*points.min(axis=0), *points.max(axis=0)))
        return x, y, right - x, bottom - y

    def run(move: str) -> list[Followed]:
        found = []
        for seed, (crop, truth) in enumerate(zip(crops, truths, strict=True)):
            one, first = Followed(), list[Found]()
            track = Tracker(lambda _, first=first: [first.pop()] if first else [], read_crop, spec, Rules(0.4, faces=1))
            for time, picture, pose in clip(move, crop, FRAMES, seed):
                here = pose.to_picture(truth)
                if time == 0:
                    first.append(Found(box_of(here), 1.0))
                (face,) = track(picture, time).faces
                one.truth.append(here)
                one.raw.append(face.raw.astype(float))
                one.smooth.append(face.points.astype(float))
                one.ids.append(face.id)
                if len(one.truth) % SOME == 1:
                    rect = crop_rect(box_of(here), 640, 480, "test")
                    one.boxed.append(rect.to_picture(landmarks(cut(picture, rect, 256)).points).astype(float))
            found.append(one)
        return found

    return run


@pytest.mark.parametrize(("move", "nme"), [("slow", 0.1), ("fast", 0.15)])
def test_tracking_is_as_good_as_the_true_box(follow: Follow, move: str, nme: float) -> None:
    faces = follow(move)
    assert [set(face.ids) for face in faces] == [{1}] * 2
    tracked, boxed = mean(f.percent(f.raw) for f in faces), mean(f.percent(f.boxed) for f in faces)
    print(f"{move}: NME {tracked:.2f} tracked, {boxed:.2f} in the true box")
    assert tracked <= boxed + nme
    added = mean(f.percent(f.smooth) - f.percent(f.raw) for f in faces)
    print(f"{move}: smoothing adds {added:.2f} %")
    assert added <= 0.8


def test_a_head_that_rolls_is_not_lost(follow: Follow) -> None:
    faces = follow("roll")
    assert [set(face.ids) for face in faces] == [{1}] * 2
    tracked, boxed = mean(f.percent(f.raw) for f in faces), mean(f.percent(f.boxed) for f in faces)
    print(f"roll: NME {tracked:.2f} tracked, {boxed:.2f} in the true box, which is upright")
    assert tracked < 3 < 2 * tracked < boxed


def test_a_still_face_does_not_tremble(follow: Follow) -> None:
    faces = follow("still")
    raw, smooth = mean(f.percent(f.raw, 2) for f in faces), mean(f.percent(f.smooth, 2) for f in faces)
    print(f"still: {raw:.3f} % from frame to frame, {smooth:.3f} % smoothed")
    assert smooth <= 0.25
    assert smooth < raw / 3
