"""The metrics agree with what is known of a trained network."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipnet_edge.benchmarks.drift import measure, summarise
from pipnet_edge.benchmarks.labels import read_labels
from pipnet_edge.converters.nets import build
from pipnet_edge.decode import MAP_NAMES, Decoder, Maps, map_shapes
from pipnet_edge.spec import ModelSpec, mean_faces


def test_float_nme_of_the_first_hundred_faces(shared: Path) -> None:
    state = torch.load(shared / "checkpoints/pip_mbv2_68.pth", weights_only=True)
    backbone, stride, net = build({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    spec = ModelSpec(backbone, 68, 10, stride, 256, mean_faces()["300w"])
    folder = shared / "faces/wild68_test"
    labels = read_labels(folder / "labels.txt", folder / "images", num_lms=spec.num_lms)
    assert labels.points is not None
    crops = np.stack([cv2.resize(cv2.imread(str(path)), (256, 256))[:, :, ::-1] for path in labels.images[:100]])
    images = ((crops / 255.0 - spec.mean) / spec.std).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        parts = [net(torch.from_numpy(np.ascontiguousarray(images[i : i + 20]))) for i in range(0, 100, 20)]
    outputs = [torch.cat(maps).numpy() for maps in zip(*parts, strict=True)]
    shapes = map_shapes(spec)
    landmarks = Decoder(spec)(
        Maps(**{name: o.reshape(100, *shapes[name]) for name, o in zip(MAP_NAMES, outputs, strict=True)})
    )
    summary = summarise(measure(landmarks, landmarks, spec, labels.points[:100]))
    assert summary.reference["nme"].value == pytest.approx(4.918, abs=0.002)
    assert summary.drift["px_max"].value == summary.drift["flips"].value == 0
