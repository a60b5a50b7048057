"""Whole networks rounded to int8 grids, layer after layer, and how much nearer that comes than the nearest weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from pipnet_edge.converters import destination
from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import Run, convolutions, heads, points, trace
from pipnet_edge.converters.quantize import ranges, rounding, scheme
from pipnet_edge.converters.quantize.equalise import equalise
from pipnet_edge.converters.quantize.scheme import FULL, stored, weight_steps
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
ValuesOf = Callable[..., dict[str, Tensor]]
Array = np.ndarray[Any, Any]


def maps_of(values: Mapping[str, Tensor]) -> list[Tensor]:
    return [values[f"heads_{name}"] for name in nets.HEAD_KEYS]


def weights(graph: fx.GraphModule, name: str) -> Tensor:
    return graph.get_submodule(name).get_parameter("weight")


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def on_grid(weight: Tensor, transposed: bool = False) -> bool:
    whole = weight / weight_steps(weight, FULL, transposed)
    inner = [d for d in range(4) if d != int(transposed)]
    return bool((whole - whole.round()).abs().max() < 1e-3) and bool((whole.round().abs().amax(inner) == FULL).all())


def simulated(graph: fx.GraphModule, spec: ModelSpec, crops: Array, bounds: Mapping[str, Any]) -> dict[str, Tensor]:
    """Node name -> output, where activations are stored in 8 bits."""
    found = {}

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        found[node.name] = value
        return stored(value, bounds[node.name]) if node.name in bounds else value

    with torch.no_grad():
        Run(graph, hook).run(normalise(crops, spec))
    return found


@pytest.fixture(scope="module")
def start(tiny_net: Make, tiny_spec: ModelSpec, tiny_faces: Array) -> tuple[fx.GraphModule, ModelSpec, dict[str, Any]]:
    """A float graph, its spec, and its ranges."""
    graph = trace(tiny_net())
    equalise(graph, tiny_spec, tiny_faces)
    spec = scheme.pixel_lattice(graph, tiny_spec)
    found = ranges.observe(graph, spec, tiny_faces, "minmax")
    return graph, spec, {name: found[name] for name in points(graph)}


Start = tuple[fx.GraphModule, ModelSpec, dict[str, Any]]


@pytest.fixture(scope="module")
def rounded(start: Start, tiny_faces: Array) -> fx.GraphModule:
    graph, spec, bounds = start
    return rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph), FULL)


def test_every_layer_lies_on_its_grid_but_those_to_keep(start: Start, rounded: fx.GraphModule) -> None:
    graph, _, _ = start
    before = trace(graph)
    for found in (rounded, rounding.nearest(graph, heads(graph), FULL)):
        for name in convolutions(graph):
            if name in heads(graph):
                for part in ("weight", "bias"):
                    assert torch.equal(graph.get_parameter(f"{name}.{part}"), found.get_parameter(f"{name}.{part}"))
                assert not on_grid(weights(found, name))
            else:
                assert on_grid(weights(found, name))
                assert not torch.equal(weights(found, name), weights(graph, name))
    assert equal(graph, before)


def test_nearest_is_nearest(start: Start) -> None:
    graph, _, _ = start
    found = rounding.nearest(graph, heads(graph), FULL)
    for name in set(convolutions(graph)) - heads(graph):
        error = (weights(found, name) - weights(graph, name)).abs() / weight_steps(weights(graph, name), FULL)
        assert error.max() <= 0.5001
        assert torch.equal(graph.get_parameter(f"{name}.bias"), found.get_parameter(f"{name}.bias"))


def test_rounding_in_sequence_beats_nearest(
    start: Start, rounded: fx.GraphModule, tiny_faces: Array, values_of: ValuesOf
) -> None:
    graph, spec, bounds = start
    exact = maps_of(values_of(graph, spec, tiny_faces))
    errors = []
    for candidate in (rounded, rounding.nearest(graph, heads(graph), FULL)):
        maps = maps_of(simulated(candidate, spec, tiny_faces, bounds))
        errors.append(sum((a - b).square().sum() / a.square().sum() for a, b in zip(exact, maps, strict=True)).item())
    assert errors[0] < 0.75 * errors[1]


def test_biases_make_the_mean_error_vanish(
    start: Start, rounded: fx.GraphModule, tiny_faces: Array, values_of: ValuesOf
) -> None:
    """Of every channel of every layer, over the calibration faces, as int8 computes it."""
    graph, spec, bounds = start
    exact, got = values_of(graph, spec, tiny_faces), simulated(rounded, spec, tiny_faces, bounds)
    naive = simulated(rounding.nearest(graph, heads(graph), FULL), spec, tiny_faces, bounds)
    shrunk = []
    for name, node in convolutions(graph).items():
        if name not in heads(graph):
            mean, before = ((values[node.name] - exact[node.name]).mean((0, 2, 3)) for values in (got, naive))
            assert mean.abs().max() < 1e-5 * exact[node.name].abs().max()
            shrunk.append((mean.norm() / before.norm()).item())
    assert max(shrunk) < 0.05


def test_the_seed_decides(start: Start, rounded: fx.GraphModule, tiny_faces: Array, monkeypatch: Any) -> None:
    graph, spec, bounds = start
    assert equal(rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph), FULL), rounded)
    # Few positions, so that they have to be drawn.
    monkeypatch.setattr(rounding, "COLUMNS", 200)
    few = [rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph), FULL, seed=seed) for seed in (0, 0, 1)]
    assert equal(few[0], few[1])
    assert not equal(few[0], few[2])


def test_more_faces_join_where_there_is_room(
    start: Start, tiny_faces: Array, monkeypatch: Any, values_of: ValuesOf
) -> None:
    """They go through the layers that are rounded already, and change only those that are not."""
    graph, spec, bounds = start
    names = [name for name in convolutions(graph) if name not in heads(graph)]
    monkeypatch.setattr(rounding, "FEW", 8)
    monkeypatch.setattr(rounding, "MANY", 24)
    alone = rounding.sequential(graph, spec, tiny_faces[:8], bounds, heads(graph), FULL)
    everywhere = rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph), FULL)
    monkeypatch.setattr(rounding, "ROOM", 24 * 2 * 4 * 10_000)
    later = rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph), FULL)
    assert torch.equal(weights(later, names[0]), weights(alone, names[0]))
    assert not torch.equal(weights(everywhere, names[0]), weights(alone, names[0]))
    assert not torch.equal(later.get_parameter(f"{names[-1]}.bias"), alone.get_parameter(f"{names[-1]}.bias"))
    last = convolutions(graph)[names[-1]].name
    mean = (simulated(later, spec, tiny_faces[:24], bounds)[last] - values_of(graph, spec, tiny_faces[:24])[last]).mean(
        (0, 2, 3)
    )
    assert mean.abs().max() < 1e-5 * values_of(graph, spec, tiny_faces[:24])[last].abs().max()
    monkeypatch.setattr(rounding, "ROOM", 0)
    assert equal(rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph), FULL), alone)


def test_no_two_products_overflow_16_bits(start: Start, tiny_faces: Array) -> None:
    """x86 without int8 dot products adds two products, of a byte and a weight each, in 16 bits that saturate."""
    graph, spec, bounds = start
    levels, keep = destination.find("onnx").levels, heads(graph)
    in_turn = rounding.sequential(graph, spec, tiny_faces, bounds, keep, levels)
    for found in (in_turn, rounding.nearest(graph, keep, levels)):
        integers = scheme.integers(scheme.Quantized(found, spec, {}, keep, levels))
        assert len(integers) == len(convolutions(graph)) - len(heads(graph))
        for whole in integers.values():
            pairs = np.sort(np.abs(whole.astype(int)).reshape(len(whole), -1))[:, -2:].sum(1)
            assert 255 * pairs.max() < 2**15


def test_layers_aside_are_rounded_but_seen_in_float(start: Start, rounded: fx.GraphModule, tiny_faces: Array) -> None:
    graph, spec, bounds = start
    aside = {"backbone.stem.0", "backbone.plain.body.0"}
    found = rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph), FULL, aside)
    seen = rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph) | aside, FULL)
    for name in set(convolutions(graph)) - heads(graph):
        layer = found.get_submodule(name)
        if name in aside:
            assert on_grid(weights(found, name))
        else:
            assert equal(layer, seen.get_submodule(name))
            assert not equal(layer, rounded.get_submodule(name))
    # Nothing comes before the first layer.
    assert equal(found.get_submodule("backbone.stem.0"), rounded.get_submodule("backbone.stem.0"))


def test_nothing_to_round(start: Start, tiny_faces: Array) -> None:
    graph, spec, bounds = start
    assert equal(rounding.sequential(graph, spec, tiny_faces, bounds, convolutions(graph), FULL), graph)


class Twice(nn.Module):
    """What the others lack: a transposed layer, a gate, a hard swish, padding and strides that differ by axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, (3, 5), (2, 4), (1, 2), dilation=(2, 1))
        self.gate = nets.SqueezeExcite(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1))
        self.swish, self.up = nn.Hardswish(), nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.relu = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        return self.grouped(self.relu(self.up(self.swish(self.gate(self.first(image))))))  # type: ignore[no-any-return]


def test_other_kinds_of_layers_pass(tiny_spec: ModelSpec, tiny_faces: Array, values_of: ValuesOf) -> None:
    graph = trace(Twice().eval())
    spec = scheme.pixel_lattice(graph, tiny_spec)
    bounds = ranges.observe(graph, spec, tiny_faces, "minmax")
    told = []
    keep = graphs.transposed(graph)
    found = rounding.sequential(graph, spec, tiny_faces, bounds, keep, FULL, progress=lambda *args: told.append(args))
    assert told == [(name, i, 4) for i, name in enumerate(("first", "gate.reduce", "gate.expand", "grouped"))]
    assert torch.equal(weights(found, "up"), weights(graph, "up"))
    assert all(on_grid(weights(found, name)) for name in convolutions(graph) if name != "up")
    # A copy of what the kernel sees that took the wrong positions would fit weights to the wrong inputs.
    exact = values_of(graph, spec, tiny_faces)
    for name in ("first", "grouped"):
        error = simulated(found, spec, tiny_faces, bounds)[name] - exact[name]
        naive = simulated(rounding.nearest(graph, keep, FULL), spec, tiny_faces, bounds)[name] - exact[name]
        assert error.square().mean() < naive.square().mean()
