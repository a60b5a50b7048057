"""A network as a traced graph: its layers, the nodes that read them, and what a runtime stores.

A tensor is named by the torch.fx node that makes it, `backbone_layer1_0_relu`; layers are named as in the checkpoint,
`backbone.layer1.0.conv1`.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Container
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

Hook = Callable[[fx.Node, Tensor], Tensor]

# FUSED: every runtime fuses these into the layer or sum before them. ALONE: these have int8 before and after them.
FUSED = (nn.ReLU, nn.ReLU6)
SMOOTH = (nn.Hardswish, nn.SiLU, nn.Mish, nn.ELU, nn.Softplus, nn.Tanh)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class ScaledSwish(nn.Module):
    """A hard swish, each channel times a factor: sixth is (C, 1, 1), the factors over 6."""

    sixth: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("sixth", torch.full((channels, 1, 1), 1 / 6))

    def forward(self, x: Tensor) -> Tensor:
        # A product with a constant at the end would be moved by converters into the weights of the layer behind.
        return functional.relu6(x + 3) * (self.sixth * x)


SWISHES = (nn.Hardswish, ScaledSwish)
ALONE = (*SMOOTH, ScaledSwish, nn.LeakyReLU, nn.PReLU, nn.Hardtanh)


class _Tracer(fx.Tracer):
    """Keeps in one node what is one activation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ScaledSwish) or super().is_leaf_module(m, module_qualified_name)


def trace(net: nn.Module) -> fx.GraphModule:
    """A copy of the network as a graph, without gradients."""
    net = copy.deepcopy(net)
    graph = fx.GraphModule(net, _Tracer().trace(net)).eval()
    for node in graph.graph.nodes:
        # Annotations are strings here, and a graph with strings cannot be pickled.
        node.type = None
    graph.recompile()
    return graph.requires_grad_(False)


class Run(fx.Interpreter):
    """Runs a graph. A hook gets every node's output and returns the value that the next nodes read."""

    def __init__(self, graph: fx.GraphModule, hook: Hook) -> None:
        super().__init__(graph)
        self._hook = hook

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        return value if n.op == "output" else self._hook(n, value)


def module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, None if it calls a function."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def output(graph: fx.GraphModule) -> fx.Node:
    """The node that returns what the network gives."""
    (node,) = (node for node in graph.graph.nodes if node.op == "output")
    assert isinstance(node, fx.Node)
    return node


def outputs(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values the network returns, in order: those of the maps, in the order of HEAD_KEYS."""
    returned = output(graph).args[0]
    assert isinstance(returned, tuple | list)
    return [node for node in returned if isinstance(node, fx.Node)]


# --- Kinds of layers.


def convolutions(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Layer name -> node of every convolution, in order."""
    return {str(n.target): n for n in graph.graph.nodes if isinstance(module(graph, n), CONVOLUTIONS)}


def scale_swishes(graph: fx.GraphModule) -> None:
    """Gives each hard swish that is stored for a layer to read channels that can be scaled, in place."""
    unscaled = swished(graph) | heads(graph)
    for name, node in convolutions(graph).items():
        layer, swish = module(graph, node), node.all_input_nodes[0]
        if name not in unscaled and isinstance(module(graph, swish), nn.Hardswish):
            assert isinstance(layer, CONVOLUTIONS)
            owner, _, attribute = str(swish.target).rpartition(".")
            setattr(graph.get_submodule(owner), attribute, ScaledSwish(layer.in_channels))


def ungated(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """What a squeeze-and-excite gate multiplies, if the node is that product."""
    if node.op != "call_function" or node.target is not operator.mul or len(node.all_input_nodes) != 2:
        return None
    sources = [source for source in node.all_input_nodes if not _is_pooled(graph, source)]
    return sources[0] if len(sources) == 1 else None


def is_before_swish(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether hard swishes read a node, and nothing else does."""
    readers = [module(graph, reader) for reader in readers_of(graph, node)]
    return bool(readers) and all(isinstance(reader, SWISHES) for reader in readers)


def swished(graph: fx.GraphModule) -> frozenset[str]:
    """The layers of few products before a hard swish: of the image, and depthwise behind another hard swish.

    A hard swish is computed in float. In int8 such a layer would have to be entered and left for little arithmetic.
    """
    grouped = depthwise(graph)
    found = set()
    for name, node in convolutions(graph).items():
        source = node.all_input_nodes[0]
        light = source.op == "placeholder" or (name in grouped and isinstance(module(graph, source), SWISHES))
        products = [reader for reader in node.users if ungated(graph, reader) is node]
        if light and any(is_before_swish(graph, output) for output in (node, *products)):
            found.add(name)
    return frozenset(found)


def gates(graph: fx.GraphModule) -> frozenset[str]:
    """The layers of squeeze-and-excite gates, which see one value per channel: too few to be worth an int8 kernel."""
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


def depthwise(graph: fx.GraphModule) -> frozenset[str]:
    """The convolutions in groups, as many as channels or fewer."""
    return frozenset(name for name in convolutions(graph) if graph.get_submodule(name).groups != 1)


def heads(graph: fx.GraphModule) -> frozenset[str]:
    """The convolutions that no other convolution follows."""
    layers = convolutions(graph)
    nodes = set(layers.values())
    return frozenset(name for name, node in layers.items() if not _reaches(node, nodes))


def _reaches(node: fx.Node, goals: set[fx.Node]) -> bool:
    return any(user in goals or _reaches(user, goals) for user in node.users)


# --- What is stored, and who reads it.


def points(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes whose output a runtime stores: the image, and what layers, activations and sums give.

    A layer or sum is stored after the activation that runtimes fuse into it. Whatever else a convolution reads is
    stored too, except in gates. The maps are not stored.
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
    read = {_unpooled(graph, node.all_input_nodes[0], found) for node in _outside_gates(graph)}
    return {node.name: node for node in graph.graph.nodes if node.name in found or node in read}


def _outside_gates(graph: fx.GraphModule) -> list[fx.Node]:
    """The convolutions that are no part of a squeeze-and-excite gate."""
    inside = gates(graph)
    return [node for name, node in convolutions(graph).items() if name not in inside]


def _unpooled(graph: fx.GraphModule, node: fx.Node, stored: Container[str]) -> fx.Node:
    """The node before max pooling, which keeps the grid of what it reads."""
    while node.name not in stored and isinstance(module(graph, node), nn.MaxPool2d | nn.Identity):
        node = node.all_input_nodes[0]
    return node


def maps(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes that give the maps. A map is stored only if its head is int8 too."""
    layers, stored = convolutions(graph), points(graph)
    return {layers[name].name: layers[name] for name in heads(graph) if layers[name].name not in stored}


def inputs(graph: fx.GraphModule) -> dict[str, str]:
    """Layer name -> the node whose stored output it reads. Pooling is skipped, because it keeps the grid."""
    stored, found = points(graph), {}
    for name, node in convolutions(graph).items():
        source = _unpooled(graph, node.all_input_nodes[0], stored)
        if source.name in stored:
            found[name] = source.name
    return found


def joined(graph: fx.GraphModule) -> list[tuple[set[str], set[str]]]:
    """What has to be stored on one grid: (concatenations, their branches), names of points.

    Concatenations that have a branch in common, or are a branch of another, are together.
    """
    stored = points(graph)
    found: list[tuple[set[str], set[str]]] = []
    for name, node in stored.items():
        if node.op != "call_function" or node.target is not torch.cat:
            continue
        wholes, parts = {name}, {_unpooled(graph, source, stored).name for source in node.all_input_nodes}
        parts &= stored.keys()
        for other in [other for other in found if (other[0] | other[1]) & (wholes | parts)]:
            found.remove(other)
            wholes, parts = wholes | other[0], parts | other[1]
        found.append((wholes, parts - wholes))
    return found


class Storage:
    """Which points are stored in 8 bits, by which layers are in int8."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph, self._layers, self._points = graph, convolutions(graph), points(graph)
        # A layer's output: the activation function fused to it, or itself.
        self.outputs = {name: self._output(node) for name, node in self._layers.items()}
        self._gates = {self.outputs[name] for name in gates(graph)}
        # For every point and layer: the points it is computed from.
        wanted = {*self._points.values(), *self._layers.values()}
        self._sources = {node: self._read(node) for node in graph.graph.nodes if node in wanted}

    def _output(self, layer: fx.Node) -> fx.Node:
        behind = [reader for reader in readers_of(self._graph, layer) if reader.name in self._points]
        return layer if layer.name in self._points or len(behind) != 1 else behind[0]

    def _read(self, node: fx.Node) -> set[fx.Node]:
        found = set()
        for source in node.all_input_nodes:
            found |= {source} if source.name in self._points else self._read(source)
        return found

    def stored(self, int8: AbstractSet[str]) -> frozenset[str]:
        """Names of the nodes that are stored in 8 bits when these layers are in int8."""
        kept = {source for name in int8 for source in self._sources[self._layers[name]]}
        kept |= {self.outputs[name] for name in int8}
        made = set(self.outputs.values())
        for node in self._points.values():
            sources = self._sources[node] - self._gates
            alone = isinstance(module(self._graph, node), ALONE) or node.target is operator.mul
            if node not in made and not alone and sources and sources <= kept:
                kept.add(node)
        return frozenset(node.name for node in kept if node.name in self._points)


def readers_of(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The nodes that read this one's output. nn.Identity is skipped."""
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
    """The sum that a layer's output goes into, if nothing else reads the layer and only a ReLU reads the sum."""
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
