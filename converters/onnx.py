"""The ONNX Runtime variant: the core with the uint8 crop as input and the normalization inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipnet_edge.converters.export import Core
from pipnet_edge.spec import ModelSpec

TOOLS = ("torch", "onnx", "onnxsim")


def convert(core: Core, precision: str, folder: Path) -> None:
    """Writes `model.onnx` into `folder`: input `crop` (1, S, S, 3) uint8 RGB, outputs named as the core's."""
    model = onnx.load(core.path)
    take_crops(model, core.spec)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def take_crops(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Puts the normalization before a core model, in place: its input becomes `crop` (1, S, S, 3) uint8 RGB."""
    graph = model.graph
    image = "crop_float"
    head = [
        # uint8 is moved before it is widened: a quarter of the bytes.
        helper.make_node("Transpose", ["crop"], ["crop_chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["crop_chw"], [image], to=TensorProto.FLOAT),
    ]
    steps = (
        ("Sub", "crop_mean", [255.0 * m for m in spec.mean], 0.0),
        ("Mul", "crop_scale", [1.0 / (255.0 * s) for s in spec.std], 1.0),
    )
    for operation, name, numbers, neutral in steps:
        values = np.array(numbers, np.float32).reshape(3, 1, 1)
        if (values != neutral).any():
            graph.initializer.append(numpy_helper.from_array(values, name))
            head.append(helper.make_node(operation, [image, name], [f"{name}_done"]))
            image = f"{name}_done"
    head[-1].output[0] = "image"
    nodes = [*head, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    side = spec.input_size
    graph.input.append(helper.make_tensor_value_info("crop", TensorProto.UINT8, [1, side, side, 3]))
