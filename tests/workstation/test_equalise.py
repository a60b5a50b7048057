"""Equalised channels share their tensors' ranges, and the maps stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.graph import ScaledSwish, convolutions, heads, scale_swishes, trace
from pipnet_edge.converters.quantize.equalise import equalise
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
ValuesOf = Callable[..., dict[str, Tensor]]
Array = np.ndarray[Any, Any]


def maps_of(values: Mapping[str, Tensor]) -> list[Tensor]:
    return [values[f"heads_{name}"] for name in nets.HEAD_KEYS]


def weights(graph: fx.GraphModule, name: str) -> Tensor:
    return graph.get_submodule(name).get_parameter("weight")


@pytest.fixture(scope="module")
def both(
    tiny_net: Make, tiny_spec: ModelSpec, tiny_faces: Array, values_of: ValuesOf
) -> tuple[fx.GraphModule, dict[str, Tensor], dict[str, Tensor]]:
    """The equalised graph, and the values of all nodes before and after."""
    graph = trace(tiny_net())
    before = values_of(graph, tiny_spec, tiny_faces)
    equalise(graph, tiny_spec, tiny_faces)
    return graph, before, values_of(graph, tiny_spec, tiny_faces)


def test_equalised_maps_are_the_same(
    both: tuple[fx.GraphModule, dict[str, Tensor], dict[str, Tensor]], tiny_net: Make
) -> None:
    graph, before, after = both
    for one, other in zip(maps_of(before), maps_of(after), strict=True):
        assert (one - other).abs().max() < 1e-4 * one.abs().max()
    # All but the heads, whose outputs are the maps, had channels to scale.
    float_ = trace(tiny_net())
    same = {name for name in convolutions(graph) if torch.equal(weights(graph, name), weights(float_, name))}
    assert same == set()
    head = next(iter(heads(graph)))
    assert torch.equal(graph.get_parameter(f"{head}.bias"), float_.get_parameter(f"{head}.bias"))


def unevenness(value: Tensor, before: Tensor) -> float:
    """The standard deviation of the logarithm of what each channel reaches, dead ones apart."""
    reach = before.abs().amax((0, 2, 3))
    return value.abs().amax((0, 2, 3))[reach > 1e-3 * reach.max()].log().std().item()


def test_channels_share_their_tensors_range(both: tuple[fx.GraphModule, dict[str, Tensor], dict[str, Tensor]]) -> None:
    _, before, after = both
    # Alone in their groups, each channel of these gets all of the range.
    for name in ("backbone_stem_1", "backbone_plain_body_1", "backbone_down_body_1"):
        assert unevenness(before[name], before[name]) > 0.3
        assert unevenness(after[name], before[name]) < 0.01
    # Of several tensors that are scaled together, the neediest decides. What a summand has below zero matters as far as
    # the other can lift it above: a ReLU follows.
    summands = ("backbone_down_body_2", "backbone_down_shortcut")

    def needed(values: dict[str, Tensor]) -> Tensor:
        highs = torch.stack([values[name].amax((0, 2, 3)).clamp_min(0) for name in summands])
        lows = torch.stack([-values[name].amin((0, 2, 3)).clamp_max(0) for name in summands])
        sums = values["backbone_down_activation"].amax((0, 2, 3))
        return torch.stack([*torch.maximum(highs, torch.minimum(lows, highs.flip(0))), sums])

    largest = needed(before).amax(1, keepdim=True)
    assert (needed(before) / largest).amax(0).log().std() > 0.2
    assert (needed(after) / largest).amax(0).log().std() < 0.01


def test_nothing_reaches_six_that_did_not_before(
    both: tuple[fx.GraphModule, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    _, before, after = both
    grown = 0
    for name in ("backbone_expand", "backbone_depthwise", "backbone_mobilenet_body"):
        old, new = (values[f"{name}_1"] for values in (before, after))
        assert torch.equal(old >= 6, new >= 6)
        factors = new.amax((0, 2, 3)) / old.amax((0, 2, 3)).clamp_min(1e-9)
        assert factors.min() > 0.9999
        grown += int((factors > 1.01).sum())
        assert unevenness(new, old) < 0.7 * unevenness(old, old)
        assert new.amax((0, 2, 3))[factors > 1.01].max() < 6 * 0.86
    assert grown > 10


@pytest.mark.parametrize("case", ["lapa_mobilenet_v3_s32", "wflw_resnet18_s16"])
def test_what_hard_swishes_read_and_transposed_layers_are_left_alone(
    cases: Mapping[str, Any], case: str, values_of: ValuesOf
) -> None:
    random = np.random.default_rng(0)
    graph = trace(nets.build(cases[case].state())[2])
    spec = ModelSpec("x", 5, 1, 32, 64, nets_face())
    crops = random.integers(0, 256, (2, 64, 64, 3), np.uint8)
    before, original = values_of(graph, spec, crops), trace(graph)
    equalise(graph, spec, crops)
    after = values_of(graph, spec, crops)
    for one, other in zip(maps_of(before), maps_of(after), strict=True):
        assert (one - other).abs().max() < 1e-4 * one.abs().max()
    for name, node in convolutions(graph).items():
        # A bias changes with what its layer gives.
        same = torch.equal(graph.get_parameter(f"{name}.bias"), original.get_parameter(f"{name}.bias"))
        after_it = [graphs.module(graph, user) or user.target for user in node.users]
        products = [user for user in node.users if graphs.ungated(graph, user) is node]
        after_it += [graphs.module(graph, user) for product in products for user in product.users]
        if any(isinstance(one, nn.Hardswish | nn.Hardsigmoid) for one in after_it):
            assert same
        if name in graphs.transposed(graph):
            assert same
            assert torch.equal(weights(graph, name), weights(original, name))
        if any(isinstance(one, nn.ReLU) for one in after_it) and name not in graphs.transposed(graph):
            assert not same or not any(original.get_parameter(f"{name}.bias"))


def test_channels_are_scaled_behind_hard_swishes_and_through_gated_products(
    cases: Mapping[str, Any], values_of: ValuesOf
) -> None:
    graph = trace(nets.build(cases["lapa_mobilenet_v3_s32"].state())[2])
    scale_swishes(graph)
    spec = ModelSpec("x", 5, 1, 32, 64, nets_face())
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    before = values_of(graph, spec, crops)
    equalise(graph, spec, crops)
    after = values_of(graph, spec, crops)
    for one, other in zip(maps_of(before), maps_of(after), strict=True):
        assert (one - other).abs().max() < 1e-4 * one.abs().max()
    nodes = {node.name: node for node in graph.graph.nodes}
    swishes = [node for node in nodes.values() if isinstance(graphs.module(graph, node), ScaledSwish)]
    assert len(swishes) == 10
    for node in swishes:
        read = node.all_input_nodes[0].name
        assert torch.allclose(before[read], after[read], rtol=1e-3, atol=1e-4 * before[read].abs().max())
        assert unevenness(before[node.name], before[node.name]) > 0.3
        # A sum reads the first, so that others in its group decide too.
        assert unevenness(after[node.name], before[node.name]) < 0.01 or node is swishes[0]
        assert not torch.allclose(before[node.name], after[node.name], rtol=0.1)
    # The first product of a gate, which a ReLU follows: the gate itself stays.
    product = nodes["mul"]
    depthwise = graphs.ungated(graph, product)
    assert depthwise is not None
    (gate,) = (source.name for source in product.all_input_nodes if source is not depthwise)
    assert torch.allclose(before[gate], after[gate], atol=1e-4)
    factors = after["mul"].abs().amax((0, 2, 3)) / before["mul"].abs().amax((0, 2, 3))
    assert factors.max() / factors.min() > 1.5
    assert torch.allclose(after[depthwise.name], before[depthwise.name] * factors[:, None, None], rtol=1e-2, atol=1e-3)


class Means(nn.Module):
    """A product with the channels' own means: it grows with the square of a factor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.pool = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.body, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        value = self.relu(self.first(image))
        return self.head(self.body(value * self.relu(self.pool(value))))  # type: ignore[no-any-return]


def test_a_product_with_its_own_means_is_left_alone(
    tiny_spec: ModelSpec, tiny_faces: Array, values_of: ValuesOf
) -> None:
    graph = trace(Means())
    before = values_of(graph, tiny_spec, tiny_faces)["head"]
    equalise(graph, tiny_spec, tiny_faces)
    assert (values_of(graph, tiny_spec, tiny_faces)["head"] - before).abs().max() < 1e-4 * before.abs().max()


def nets_face() -> Any:
    from pipnet_edge.spec import MeanFace

    return MeanFace("five", tuple((i / 5, i / 5) for i in range(5)))
