"""The layers that a bundle's manifest lists are those that torch runs, and what they are predicted to cost follows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import shape_inference
from torch import nn

from pipnet_edge.bundle import Bundle, File, Layer, Parity, Quantization, Source, Variant, read
from pipnet_edge.converters import Plan, convert
from pipnet_edge.converters import core as export
from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import from_onnx, layers, nets
from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.spec import ModelSpec, mean_faces
from pipnet_edge.targets.devices import device
from pipnet_edge.targets.predicted import cost
from pipnet_edge.targets.predicted.cost import Cost
from pipnet_edge.targets.predicted.model import predict, predict_variant
from pipnet_edge.targets.predicted.networks import INPUT_PX, NETWORKS


def variant(precision: str, *kept: str) -> Variant:
    how = Quantization("minmax", "nearest", dict.fromkeys(kept, "heads"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    file = File(f"ncnn-{precision}/model", "0" * 64, 1)
    return Variant(f"ncnn-{precision}", "ncnn", precision, (file,), quantization=how if kept else None)


def bundle_of(net: nn.Module, spec: ModelSpec, *kept: str) -> Bundle:
    """A bundle of which only the manifest is there."""
    golden, source = File("golden.npz", "0" * 64, 1), Source("net.pth", "0" * 64, 1, (1, 1), (1, 1))
    variants = variant("fp32"), variant("int8", *kept)
    found = layers.of(net, spec.size)
    return Bundle(spec=spec, source=source, golden=golden, variants=variants, layers=found, folder=Path("nowhere"))


def ran(net: nn.Module, side: int) -> dict[str, tuple[int, int, int]]:
    """Convolution to (multiply-adds, weights, elements read and written), as torch runs it."""
    found = {}

    def hook(name: str, layer: nn.Conv2d | nn.ConvTranspose2d, image: torch.Tensor, out: torch.Tensor) -> None:
        cells = (image if isinstance(layer, nn.ConvTranspose2d) else out)[0, 0].numel()
        found[name] = layer.weight.numel() * cells, layer.weight.numel(), image.numel() + out.numel()

    hooks = [
        layer.register_forward_hook(lambda layer, given, out, name=name: hook(name, layer, given[0], out))
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.no_grad():
        net(torch.zeros(1, 3, side, side))
    for each in hooks:
        each.remove()
    return found


def others(net: nn.Module) -> Counter[str]:
    """What else passes over memory, by the modules there are."""
    found: Counter[str] = Counter()
    for module in net.modules():
        found["add"] += isinstance(module, nets.Residual)
        found["maxpool2d"] += isinstance(module, nn.MaxPool2d)
        found["hardswish"] += isinstance(module, nn.Hardswish)
        found["mul"] += isinstance(module, nets.SqueezeExcite)
        found["adaptiveavgpool2d"] += isinstance(module, nets.SqueezeExcite)
    return +found


def check(net: nn.Module, spec: ModelSpec) -> None:
    heads = tuple(f"heads.{name}" for name in nets.HEAD_KEYS)
    bundle = bundle_of(net, spec, *heads)
    truth = ran(net, spec.input_size)
    float_, int8 = (cost.of(bundle, each) for each in bundle.variants)
    works = zip(bundle.layers, float_.layers, strict=True)
    listed = {layer.name: (work.macs, work.weights, work.activations) for layer, work in works if layer.is_convolution}
    assert listed == truth
    assert list(listed) == list(graphs.convolutions(graphs.trace(net)))
    assert Counter(layer.op for layer in bundle.layers if not layer.is_convolution) == others(net)
    assert float_.macs == sum(macs for macs, _, _ in truth.values())
    assert int8.macs == float_.macs
    assert int8.part(in_float=True).macs == sum(truth[name][0] for name in heads)


def test_every_backbone_costs_what_torch_runs(case) -> None:
    _, stride, net = nets.build(case.state())
    face = mean_faces()[case.data]
    check(net, ModelSpec(case.backbone, case.num_lms, case.num_nb, stride, case.input_size, face))


def test_a_network_of_another_size(tiny_net, tiny_spec) -> None:
    check(tiny_net(), tiny_spec)
    check(tiny_net(), replace(tiny_spec, input_size=96))


@pytest.mark.parametrize(
    ("name", "classifier", "tail"),
    [
        ("wflw_resnet18_s32", "resnet18", 2),
        ("cofw_resnet50_s32", "resnet50", 2),
        ("wflw_mobilenet_v2_s32", "mobilenet_v2", 2),
        ("lapa_mobilenet_v3_s32", "mobilenet_v3_large", 3),
    ],
)
def test_backbones_cost_what_classifiers_at_their_size_do(cases, name: str, classifier: str, tail: int) -> None:
    """A second opinion on what the predictions rest on: layers by hand against layers of the network."""
    case = cases[name]
    _, _, net = nets.build(case.state())
    spec = ModelSpec(case.backbone, case.num_lms, case.num_nb, 32, INPUT_PX, mean_faces()[case.data])
    bundle = bundle_of(net, spec)
    body = tuple(layer for layer in bundle.layers if not layer.name.startswith("heads."))
    found = cost.of(replace(bundle, layers=body), bundle.variants[0])
    # Without the last pooling and what comes after.
    by_hand = Cost(NETWORKS[classifier]().layers[:-tail])
    computing = [sum(layer.macs > 0 for layer in each.layers) for each in (found, by_hand)]
    assert computing[0] == computing[1]
    # Gates have a multiple of 8 channels, by hand a quarter.
    assert found.macs == pytest.approx(by_hand.macs, rel=2e-5)
    for precision in ("fp32", "int8"):
        for board in ("rpi4", "rpi5"):
            ms = [predict(device(board), each, "ncnn", precision, 4).ms for each in (found, by_hand)]
            assert ms[0] == pytest.approx(ms[1], rel=0.005)


def macs_of(path: Path) -> int:
    """Multiply-adds of an ONNX file's convolutions."""
    graph = shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    weights = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    sizes = {"Conv": lambda node: shapes[node.output[0]], "ConvTranspose": lambda node: shapes[node.input[0]]}
    return sum(
        weights[node.input[1]] * int(np.prod(sizes[node.op_type](node)[2:]))
        for node in graph.node
        if node.op_type in sizes
    )


@pytest.mark.parametrize("name", ["wflw_resnet18_s16", "lapa_mobilenet_v3_s32"])
def test_what_is_listed_is_what_is_exported_and_read_again(cases, tmp_path: Path, name: str) -> None:
    case = cases[name]
    _, stride, net = nets.build(case.state())
    spec = ModelSpec(case.backbone, case.num_lms, case.num_nb, stride, 64, mean_faces()[case.data])
    bundle = bundle_of(net, spec)
    core = export.export(net, spec, tmp_path)
    assert cost.of(bundle, bundle.variants[0]).macs == macs_of(core.path)
    again = layers.of(from_onnx.read(core.path).net, (64, 64))
    assert Counter(map(unnamed, again)) == Counter(map(unnamed, bundle.layers))


def unnamed(layer: Layer) -> Layer:
    return replace(layer, name="")


def test_a_bundle_has_the_layers_of_its_checkpoint(cases, save_checkpoint, tmp_path: Path) -> None:
    name = "lapa_mobilenet_v3_s32"
    path = save_checkpoint(name)
    options = checkpoints.Options(data=cases[name].data)
    made = convert(
        path,
        tmp_path / "bundle",
        Plan(("onnx",), ("fp32",)),
        options,
        lambda bundle: {each.name: Parity("torch", 1, 0.0, 0.0, 0) for each in bundle.variants},
    )
    assert read(made.folder).layers == made.layers
    assert made.layers == layers.of(checkpoints.load(path, options).net, made.spec.size)
    found = predict_variant(device("rpi4"), made, "onnx-fp32", 4)
    assert found.low < found.ms < found.high
    assert found.anchor
