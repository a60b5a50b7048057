"""The grids of int8, and the changes to a float network before it that change none of its maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import trace
from pipnet_edge.converters.quantize import scheme
from pipnet_edge.converters.quantize.scheme import FULL, SAFE, Quantized, grid, stored, weight_steps
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
Array = np.ndarray[Any, Any]
HEADS = {f"heads.{name}" for name in nets.HEAD_KEYS}


def maps_of(graph: nn.Module, spec: ModelSpec, crops: Array) -> list[Tensor]:
    with torch.no_grad():
        return list(graph(normalise(crops, spec)))


# --- Grids.

bounds = st.tuples(st.floats(-1e4, 0), st.floats(0, 1e4))
bits = st.sampled_from([4, 8, 16])


@given(bounds, bits, st.lists(st.floats(-2e4, 2e4, width=32), min_size=1, max_size=20))
def test_stored_values_lie_on_the_grid(range_: tuple[float, float], bits: int, values: list[float]) -> None:
    step, zero = grid(range_, bits)
    most = 2**bits - 1
    assert 0 <= zero <= most
    value = torch.tensor(values)
    once = stored(value, range_, bits)
    whole = once.double() / step + zero
    # float32 has 24 bits, and of these 16 are the integer's.
    assert (whole - whole.round()).abs().max() < 0.02
    assert whole.round().min() >= 0
    assert whole.round().max() <= most
    assert torch.equal(stored(once, range_, bits), once)
    low, high = -zero * step, (most - zero) * step
    assert (once - value.clamp(low, high)).abs().max() <= 0.51 * step + 1e-6 * value.abs().max()


@given(bounds, bits)
def test_zero_is_exact_and_both_ends_are_reached(range_: tuple[float, float], bits: int) -> None:
    step, _ = grid(range_, bits)
    assert stored(torch.zeros(3), range_, bits).tolist() == [0, 0, 0]
    ends = torch.tensor(range_)
    assert (stored(ends, range_, bits) - ends).abs().max() <= 0.51 * step + 1e-6 * ends.abs().max()


def test_a_range_without_zero_is_widened() -> None:
    assert grid((2.0, 5.1)) == (pytest.approx(0.02), 0)
    assert grid((-5.1, -2.0)) == (pytest.approx(0.02), 255)
    assert grid((-116.0, 139.0)) == (1, 116)


def test_steps_are_those_of_each_output_channel() -> None:
    weight = torch.tensor([[[[64.0, -3]]], [[[1, -128]]], [[[0, 0]]]])
    assert weight_steps(weight, 64).flatten().tolist() == [1, 2, 2]  # zeros take the layer's largest
    assert (127 * weight_steps(weight, 127)).flatten().tolist() == [64, 128, 128]
    assert weight_steps(weight, 127).shape == (3, 1, 1, 1)
    assert weight_steps(weight.transpose(0, 1), 64, transposed=True).flatten().tolist() == [1, 2, 2]
    assert weight_steps(torch.zeros(2, 3, 1, 1), 127).min() > 0


@pytest.mark.parametrize("levels", [SAFE, FULL])
def test_integers_are_the_weights_in_steps_of_int8_layers(levels: int, tiny_net: Make, tiny_spec: ModelSpec) -> None:
    graph = trace(tiny_net())
    expected = {}
    random = np.random.default_rng(0)
    for name in graphs.convolutions(graph):
        weight = graph.get_submodule(name).get_parameter("weight")
        whole = random.integers(-levels, levels + 1, weight.shape).astype(np.int8)
        whole.reshape(len(whole), -1)[:, 0] = levels
        steps = torch.from_numpy(random.uniform(1e-6, 1, (len(whole), 1, 1, 1)).astype(np.float32))
        weight.copy_(torch.from_numpy(whole) * steps)
        expected[name] = whole
    keep = frozenset({"backbone.project", *HEADS})
    found = scheme.integers(Quantized(graph, tiny_spec, {}, keep, levels))
    assert found.keys() == expected.keys() - keep
    for name, whole in found.items():
        np.testing.assert_array_equal(whole, expected[name])
        assert whole.dtype == np.int8


# --- Changes to the float network that change nothing.


def test_the_image_becomes_whole_and_the_maps_stay(tiny_net: Make, tiny_spec: ModelSpec, tiny_faces: Array) -> None:
    graph = trace(tiny_net())
    spec = scheme.pixel_lattice(graph, tiny_spec)
    assert spec.std == (1 / 255,) * 3
    assert [255 * m for m in spec.mean] == pytest.approx([124, 116, 104], abs=1e-9)
    assert replace(spec, mean=tiny_spec.mean, std=tiny_spec.std) == tiny_spec
    image = normalise(tiny_faces, spec)
    assert (image - image.round()).abs().max() < 1e-4

    # The first layer alone: equal, but for the border, where the padding is no more the mean to the last digit.
    before, after = (
        net.get_submodule("backbone.stem.0")(normalise(tiny_faces, s))
        for net, s in ((trace(tiny_net()), tiny_spec), (graph, spec))
    )
    error = (before - after).abs() / before.abs().max()
    assert error[:, :, 1:-1, 1:-1].max() < 1e-5
    assert 1e-5 < error.max() < 0.01
    for one, other in zip(maps_of(tiny_net(), tiny_spec, tiny_faces), maps_of(graph, spec, tiny_faces), strict=True):
        assert (one - other).abs().max() < 0.01 * one.abs().max()


def test_an_image_that_no_plain_convolution_reads_is_refused(tiny_spec: ModelSpec) -> None:
    for first in (nn.ReLU(), nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 3, bias=False)):
        with pytest.raises(NotImplementedError, match="the image is read by _0"):
            scheme.pixel_lattice(trace(nn.Sequential(first)), tiny_spec)


def test_biases_of_dead_channels_fit_32_bits(tiny_net: Make, tiny_spec: ModelSpec, tiny_faces: Array) -> None:
    graph = trace(tiny_net())
    dead = {"backbone.stem.0": 3, "backbone.depthwise.0": 5, "backbone.plain.body.2": 7}
    for name, channel in dead.items():
        layer = graph.get_submodule(name)
        layer.get_parameter("weight")[channel] *= 1e-12
        layer.get_parameter("bias")[channel] = 0.5
    layer.get_parameter("weight")[2], layer.get_parameter("bias")[2] = 0.0, 0.0
    before, maps = trace(graph), maps_of(graph, tiny_spec, tiny_faces)
    ranges = dict.fromkeys(graphs.points(graph), (-2.0, 6.0))
    scheme.fit_biases(graph, ranges)

    def units(name: str, net: fx.GraphModule) -> Tensor:
        layer = net.get_submodule(name)
        steps = weight_steps(layer.get_parameter("weight"), FULL).flatten().double()
        return layer.get_parameter("bias").double().abs() / (steps * grid(ranges[graphs.inputs(net)[name]])[0])

    for name, channel in dead.items():
        assert units(name, before)[channel] > 2**31
        assert units(name, graph)[channel] <= 2**29 * 1.0001
        weight = graph.get_submodule(name).get_parameter("weight")
        assert torch.count_nonzero(weight[channel]) == 1
    for name in graphs.convolutions(graph):
        old, new = (net.get_submodule(name) for net in (before, graph))
        others = [c for c in range(len(new.get_parameter("weight"))) if c != dead.get(name)]
        assert torch.equal(old.get_parameter("weight")[others], new.get_parameter("weight")[others])
        assert torch.equal(old.get_parameter("bias"), new.get_parameter("bias"))
    for one, other in zip(maps, maps_of(graph, tiny_spec, tiny_faces), strict=True):
        assert (one - other).abs().max() < 1e-3 * one.abs().max()
