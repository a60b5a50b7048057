"""The ONNX Runtime variant: the core with the uint8 crop as input and the normalization inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipnet_edge.converters.core import Core
from pipnet_edge.spec import Input

TOOLS = ("torch", "onnx", "onnxsim")


def convert(core: Core, precision: str, folder: Path) -> None:
    """Writes `model.onnx` into `folder`: input `crop` (1, H, W, 3) uint8 RGB, outputs named as in the core."""
    model = onnx.load(core.path)
    take_crops(model, core.spec)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def take_crops(model: onnx.ModelProto, spec: Input, by_rows: bool = False) -> None:
    """Puts the normalization before a core model, in place: its input becomes `crop` (1, H, W, 3) uint8 RGB.

    by_rows: normalises while channels are still last, with constants for a whole row. Integer kernels read images with
    channels last. So ONNX Runtime would move the normalization there itself, with three constants that it repeats
    slowly.
    """
    graph, (width, height) = model.graph, spec.size
    transposed = helper.make_node("Transpose", ["crop"], ["crop_chw"], perm=[0, 3, 1, 2])
    shape, repeats = ((3 * width,), width) if by_rows else ((3, 1, 1), 1)
    # uint8 is transposed before it becomes float: a quarter of the bytes.
    head = [_reshape(graph, "crop", (0, height, 3 * width)) if by_rows else transposed]
    head.append(helper.make_node("Cast", [head[-1].output[0]], ["crop_float"], to=TensorProto.FLOAT))
    steps = (
        ("Sub", "crop_mean", [255.0 * m for m in spec.mean], 0.0),
        ("Mul", "crop_scale", [1.0 / (255.0 * s) for s in spec.std], 1.0),
    )
    for operation, name, numbers, neutral in steps:
        values = np.tile(np.array(numbers, np.float32), repeats).reshape(shape)
        if (values != neutral).any():
            graph.initializer.append(numpy_helper.from_array(values, name))
            head.append(helper.make_node(operation, [head[-1].output[0], name], [f"{name}_done"]))
    if by_rows:
        head.append(_reshape(graph, head[-1].output[0], (0, height, width, 3)))
        transposed.input[0] = head[-1].output[0]
        head.append(transposed)
    head[-1].output[0] = "image"
    nodes = [*head, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("crop", TensorProto.UINT8, [1, height, width, 3]))


def _reshape(graph: onnx.GraphProto, name: str, shape: tuple[int, ...]) -> onnx.NodeProto:
    """A Reshape node. A 0 in `shape` keeps a dimension as it is."""
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}_shape"))
    return helper.make_node("Reshape", [name, f"{name}_shape"], [f"{name}_reshaped"])
