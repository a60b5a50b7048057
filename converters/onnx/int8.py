"""int8 for ONNX Runtime: QuantizeLinear / DequantizeLinear pairs (QDQ) around what its integer kernels compute.

ONNX Runtime turns DequantizeLinear -> Conv -> QuantizeLinear into one integer kernel (QLinearConv), and does the same
for sums and pools. So a tensor is stored in 8 bits if an int8 layer reads it or makes it. An activation is dropped if
the stored range clips the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipnet_edge.converters.core import Core
from pipnet_edge.converters.onnx import fp as onnx_fp32
from pipnet_edge.converters.quantize import match, scheme
from pipnet_edge.converters.quantize.scheme import Quantized, Range
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import Input

BITS = (0, 8)
LEVELS = scheme.SAFE
INT32 = 2**31 - 1


def convert(core: Core, given: Quantized[Input], bits: int, folder: Path) -> None:
    """Writes `model.onnx` into `folder`: like the fp32 one, with int8 weights and, if bits is 8, uint8 activations.

    Raises EdgeError for other bits, and for biases that do not fit their 32 bits.
    """
    if bits not in BITS:
        raise EdgeError(f"ONNX Runtime int8 with {bits}-bit activations; allowed: {', '.join(map(str, BITS))}")
    model = onnx.load(core.path)
    writer = _Writer(model, given, _stored(model, given) if bits else {})
    writer.write()
    onnx_fp32.take_crops(model, core.spec, by_rows=bool(bits))
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def _stored(model: onnx.ModelProto, given: Quantized[Input]) -> dict[str, Range]:
    """Tensor -> range, of every tensor that is stored in 8 bits."""
    face = match.face(given.spec.size)
    nodes = match.match(_outputs(model, match.image(given, face)), match.activations(given, face))
    ranges = {tensor: given.ranges[node] for tensor, node in nodes.items()}
    made = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
            if node.op_type == "MaxPool" and name in ranges:
                # The largest of some values on a grid lies on that grid.
                ranges[node.output[0]] = ranges[name]

    def is_int8(node: onnx.NodeProto | None) -> bool:
        return node is not None and node.op_type == "Conv" and _layer(node) not in given.keep

    def wanted(tensor: str) -> bool:
        maker = made.get(tensor)
        if maker is not None and maker.op_type == "MaxPool":
            return wanted(maker.input[0])
        if maker is not None and maker.op_type in ("Relu", "Clip"):
            maker = made.get(maker.input[0])
        after = readers.get(tensor, [])
        pooled = [reader for node in after if node.op_type == "MaxPool" for reader in readers.get(node.output[0], [])]
        return is_int8(maker) or any(map(is_int8, [*after, *pooled]))

    return {tensor: bounds for tensor, bounds in ranges.items() if wanted(tensor)}


def _outputs(model: onnx.ModelProto, image: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Every tensor of a core model for one image (1, 3, S, S)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken = {output.name for output in copy.graph.output}
    names = [output for node in copy.graph.node for output in node.output]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in taken)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {"image": image, **dict(zip(names, session.run(names, {"image": image}), strict=True))}


def _layer(node: onnx.NodeProto) -> str:
    name: str = node.input[1]
    return name.removesuffix(".weight")


class _Writer:
    """Rewrites a float core model in place."""

    def __init__(self, model: onnx.ModelProto, given: Quantized[Input], stored: Mapping[str, Range]) -> None:
        self._graph = model.graph
        self._given, self._stored = given, stored
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._integers = scheme.integers(given)
        self._nodes: list[onnx.NodeProto] = []
        for node in [node for node in model.graph.node if node.op_type == "Constant"]:
            self._constants[node.output[0]] = node.attribute[0].t
            model.graph.node.remove(node)

    def write(self) -> None:
        self._drop_implied_activations()
        outputs = {output.name for output in self._graph.output}
        if "image" in self._stored:
            self._store("image", "image", "image/stored")
        seen = set()
        for node in self._graph.node:
            if node.op_type == "Conv" and _layer(node) in self._integers:
                seen.add(_layer(node))
                self._round(node)
            for index, name in enumerate(node.input):
                if name in self._stored:
                    is_float = node.op_type in ("Conv", "ConvTranspose") and node.input[1] in self._constants
                    node.input[index] = self._channelwise(name, node) if is_float else f"{name}/stored"
            self._nodes.append(node)
            for index, name in enumerate(node.output):
                if name in outputs and name in self._stored:
                    # A map keeps its name after it was stored.
                    node.output[index] = f"{name}/raw"
                    self._store(name, node.output[index], name)
                elif name in self._stored:
                    self._store(name, name, f"{name}/stored")
        if missing := self._integers.keys() - seen:
            raise EdgeError(f"the ONNX export has no layer {min(missing)!r} to round")
        used = {name for node in self._nodes for name in node.input}
        del self._graph.node[:], self._graph.initializer[:]
        # If only float layers read a stored tensor, they read its channelwise form, and nothing reads the other.
        self._graph.node.extend(node for node in self._nodes if node.output[0] in used | outputs)
        for name in sorted(used & set(self._constants)):
            self._constants[name].name = name
            self._graph.initializer.append(self._constants[name])

    def _drop_implied_activations(self) -> None:
        """Removes Relu and Clip if storing their output cuts off the same values."""
        readers: dict[str, int] = {}
        for node in self._graph.node:
            for name in node.input:
                readers[name] = readers.get(name, 0) + 1
        made = {output: node for node in self._graph.node for output in node.output}
        for node in list(self._graph.node):
            if node.op_type not in ("Relu", "Clip") or node.output[0] not in self._stored:
                continue
            low, high = self._stored[node.output[0]]
            least, most = self._bounds(node)
            source = made.get(node.input[0])
            if source is not None and readers[node.input[0]] == 1 and least <= min(low, 0.0) and high <= most:
                source.output[list(source.output).index(node.input[0])] = node.output[0]
                self._graph.node.remove(node)

    def _bounds(self, node: onnx.NodeProto) -> tuple[float, float]:
        if node.op_type == "Relu":
            return 0.0, np.inf
        ends = [float(numpy_helper.to_array(self._constants[name])) for name in node.input[1:]]
        return ends[0], ends[1]

    def _channelwise(self, name: str, node: onnx.NodeProto) -> str:
        """The form of a stored tensor that a float layer reads: the same values, but with a step for each channel.

        If a layer reads a tensor with one step, ONNX Runtime rounds the layer's weights too, on one grid for all
        channels.
        """
        found = f"{name}/channelwise"
        if f"{found}/step" not in self._constants:
            weight = self._constants[node.input[1]]
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            channels = weight.dims[0] if node.op_type == "ConvTranspose" else weight.dims[1] * groups
            step, zero = scheme.grid(self._stored[name])
            grid = [f"{found}/step", f"{found}/zero"]
            self._constant(grid[0], np.full(channels, step, np.float32))
            self._constant(grid[1], np.full(channels, zero, np.uint8))
            self._nodes.append(helper.make_node("DequantizeLinear", [f"{name}/uint8", *grid], [found], axis=1))
        return found

    def _round(self, node: onnx.NodeProto) -> None:
        """Gives a Conv int8 weights with a step for each output channel, and a bias of 32 bits."""
        layer = _layer(node)
        if self._stored and node.input[0] not in self._stored:
            raise EdgeError(f"the input of layer {layer!r} is not found in the ONNX export, so it cannot be int8", 3)
        weight = torch.from_numpy(numpy_helper.to_array(self._constants[node.input[1]]).copy())
        scales = scheme.weight_steps(weight, self._given.levels).flatten().numpy()
        self._constant(f"{layer}.weight", self._integers[layer])
        bias = numpy_helper.to_array(self._constants[node.input[2]]) if len(node.input) > 2 else None
        node.input[1] = self._dequantized(f"{layer}.weight", scales, np.zeros(len(scales), np.int8))
        if bias is not None and node.input[0] in self._stored:
            step, _ = scheme.grid(self._stored[node.input[0]])
            together = scales.astype(np.float64) * step
            whole = np.round(bias / together)
            if np.abs(whole).max() > INT32:
                raise EdgeError(f"layer {layer!r} has a bias that does not fit int8 arithmetic; keep it in float")
            self._constant(f"{layer}.bias", whole.astype(np.int32))
            zeros = np.zeros(len(scales), np.int32)
            node.input[2] = self._dequantized(f"{layer}.bias", together.astype(np.float32), zeros)

    def _dequantized(self, name: str, scales: NDArray[np.float32], zeros: NDArray[Any]) -> str:
        inputs = [name, f"{name}/step", f"{name}/zero"]
        self._constant(inputs[1], scales)
        self._constant(inputs[2], zeros)
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}/float"], axis=0))
        return f"{name}/float"

    def _store(self, name: str, before: str, after: str) -> None:
        """Puts a tensor into 8 bits and back: tensor `before` to tensor `after`, with the range of `name`."""
        step, zero = scheme.grid(self._stored[name])
        grid = [f"{name}/step", f"{name}/zero"]
        self._constant(grid[0], np.array(step, np.float32))
        self._constant(grid[1], np.array(zero, np.uint8))
        self._nodes.append(helper.make_node("QuantizeLinear", [before, *grid], [f"{name}/uint8"]))
        self._nodes.append(helper.make_node("DequantizeLinear", [f"{name}/uint8", *grid], [after]))

    def _constant(self, name: str, value: NDArray[Any]) -> None:
        self._constants[name] = numpy_helper.from_array(value, name)
