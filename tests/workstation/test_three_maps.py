"""A PIPNet without neighbours: its checkpoint has three heads, it gives three maps, and nothing is fused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipnet_edge import Landmarker
from pipnet_edge import bundle as bundles
from pipnet_edge.converters import demo, sparse
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.network import Network, maps_of, normalise
from pipnet_edge.decode import Decoder, Features
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

SIDE = 128
OWN = ["score", "offset_x", "offset_y"]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(demo.CHECKPOINT, weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def checkpoint(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint without its neighbour heads."""
    path = tmp_path_factory.mktemp("checkpoint") / "three.pth"
    torch.save({key: value for key, value in state.items() if not key.startswith("nb_")}, path)
    return path


def cells_plus_offsets(net: torch.nn.Module, spec: ModelSpec, crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Landmarks (n, L, 2) by the plain formula: the best cell, plus the offsets there."""
    with torch.no_grad():
        score, dx, dy = (maps.flatten(2) for maps in net(normalise(crops, spec)))
    cell = score.argmax(2, keepdim=True)
    x = cell % spec.grid + dx.gather(2, cell)
    y = cell // spec.grid + dy.gather(2, cell)
    return torch.cat([x, y], 2).double().numpy() / spec.grid


def test_three_heads_to_every_runtime(
    checkpoint: Path, tmp_path: Path, cli: Any, faces: Callable[..., Path], cache: Path
) -> None:
    made = tmp_path / "bundle"
    words = ("--data", "300w", "--input-size", SIDE, "--precision", "fp32,int8", "--rounding", "nearest")
    done = cli("convert", checkpoint, *words, "--calibrate", faces(tmp_path / "faces", 16), "-o", made)
    assert done.returncode == 0, done.stderr
    assert "68 (300w), no neighbours (three maps)" in done.stdout
    bundle = bundles.read(made)
    assert [v.name for v in bundle.variants] == [
        f"{runtime}-{precision}" for runtime in ("onnx", "ncnn", "mnn", "tflite") for precision in ("fp32", "int8")
    ]
    with np.load(made / "golden.npz") as arrays:
        assert sorted(arrays) == sorted(["crops", *OWN])
    crops, _ = bundle.read_golden()
    _, _, net = nets.build({k: v.float() for k, v in torch.load(checkpoint, weights_only=True).items()})
    wanted = cells_plus_offsets(net, bundle.spec, crops)
    for variant in bundle.variants:
        with Landmarker(made, variant.name) as landmarker:
            found = np.stack([landmarker.crop(crop).points for crop in crops])
        distance = np.linalg.norm(found - wanted, axis=2) * SIDE
        # Nothing averages a wrong cell away, so single landmarks jump in int8.
        assert float(distance.max() if variant.precision == "fp32" else np.median(distance)) < 1, variant.name

    rows = json.loads(cli("parity", made, "--json").stdout)["result"]["rows"]
    assert {tuple(row["maps"]) for row in rows} == {tuple(OWN)}
    table = cli("parity", made, "--variant", "onnx-fp32").stdout
    assert "max |offset_y|" in table
    assert "neighbor" not in table


@pytest.mark.parametrize("head", ["nb_x_layer", "nb_y_layer"])
def test_one_neighbour_head_alone_is_refused(
    state: dict[str, torch.Tensor], checkpoint: Path, tmp_path: Path, head: str
) -> None:
    three = torch.load(checkpoint, weights_only=True)
    torch.save(three | {key: value for key, value in state.items() if key.startswith(head)}, tmp_path / "four.pth")
    with pytest.raises(EdgeError, match="has no PIPNet head"):
        checkpoints.read(tmp_path / "four.pth")


def test_the_network_splits_from_its_two_offset_heads(
    tiny_net: Callable[[], nets.Pipnet], tiny_spec: ModelSpec, tiny_faces: NDArray[np.uint8]
) -> None:
    whole = tiny_net()
    net = nets.Pipnet(whole.backbone, {name: whole.heads[name] for name in OWN}).eval()
    spec = replace(tiny_spec, num_nb=0)
    graph, heads = sparse.split(net, spec.num_lms)
    assert heads.weight.shape == (5, 2, 1, 16)
    with torch.no_grad():
        score, features = (value.numpy() for value in graph(normalise(tiny_faces, spec)))
    dense = Decoder(spec)(maps_of(Network(spec, net, 0), tiny_faces)).points
    found = Decoder(spec, heads)(Features(score, features)).points
    allowed = 1e-5 * np.abs(dense).max()
    np.testing.assert_allclose(found, dense, rtol=0, atol=allowed)
    np.testing.assert_allclose(dense, cells_plus_offsets(net, spec, tiny_faces), rtol=0, atol=allowed)
