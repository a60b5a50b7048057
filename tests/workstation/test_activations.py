"""Activations besides ReLU: every runtime gives what torch gives, and in int8 what the simulated network gives."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipnet_edge import runtimes
from pipnet_edge.converters import cores
from pipnet_edge.converters.checkpoint import from_onnx, nets
from pipnet_edge.converters.checkpoint.network import Network, normalise
from pipnet_edge.converters.graph import Run, points, trace
from pipnet_edge.converters.quantize import equalise
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.prepare import Options, prepare
from pipnet_edge.converters.quantize.scheme import FULL, Quantized, stored
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("quiet", "cache")

Crops = NDArray[np.uint8]
Write = Callable[..., Path]
Distance = Callable[[list[NDArray[np.float32]], list[NDArray[np.float32]]], float]
METHODS = Options("mse", "nearest")


def slopes() -> nn.PReLU:
    layer = nn.PReLU(16).requires_grad_(False)
    layer.weight.copy_(torch.linspace(-0.1, 0.5, 16))
    return layer


CHAINS: dict[str, Callable[[], list[nn.Module]]] = {
    "kinked": lambda: [nn.LeakyReLU(0.1), slopes(), nn.PReLU(1, 0.2), nn.Hardtanh(-1.0, 1.0), nn.Hardtanh(0.0, 8.0)],
    "smooth": lambda: [nn.SiLU(), nn.Mish(), nn.ELU(0.5), nn.Hardswish(), nn.Softplus(), nn.Tanh(), nn.Sigmoid()],
    # litert-torch takes long, so TFLite gets those of both kinds that it writes in ways of its own.
    "mixed": lambda: [slopes(), nn.SiLU(), nn.Mish(), nn.Hardtanh(0.0, 8.0), nn.ELU(), nn.LeakyReLU(0.1)],
}


def network(activations: list[nn.Module]) -> nets.Pipnet:
    """Convolutions with these activations between them, and five heads."""
    random = torch.Generator().manual_seed(1)

    def conv(inner: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        layer = nn.Conv2d(inner, out, kernel, stride, kernel // 2).requires_grad_(False)
        scale = (2 / layer.weight[0].numel()) ** 0.5
        layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=random))
        layer.bias.copy_(0.2 * torch.randn(out, generator=random))
        return layer

    backbone = nn.Sequential()
    for index in range(4):
        backbone.add_module(f"down{index}", conv(16 if index else 3, 16, 3, 2))
        if index < 3:
            backbone.add_module(f"relu{index}", nn.ReLU())
    for index, activation in enumerate(activations):
        backbone.add_module(f"act{index}", activation.requires_grad_(False))
        backbone.add_module(f"conv{index}", conv(16, 16, 1))
    rows = {"neighbor_x": 10, "neighbor_y": 10}
    return nets.Pipnet(backbone, {name: conv(16, rows.get(name, 5), 1) for name in nets.HEAD_KEYS}).eval()


def simulated(given: Quantized, crops: Crops) -> list[NDArray[np.float32]]:
    """The maps with everything stored in 8 bits that int8 runtimes store."""
    kept = points(given.graph)

    def hook(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        return stored(value, given.ranges[node.name]) if node.name in kept else value

    maps: tuple[torch.Tensor, ...] = Run(given.graph, hook).run(normalise(crops, given.spec))
    return [values.numpy() for values in maps]


CASES = [(runtime, chain) for runtime in ("onnx", "ncnn", "mnn") for chain in ("kinked", "smooth")]


@pytest.mark.parametrize(("runtime", "chain"), [*CASES, ("tflite", "mixed")])
def test_every_runtime_has_them_in_float_and_int8(
    runtime: str,
    chain: str,
    tiny_spec: ModelSpec,
    tiny_calibration: Calibration,
    tmp_path: Path,
    distance: Distance,
) -> None:
    net, crops = network(CHAINS[chain]()), tiny_calibration.crops[:8]
    here = import_module(f"pipnet_edge.converters.{runtime}.destination").HERE
    ready = prepare(Network(tiny_spec, net, 0), tiny_calibration, METHODS, [here.levels])
    rounded = cores.Cores(ready, tmp_path, True, False).keeping(here.levels, frozenset(), False)

    def given(precision: str, like: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        session = runtimes.load(runtime, tmp_path / precision, rounded.given.spec, precision, 1)
        found = [session.run(crop) for crop in crops]
        session.close()
        maps = (np.stack([getattr(each, name) for each in found]) for name in MAP_NAMES)
        return [values.reshape(one.shape) for values, one in zip(maps, like, strict=True)]

    for precision in ("fp32", "int8"):
        (tmp_path / precision).mkdir()
    here.fp(rounded.core, "fp32", tmp_path / "fp32")
    here.int8(rounded.core, rounded.given, 8, tmp_path / "int8")
    exact = [maps.numpy() for maps in rounded.core.net(normalise(crops, rounded.given.spec))]
    assert distance(given("fp32", exact), exact) < 1e-4
    int8 = simulated(rounded.given, crops)
    assert distance(given("int8", int8), int8) < 0.06


@pytest.mark.parametrize(("activation", "scales"), [(nn.LeakyReLU(0.1), True), (slopes(), True), (nn.SiLU(), False)])
def test_only_homogeneous_activations_are_equalised_across(
    activation: nn.Module, scales: bool, tiny_spec: ModelSpec, tiny_calibration: Calibration
) -> None:
    net = network([activation])
    net.backbone.get_submodule("down3").weight[0] *= 0.05
    net.backbone.get_submodule("down3").bias[0] *= 0.05
    graph, images = trace(net), normalise(tiny_calibration.crops, tiny_spec)
    equalise.equalise(graph, tiny_spec, tiny_calibration.crops)
    # A layer's bias is scaled with its output, never with its input.
    changed = not torch.equal(graph.get_submodule("backbone.down3").bias, net.backbone.get_submodule("down3").bias)
    assert changed == scales
    for found, wanted in zip(graph(images), net(images), strict=True):
        assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_what_a_convolution_reads_is_stored_and_a_gate_is_not() -> None:
    graph = trace(network([nn.Sigmoid(), nn.AvgPool2d(1)]))
    assert {"backbone_act0", "backbone_act1"} <= set(points(graph))


def test_the_same_weights_with_other_activations_are_rounded_again(
    tiny_spec: ModelSpec, tiny_calibration: Calibration
) -> None:
    one, other = (
        prepare(Network(tiny_spec, network([kind()]), 0), tiny_calibration, METHODS, [FULL])[FULL].ranges
        for kind in (nn.SiLU, nn.Hardswish)
    )
    assert one["backbone_act0"] != other["backbone_act0"]


# --- Reading them from ONNX. Operators one by one are in test_onnx_ops.py.

AS_PRODUCTS = {
    "silu": ("s = Sigmoid (image)\nfeatures = Mul (s, image)", nn.SiLU),
    "mish": ("p = Softplus (image)\nt = Tanh (p)\nfeatures = Mul (image, t)", nn.Mish),
    "hard swish": ("s = HardSigmoid <alpha=0.16666667, beta=0.5> (image)\nfeatures = Mul (s, image)", nn.Hardswish),
    "hard swish, divided last": (
        "a = Add (three, image)\nr = Clip (a, zero, six)\nm = Mul (image, r)\nfeatures = Div (m, six)",
        nn.Hardswish,
    ),
    "hard swish, divided first": (
        "a = Add (image, three)\nr = Clip (a, zero, six)\nd = Div (r, six)\nfeatures = Mul (d, image)",
        nn.Hardswish,
    ),
    "hard sigmoid": ("a = Add (image, three)\nr = Clip (a, zero, six)\nfeatures = Div (r, six)", nn.Hardsigmoid),
}


@pytest.mark.parametrize("name", AS_PRODUCTS)
def test_products_become_one_layer(tmp_path: Path, name: str, tiny_onnx: Write) -> None:
    nodes, kind = AS_PRODUCTS[name]
    numbers = {"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6)}
    net = from_onnx.read(tiny_onnx(tmp_path / "net.onnx", nodes, {k: v for k, v in numbers.items() if k in nodes})).net
    assert [type(m) for m in net.modules() if not isinstance(m, nn.Conv2d)][-1] is kind
    assert {node.op for node in net.graph.nodes} == {"placeholder", "call_module", "output"}


def test_a_gate_on_other_values_stays_a_product(tmp_path: Path, tiny_onnx: Write) -> None:
    nodes = "r = Relu (image)\ns = Sigmoid (image)\nfeatures = Mul (r, s)"
    net = from_onnx.read(tiny_onnx(tmp_path / "net.onnx", nodes)).net
    assert [type(m) for m in net.modules() if not isinstance(m, nn.Conv2d)][-2:] == [nn.ReLU, nn.Sigmoid]


def test_a_slope_that_is_not_by_channel_is_refused(tmp_path: Path, tiny_onnx: Write) -> None:
    path = tiny_onnx(tmp_path / "net.onnx", "features = PRelu (image, s)", {"s": (3, 8, 8)})
    with pytest.raises(EdgeError, match=r"PRelu node 'features' has a slope of the shape \(3, 8, 8\); allowed: one"):
        from_onnx.read(path)
