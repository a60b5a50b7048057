"""Which tensors of a network are stored, which layers read them, and of what kind they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters import sparse
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import Run, ScaledSwish, trace
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
HEADS = {f"heads.{name}" for name in nets.HEAD_KEYS}


@pytest.fixture(scope="module")
def graph_of(cases: Mapping[str, Any]) -> Callable[[str], fx.GraphModule]:
    """The graph of a golden case, which its reader must not change."""
    made: dict[str, fx.GraphModule] = {}

    def get(name: str) -> fx.GraphModule:
        if name not in made:
            made[name] = trace(nets.build(cases[name].state())[2])
        return made[name]

    return get


MBV2, MBV3, RESNET = "wflw_mobilenet_v2_s32", "lapa_mobilenet_v3_s32", "wflw_resnet18_s16"


def test_points_maps_and_inputs_of_the_tiny_network(tiny_net: Make) -> None:
    graph = trace(tiny_net())
    relu, project = "backbone_mobilenet_body_1", "backbone_mobilenet_body_2"
    assert list(graphs.points(graph)) == [
        *("image", "backbone_stem_1", "backbone_expand_1", "backbone_depthwise_1", "backbone_project"),
        # The sum is stored, as no activation follows, and each of its summands.
        *(relu, project, "add"),
        # Here the activation is fused into the sum.
        *("backbone_plain_body_1", "backbone_plain_body_2", "backbone_plain_activation"),
        *("backbone_down_body_1", "backbone_down_body_2", "backbone_down_shortcut", "backbone_down_activation"),
    ]
    assert set(graphs.maps(graph)) == {f"heads_{name}" for name in nets.HEAD_KEYS}
    assert graphs.inputs(graph) == {
        "backbone.stem.0": "image",
        "backbone.expand.0": "backbone_stem_1",  # through the pooling
        "backbone.depthwise.0": "backbone_expand_1",
        "backbone.project": "backbone_depthwise_1",
        "backbone.mobilenet.body.0": "backbone_project",
        "backbone.mobilenet.body.2": relu,
        "backbone.plain.body.0": "add",  # through nn.Identity
        "backbone.plain.body.2": "backbone_plain_body_1",
        "backbone.down.body.0": "backbone_plain_activation",
        "backbone.down.body.2": "backbone_down_body_1",
        "backbone.down.shortcut": "backbone_plain_activation",
        **dict.fromkeys(HEADS, "backbone_down_activation"),
    }
    assert graphs.heads(graph) == HEADS
    assert graphs.gates(graph) == graphs.transposed(graph) == frozenset()


@pytest.mark.parametrize(
    ("case", "layers", "gates", "transposed", "depthwise"),
    [(MBV2, 57, 0, 0, 17), (MBV3, 67, 16, 0, 15), (RESNET, 26, 0, 1, 0)],
)
def test_kinds_of_layers(
    graph_of: Callable[[str], fx.GraphModule], case: str, layers: int, gates: int, transposed: int, depthwise: int
) -> None:
    graph = graph_of(case)
    assert len(graphs.convolutions(graph)) == layers
    assert graphs.heads(graph) == HEADS
    found = graphs.gates(graph)
    assert len(found) == gates
    assert all(".excite." in name for name in found)
    assert graphs.transposed(graph) == ({"backbone.deconv1"} if transposed else set())
    assert len(graphs.depthwise(graph)) == depthwise
    assert set(graphs.maps(graph)) == {name.replace(".", "_") for name in HEADS}
    assert not graphs.maps(graph).keys() & graphs.points(graph).keys()


@pytest.mark.parametrize("case", [MBV2, MBV3, RESNET])
def test_every_layer_reads_a_stored_tensor_but_those_behind_an_average(
    graph_of: Callable[[str], fx.GraphModule], case: str
) -> None:
    graph = graph_of(case)
    reads = graphs.inputs(graph)
    assert set(graphs.convolutions(graph)) - reads.keys() == {
        name for name in graphs.gates(graph) if name.endswith(".reduce")
    }
    assert set(reads.values()) <= graphs.points(graph).keys()


def test_points_of_other_networks(graph_of: Callable[[str], fx.GraphModule]) -> None:
    v2, v3, resnet = (set(graphs.points(graph_of(case))) for case in (MBV2, MBV3, RESNET))
    assert {"add", "add_9", "backbone_features_17_project", "backbone_features_18_relu"} <= v2
    assert not any(name.endswith(("expand", "depthwise", "conv")) for name in v2)
    # A hard swish stands alone: stored before and behind. A product is stored, unless a ReLU follows it.
    assert {"backbone_features_0_conv", "backbone_features_0_swish", "backbone_last_conv", "mul_3"} <= v3
    assert "mul" not in v3
    assert {"backbone_features_4_depthwise", "backbone_features_4_act1"} <= v3
    assert not any("gate" in name or "pool" in name for name in v3)
    assert {"backbone_relu_deconv1", "backbone_layer2_0_shortcut", "backbone_layer2_0_activation"} <= resnet
    assert not any(name.endswith(("backbone_deconv1", "maxpool", "_conv1")) for name in resnet)
    assert not any(name.startswith("add") for name in resnet)
    reads = graphs.inputs(graph_of(RESNET))
    assert reads["backbone.layer1.0.body.conv1"] == "backbone_stem_relu"
    assert reads["heads.score"] == "backbone_relu_deconv1"


def test_a_layer_that_hands_on_nothing_new_is_looked_through() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.ReLU(), nn.Identity(), nn.Conv2d(4, 4, 1)))
    assert list(graphs.points(graph)) == ["input_1", "_2"]
    assert graphs.inputs(graph) == {"0": "input_1", "4": "_2"}
    assert [node.name for node in graphs.readers_of(graph, graphs.convolutions(graph)["0"])] == ["_2"]


def test_a_layer_that_is_read_twice_is_stored_before_its_activation() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu, self.last = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            first = self.first(image)
            return self.last(self.relu(first)), self.last(first)

    assert list(graphs.points(trace(Twice()))) == ["image", "first", "relu"]


def test_summands_that_a_relu_cuts(tiny_net: Make) -> None:
    graph = trace(tiny_net())
    found = {}
    for name, node in graphs.points(graph).items():
        cut = graphs.summed_before_relu(graph, node)
        if cut:
            found[name] = (cut.sum.name, cut.other.name)
    shortcut, body = "backbone_down_shortcut", "backbone_down_body_2"
    assert found == {
        "backbone_plain_body_2": ("add_1", "add"),  # through both nn.Identity
        body: ("add_2", shortcut),
        shortcut: ("add_2", body),
    }


def test_a_trace_is_a_copy(tiny_net: Make) -> None:
    net = tiny_net()
    graph = trace(net)
    graph.get_parameter("backbone.project.weight").zero_()
    assert net.get_parameter("backbone.project.weight").abs().max() > 0
    assert not any(p.requires_grad for p in graph.parameters())


def test_run_hands_every_node_to_the_hook(tiny_net: Make, tiny_spec: ModelSpec, tiny_faces: np.ndarray) -> None:
    graph = trace(tiny_net())
    image, seen = normalise(tiny_faces[:2], tiny_spec), []

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        seen.append(node.name)
        return value + 1 if node.name == "heads_score" else value

    with torch.no_grad():
        score, *others = Run(graph, hook).run(image)
        exact, *same = graph(image)
    assert seen == [node.name for node in graph.graph.nodes if node.op != "output"]
    assert torch.equal(score, exact + 1)
    assert all(torch.equal(one, other) for one, other in zip(others, same, strict=True))


# --- Hard swishes with a factor for every channel.


def swishes(graph: fx.GraphModule, kind: type[nn.Module]) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes if isinstance(graphs.module(graph, node), kind)}


@pytest.fixture
def swish_net() -> fx.GraphModule:
    """Two hard swishes: a layer reads the first, a head the second."""
    layers = (nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Conv2d(4, 5, 1), nn.Hardswish(), nn.Conv2d(5, 2, 1))
    graph = trace(nn.Sequential(*layers))
    graph.get_submodule("0").get_parameter("weight").mul_(9)  # so that all three pieces are reached
    return graph


def test_a_scaled_swish_is_a_hard_swish_times_a_factor(swish_net: fx.GraphModule) -> None:
    image = torch.randn(2, 3, 6, 6)
    before = swish_net(image)
    graphs.scale_swishes(swish_net)
    assert torch.allclose(swish_net(image), before, rtol=1e-5, atol=1e-6)
    swish = swish_net.get_submodule("1")
    factors = torch.tensor([0.01, 1, 3, 50])[:, None, None]
    swish.get_buffer("sixth").mul_(factors)
    value = torch.linspace(-8, 8, 161).repeat(2, 4, 1, 1)
    assert torch.allclose(swish(value), factors * functional.hardswish(value), rtol=1e-5, atol=1e-6)


def test_a_scaled_swish_stays_one_node_in_copies(swish_net: fx.GraphModule) -> None:
    image, fresh = torch.randn(2, 3, 6, 6), trace(swish_net)
    for graph in (swish_net, fresh):
        graphs.scale_swishes(graph)
    swish_net.get_submodule("1").get_buffer("sixth").mul_(torch.tensor([0.5, 1, 2, 3])[:, None, None])
    wanted = swish_net(image)
    assert not torch.equal(fresh(image), wanted)
    fresh.load_state_dict(swish_net.state_dict())
    for again in (trace(swish_net), trace(trace(swish_net)), copy.deepcopy(swish_net), fresh):
        assert [node.name for node in again.graph.nodes] == [node.name for node in swish_net.graph.nodes]
        assert graphs.points(again).keys() == graphs.points(swish_net).keys()
        assert swishes(again, ScaledSwish) == {"1"}
        assert torch.equal(again(image), wanted)
    again.get_submodule("1").get_buffer("sixth").zero_()
    assert torch.equal(swish_net(image), wanted)


def test_which_layers_of_mobilenet_v3_are_swished_and_which_hard_swishes_scaled(cases: Mapping[str, Any]) -> None:
    case = cases[MBV3]
    graph = trace(nets.build(case.state())[2])
    image = torch.randn(1, 3, case.input_size, case.input_size)
    before = graph(image)
    # Of the blocks with hard swishes, those with a shortcut have a body.
    blocks = [f"backbone.features.{i}{'' if i in (7, 11, 13) else '.body'}" for i in range(7, 16)]
    swished = {"backbone.features.0.conv", *(f"{block}.depthwise" for block in blocks)}
    assert graphs.swished(graph) == swished
    graphs.scale_swishes(graph)
    scaled = {"backbone.features.0.swish", *(f"{block}.act1" for block in blocks)}
    assert swishes(graph, ScaledSwish) == scaled
    # Only swished layers read the others, or heads.
    assert swishes(graph, nn.Hardswish) == {"backbone.last.swish", *(f"{block}.act0" for block in blocks)}
    assert graphs.swished(graph) == swished
    for one, other in zip(before, graph(image), strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()
    assert swishes(sparse.split(graph, case.num_lms)[0], ScaledSwish) == scaled


@pytest.mark.parametrize("case", [MBV2, RESNET])
def test_networks_without_a_hard_swish_stay_as_they_are(cases: Mapping[str, Any], case: str) -> None:
    graph = trace(nets.build(cases[case].state())[2])
    assert graphs.swished(graph) == frozenset()
    graphs.scale_swishes(graph)
    assert swishes(graph, ScaledSwish) == set()


def test_a_hard_swish_of_joined_tensors_has_all_their_channels() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.swish = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.Hardswish()
            self.body, self.head = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, image: Tensor) -> Tensor:
            joined = torch.cat([self.one(image), self.other(image)], 1)
            return self.head(self.body(self.swish(joined)))  # type: ignore[no-any-return]

    graph, image = trace(Joined()), torch.randn(1, 3, 5, 5)
    before = graph(image)
    graphs.scale_swishes(graph)
    assert swishes(graph, ScaledSwish) == {"swish"}
    assert torch.allclose(graph(image), before, rtol=1e-5, atol=1e-6)
