"""Finds which tensor of a converted model is which node of the network, by their values on one image.

Converters rename, fuse and reorder; the numbers stay. So names and positions of a converted graph need not be trusted.
"""

from __future__ import annotations

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
from pipnet_edge.preprocess import Rect, cut, read_picture

Array = NDArray[np.float32]
# Largest difference of the same tensor in two float programs, as a share of its largest value.
TOLERANCE = 1e-3


def face(side: int) -> NDArray[np.uint8]:
    """A crop (side, side, 3) uint8 RGB to tell tensors apart by."""
    picture = read_picture(min(demo.FACES.glob("*.jpg")))
    return cut(picture, Rect.whole(picture), side)


def image(quantized: Quantized, crop: NDArray[np.uint8]) -> Array:
    """The network's input (1, 3, S, S) for a crop (S, S, 3) uint8 RGB."""
    return np.ascontiguousarray(normalise(crop[None], quantized.spec).numpy())


def activations(quantized: Quantized, crop: NDArray[np.uint8]) -> dict[str, Array]:
    """Node name -> its float output (C, H, W) for one crop (S, S, 3) uint8 RGB, of every node that may be stored."""
    return values(quantized.graph, normalise(crop[None], quantized.spec), quantized.ranges)


def values(graph: fx.GraphModule, image: torch.Tensor, names: Container[str]) -> dict[str, Array]:
    """Node name -> its float output (C, H, W) for an image (1, 3, S, S), of the nodes named."""
    kept: dict[str, Array] = {}

    def hook(node: Any, value: torch.Tensor) -> torch.Tensor:
        if node.name in names:
            kept[node.name] = value[0].numpy().copy()
        return value

    with torch.no_grad():
        Run(graph, hook).run(image)
    return kept


def match(tensors: Mapping[str, NDArray[Any]], nodes: Mapping[str, Array]) -> dict[str, str]:
    """Tensor name -> name of the node with the same values. Tensors (1, C, H, W), (C, H, W) or channels last.

    A tensor that equals no node is left out; one that equals several gets the nearest.
    """
    found = {}
    for name, tensor in tensors.items():
        value = np.asarray(tensor, np.float32)
        value = value[0] if value.ndim == 4 and value.shape[0] == 1 else value
        if value.ndim != 3:
            continue
        errors: dict[str, float] = {}
        for node, reference in nodes.items():
            for layout in (value, value.transpose(2, 0, 1)):
                if layout.shape == reference.shape:
                    scale = max(float(np.abs(reference).max()), 1e-9)
                    errors[node] = min(errors.get(node, 1.0), float(np.abs(layout - reference).max()) / scale)
        nearest = min(errors, key=lambda n: errors[n], default=None)
        if nearest is not None and errors[nearest] <= TOLERANCE:
            found[name] = nearest
    return found
