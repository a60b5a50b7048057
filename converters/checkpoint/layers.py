"""A network's layers for the bundle's manifest. targets/predicted/cost.py predicts the latency from them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from pipnet_edge.bundle import CONV, TRANSPOSED, Layer
from pipnet_edge.converters.graph import CONVOLUTIONS, Run, module, outputs, trace

# Runtimes do these together with the layer before, or only see the same memory in another shape.
FREE_MODULES = (nn.ReLU, nn.ReLU6, nn.Hardsigmoid, nn.BatchNorm2d, nn.Identity)
FREE_FUNCTIONS = (torch.clamp, torch.reshape)


def of(net: nn.Module, size: tuple[int, int], has_offsets: bool = True) -> tuple[Layer, ...]:
    """The layers that write memory of their own, for one image of this (width, height), in the order they run.

    Convolutions are named as in the checkpoint, so that the layers a variant keeps in float can be found here.
    has_offsets: all outputs but the first are those of offset heads.
    """
    graph = trace(net)
    values: dict[fx.Node, Tensor] = {}

    def remember(node: fx.Node, value: Tensor) -> Tensor:
        values[node] = value
        return value

    with torch.no_grad():
        Run(graph, remember).run(torch.zeros(1, 3, *reversed(size)))
    offsets = outputs(graph)[1:] if has_offsets else ()
    layers = {node: _layer(graph, node, values) for node in graph.graph.nodes if _counts(graph, node)}
    return tuple(replace(layer, is_offset_head=node in offsets) for node, layer in layers.items())


def _counts(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return not isinstance(module(graph, node), FREE_MODULES)
    return node.op == "call_function" and node.target not in FREE_FUNCTIONS


def _layer(graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Tensor]) -> Layer:
    inputs = tuple(_shape(values[source]) for source in node.all_input_nodes)
    layer, output = module(graph, node), _shape(values[node])
    if not isinstance(layer, CONVOLUTIONS):
        return Layer(node.name, type(layer).__name__.lower() if layer else _function(node), inputs, output)
    (high, wide), (down, right) = layer.kernel_size, layer.stride
    op = TRANSPOSED if isinstance(layer, nn.ConvTranspose2d) else CONV
    return Layer(str(node.target), op, inputs, output, (high, wide), (down, right), layer.groups)


def _function(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _shape(value: Tensor) -> tuple[int, int, int]:
    """(channels, height, width) of (1, C, H, W), or of a tensor with fewer axes."""
    channels, height, width = (*value.shape[1:], 1, 1, 1)[:3]
    return channels, height, width
