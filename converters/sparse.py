"""Networks without their offset heads, which are then evaluated only at each landmark's winning cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import fx, nn

from pipnet_edge.bundle import HEADS as HEADS_FILE
from pipnet_edge.converters.graph import module, output, outputs, trace
from pipnet_edge.decode import Heads
from pipnet_edge.errors import EdgeError


def can_split(net: nn.Module) -> bool:
    """Whether `split` takes this network."""
    return _source(trace(net)) is not None


def split(net: nn.Module, num_lms: int) -> tuple[fx.GraphModule, Heads]:
    """A copy that returns score and features (decode.Features), and the heads that this copy lacks.

    Raises EdgeError for a network that cannot be split.
    """
    graph = trace(net)
    source, (score, *offsets) = _source(graph), outputs(graph)
    if source is None:
        raise EdgeError("--heads sparse needs 1x1 convolutions of the same features as heads; take --heads dense")
    layers = [graph.get_submodule(str(node.target)) for node in offsets]
    output(graph).args = ((score, source),)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, _heads(layers, num_lms)


def write(heads: Heads, precision: str, folder: Path) -> None:
    """Writes heads.npz into `folder`, as bundle.read_heads reads it. Weights are float32 for fp32, else float16."""
    kind = np.float32 if precision == "fp32" else np.float16
    np.savez(folder / HEADS_FILE, weight=heads.weight.astype(kind), bias=heads.bias)


def _source(graph: fx.GraphModule) -> fx.Node | None:
    """The node that all offset heads read. None if one of them is not a plain 1x1 convolution of it."""
    sources = set()
    for node in outputs(graph)[1:]:
        layer = module(graph, node)
        if not isinstance(layer, nn.Conv2d):
            return None
        if (layer.kernel_size, layer.stride, layer.padding, layer.groups) != ((1, 1), (1, 1), (0, 0), 1):
            return None
        sources.add(node.all_input_nodes[0])
    return sources.pop() if len(sources) == 1 else None


def _heads(layers: list[nn.Module], num_lms: int) -> Heads:
    weights, biases = [], []
    for layer in layers:
        assert isinstance(layer, nn.Conv2d)
        channels = layer.in_channels
        weights.append(layer.weight.detach().numpy().reshape(num_lms, -1, channels))
        bias = np.zeros(layer.out_channels, np.float32) if layer.bias is None else layer.bias.detach().numpy()
        biases.append(bias.reshape(num_lms, -1))
    # Each axis: the landmark's own offset, then its neighbours' if it has any.
    axes = (range(0, len(layers), 2), range(1, len(layers), 2))
    return Heads(
        np.stack([np.concatenate([weights[i] for i in axis], axis=1) for axis in axes], axis=1),
        np.stack([np.concatenate([biases[i] for i in axis], axis=1) for axis in axes], axis=1),
    )
