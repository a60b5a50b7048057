"""The int8 TFLite variants, made by ai-edge-quantizer from the float file of litert-torch.

The quantizer is told everything: which operations become int8, and the range of each of their tensors. Its file is read
back and compared. It prints a lot, so it runs as a child process: `python -m pipnet_edge.converters.tflite.int8 FP32
PLAN OUT`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipnet_edge.converters import tool as child
from pipnet_edge.converters.core import Core
from pipnet_edge.converters.graph import convolutions, heads, module, readers_of
from pipnet_edge.converters.quantize import match
from pipnet_edge.converters.quantize.scheme import FULL, Quantized, Range, grid, weight_steps
from pipnet_edge.converters.tflite import fp, rewrites
from pipnet_edge.converters.tflite.editor import dump, load
from pipnet_edge.converters.tflite.file import Operation, bias, out_first, read, weights
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.spec import Input

BITS = (0, 8, 16)
LEVELS = FULL
Array = NDArray[np.float32]

# Operations whose output is stored like their input.
SAME = ("PAD", "PADV2", "MAX_POOL_2D", "AVERAGE_POOL_2D", "TRANSPOSE", "RESHAPE")
# Never integer: an int8 hard swish takes longer than a float one between two conversions. A gate is not stored. Other
# activations are several operations, and what lies between these has no range.
FLOAT = (
    "HARD_SWISH",
    "MUL",
    "SUB",
    "EXP",
    "LOG",
    "TANH",
    "LOGISTIC",
    "GREATER",
    "GREATER_EQUAL",
    "SELECT",
    "SELECT_V2",
)
ALTERED = (torch.nn.Hardsigmoid, torch.nn.Hardtanh)
# A tensor without a range of its own gets the range that one face shows, times this.
MARGIN = 1.5
# The quantizer allows 2**31; this leaves room for rounding.
MOST_BIAS = 0.999 * 2**31
MOST = 127  # the largest whole number of a weight
# The quantizer's finest step of a weight: it takes every range for 1e-9 at least.
FINEST = 1e-9 / MOST
# A channel may be held on that step if the layer's coarsest step is so many times as large.
HIDDEN = 2**16


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution. weight: (out, in, height, width). steps of its int8 grids, and bias from the file: (out,)."""

    name: str
    weight: Array
    steps: Array
    bias: NDArray[np.float64]

    @property
    def int8(self) -> NDArray[np.int8]:
        whole: NDArray[np.int8] = np.rint(self.weight / self.steps[:, None, None, None]).astype(np.int8)
        return whole


def convert(core: Core, quantized: Quantized[Input], activation_bits: int, folder: Path) -> None:
    """Writes `model.tflite` into `folder`: a signature from `crop` (uint8) to the maps (float32), int8 inside.

    activation_bits: 8 or 16 store activations in so many bits; 0 leaves them float, with weights in int8. A map whose
    layer is not kept in float needs a range under its node's name. Raises EdgeError for another number of bits, and
    when the file does not hold the weights and steps that were asked for.
    """
    if activation_bits not in BITS:
        raise EdgeError(f"{activation_bits} bits for TFLite activations; allowed: 0 (float), 8, 16")
    work, single = core.work("tflite"), fp.to_float(core)
    operations = read(single)
    layers = _layers(operations, quantized)
    ranges: dict[str, Range] = {}
    integer = {name for name, layer in layers.items() if layer.name not in quantized.keep}
    if activation_bits:
        tensors, nodes = _observe(single, quantized)
        ranges = _ranges(operations, tensors, {name: quantized.ranges[node] for name, node in nodes.items()})
        integer = _integer(operations, layers, integer, set(nodes))
        layers = _with_biases_that_fit(operations, layers, ranges, activation_bits)
    snapped = {name: _snapped(bounds, activation_bits) for name, bounds in ranges.items()}
    statistics = snapped | _weight_ranges(operations, layers)
    plan, model = work / f"int8-{activation_bits}.json", folder / "model.tflite"
    plan.write_text(json.dumps({"bits": activation_bits, "integer": sorted(integer), "statistics": statistics}))
    command = [*child.PYTHON, "-m", __name__, str(single), str(plan), str(model)]
    child.run("ai-edge-quantizer", command, work, makes=(model,))
    made = read(model)
    _check_weights(made, [layer for name, layer in layers.items() if name in integer])
    _check_steps(made, ranges, activation_bits)
    if activation_bits == 8:
        rewrites.rewrite(model)


def _layers(operations: list[Operation], quantized: Quantized[Input]) -> dict[str, Layer]:
    """Name of a convolution's output in the float file -> the layer with the same weights; in order."""
    left = {}
    for name, node in convolutions(quantized.graph).items():
        layer: Any = module(quantized.graph, node)
        transposed = isinstance(layer, torch.nn.ConvTranspose2d)
        weight, steps = layer.weight, weight_steps(layer.weight, quantized.levels, transposed).flatten()
        left[name] = ((weight.transpose(0, 1) if transposed else weight).numpy(), _steps_that_fit(steps.numpy()))
    found = {}
    for operation, tensor in weights(operations):
        same = [name for name, (weight, _) in left.items() if np.array_equal(weight, out_first(operation, tensor))]
        if not same:
            raise EdgeError(f"litert-torch changed the weights of {operation.output.name}", CHECK_FAILED)
        found[operation.output.name] = Layer(same[0], *left.pop(same[0]), bias(operation).values)
    return found


def _steps_that_fit(steps: Array) -> Array:
    """The steps of a layer's channels, none finer than the quantizer's finest if that changes no output.

    A channel whose weights were all zero in training has them just large enough for its bias: nothing next to others.
    """
    return np.maximum(steps, np.float32(FINEST)) if steps.max() >= HIDDEN * FINEST else steps


def _observe(single: Path, quantized: Quantized[Input]) -> tuple[dict[str, Array], dict[str, str]]:
    """Every float tensor of the float file for one face, by name; and tensor -> node, for nodes that have a range.

    Raises EdgeError for a node that no tensor equals and for a map that should be int8 but has no range.
    """
    graph, crop = quantized.graph, match.face(quantized.spec.size)
    maps = {layer: convolutions(graph)[layer].name for layer in heads(graph)}
    for layer, name in maps.items():
        if layer not in quantized.keep and name not in quantized.ranges:
            raise EdgeError(f"{layer} is to be int8, but its map has no range")
    tensors, nodes = _run(single, crop), match.activations(quantized, crop)
    # The map of a layer in float is not stored, whether it has a range or not.
    for layer in heads(graph) & quantized.keep:
        nodes.pop(maps[layer], None)
    found = match.match(tensors, nodes)
    seen = [nodes[name] for name in found.values()]
    for node in graph.graph.nodes:
        # litert-torch turns a hard sigmoid into a ReLU6, and adds its offset to the bias of the layer before. It fuses
        # some clips into that layer, and others in part.
        altered = any(isinstance(module(graph, reader), ALTERED) for reader in readers_of(graph, node))
        if node.name in nodes and not altered and not any(np.array_equal(nodes[node.name], other) for other in seen):
            raise EdgeError(f"the TFLite file has no tensor that equals {node.name}", CHECK_FAILED)
    return tensors, found


def _run(single: Path, crop: NDArray[np.uint8]) -> dict[str, Array]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        str(single),
        # Delegates do not show the tensors that they compute inside.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], crop[None])
    interpreter.invoke()
    made = {operation.output.name for operation in read(single)}
    details = interpreter.get_tensor_details()
    return {d["name"]: np.array(interpreter.get_tensor(d["index"])) for d in details if d["name"] in made}


def _ranges(operations: list[Operation], tensors: Mapping[str, Array], given: Mapping[str, Range]) -> dict[str, Range]:
    """Tensor name -> its range: the one given, or else what its neighbours and one face's tensors suggest."""
    ranges: dict[str, Range] = {}
    for operation in operations:
        name = operation.output.name
        if name in given:
            ranges[name] = given[name]
        elif operation.relu6:
            ranges[name] = (0.0, 6.0)
        elif operation.kind in SAME and operation.reads[0] in ranges:
            ranges[name] = ranges[operation.reads[0]]
        else:
            low, high = float(tensors[name].min()), float(tensors[name].max())
            ranges[name] = (MARGIN * min(low, 0.0), MARGIN * max(high, 0.0))
    return ranges


def _integer(operations: list[Operation], layers: Collection[str], int8: set[str], stored: set[str]) -> set[str]:
    """The outputs of the operations that become integer: int8 layers, and what reads a stored tensor.

    stored: the tensors with a given range. A tensor that only float layers read, like a ResNet's last sum, stays float.
    """
    integer = set(int8)
    for operation in operations:
        if operation.kind in FLOAT or operation.output.name in layers:
            continue
        if integer.union(stored).intersection(operation.reads):
            integer.add(operation.output.name)
    for operation in reversed(operations):
        name = operation.output.name
        readers = {o.output.name for o in operations if name in o.reads}
        if readers and name not in int8 and not readers & integer:
            integer.discard(name)
    return integer


def _grid(bounds: Range, bits: int) -> tuple[float, int]:
    """(step, zero point) of an activation as TFLite stores it: signed, and symmetric in 16 bits."""
    if bits == 16:
        return max(-bounds[0], bounds[1]) / (2**15 - 1), 0
    step, zero = grid(bounds, bits)
    return step, zero - 2 ** (bits - 1)


def _snapped(bounds: Range, bits: int) -> Range:
    """The range with its ends moved onto its own grid: then the quantizer's zero point does not depend on rounding."""
    if bits == 16:
        return bounds
    step, zero = grid(bounds, bits)
    return -zero * step, (2**bits - 1 - zero) * step


def _with_biases_that_fit(
    operations: list[Operation], layers: Mapping[str, Layer], ranges: Mapping[str, Range], bits: int
) -> dict[str, Layer]:
    """The layers, with larger steps if a bias would be too many multiples of input step times weight step.

    In 8 bits no such layer is left. Inputs of 16 bits have finer steps, but biases still have 32 bits.
    """
    found = {}
    for operation, _ in weights(operations):
        layer = layers[operation.output.name]
        least = np.abs(layer.bias) / (MOST_BIAS * _grid(ranges[operation.reads[0]], bits)[0])
        found[operation.output.name] = replace(layer, steps=np.maximum(layer.steps, least).astype(np.float32))
    return found


def _weight_ranges(operations: list[Operation], layers: Mapping[str, Layer]) -> dict[str, Any]:
    """Name of a weight tensor -> (lowest, highest) that its grids can hold, shaped to be compared with the weight.

    Without these, the quantizer gives a channel of zeros a step so small that its bias does not fit.
    """
    found = {}
    for operation, tensor in weights(operations):
        shape = [-1 if d == operation.channel_axis else 1 for d in range(4)]
        bound = (MOST * layers[operation.output.name].steps).reshape(shape)
        found[tensor.name] = ((-bound).tolist(), bound.tolist())
    return found


def _check_weights(made: list[Operation], layers: list[Layer]) -> None:
    """Raises EdgeError unless the file's int8 layers are these, in this order, with their weights, steps and biases."""
    found = [(operation, tensor) for operation, tensor in weights(made) if tensor.kind == np.int8]
    if len(found) != len(layers):
        raise EdgeError(f"the TFLite file has {len(found)} int8 layers; {len(layers)} are needed", CHECK_FAILED)
    for (operation, tensor), layer in zip(found, layers, strict=True):
        stored = bias(operation)
        for what, right in (
            ("weights", np.array_equal(out_first(operation, tensor), layer.int8)),
            ("weight steps", np.allclose(tensor.scale, layer.steps, rtol=1e-6, atol=0)),
            ("biases", np.all(np.abs(stored.values - layer.bias) <= 1e-6 * np.abs(layer.bias) + stored.step)),
        ):
            if not right:
                raise EdgeError(f"the TFLite file has other {what} for {layer.name} than the network", CHECK_FAILED)


def _check_steps(made: list[Operation], ranges: Mapping[str, Range], bits: int) -> None:
    """Raises EdgeError unless every integer activation in the file has the step and zero point of its range."""
    for tensor in (operation.output for operation in made if operation.output.kind in (np.int8, np.int16)):
        step, zero = _grid(ranges[tensor.name.removesuffix("_quantized")], bits)
        if not np.allclose(tensor.scale, step, rtol=1e-6, atol=0) or tensor.zero.tolist() != [zero]:
            got = f"{tensor.scale.tolist()}, {tensor.zero.tolist()}"
            raise EdgeError(f"{tensor.name} has step and zero point {got}; needed: {step}, {zero}", CHECK_FAILED)


def _quantize(single: Path, plan: Path, model: Path) -> None:
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import TFLOperationName

    wanted = json.loads(plan.read_text())
    tool, every = quantizer.Quantizer(str(single)), TFLOperationName.ALL_SUPPORTED
    # The quantizer names an operation by its output and a semicolon.
    only = f"^(?:{'|'.join(map(re.escape, wanted['integer']))});$"
    if wanted["bits"]:
        tool.add_static_config(only, every, activation_num_bits=wanted["bits"], weight_num_bits=8)
    else:
        tool.add_weight_only_config(only, every, num_bits=8)
    statistics = {
        name: {"min": np.array(low, np.float32), "max": np.array(high, np.float32)}
        for name, (low, high) in wanted["statistics"].items()
    }
    net = load(bytes(tool.quantize(statistics).quantized_model))
    _name_outputs(net)
    model.write_bytes(dump(net))


def _name_outputs(net: Any) -> None:
    """Makes every name in the signatures point at an output. Some point at an integer form, read by a layer."""
    for signature in net.signatureDefs:
        graph = net.subgraphs[signature.subgraphIndex]
        float_forms = {
            int(op.inputs[0]): int(op.outputs[0]) for op in graph.operators if op.outputs[0] in graph.outputs
        }
        for named in signature.outputs:
            if named.tensorIndex not in graph.outputs:
                named.tensorIndex = float_forms[named.tensorIndex]


if __name__ == "__main__":
    _quantize(*map(Path, sys.argv[1:]))
