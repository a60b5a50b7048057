"""The int8 variant for ncnn, which int8_layers.py makes from the float one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipnet_edge.converters.core import Core
from pipnet_edge.converters.graph import convolutions, inputs, module
from pipnet_edge.converters.ncnn import fp, int8_layers
from pipnet_edge.converters.ncnn import model as ncnn_model
from pipnet_edge.converters.ncnn.model import CONSTANT, Layer, Model, number
from pipnet_edge.converters.quantize import scheme
from pipnet_edge.converters.quantize.scheme import Quantized
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import Input

BITS = (8,)
LEVELS = scheme.FULL


def convert(core: Core, given: Quantized[Input], bits: int, folder: Path) -> None:
    """Writes `model.param` and `model.bin` into `folder`, like the fp32 variant, but all layers not kept are int8.

    Depthwise layers compute in float, with the rounded weights: on x86, ncnn's int8 ones are slower and drift more.
    """
    if bits not in BITS:
        raise EdgeError(f"ncnn int8 with {bits}-bit activations; allowed: 8")
    work = core.work("ncnn-float")
    fp.convert(core, "fp32", work)
    model = join_swishes(ncnn_model.read_model(work / "model.param", work / "model.bin"))
    weights = _weights(given)
    layers = int8_layers.match_weights(model, weights)
    reads = inputs(given.graph)
    ranges = {layer: given.ranges[reads[name]] for layer, name in layers.items() if name not in given.keep}
    keep = {layer for layer, name in layers.items() if name in given.keep} | int8_layers.depthwise(model)
    scales = {
        layer: (1 / scheme.weight_steps(torch.from_numpy(weights[name]), given.levels)).flatten().numpy()
        for layer, name in layers.items()
        if layer not in keep
    }
    int8 = int8_layers.quantize(model, ranges, keep, winograd=False, weight_scales=scales)
    integers = scheme.integers(given)
    for layer, name in layers.items():
        if layer not in keep and not np.array_equal(int8[layer].arrays["weight"], integers[name].ravel()):
            raise EdgeError(f"ncnn layer {layer!r} does not hold the int8 weights of {name!r}")
    ncnn_model.write_model(int8, folder / "model.param", folder / "model.bin")


def join_swishes(model: Model) -> Model:
    """The model with HardSwish and one product for each relu6(x + 3) * (sixth * x), the form of graph.ScaledSwish.

    Each layer that is less here passes over memory once less.
    """
    layers = {layer.name: layer for layer in model.layers}
    for product in filter(_is_product, model.layers):
        clip, scaled = map(model.maker, product.inputs)
        if clip.kind != "Clip" or not _is_product(scaled) or (clip.floats(0), clip.floats(1)) != ((0.0,), (6.0,)):
            continue
        plus, sixth = model.maker(clip.inputs[0]), model.maker(scaled.inputs[0])
        split = next(layer for layer in layers.values() if scaled.inputs[1] in layer.outputs)
        plus_3 = (plus.kind, plus.integer(0), plus.integer(1), plus.floats(2)) == ("BinaryOp", 0, 1, (3.0,))
        within = all(len(model.readers(layer.outputs[0])) == 1 for layer in (plus, clip, sixth, scaled))
        if not (plus_3 and within and sixth.kind == CONSTANT and plus.inputs[0] in split.outputs):
            continue
        copies = tuple(blob for blob in split.outputs if blob != scaled.inputs[1])
        if len(copies) == 1:
            del layers[split.name]
        else:
            layers[split.name] = replace(split, outputs=copies)
        x = split.inputs if len(copies) == 1 else plus.inputs
        del layers[clip.name], layers[scaled.name]
        layers[plus.name] = Layer("HardSwish", plus.name, x, plus.outputs, {0: number(1 / 6), 1: number(0.5)})
        layers[sixth.name] = replace(sixth, arrays={"data": 6 * sixth.arrays["data"]})
        layers[product.name] = replace(product, inputs=(plus.outputs[0], sixth.outputs[0]))
    return Model(tuple(layers.values()))


def _is_product(layer: Layer) -> bool:
    return layer.kind == "BinaryOp" and layer.integer(0) == 2 and len(layer.inputs) == 2


def _weights(given: Quantized[Input]) -> dict[str, NDArray[np.float32]]:
    found = {}
    for name, node in convolutions(given.graph).items():
        layer = module(given.graph, node)
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        found[name] = layer.weight.numpy()
    return found
