"""The int8 variants of MNN: its converter packs our weights, then the file gets a list of int8 tensors and their grids.

The converter takes the weight steps of each convolution, under the name of the tensor that it writes. The values of a
float model show how MNN divides the network (see quantize/match.py).

A transposed convolution has no int8 form in MNN and stays in float.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, fx, nn

from pipnet_edge.converters import tool
from pipnet_edge.converters.core import Core
from pipnet_edge.converters.graph import FUSED, convolutions, inputs, module, readers_of
from pipnet_edge.converters.mnn import file, fp
from pipnet_edge.converters.mnn.file import Grid, Table
from pipnet_edge.converters.quantize import match
from pipnet_edge.converters.quantize.scheme import FULL, Quantized, Range, grid, weight_steps
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import Input

Array = NDArray[np.float32]

BITS = (0, 8)
LEVELS = FULL
# The largest distance of a weight from its grid, in steps, that still counts as a rounding error.
ON_GRID = 1e-3
# Sums of depthwise layers have 32 bits. They may begin at half of what these hold, in steps of LEAST_STEP or more: MNN
# takes that for every smaller weight step.
MOST_START, LEAST_STEP = 2**30, 1e-6


@dataclass(frozen=True)
class Placed:
    """A layer that becomes int8, as MNN has it.

    tensor: MNN's name of what it writes. node: the node with these values: the layer's, or the activation's after it if
    MNN fused that.
    """

    layer: str
    tensor: str
    node: fx.Node


def convert(core: Core, quantized: Quantized[Input], activation_bits: int, folder: Path) -> None:
    """Writes `model.mnn` into `folder`: input `image` and outputs named as the maps, in float.

    With 8 bits, all that int8 layers read and write is int8. With 0 only their weights are, and MNN turns these back
    into float when it loads them. Raises EdgeError for other bits, for weights that lie on no int8 grid, and when the
    file does not hold them exactly.
    """
    if activation_bits not in BITS:
        raise EdgeError(f"MNN int8 with {activation_bits}-bit activations; allowed: 8, or 0 for int8 weights only")
    work, model = core.work(folder.name), folder / "model.mnn"
    placed = _placed(core, quantized)
    layers = [_parameters(quantized, layer) for layer in placed]
    parameters = work / "quantization.json"
    parameters.write_text(json.dumps({"version": "1", "algo": [{"quant_params": {"layer": layers}}]}))
    source = _with_slopes_by_channel(core.path, work) if activation_bits else core.path
    options = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(model), "--bizCode", "pipnet-edge"]
    command = [*tool.PYTHON, "-c", fp.CALL, *options, "--compressionParamsFile", str(parameters)]
    tool.run("mnnconvert", command, work, makes=(model,))
    net = file.read(model)
    _check(quantized, placed, net)
    grids = _grids(quantized, placed, net) if activation_bits else {}
    _fit_depthwise(net, grids)
    file.store(net, grids)
    model.write_bytes(net.data)


def _with_slopes_by_channel(core: Path, work: Path) -> Path:
    """A core in which each leaky ReLU has a slope for every channel."""
    # If it has one slope for all, MNN's int8 leaky ReLU is wrong by several steps. With many it computes in float.
    model = onnx.shape_inference.infer_shapes(onnx.load(core))
    shapes = {info.name: info.type.tensor_type.shape.dim for info in model.graph.value_info}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("LeakyRelu", "PRelu"):
            continue
        slope = node.attribute[0].f if node.attribute else numpy_helper.to_array(constants[node.input[1]])
        channels = shapes[node.input[0]][1].dim_value
        by_channel = np.broadcast_to(np.asarray(slope, np.float32).reshape(-1, 1, 1), (channels, 1, 1))
        model.graph.initializer.append(numpy_helper.from_array(by_channel, f"{node.output[0]}/slopes"))
        changed = onnx.helper.make_node("PRelu", [node.input[0], f"{node.output[0]}/slopes"], node.output, node.name)
        node.CopyFrom(changed)
    path = work / "slopes.onnx"
    onnx.save(model, path)
    return path


def int8_weights(model: Path) -> dict[str, NDArray[np.int8]]:
    """The weights (out, in / groups, height, width) of a file's int8 convolutions, by the tensor that each writes."""
    return {tensor: layer.weights for tensor, layer in file.int8_layers(file.read(model)).items()}


def _placed(core: Core, quantized: Quantized[Input]) -> list[Placed]:
    """Where each int8 layer is in MNN's model. Raises EdgeError unless each is found once."""
    graph = quantized.graph
    layers = {
        name: node
        for name, node in convolutions(graph).items()
        if name not in quantized.keep and isinstance(module(graph, node), nn.Conv2d)
    }
    owners = {node: name for name in layers for node in (layers[name], _fused(graph, layers[name]))}
    nodes = {node.name: node for node in owners}
    image = match.image(quantized, match.face(quantized.spec.size))
    found = match.match(_run_float(core, image), match.values(graph, torch.from_numpy(image), nodes))
    placed = [Placed(owners[nodes[node]], tensor, nodes[node]) for tensor, node in found.items()]
    names = [layer.layer for layer in placed]
    for name in layers:
        if names.count(name) != 1:
            raise EdgeError(f"{names.count(name)} convolutions of MNN's model give what {name} gives, not one", code=3)
    return placed


def _fused(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The activation that a runtime may compute with a layer, else the layer's own node."""
    readers = readers_of(graph, node)
    return readers[0] if len(readers) == 1 and isinstance(module(graph, readers[0]), FUSED) else node


def _run_float(core: Core, image: Array) -> dict[str, Array]:
    """Tensor name -> what each convolution of MNN's float model writes, (1, C, H, W)."""
    work = core.work("mnn-float")
    fp.convert(core, "fp32", work)
    model, given, out = work / "model.mnn", work / "image.npy", work / "values.npz"
    np.save(given, image)
    command = [*tool.PYTHON, "-m", "pipnet_edge.converters.mnn.values", str(model), str(given), str(out)]
    tool.run("MNN", command, work, makes=(out,))
    tensors = {operation.name: tensor for tensor, operation in file.convolutions(file.read(model)).items()}
    with np.load(out, allow_pickle=False) as values:
        return {tensor: values[name] for name, tensor in tensors.items() if name in values}


def _parameters(quantized: Quantized[Input], placed: Placed) -> dict[str, Any]:
    # How activations are stored has to be given here too, but the file's list of tensors overrules it.
    steps = weight_steps(_weight(quantized, placed), quantized.levels).flatten()
    activation = {"name": placed.tensor, "scales": [1.0]}
    return {"input": [activation], "output": [activation], "weight": [{"name": "", "scales": steps.tolist()}]}


def _weight(quantized: Quantized[Input], placed: Placed) -> Tensor:
    layer = quantized.graph.get_submodule(placed.layer)
    assert isinstance(layer, nn.Conv2d)
    return layer.weight


def _grids(quantized: Quantized[Input], placed: Sequence[Placed], net: Table) -> dict[int, Grid]:
    """Index of each MNN tensor that becomes int8 -> its grid. Also changes activations that MNN computes wrongly."""
    sources = inputs(quantized.graph)
    layers = file.convolutions(net)
    grids = {}
    for layer in placed:
        # If MNN did not fuse an activation, the tensor before it gets the activation's range and is clipped already.
        written = quantized.ranges.get(_fused(quantized.graph, layer.node).name)
        if written is not None and layer.layer in sources:
            grids[layers[layer.tensor].reads[0]] = _signed(quantized.ranges[sources[layer.layer]])
            grids[layers[layer.tensor].writes[0]] = _signed(written)
    for operation in file.operations(net):
        if operation.kind in (file.POOLING, file.GLOBAL_POOLING):
            _pool_in_float(grids, operation.reads[0], operation.writes[0])
        if operation.kind == file.BINARY and grids.keys() >= {*operation.reads, *operation.writes}:
            # MNN's ReLU after an int8 sum clips at the integer 0 and ignores the zero point (CPUBinaryInt8.cpp). The
            # range of the sum begins at 0, and that clips correctly.
            operation.table.table(file.MAIN).set_number(file.BINARY_ACTIVATION, 0)
    return grids


def _pool_in_float(grids: dict[int, Grid], read: int, written: int) -> None:
    # On x86, MNN's int8 pooling treats values above the middle of the range as the least (FunctionDispatcher.cpp), and
    # on every CPU it rounds means down. It pools in float if the two steps differ, however little. A side without a
    # grid would get the grid of the other side.
    source = grids.get(read) or grids.get(written)
    if source is not None:
        step, zero = grids[read] = source
        grids[written] = float(np.nextafter(np.float32(step), np.float32(np.inf))), zero


def _signed(bounds: Range) -> Grid:
    step, zero = grid(bounds)
    return step, zero - file.OFFSET


def _fit_depthwise(net: Table, grids: Mapping[int, Grid]) -> None:
    """Changes int8 depthwise layers so that MNN's sums come out as they should.

    A sum begins at the bias and the output's zero point, as multiples of input step times weight step, each cut to a
    whole number (CPUConvolution.cpp). If a channel's weights are almost zero, so is the step, and the multiples exceed
    32 bits: the channel gets a larger step. Cutting errs by half a multiple on average, always towards zero: the bias
    is moved to where the sum of both comes out rounded.
    """
    layers = file.convolutions(net)
    for tensor, layer in file.int8_layers(net).items():
        operation = layers[tensor]
        read, written = grids.get(operation.reads[0]), grids.get(operation.writes[0])
        if operation.kind != file.DEPTHWISE or read is None or written is None:
            continue
        (step, _), (out_step, zero) = read, written
        bias = operation.table.table(file.MAIN).array(file.CONVOLUTION_BIAS, "<f4").astype(np.float64)
        least = (np.abs(bias) + abs(zero) * out_step) / (step * MOST_START)
        # Any step would do for a channel of zeros: the least makes its bias exact.
        used = np.where(layer.weights.any((1, 2, 3)), layer.steps, 0)
        steps = np.maximum(used, np.maximum(least, LEAST_STEP)).astype(np.float32)
        weights = np.rint(layer.weights * (layer.steps / steps)[:, None, None, None]).astype(np.int8)
        unit = step * steps.astype(np.float64)
        # In 32 bits, as MNN computes it.
        cut_zero = np.trunc(np.float32(zero) / (steps * (np.float32(step) / np.float32(out_step))))
        whole = np.rint((bias + zero * out_step) / unit) - cut_zero
        bias = (whole + 0.5 * np.sign(whole)) * unit
        file.change(operation, file.Int8(weights, steps), bias.astype(np.float32))


def _check(quantized: Quantized[Input], placed: Sequence[Placed], net: Table) -> None:
    """Raises EdgeError unless exactly these layers of the file have int8 weights, equal to the network's."""
    found = file.int8_layers(net)
    for layer in placed:
        steps = weight_steps(_weight(quantized, layer), quantized.levels)
        exact = _weight(quantized, layer) / steps
        if (exact - exact.round()).abs().max() > ON_GRID:
            raise EdgeError(
                f"the weights of {layer.layer} do not lie on an int8 grid of absmax / {quantized.levels} a channel",
                code=3,
            )
        stored = found.pop(layer.tensor, None)
        same = stored is not None and np.array_equal(stored.weights, exact.round().numpy())
        if stored is None or not same or not np.array_equal(stored.steps, steps.flatten().numpy()):
            raise EdgeError(f"MNN's converter changed the int8 weights of {layer.layer}", code=3)
    if found:
        raise EdgeError(f"MNN's converter made int8 weights of {min(found)}, which stays in float", code=3)
