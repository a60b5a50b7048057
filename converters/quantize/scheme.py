"""A network on its way to int8: a traced graph, which of its layers become int8, and how its activations are stored.

All runtimes share one scheme: weights per output channel, symmetric, step = absmax / 127; activations per tensor, with
a zero point, 8 bits. What is named here by node is the torch.fx node that makes a tensor, `backbone_layer1_0_relu`;
layers are named as in the checkpoint, `backbone.layer1.0.conv1`.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pipnet_edge.spec import ModelSpec

Range = tuple[float, float]
Hook = Callable[[fx.Node, Tensor], Tensor]

# What every runtime fuses into the layer or the sum before it; and what stands alone, with int8 before and behind it.
FUSED, ALONE = (nn.ReLU, nn.ReLU6), (nn.Hardswish,)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
LEVELS = 127
MOST_BIAS = 2**29  # a quarter of what fits: rounding moves biases a little


@dataclass(frozen=True, eq=False)
class Quantized:
    """What every quantizer starts from.

    graph: the float network, for images of `spec`, with the weights of int8 layers already on their int8 grids.
    spec: its mean and std make the image a whole number (see `pixel_lattice`), so that storing it loses nothing.
    ranges: (low, high) that each node's output may reach before it is clipped; of the nodes in `points` and `maps`.
    keep: the layers that stay in float.
    """

    graph: fx.GraphModule
    spec: ModelSpec
    ranges: Mapping[str, Range]
    keep: frozenset[str]


def trace(net: nn.Module) -> fx.GraphModule:
    """A copy of the network as a graph, without gradients."""
    graph = fx.symbolic_trace(copy.deepcopy(net)).eval()
    for node in graph.graph.nodes:
        # Annotations are strings here, on which pickling a graph fails.
        node.type = None
    graph.recompile()
    return graph.requires_grad_(False)


def module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, None if it calls a function."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def convolutions(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Layer name -> node of every convolution, in order."""
    return {str(n.target): n for n in graph.graph.nodes if isinstance(module(graph, n), CONVOLUTIONS)}


def gates(graph: fx.GraphModule) -> frozenset[str]:
    """The layers of squeeze-and-excite gates, which see one value a channel: too few to be worth an int8 kernel."""
    return frozenset(name for name, node in convolutions(graph).items() if _is_pooled(graph, node))


def _is_pooled(graph: fx.GraphModule, node: fx.Node) -> bool:
    while len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if isinstance(module(graph, node), nn.AdaptiveAvgPool2d):
            return True
    return False


def transposed(graph: fx.GraphModule) -> frozenset[str]:
    """The transposed convolutions, for which most runtimes have no int8 kernel."""
    layers = convolutions(graph).items()
    return frozenset(name for name, node in layers if isinstance(module(graph, node), nn.ConvTranspose2d))


def heads(graph: fx.GraphModule) -> frozenset[str]:
    """The convolutions after which no other comes."""
    layers = convolutions(graph)
    nodes = set(layers.values())
    return frozenset(name for name, node in layers.items() if not _reaches(node, nodes))


def _reaches(node: fx.Node, goals: set[fx.Node]) -> bool:
    return any(user in goals or _reaches(user, goals) for user in node.users)


def points(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes whose output a runtime stores: the image, and what layers, activations and sums give.

    A layer or sum is stored after the activation that runtimes fuse into it. The maps are not stored.
    """
    found = {}
    for node in graph.graph.nodes:
        layer = module(graph, node)
        summed = node.op == "call_function" and node.target in (operator.add, operator.mul)
        if node.op == "placeholder" or isinstance(layer, FUSED + ALONE):
            found[node.name] = node
        elif isinstance(layer, CONVOLUTIONS) or summed:
            readers = readers_of(graph, node)
            fused = len(readers) == 1 and isinstance(module(graph, readers[0]), FUSED)
            if not fused and not all(reader.op == "output" for reader in readers):
                found[node.name] = node
    return found


def maps(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes that give the maps, which are stored where even the heads are int8."""
    layers, stored = convolutions(graph), points(graph)
    return {layers[name].name: layers[name] for name in heads(graph) if layers[name].name not in stored}


def inputs(graph: fx.GraphModule) -> dict[str, str]:
    """Layer name -> the node whose stored output it reads, pooling looked through, which keeps the grid."""
    stored, found = points(graph), {}
    for name, node in convolutions(graph).items():
        source = node.all_input_nodes[0]
        while source.name not in stored and isinstance(module(graph, source), nn.MaxPool2d | nn.Identity):
            source = source.all_input_nodes[0]
        if source.name in stored:
            found[name] = source.name
    return found


def readers_of(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The nodes that read this one's output, nn.Identity looked through."""
    readers = []
    for user in node.users:
        readers += readers_of(graph, user) if isinstance(module(graph, user), nn.Identity) else [user]
    return readers


@dataclass(frozen=True)
class Cut:
    """A sum that a ReLU follows, and the other of its two summands."""

    sum: fx.Node
    other: fx.Node


def summed_before_relu(graph: fx.GraphModule, node: fx.Node) -> Cut | None:
    """Where a layer's output is only read by a sum that only a ReLU reads."""
    readers = readers_of(graph, node)
    if not isinstance(module(graph, node), CONVOLUTIONS) or len(readers) != 1 or readers[0].target is not operator.add:
        return None
    after = list(readers[0].users)
    if len(after) != 1 or not isinstance(module(graph, after[0]), nn.ReLU):
        return None
    sources = [_before_identity(graph, source) for source in readers[0].all_input_nodes]
    others = [source for source in sources if source is not node]
    return Cut(readers[0], others[0]) if len(others) == 1 else None


def _before_identity(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    while isinstance(module(graph, node), nn.Identity):
        node = node.all_input_nodes[0]
    return node


class Run(fx.Interpreter):
    """Runs a graph and hands every node's output to a hook, which returns what goes on."""

    def __init__(self, graph: fx.GraphModule, hook: Hook) -> None:
        super().__init__(graph)
        self._hook = hook

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        return value if n.op == "output" else self._hook(n, value)


def grid(bounds: Range, bits: int = 8) -> tuple[float, int]:
    """(step, zero point) of a stored tensor: value = (integer - zero point) * step, integers from 0 to 2**bits - 1."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    step = max((high - low) / (2**bits - 1), 1e-9)
    return step, round(-low / step)


def stored(value: Tensor, bounds: Range, bits: int = 8) -> Tensor:
    """The tensor after it was stored in so many bits."""
    step, zero = grid(bounds, bits)
    return torch.fake_quantize_per_tensor_affine(value, step, zero, 0, 2**bits - 1)


def weight_steps(weight: Tensor, transposed: bool = False) -> Tensor:
    """The int8 step of each output channel, absmax / 127, shaped to multiply the weight.

    A channel of zeros, for which any step would do, has that of the layer's largest weight.
    """
    inner = tuple(d for d in range(weight.ndim) if d != int(transposed))
    absmax = weight.abs().amax(inner, keepdim=True)
    largest = absmax.max().clamp_min(1e-9)
    return torch.where(absmax > 0, absmax, largest) / LEVELS


def fit_biases(graph: fx.GraphModule, ranges: Mapping[str, Range]) -> None:
    """Gives output channels whose weights are next to nothing, in place, steps with which their bias fits 32 bits.

    Integer kernels add a bias in units of input step times weight step, 2**31 of them at most. Such a channel keeps one
    weight, so small that the bias hides it.
    """
    for name, source in inputs(graph).items():
        layer = graph.get_submodule(name)
        if not isinstance(layer, nn.Conv2d) or layer.bias is None or source not in ranges:
            continue
        step, _ = grid(ranges[source])
        least = LEVELS * layer.bias.abs() / (MOST_BIAS * step)
        flat = layer.weight.flatten(1)
        for channel in torch.nonzero(flat.abs().amax(1) < least).flatten().tolist():
            at = int(flat[channel].abs().argmax())
            layer.weight[channel] = 0.0
            layer.weight[channel].view(-1)[at] = least[channel]


def integers(given: Quantized) -> dict[str, NDArray[np.int8]]:
    """Layer name -> weights in steps (out, in / groups, height, width) of every int8 layer: what all runtimes hold."""
    found = {}
    for name in convolutions(given.graph):
        layer = given.graph.get_submodule(name)
        if name not in given.keep:
            assert isinstance(layer, nn.Conv2d)
            found[name] = torch.round(layer.weight / weight_steps(layer.weight)).to(torch.int8).numpy()
    return found


def pixel_lattice(graph: fx.GraphModule, spec: ModelSpec) -> ModelSpec:
    """Changes the graph in place to take pixels less a whole number; returns the spec whose normalization gives that.

    The mean is rounded to whole pixel values and the std moves into the first layers, so that an int8 image is exact.
    The border is padded with the rounded mean then, at most half a pixel value from what it was.
    """
    mean = [round(255 * m) for m in spec.mean]
    image = next(n for n in graph.graph.nodes if n.op == "placeholder")
    shift = torch.tensor([m - 255 * f for m, f in zip(mean, spec.mean, strict=True)], dtype=torch.float64)
    scale = torch.tensor([1 / (255 * s) for s in spec.std], dtype=torch.float64)
    for reader in readers_of(graph, image):
        layer = module(graph, reader)
        if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.bias is None:
            raise NotImplementedError(f"the image is read by {reader.name}, which is no plain convolution with a bias")
        weight = layer.weight.double() * scale[None, :, None, None]
        layer.bias += (weight.sum((2, 3)) @ shift).float()
        layer.weight.copy_(weight)
    r, g, b = (m / 255 for m in mean)
    return replace(spec, mean=(r, g, b), std=(1 / 255, 1 / 255, 1 / 255))
