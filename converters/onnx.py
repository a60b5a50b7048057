"""The ONNX Runtime variant: the core with the uint8 crop as input and the normalization inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipnet_edge.converters.export import Core

TOOLS = ("torch", "onnx", "onnxsim")


def convert(core: Core, precision: str, folder: Path) -> None:
    """Writes `model.onnx` into `folder`: input `crop` (1, S, S, 3) uint8 RGB, outputs named as the maps."""
    model = onnx.load(core.path)
    graph = model.graph
    constants = {
        "crop_mean": np.array([255.0 * m for m in core.spec.mean], np.float32).reshape(3, 1, 1),
        "crop_scale": np.array([1.0 / (255.0 * s) for s in core.spec.std], np.float32).reshape(3, 1, 1),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    head = [
        # uint8 is moved before it is widened: a quarter of the bytes.
        helper.make_node("Transpose", ["crop"], ["crop_chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["crop_chw"], ["crop_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["crop_float", "crop_mean"], ["crop_centred"]),
        helper.make_node("Mul", ["crop_centred", "crop_scale"], ["image"]),
    ]
    nodes = [*head, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    side = core.spec.input_size
    graph.input.append(helper.make_tensor_value_info("crop", TensorProto.UINT8, [1, side, side, 3]))
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
