"""track over a film of a real face that moves: the landmarks are where the face is, in every frame, and drawn there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge import draw
from pipnet_edge.benchmarks.accuracy.labels import read_labels
from pipnet_edge.benchmarks.pictures.moves import FPS, Pose, clip
from pipnet_edge.bundle import MANIFEST
from pipnet_edge.converters import demo
from pipnet_edge.preprocess import read_picture

COUNT, EYES = 60, (36, 45)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle, which knows from which score there is a face."""
    folder = tmp_path_factory.mktemp("track") / "bundle"
    shutil.copytree(demo_bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["spec"]["presence"] is None:
        manifest["spec"]["presence"] = 0.2
        (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Pose]]:
    path, poses = tmp_path_factory.mktemp("film") / "fast.mp4", list[Pose]()
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), FPS, (640, 480))
    for _, picture, pose in clip("fast", read_picture(_face()[0]), COUNT, seed=0):
        writer.write(picture[:, :, ::-1])
        poses.append(pose)
    writer.release()
    return path, poses


def _face() -> tuple[Path, NDArray[np.float64]]:
    labels = read_labels(demo.FACES / "labels.txt", demo.FACES, num_lms=68)
    assert labels.points is not None
    return labels.images[0], labels.points[0].astype(np.float64)


@pytest.mark.parametrize("variant", ["onnx-fp32", "ncnn-int8", "mnn-fp16", "tflite-fp32"])
def test_a_face_that_moves_fast(variant: str, film: tuple[Path, list[Pose]], bundle: Path, tmp_path: Path) -> None:
    path, poses = film
    truth = [pose.to_picture(_face()[1]) for pose in poses]
    (left, top), (width, height) = truth[0].min(axis=0), np.ptp(truth[0], axis=0)
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "track", str(bundle), str(path), "--variant", variant]
    command += ["--box", f"{left},{top},{width},{height}", "-o", "out.mp4", "--jsonl", "out.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    frames = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()][1:-1]
    assert [[face["id"] for face in frame["faces"]] for frame in frames] == [[1]] * COUNT
    errors = list[float]()
    for frame, points in zip(frames, truth, strict=True):
        away = np.linalg.norm(np.array(frame["faces"][0]["points"]) - points, axis=1)
        errors.append(100 * float(away.mean() / np.linalg.norm(points[EYES[0]] - points[EYES[1]])))
    print(f"{variant}: NME {np.mean(errors):.2f} %, worst frame {max(errors):.2f} %")
    assert np.mean(errors) < 5
    assert max(errors) < 8
    video = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    for frame in frames:
        read, picture = video.read()
        assert read
        columns, rows = np.array(frame["faces"][0]["points"]).astype(int).T
        dots = picture[rows, columns, ::-1]
        # Half of them at least: a codec blurs dots of three pixels.
        assert np.median(np.abs(dots - np.array(draw.GREEN)).mean(axis=1)) < 60
    assert not video.read()[0]
