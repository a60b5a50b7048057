"""How numbers are stored in int8: one scheme for all runtimes, the grid of a tensor, and its value after storing.

Weights: per output channel, symmetric, step = absmax / levels. Activations: per tensor, with a zero point, 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint.network import Spec, Spec_co
from pipnet_edge.converters.graph import convolutions, inputs, module, readers_of
from pipnet_edge.spec import Input

Range = tuple[float, float]

# Levels: the largest weight, in steps. x86 without int8 dot products can add two products, of a byte up to 255 and a
# weight each, in 16 bits that saturate (vpmaddubsw): 255 * (64 + 64) fits, 255 * (127 + 127) does not. Where a runtime
# does so, its weights have SAFE levels, elsewhere FULL.
SAFE, FULL = 64, 127
MOST_BIAS = 2**29  # a quarter of what fits: rounding moves biases a little


@dataclass(frozen=True, eq=False)
class Quantized(Generic[Spec_co]):
    """The network that every quantizer starts from.

    graph: the float network, for images of `spec`, with the weights of int8 layers already on their int8 grids.
    spec: its mean and std make all pixels whole numbers (see `pixel_lattice`), so that storing them loses nothing.
    ranges: node name -> (low, high) where its output is clipped, for all of graph.points and graph.maps.
    keep: the layers that stay in float.
    levels: the largest weight of each output channel of int8 layers, in steps.
    """

    graph: fx.GraphModule
    spec: Spec_co
    ranges: Mapping[str, Range]
    keep: frozenset[str]
    levels: int


def grid(bounds: Range, bits: int = 8) -> tuple[float, int]:
    """(step, zero point) of a stored tensor: value = (integer - zero point) * step, integers from 0 to 2**bits - 1."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    step = max((high - low) / (2**bits - 1), 1e-9)
    return step, round(-low / step)


def stored(value: Tensor, bounds: Range, bits: int = 8) -> Tensor:
    """The tensor after it was stored in so many bits."""
    step, zero = grid(bounds, bits)
    return torch.fake_quantize_per_tensor_affine(value, step, zero, 0, 2**bits - 1)


def weight_steps(weight: Tensor, levels: int, transposed: bool = False) -> Tensor:
    """The int8 step of each output channel, absmax / levels, shaped to multiply the weight.

    A channel of zeros gets the step of the layer's largest weight; any step would do.
    """
    inner = tuple(d for d in range(weight.ndim) if d != int(transposed))
    absmax = weight.abs().amax(inner, keepdim=True)
    largest = absmax.max().clamp_min(1e-9)
    return torch.where(absmax > 0, absmax, largest) / levels


def fit_biases(graph: fx.GraphModule, ranges: Mapping[str, Range]) -> None:
    """Changes output channels with almost no weights, in place, so that their bias fits 32 bits on any grid.

    Integer kernels add a bias as a multiple of input step times weight step, 2**31 at most. Such a channel gets a
    larger step: it keeps one weight, which is still so small that the bias hides it.
    """
    for name, source in inputs(graph).items():
        layer = graph.get_submodule(name)
        if not isinstance(layer, nn.Conv2d) or layer.bias is None or source not in ranges:
            continue
        step, _ = grid(ranges[source])
        least = FULL * layer.bias.abs() / (MOST_BIAS * step)
        flat = layer.weight.flatten(1)
        for channel in torch.nonzero(flat.abs().amax(1) < least).flatten().tolist():
            at = int(flat[channel].abs().argmax())
            layer.weight[channel] = 0.0
            layer.weight[channel].view(-1)[at] = least[channel]


def integers(given: Quantized[Input]) -> dict[str, NDArray[np.int8]]:
    """Layer name -> weights in steps (out, in / groups, height, width) of every int8 layer: what all runtimes hold."""
    found = {}
    for name in convolutions(given.graph):
        layer = given.graph.get_submodule(name)
        if name not in given.keep:
            assert isinstance(layer, nn.Conv2d)
            found[name] = torch.round(layer.weight / weight_steps(layer.weight, given.levels)).to(torch.int8).numpy()
    return found


def pixel_lattice(graph: fx.GraphModule, spec: Spec) -> Spec:
    """Changes the graph in place to take pixels minus a whole number. Returns the spec with that normalization.

    The mean is rounded to whole pixel values and the std moves into the first layers, so that an int8 image is exact.
    The border is then padded with the rounded mean, at most half a pixel value from before.
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
    return spec.renormalised((r, g, b), (1 / 255, 1 / 255, 1 / 255))
