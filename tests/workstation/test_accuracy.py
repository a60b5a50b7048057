"""A trained network's accuracy survives conversion: NME over labelled faces, torch beside every runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipnet_edge.benchmarks.accuracy.labels import read_labels
from pipnet_edge.benchmarks.accuracy.metrics import measure, summarise
from pipnet_edge.benchmarks.accuracy.parity import crops_of
from pipnet_edge.converters.checkpoint import nets, read
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.decode import Decoder, Landmarks, Maps
from pipnet_edge.spec import ModelSpec
from pipnet_edge.worker import call as calls


@dataclass(frozen=True)
class Faces:
    checkpoint: Path
    spec: ModelSpec
    crops: np.ndarray
    truth: np.ndarray
    torch: Landmarks

    def nme(self, landmarks: Landmarks, count: int) -> float:
        """Percent, over the first faces."""
        given = (landmarks, self.torch)
        some, reference = (Landmarks(x.points[:count], x.score[:count], x.cell[:count]) for x in given)
        return summarise(measure(some, reference, self.spec, self.truth[:count])).variant["nme"].value


@pytest.fixture(scope="module")
def faces(shared: Path) -> Faces:
    path, folder = shared / "checkpoints/pip_mbv2_68.pth", shared / "faces/wild68_test"
    network = read.load(path, read.Options(data="300w"))
    labels = read_labels(folder / "labels.txt", folder / "images", num_lms=68)
    crops = crops_of(labels.images, 256)
    with torch.inference_mode():
        parts = [network.net(normalise(crops[i : i + 20], network.spec)) for i in range(0, len(crops), 20)]
    outputs = dict(zip(nets.HEAD_KEYS, (torch.cat(maps).numpy() for maps in zip(*parts, strict=True)), strict=True))
    each = [Maps.from_outputs({k: v[i] for k, v in outputs.items()}, network.spec) for i in range(len(crops))]
    batch = Maps(**{name: np.stack([getattr(maps, name) for maps in each]) for name in outputs})
    assert labels.points is not None
    return Faces(path, network.spec, crops, labels.points, Decoder(network.spec)(batch))


def test_float_nme_is_the_known_one(faces):
    assert len(faces.crops) == 400
    assert faces.nme(faces.torch, 100) == pytest.approx(4.918, abs=0.002)


def test_every_runtime_has_torch_accuracy(faces, tmp_path, cli):
    done = cli("convert", faces.checkpoint, "--data", "300w", "--precision", "fp32", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    known = faces.nme(faces.torch, 400)
    for runtime in ("onnx", "ncnn", "mnn", "tflite"):
        landmarks = calls.infer(calls.here, tmp_path / "b", f"{runtime}-fp32", 2, faces.crops).landmarks
        assert faces.nme(landmarks, 400) == pytest.approx(known, abs=0.001), runtime
