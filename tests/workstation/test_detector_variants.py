"""A face detector's files for every runtime give the torch network's maps, and so the same boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipnet_edge import runtimes
from pipnet_edge.converters import core as exporter
from pipnet_edge.converters import destination
from pipnet_edge.converters.checkpoint import faceboxes
from pipnet_edge.converters.checkpoint.faceboxes import Detector
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.core import Core
from pipnet_edge.detect.decode import BoxMaps, decode
from pipnet_edge.detect.fit import find
from pipnet_edge.detect.spec import Sized
from pipnet_edge.errors import CHECK_FAILED, EdgeError

SIZE = (320, 240)
Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def detector(detector_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("checkpoint") / "FaceBoxesV2.pth"
    torch.save(detector_state, path)
    return faceboxes.read(path)


@pytest.fixture(scope="module")
def core(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Core:
    return exporter.export_detector(detector.net, detector.spec.at(SIZE), tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def made(core: Core, tmp_path_factory: pytest.TempPathFactory) -> Make:
    def make(runtime: str, precision: str) -> Path:
        folder = tmp_path_factory.mktemp("variant") / f"{runtime}-{precision}"
        folder.mkdir()
        destination.find(runtime).fp(core, precision, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def by_torch(detector: Detector, sized: Sized, pixels: NDArray[np.uint8]) -> BoxMaps:
    with torch.no_grad():
        maps = detector.net(normalise(pixels[None], detector.spec))
    return BoxMaps.from_outputs(dict(zip(detector.spec.map_names, (m.numpy() for m in maps), strict=True)), sized)


@pytest.mark.parametrize(
    ("runtime", "precision", "limit"),
    [
        *((name, "fp32", 1e-4) for name in runtimes.DESTINATIONS),
        *((name, "fp16", 1e-2) for name in ("ncnn", "mnn", "tflite")),
    ],
)
def test_maps_and_boxes_are_torchs(
    detector: Detector, made: Make, picture: NDArray[np.uint8], runtime: str, precision: str, limit: float
) -> None:
    sized = detector.spec.at(SIZE)
    session = runtimes.load_detector(runtime, made(runtime, precision), sized, precision, 1)
    try:
        found, wanted = session.run(picture), by_torch(detector, sized, picture)
        for mine, its in ((found.boxes, wanted.boxes), (found.logits, wanted.logits)):
            assert np.abs(mine - its).max() <= limit * np.abs(its).max()
        if precision == "fp32":
            ours, theirs = decode(found, sized, 0.6), decode(wanted, sized, 0.6)
            assert len(ours) == len(theirs) > 0
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.01)
            assert 0 < len(find(picture, session.run, sized, 0.6)) <= len(ours)  # the rest is beside the picture
        with pytest.raises(EdgeError, match=r"the crop is uint8 \(320, 240, 3\); uint8 \(240, 320, 3\)"):
            session.run(np.ascontiguousarray(picture.transpose(1, 0, 2)))
    finally:
        session.close()


def test_ncnn_takes_other_sizes_from_the_same_file(detector: Detector, made: Make, picture: NDArray[np.uint8]) -> None:
    sized = detector.spec.at((200, 144))
    pixels = np.ascontiguousarray(picture[:144, :200])
    session = runtimes.load_detector("ncnn", made("ncnn", "fp32"), sized, "fp32", 1)
    found, wanted = session.run(pixels), by_torch(detector, sized, pixels)
    session.close()
    assert np.abs(found.boxes - wanted.boxes).max() <= 1e-4 * np.abs(wanted.boxes).max()


def test_a_detector_of_other_maps_is_no_network_for_landmarks(made: Make, tiny_spec: object) -> None:
    with pytest.raises(EdgeError, match=r"outputs box_128, box_32, box_64, .* are needed"):
        runtimes.load("onnx", made("onnx", "fp32"), tiny_spec, "fp32", 1)  # type: ignore[arg-type]


def test_an_export_that_changes_maps_is_refused(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    def spoil(model, real=exporter.onnxsim.simplify):
        spoiled, ok = real(model)
        tensor = next(t for t in spoiled.graph.initializer if len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1.001)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return spoiled, ok

    monkeypatch.setattr(exporter.onnxsim, "simplify", spoil)
    with pytest.raises(EdgeError, match=r"ONNX simplification changed the maps: .*; at most 0\.0001 is allowed") as e:
        exporter.export_detector(detector.net, detector.spec.at(SIZE), tmp_path)
    assert e.value.code == CHECK_FAILED
