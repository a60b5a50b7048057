"""Tensors of a converted file are told by their values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import trace
from pipnet_edge.converters.quantize import match
from pipnet_edge.converters.quantize.scheme import Quantized
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
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


def test_what_differs_is_left_out() -> None:
    random = np.random.default_rng(0)
    value = random.standard_normal((4, 3, 3)).astype(np.float32)
    largest, one = np.abs(value).max(), np.zeros_like(value)
    one[2, 1, 1] = largest
    tensors = {
        "near": value + 0.9 * match.TOLERANCE * one,
        "far": value + 1.1 * match.TOLERANCE * one,
        "negative": -value,
        "turned": value.transpose(0, 2, 1),
        "batch": np.stack([value, value]),
        "flat": value.ravel(),
        "nan": np.full_like(value, np.nan),
    }
    assert match.match(tensors, {"node": value}) == {"near": "node"}
    assert match.match({}, {"node": value}) == match.match({"near": value}, {}) == {}


def test_the_nearest_of_several_wins() -> None:
    value = np.random.default_rng(0).standard_normal((4, 3, 3)).astype(np.float32)
    nodes = {"first": value * 1.0005, "same": value, "last": value * 0.9995}
    assert match.match({"tensor": value}, nodes) == {"tensor": "same"}


def maps_of(graph: nn.Module, spec: ModelSpec, crops: np.ndarray) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(graph(normalise(crops, spec)))


def test_activations_are_those_of_nodes_with_ranges(tiny_net: Make, tiny_spec: ModelSpec) -> None:
    graph = trace(tiny_net())
    given = Quantized(graph, tiny_spec, {"image": (0, 1), "heads_score": (0, 1)}, frozenset())
    crop = match.face(64)
    assert crop.shape == (64, 64, 3)
    assert crop.std() > 20
    found = match.activations(given, crop)
    assert found.keys() == {"image", "heads_score"}
    np.testing.assert_array_equal(found["image"], match.image(given, crop)[0])
    np.testing.assert_allclose(found["heads_score"], maps_of(graph, tiny_spec, crop[None])[0][0].numpy(), atol=1e-6)
