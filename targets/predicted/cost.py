"""The cost of a network, layer by layer: the input of the latency model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pipnet_edge.bundle import CONV, TRANSPOSED, Held, Variant
from pipnet_edge.bundle import Layer as Described
from pipnet_edge.errors import EdgeError
from pipnet_edge.precisions import PRECISIONS

KINDS = ("conv", "depthwise", "dense", "other")
# Bytes per element in the precisions whose speeds are published.
BYTES = {row.name: row.weight_bytes for row in PRECISIONS.values() if row.predicted_as == row.name}
# For an m x m tile of a 3x3 stride-1 convolution, Winograd needs (m + 2)^2 products per channel pair instead of 9 m^2,
# and (m + 2)^2 weights instead of 9. ncnn takes tile 6 up to 128 channels, tile 4 above, none below 8 channels.
SMALL_TILE, LARGE_TILE, LARGE_TILE_CHANNELS, LEAST_CHANNELS = 4, 6, 128, 8


@dataclass(frozen=True)
class Layer:
    """One layer: kind (KINDS), multiply-adds, weights and activations (elements read and written, inputs and outputs).

    winograd: multiply-adds and weights if the layer runs by Winograd's algorithm, None if it cannot. in_float: an int8
    variant keeps this layer in float.
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
        """Weights as they are stored, without biases."""
        return sum(layer.weights for layer in self.layers)

    def part(self, in_float: bool) -> Cost:
        """The layers that an int8 variant keeps in float, or the others."""
        return Cost(tuple(layer for layer in self.layers if layer.in_float == in_float))

    def operations(self, winograd: bool) -> float:
        """Operations (a multiply-add is 2). winograd: layers that can run by it count with its smaller number."""
        return 2.0 * sum(_work(layer, winograd)[0] for layer in self.layers)

    def bytes(self, precision: str, winograd: bool) -> float:
        """Bytes of weights (in the form that is used to compute) and activations that pass through memory."""
        elements = sum(_work(layer, winograd)[1] + layer.activations for layer in self.layers)
        return float(BYTES[precision] * elements)


def _work(layer: Layer, winograd: bool) -> tuple[int, int]:
    return layer.winograd if winograd and layer.winograd else (layer.macs, layer.weights)


def of(bundle: Held, variant: Variant) -> Cost:
    """The cost of a variant's network; layers that it keeps in float are marked.

    Raises EdgeError if it keeps a layer that the bundle does not have.
    """
    kept = set(variant.quantization.kept) if variant.quantization else set()
    if unknown := kept - {layer.name for layer in bundle.layers}:
        raise EdgeError(f"variant {variant.name!r} keeps layer {min(unknown)!r:.100} in float, which the bundle lacks")
    layers = [layer for layer in bundle.layers if not (variant.is_sparse and layer.is_offset_head)]
    return Cost(tuple(replace(_work_of(layer), in_float=layer.name in kept) for layer in layers))


def _work_of(layer: Described) -> Layer:
    inputs, (channels, height, width) = sum(map(math.prod, layer.inputs)), layer.output
    if not layer.is_convolution:
        return other(inputs + math.prod(layer.output))
    weights = layer.inputs[0][0] // layer.groups * channels * math.prod(layer.kernel)
    # A transposed convolution spreads each input cell over the outputs; any other gathers each output cell.
    cells = math.prod((layer.inputs[0] if layer.op == TRANSPOSED else layer.output)[1:])
    plain = (layer.op, layer.groups, layer.kernel, layer.stride) == (CONV, 1, (3, 3), (1, 1))
    transformed = _winograd(layer.inputs[0][0], channels, height, width) if plain else None
    kind = "depthwise" if layer.groups > 1 else "conv"
    return Layer(kind, cells * weights, weights, inputs + math.prod(layer.output), transformed)


def convolution(channels_in: int, channels_out: int, kernel: int, size: int, stride: int = 1, groups: int = 1) -> Layer:
    """A convolution with a square kernel and an output of `size` x `size` cells, padded to keep the size."""
    inputs, output = (channels_in, size * stride, size * stride), (channels_out, size, size)
    return _work_of(Described("", CONV, (inputs,), output, (kernel, kernel), (stride, stride), groups))


def _winograd(channels_in: int, channels_out: int, height: int, width: int) -> tuple[int, int] | None:
    """Multiply-adds and weights; None if there are too few channels."""
    if min(channels_in, channels_out) < LEAST_CHANNELS:
        return None
    tile = LARGE_TILE if max(channels_in, channels_out) <= LARGE_TILE_CHANNELS else SMALL_TILE
    weights = (tile + 2) ** 2 * channels_in * channels_out
    return math.ceil(height / tile) * math.ceil(width / tile) * weights, weights


def dense(inputs: int, outputs: int) -> Layer:
    """A fully connected layer."""
    return Layer("dense", inputs * outputs, inputs * outputs, inputs + outputs)


def other(activations: int) -> Layer:
    """Pooling, addition or a separate activation: elements read and written, too few multiply-adds to count."""
    return Layer("other", 0, 0, activations)
