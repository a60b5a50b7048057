"""Tensors of a converted file are told by their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import trace
from pipnet_edge.converters.onnx import int8
from pipnet_edge.converters.quantize import match
from pipnet_edge.converters.quantize.scheme import FULL, Quantized
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
Array = NDArray[np.float32]
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


@given(shapes, st.integers(0, 2**31), st.sampled_from(["CHW", "1CHW", "HWC", "1HWC"]))
@settings(max_examples=40)
def test_tensors_are_found_under_other_names_and_layouts(shape: tuple[int, int, int], seed: int, layout: str) -> None:
    random = np.random.default_rng(seed)
    nodes = {name: random.standard_normal(shape).astype(np.float32) for name in "abc"}
    nodes["other"] = random.standard_normal((shape[0] + 5, *shape[1:])).astype(np.float32)
    tensors = {}
    for name, value in nodes.items():
        moved = value.transpose(1, 2, 0) if "HWC" in layout else value
        tensors[f"tensor/{name}"] = moved[None] if layout[0] == "1" else moved
    assert match.match(tensors, nodes) == {f"tensor/{name}": name for name in nodes}


def value_and_error() -> tuple[Array, Array]:
    """A tensor (4, 3, 3), and what to add to it to be 1 away from it: as much as its largest value, at one place."""
    value = np.random.default_rng(0).standard_normal((4, 3, 3)).astype(np.float32)
    error = np.zeros_like(value)
    error[2, 1, 1] = -np.sign(value[2, 1, 1]) * np.abs(value).max()
    return value, error


def test_what_differs_is_left_out() -> None:
    value, error = value_and_error()
    others = {
        "negative": -value,
        "turned": value.transpose(0, 2, 1),
        "batch": np.stack([value, value]),
        "flat": value.ravel(),
        "nan": np.full_like(value, np.nan),
    }
    for distance, found in ((0.9, {"near": "node"}), (1.1, {})):
        near = value + distance * match.FAR * error
        assert match.match({"near": near, **others}, {"node": value}) == found
    assert match.match({}, {"node": value}) == match.match({"near": value}, {}) == {}


def test_two_float_programs_that_amplify_rounding_are_matched() -> None:
    value, error = value_and_error()
    nodes = {"activation": np.maximum(value, 0), "layer": value}
    tensors = {name: node + 5e-3 * error for name, node in nodes.items()}
    assert match.match(tensors, nodes) == {"activation": "activation", "layer": "layer"}


def test_a_network_whose_sums_cancel_is_matched_with_onnx_runtimes_tensors(
    tmp_path: Path, tiny_spec: ModelSpec, quiet: None
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3), nn.ReLU6()]
    net = nn.Sequential(*layers).requires_grad_(False).eval()
    # Far from zero, and the layer after brings it back: float32 keeps few digits of what is in between.
    away, back = layers[2], layers[3]
    away.bias += 1e4 * torch.randn(32).sign()
    back.bias -= (back.weight.sum((2, 3)).double() @ away.bias.double()).float()
    face = normalise(match.face((64, 64))[None], tiny_spec)
    torch.onnx.export(net, (face,), str(tmp_path / "net.onnx"), input_names=["image"], dynamo=False)
    tensors = int8._outputs(onnx.load(tmp_path / "net.onnx"), face.numpy())
    # In float64, so that the error does not depend on the order in which torch sums up here.
    graph = trace(net).double()
    exact = match.values(graph, face.double(), {node.name for node in graph.graph.nodes})
    nodes = {name: value.astype(np.float32) for name, value in exact.items()}
    found = match.match(tensors, nodes)
    assert list(found.values()) == ["input_1", "_0", "_1", "_2", "_3", "_4"]
    worst = max(match._distance(tensors[name][0], nodes[node]) for name, node in found.items())
    assert 1e-3 < worst < match.FAR


def test_a_tensor_is_left_out_if_another_is_nearer_to_its_node() -> None:
    """As what comes before an activation that cuts off little."""
    value, error = value_and_error()
    assert match.match({"before": value + 0.03 * error, "after": value}, {"node": value}) == {"after": "node"}


@pytest.mark.parametrize("of", ["tensors", "nodes"])
def test_a_second_that_is_hardly_farther_is_refused(of: str) -> None:
    value, error = value_and_error()
    for farther in (match.MARGIN * 0.9, match.MARGIN * 1.1):
        near, second = value + 5e-3 * error, value + farther * 5e-3 * error
        if of == "tensors":
            tensors, nodes = {"near": near, "second": second}, {"node": value}
        else:
            # As far from the tensor, and on its other side.
            tensors, nodes = {"near": near}, {"node": value, "second": near + farther * 5e-3 * error}
        if farther > match.MARGIN:
            assert match.match(tensors, nodes) == {"near": "node"}
            continue
        with pytest.raises(EdgeError, match="node cannot be told from second in the converted") as refused:
            match.match(tensors, nodes)
        assert refused.value.code == CHECK_FAILED


def test_the_nearest_of_several_that_no_step_tells_apart_wins() -> None:
    value, _ = value_and_error()
    nodes = {"first": value * 1.0005, "same": value, "again": value, "last": value * 0.9995}
    tensors = {"tensor": value * 1.00001, "copy": np.moveaxis(value, 0, 2) * np.float32(1.00001)}
    assert match.match(tensors, nodes) == {"tensor": "same", "copy": "same"}


def maps_of(graph: nn.Module, spec: ModelSpec, crops: np.ndarray) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(graph(normalise(crops, spec)))


def test_activations_are_those_of_nodes_with_ranges(tiny_net: Make, tiny_spec: ModelSpec) -> None:
    graph = trace(tiny_net())
    given = Quantized(graph, tiny_spec, {"image": (0, 1), "heads_score": (0, 1)}, frozenset(), FULL)
    crop = match.face((64, 64))
    assert crop.shape == (64, 64, 3)
    assert crop.std() > 20
    found = match.activations(given, crop)
    assert found.keys() == {"image", "heads_score"}
    np.testing.assert_array_equal(found["image"], match.image(given, crop)[0])
    np.testing.assert_allclose(found["heads_score"], maps_of(graph, tiny_spec, crop[None])[0][0].numpy(), atol=1e-6)
