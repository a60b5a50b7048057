"""Finds which tensor of a converted model is which node of the network, by their values on one image.

Converters rename, fuse and reorder; the numbers stay. So names and positions of a converted graph need not be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import Run
from pipnet_edge.converters.quantize.scheme import Quantized
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.preprocess import read_picture, resized
from pipnet_edge.spec import Input

Array = NDArray[np.float32]
# Distances are shares of the largest value. Two float programs differ by up to 5e-5 in most networks and by 5e-3 in
# those that amplify rounding; different tensors of one shape by a tenth at least, and mostly by more than half.
# A tensor that is farther than this from all nodes is none of them.
FAR = 0.05
# The second nearest has to be this many times as far as the nearest,
MARGIN = 4
# unless the two are so near to each other that no step of 8 bits tells them apart.
SAME = 1e-3


def face(size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture of this (width, height), (height, width, 3) uint8 RGB, to tell tensors apart by."""
    picture = read_picture(min(demo.FACES.glob("*.jpg")))
    return resized(picture, *size)


def image(quantized: Quantized[Input], crop: NDArray[np.uint8]) -> Array:
    """The network's input (1, 3, H, W) for a picture (H, W, 3) uint8 RGB."""
    return np.ascontiguousarray(normalise(crop[None], quantized.spec).numpy())


def activations(quantized: Quantized[Input], crop: NDArray[np.uint8]) -> dict[str, Array]:
    """Node name -> its float output (C, H, W) for one picture (H, W, 3) uint8 RGB, of every node that may be stored."""
    return values(quantized.graph, normalise(crop[None], quantized.spec), quantized.ranges)


def values(graph: fx.GraphModule, image: torch.Tensor, names: Container[str]) -> dict[str, Array]:
    """Node name -> its float output (C, H, W) for an image (1, 3, H, W), of the nodes named."""
    kept: dict[str, Array] = {}

    def hook(node: Any, value: torch.Tensor) -> torch.Tensor:
        if node.name in names:
            kept[node.name] = value[0].numpy().copy()
        return value

    with torch.no_grad():
        Run(graph, hook).run(image)
    return kept


def match(tensors: Mapping[str, NDArray[Any]], nodes: Mapping[str, Array]) -> dict[str, str]:
    """Tensor name -> the node whose values it has. Tensors (1, C, H, W), (C, H, W) or channels last.

    A tensor belongs to the node that is nearest to it, the first of several. It is left out if that is FAR, or if
    another tensor is nearer to that node. Raises EdgeError, which names the node, if a second one is hardly farther.
    """
    values = {name: value for name, tensor in tensors.items() if (value := _three_axes(tensor)).ndim == 3}
    table = {(name, node): _distance(values[name], nodes[node]) for name in values for node in nodes}
    found: dict[str, str] = {}
    for name, value in values.items():
        node = min(nodes, key=lambda n: table[name, n], default="")
        if not node or table[name, node] > FAR:
            continue
        nearest = min(values, key=lambda n: table[n, node])
        if min(_distance(value, values[nearest]), _distance(values[nearest], value)) > SAME:
            _assert_clear(node, table[nearest, node], {name: table[name, node]})
            continue
        others = {n: table[name, n] for n in nodes if _distance(nodes[n], nodes[node]) > SAME}
        _assert_clear(node, table[name, node], others)
        found[name] = node
    return found


def _three_axes(tensor: NDArray[Any]) -> Array:
    value = np.asarray(tensor, np.float32)
    return value[0] if value.ndim == 4 and value.shape[0] == 1 else value


def _distance(value: Array, reference: Array) -> float:
    """The largest difference as a share of the largest value. reference: (C, H, W); value: so or channels last.

    Infinite for other shapes and for NaN.
    """
    layouts = [layout for layout in (value, value.transpose(2, 0, 1)) if layout.shape == reference.shape]
    if not layouts:
        return math.inf
    largest = max(float(np.abs(value).max()), float(np.abs(reference).max()), 1e-9)
    distance = min(float(np.abs(layout - reference).max()) for layout in layouts) / largest
    return math.inf if math.isnan(distance) else distance


def _assert_clear(node: str, distance: float, others: Mapping[str, float]) -> None:
    second = min(others, key=lambda n: others[n], default="")
    if second and others[second] < MARGIN * distance:
        raise EdgeError(
            f"{node} cannot be told from {second} in the converted network: they differ from its values by "
            f"{distance:.1e} and {others[second]:.1e} of the largest, and {MARGIN} times as much is needed",
            CHECK_FAILED,
        )
