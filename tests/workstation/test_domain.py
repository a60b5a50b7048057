"""What calibration saw, on real networks and faces: it is kept, every runtime gives it, and other faces warn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import nn

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import chunks, drift, labels
from pipnet_edge.bundle import Bundle
from pipnet_edge.converters import demo, golden
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.quantize import calibration
from pipnet_edge.domain import LEAST, Domain
from pipnet_edge.spec import ModelSpec
from pipnet_edge.worker import call as calls


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return bundles.read(demo_bundle)


@pytest.mark.parametrize("variant", ["onnx-fp32", "ncnn-fp32", "mnn-fp32", "ncnn-fp16"])
def test_every_runtime_gives_what_is_kept(bundle: Bundle, variant: str) -> None:
    kept = bundle.read_domain()
    assert kept
    faces = [(path, None) for path in labels.image_folder(demo.CALIBRATION).images]
    crops = calibration.choose(faces, 256).crops
    assert LEAST <= len(crops) <= golden.MOST
    found = calls.infer(calls.here, bundle.folder, variant, 1, crops).features
    assert found is not None
    seen = Domain.of(found)
    np.testing.assert_allclose(seen.low, kept.low, atol=5e-3)
    np.testing.assert_allclose(seen.high, kept.high, atol=5e-3)
    assert seen.limit == pytest.approx(kept.limit, abs=5e-3)
    assert kept.are_outside(found).sum() <= 1


def test_models_with_heads_inside_tell_nothing(bundle: Bundle) -> None:
    crops, _ = bundle.read_golden()
    assert calls.infer(calls.here, bundle.folder, "tflite-fp32", 1, crops[:1]).features is None


def strangers(bundle: Bundle, images: Path, cache: Path) -> drift.Strangers:
    faces = drift.Faces(labels.image_folder(images), bundle.spec.input_size)
    found = drift.run(bundle, faces, drift.choose(bundle, ["onnx-int8"], None), cache, chunks.processes(1)).strangers
    assert found
    return found


def test_faces_of_the_same_kind_do_not_warn(bundle: Bundle, tmp_path: Path) -> None:
    found = strangers(bundle, demo.FACES, tmp_path / "cache")
    assert found.of == 25
    assert found.outside <= 10
    assert not found.is_warning


def test_faces_upside_down_warn(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    for path in demo.FACES.glob("*.jpg"):
        cv2.imwrite(str(tmp_path / "faces" / f"{path.stem}.png"), cv2.imread(str(path))[::-1])
    found = strangers(bundle, tmp_path / "faces", tmp_path / "cache")
    assert found.outside >= 24
    assert found.is_warning


def test_faces_in_the_wild_warn_where_portraits_calibrated(bundle: Bundle, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    for path in sorted((shared / "faces/wild68_test/images").iterdir())[::10]:
        (tmp_path / "faces" / path.name).symlink_to(path)
    found = strangers(bundle, tmp_path / "faces", tmp_path / "cache")
    assert found.of == 40
    assert found.outside >= 36
    assert found.is_warning


def test_few_faces_and_dense_networks_have_no_domain(
    tiny_spec: ModelSpec, tiny_net: Callable[[], nn.Module], tmp_path: Path
) -> None:
    network = Network(tiny_spec, tiny_net(), 0)
    crops = np.random.default_rng(0).integers(0, 256, (LEAST, tiny_spec.input_size, tiny_spec.input_size, 3), np.uint8)
    for name, given in {"dense": None, "few": crops[:-1], "enough": crops}.items():
        golden.write(tmp_path / f"{name}.npz", network, given)
        with np.load(tmp_path / f"{name}.npz") as arrays:
            assert ("feature_limit" in arrays) == (name == "enough")
