"""What a network on its way to int8 is: which tensors are stored, on which grids, and how tensors are recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import Run, trace
from pipnet_edge.converters.quantize import match, scheme
from pipnet_edge.converters.quantize.scheme import Quantized, grid, stored, weight_steps
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
Array = np.ndarray[Any, Any]
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


def maps_of(graph: nn.Module, spec: ModelSpec, crops: Array) -> list[Tensor]:
    with torch.no_grad():
        return list(graph(normalise(crops, spec)))


# --- Which tensors and layers.


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
    ("case", "layers", "gates", "transposed"),
    [(MBV2, 57, 0, 0), (MBV3, 67, 16, 0), (RESNET, 26, 0, 1)],
)
def test_kinds_of_layers(
    graph_of: Callable[[str], fx.GraphModule], case: str, layers: int, gates: int, transposed: int
) -> None:
    graph = graph_of(case)
    assert len(graphs.convolutions(graph)) == layers
    assert graphs.heads(graph) == HEADS
    found = graphs.gates(graph)
    assert len(found) == gates
    assert all(".excite." in name for name in found)
    assert graphs.transposed(graph) == ({"backbone.deconv1"} if transposed else set())
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
    weight = torch.tensor([[[[127.0, -3]]], [[[1, -254]]], [[[0, 0]]]])
    assert weight_steps(weight).flatten().tolist() == [1, 2, 2]  # zeros take the layer's largest
    assert weight_steps(weight).shape == (3, 1, 1, 1)
    assert weight_steps(weight.transpose(0, 1), transposed=True).flatten().tolist() == [1, 2, 2]
    assert weight_steps(torch.zeros(2, 3, 1, 1)).min() > 0


def test_integers_are_the_weights_in_steps_of_int8_layers(tiny_net: Make, tiny_spec: ModelSpec) -> None:
    graph = trace(tiny_net())
    expected = {}
    random = np.random.default_rng(0)
    for name in graphs.convolutions(graph):
        weight = graph.get_submodule(name).get_parameter("weight")
        whole = random.integers(-127, 128, weight.shape).astype(np.int8)
        whole.reshape(len(whole), -1)[:, 0] = 127
        steps = torch.from_numpy(random.uniform(1e-6, 1, (len(whole), 1, 1, 1)).astype(np.float32))
        weight.copy_(torch.from_numpy(whole) * steps)
        expected[name] = whole
    keep = frozenset({"backbone.project", *HEADS})
    found = scheme.integers(Quantized(graph, tiny_spec, {}, keep))
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
        steps = weight_steps(layer.get_parameter("weight")).flatten().double()
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


def test_run_hands_every_node_to_the_hook(tiny_net: Make, tiny_spec: ModelSpec, tiny_faces: Array) -> None:
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


# --- Tensors told by their values.

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
