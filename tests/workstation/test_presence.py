"""The presence threshold and the margin of trained networks, of networks without sense, and where they are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipnet_edge.converters import demo, golden, presence
from pipnet_edge.converters.checkpoint import read
from pipnet_edge.converters.checkpoint.network import Network, maps_of
from pipnet_edge.preprocess import read_picture
from pipnet_edge.spec import MARGIN, ModelSpec

# Faces that are not those from which the embedded network's threshold is found.
OTHERS = sorted(demo.FACES.glob("*.jpg"))[presence.FACES :]


@pytest.fixture(scope="module")
def network() -> Network:
    return read.load(demo.CHECKPOINT, read.Options(data="300w"))


@pytest.fixture(scope="module")
def spec(network: Network, one_thread: None) -> ModelSpec:
    return presence.measured(network)


def scores(network: Network, crops: Any) -> Any:
    return maps_of(network, np.stack(crops)).score.max(axis=(2, 3)).mean(axis=1)


def test_faces_are_above_the_threshold_and_other_things_below(network: Network, spec: ModelSpec) -> None:
    assert spec.presence is not None
    faces = [read_picture(path) for path in OTHERS]
    assert (scores(network, faces) > 1.5 * spec.presence).all(), "they are read twice in every frame of a video"
    # Faces upside down, halves of faces beyond another edge, and plain or striped pictures.
    beside = [np.roll(np.pad(face, ((0, 0), (0, 256), (0, 0)), "edge"), 160, axis=1)[:, :256] for face in faces]
    stripes = np.where(np.arange(256)[None, :, None] // 16 % 2, 200, 60) * np.ones((256, 1, 3))
    others = [np.full((256, 256, 3), 128, np.uint8), stripes.astype(np.uint8), *(face[::-1] for face in faces)]
    assert (scores(network, [*others, *beside]) < spec.presence).mean() > 0.9


def test_a_spec_differs_in_nothing_else(network: Network, spec: ModelSpec) -> None:
    assert spec != network.spec
    assert replace(spec, presence=None, margin=MARGIN) == network.spec


def test_the_margin_is_near_what_the_network_was_trained_with(spec: ModelSpec) -> None:
    assert spec.margin in (1.2, 1.3)


def test_the_first_of_the_faces_given_count(network: Network, spec: ModelSpec) -> None:
    faces, nothing = golden.faces(256, 25)[5:][: presence.FACES], np.zeros((20, 256, 256, 3), np.uint8)
    found = presence.measured(network, np.concatenate([faces, nothing]))
    assert found.presence == pytest.approx(spec.presence, abs=0.03)


@pytest.mark.parametrize("change", ["same", "infinite"])
def test_networks_that_tell_nothing_have_no_threshold(network: Network, change: str, one_thread: None) -> None:
    head = network.net.get_submodule("heads.score")
    before = {name: value.clone() for name, value in head.state_dict().items()}
    try:
        with torch.no_grad():
            if change == "same":
                head.weight.zero_()
            else:
                head.bias.fill_(torch.inf)
        found = presence.measured(network)
    finally:
        head.load_state_dict(before)
    assert (found.presence, found.margin) == (None, MARGIN)


def test_squares_are_cut_and_landmarks_come_back() -> None:
    face = golden.faces(256, 1)[0]
    np.testing.assert_array_equal(presence._cut(face, (0.5, 0.5, 1, 0)), face)
    np.testing.assert_array_equal(presence._cut(face, (0.5, 0.5, 1, 180)), face[::-1, ::-1])
    np.testing.assert_array_equal(presence._cut(face, (1.0, 0.5, 1, 0))[:, :128], face[:, 128:])
    beyond = presence._cut(face, (-0.1, 0.5, 1, 0))
    assert (beyond[:, :153] == face[:, :1]).all()
    # A quarter turn to the right, half the size: the square's corner at the top left is the crop's at the top right.
    corner = presence._seen_from_crop(np.array([[0.0, 0.0]]), (0.5, 0.5, 0.5, 90))
    np.testing.assert_allclose(corner, [[0.75, 0.25]], atol=1e-9)


def test_the_bundle_and_its_table_have_them(
    tmp_path: Path, spec: ModelSpec, save_checkpoint: Callable[[str], Path], cli: Callable[..., Any]
) -> None:
    plan = ("--to", "onnx", "--precision", "fp32", "--json")
    made = cli("convert", demo.CHECKPOINT, "--data", "300w", *plan, "-o", tmp_path / "demo")
    result = json.loads(made.stdout)["result"]
    assert result["notes"] == []
    assert result["spec"]["presence"] == pytest.approx(spec.presence, abs=0.002)
    assert result["spec"]["margin"] == spec.margin
    shown = cli("inspect", tmp_path / "demo").stdout
    assert f"mean winning score of at least {result['spec']['presence']:g}" in shown
    assert f"crops of {spec.margin:g} times the landmarks' box" in shown

    untrained = cli("convert", save_checkpoint("wflw_mobilenet_v2_s32"), *plan, "-o", tmp_path / "untrained")
    (note,) = json.loads(untrained.stdout)["result"]["notes"]
    assert note == "no presence threshold: the network's scores do not tell faces from other things"
    assert "presence    not measured" in cli("inspect", tmp_path / "untrained").stdout
