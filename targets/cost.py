"""What a network costs, layer by layer: the input of the latency model, whatever it was read from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipnet_edge.errors import EdgeError

KINDS = ("conv", "depthwise", "dense", "other")
# Bytes an element takes.
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
# Winograd computes an m x m tile of a 3x3 stride-1 convolution with (m + 2)^2 products a channel pair instead of 9 m^2,
# from weights that grow as much. Tile 6 is what ncnn takes up to 128 channels, tile 4 beyond; fewer than 8: none.
SMALL_TILE, LARGE_TILE, LARGE_TILE_CHANNELS, LEAST_CHANNELS = 4, 6, 128, 8


@dataclass(frozen=True)
class Layer:
    """One layer: kind (KINDS), multiply-adds, weights and activations (elements read and written, inputs and outputs).

    winograd: multiply-adds and weights if the layer runs by Winograd's algorithm, None where it cannot. in_float: an
    int8 variant leaves this layer in float.
    """

    kind: str
    macs: int
    weights: int
    activations: int
    winograd: tuple[int, int] | None = None
    in_float: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EdgeError(f"layer kind {self.kind!r:.60} is unknown; allowed: {', '.join(KINDS)}")
        if min(self.macs, self.weights, self.activations, *(self.winograd or (0, 0))) < 0:
            raise EdgeError(f"a {self.kind} layer has a negative number of multiply-adds, weights or activations")


@dataclass(frozen=True)
class Cost:
    """A network's layers, in any order."""

    layers: tuple[Layer, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds as they are usually published: without Winograd."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights as they are stored, biases left out."""
        return sum(layer.weights for layer in self.layers)

    def part(self, in_float: bool) -> Cost:
        """The layers that an int8 variant leaves in float, or the others."""
        return Cost(tuple(layer for layer in self.layers if layer.in_float == in_float))

    def operations(self, winograd: bool) -> float:
        """Operations done (a multiply-add is 2), with Winograd's reduced count where it applies and is used."""
        return 2.0 * sum(_work(layer, winograd)[0] for layer in self.layers)

    def bytes(self, precision: str, winograd: bool) -> float:
        """Bytes of weights (as they are computed with) and activations that pass through memory."""
        elements = sum(_work(layer, winograd)[1] + layer.activations for layer in self.layers)
        return float(BYTES[precision] * elements)


def _work(layer: Layer, winograd: bool) -> tuple[int, int]:
    return layer.winograd if winograd and layer.winograd else (layer.macs, layer.weights)


def convolution(channels_in: int, channels_out: int, kernel: int, size: int, stride: int = 1, groups: int = 1) -> Layer:
    """A convolution with a square kernel and an output of `size` x `size` cells, padded to keep the size."""
    cells = size * size
    weights = channels_in // groups * channels_out * kernel * kernel
    activations = cells * (channels_in * stride * stride + channels_out)
    plain = groups == 1 and kernel == 3 and stride == 1 and min(channels_in, channels_out) >= LEAST_CHANNELS
    transformed = _winograd(channels_in, channels_out, size) if plain else None
    return Layer("depthwise" if groups > 1 else "conv", cells * weights, weights, activations, transformed)


def _winograd(channels_in: int, channels_out: int, size: int) -> tuple[int, int]:
    tile = LARGE_TILE if max(channels_in, channels_out) <= LARGE_TILE_CHANNELS else SMALL_TILE
    weights = (tile + 2) ** 2 * channels_in * channels_out
    return math.ceil(size / tile) ** 2 * weights, weights


def dense(inputs: int, outputs: int) -> Layer:
    """A fully connected layer."""
    return Layer("dense", inputs * outputs, inputs * outputs, inputs + outputs)


def other(activations: int) -> Layer:
    """Pooling, addition, an activation of its own: elements read and written, no multiply-adds worth counting."""
    return Layer("other", 0, 0, activations)
