"""Cross-layer equalisation: channels that share one int8 tensor are scaled so that each uses its whole range.

Nothing changes in float if the layers before a channel make it k times larger and the layers after it k times smaller
(Nagel et al. 2019, arXiv:1906.04721). But a channel that used a hundredth of a tensor's range then uses all of it.
ReLU6 is not homogeneous: there a channel only grows, and only while it stays below 6 on the calibration faces, before
and after. A hard swish is not homogeneous either: there a channel is scaled behind it (see graph.ScaledSwish).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint.network import Pictures, batches, normalise
from pipnet_edge.converters.graph import (
    CONVOLUTIONS,
    Run,
    ScaledSwish,
    convolutions,
    module,
    points,
    summed_before_relu,
    ungated,
)
from pipnet_edge.spec import Input

BATCH = 8
# Under ReLU6 a channel's largest value may reach this share of 6: other faces reach farther than calibration's.
MARGIN = 0.85
MOST = 100.0
# Channels weaker than this share of a tensor's largest are not raised further.
LEAST = 1e-3

# Layers that work channel by channel and commute with a positive factor.
TRANSPARENT = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout)


@dataclass(frozen=True)
class Extent:
    """A node's least and largest output of every channel, (C,)."""

    low: Tensor
    high: Tensor


@torch.no_grad()
def equalise(
    graph: fx.GraphModule,
    spec: Input,
    pictures: Pictures,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Scales channels in place; the float network stays the same except for rounding.

    pictures: calibration faces, or pictures of faces. `progress` gets how many of them are done, and of how many.
    """
    extents = _extents(graph, spec, pictures, progress)
    stored = points(graph)
    layers = list(convolutions(graph).values())
    swishes = [node for node in graph.graph.nodes if isinstance(module(graph, node), ScaledSwish)]
    for nodes in _groups(graph):
        makers = [node for node in [*layers, *swishes] if node in nodes]
        readers = [node for node in layers if node.all_input_nodes[0] in nodes]
        kept = [node for node in nodes if node.name in stored]
        if not (makers and readers and kept):
            continue
        if any(isinstance(module(graph, node), nn.ReLU6) for node in nodes):
            highest = torch.stack([extents[node.name].high for node in kept]).amax(0)
            factors = (6 * MARGIN / highest.clamp_min(LEAST)).clamp(1.0, MOST)
        else:
            shares = [_share(graph, node, extents) for node in kept]
            factors = 1 / torch.stack(shares).amax(0)
            factors /= math.exp(factors.log().mean())
        _scale(graph, makers, readers, factors)


def _share(graph: fx.GraphModule, node: fx.Node, extents: Mapping[str, Extent]) -> Tensor:
    """The share of the node's range that each channel needs, (C,). The largest is 1."""
    extent = extents[node.name]
    low, high = -extent.low.clamp_max(0), extent.high.clamp_min(0)
    cut = summed_before_relu(graph, node)
    if cut is not None:
        # The ReLU cuts off anyway what the other summand cannot lift above zero.
        low = torch.minimum(low, extents[cut.other.name].high.clamp_min(0))
    needed = torch.maximum(low, high)
    needed = needed.clamp_min(LEAST * needed.max())
    return needed / needed.max()


def _groups(graph: fx.GraphModule) -> list[list[fx.Node]]:
    """The sets of nodes whose channels can only be scaled together; those that cannot be scaled are left out."""
    parent: dict[fx.Node, fx.Node] = {}
    fixed: list[fx.Node] = []

    def find(node: fx.Node) -> fx.Node:
        while parent.setdefault(node, node) is not node:
            node = parent[node]
        return node

    for node in graph.graph.nodes:
        layer, sources = module(graph, node), node.all_input_nodes
        if isinstance(layer, CONVOLUTIONS):
            find(node)
            if isinstance(layer, nn.ConvTranspose2d) or 1 < layer.groups < layer.in_channels:
                fixed += [node, *sources]
        elif isinstance(layer, ScaledSwish):
            # What it reads cannot be scaled, what it gives can.
            find(node)
            fixed += sources
        elif (gated := ungated(graph, node)) is not None:
            parent[find(node)] = find(gated)
            fixed += [source for source in sources if source is not gated]
        elif isinstance(layer, TRANSPARENT) or (node.op == "call_function" and node.target is operator.add):
            for source in sources:
                parent[find(node)] = find(source)
            # A constant summand, or one that is broadcast, would have to be scaled as well.
            fixed += [node] if len(node.args) != len(sources) else []
        else:
            fixed += [node, *sources]
    roots = {find(node) for node in fixed}
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in list(parent):
        if find(node) not in roots:
            groups.setdefault(find(node), []).append(node)
    return list(groups.values())


def _scale(graph: fx.GraphModule, makers: list[fx.Node], readers: list[fx.Node], factors: Tensor) -> None:
    for node in makers:
        layer = module(graph, node)
        if isinstance(layer, ScaledSwish):
            layer.sixth *= factors[:, None, None]
            continue
        assert isinstance(layer, nn.Conv2d)
        layer.weight *= factors[:, None, None, None]
        if layer.bias is not None:
            layer.bias *= factors
    for node in readers:
        layer = module(graph, node)
        assert isinstance(layer, nn.Conv2d)
        layer.weight /= factors[:, None, None, None] if layer.groups > 1 else factors[None, :, None, None]


def _extents(
    graph: fx.GraphModule, spec: Input, pictures: Pictures, progress: Callable[[int, int], None]
) -> dict[str, Extent]:
    found: dict[str, Extent] = {}

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        if value.ndim == 4:
            low, high = value.amin((0, 2, 3)), value.amax((0, 2, 3))
            if node.name in found:
                low, high = torch.minimum(low, found[node.name].low), torch.maximum(high, found[node.name].high)
            found[node.name] = Extent(low, high)
        return value

    done = 0
    for batch in batches(pictures, BATCH):
        progress(done, len(pictures))
        images = normalise(batch, spec)
        Run(graph, hook).run(images.contiguous(memory_format=torch.channels_last))
        done += len(batch)
    return found
