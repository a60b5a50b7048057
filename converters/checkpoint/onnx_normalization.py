"""Notices the normalization that some networks bring in their graph, which must not be done twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pipnet_edge.converters.checkpoint import onnx_form
from pipnet_edge.converters.checkpoint.onnx_form import CHANNELS

Array = NDArray[Any]


def notes(graph: onnx.GraphProto, image: str, axis: int) -> list[str]:
    """A note if a network begins with a normalization of its own. image: its input; axis: that of its channels."""
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        for value in node.attribute if node.op_type == "Constant" else ():
            if value.name == "value":
                constants[node.output[0]] = numpy_helper.to_array(value.t)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    at = image
    scale, shift = np.ones(CHANNELS), np.zeros(CHANNELS)  # what has been done to the image so far
    while len(readers.get(at, ())) == 1:
        node = readers[at][0]
        if order := onnx_form.perm(node):
            axis = order.index(axis)
        elif node.op_type not in ("Identity", "Cast"):
            step = _affine(node, at, constants, axis)
            if step is None:
                break
            scale, shift = scale * step[0], shift * step[0] + step[1]
        at = node.output[0]
    if not scale.all() or ((scale == 1).all() and not shift.any()):
        return []
    mean, std = -shift / scale + 0.0, 1 / scale  # no minus zero
    is_pixels = bool(max(np.abs(mean).max(), np.abs(std).max()) > 2)
    right = "--mean 0,0,0 --std " + (",".join([f"{1 / 255:.8f}"] * 3) if is_pixels else "1,1,1")
    return [
        f"its graph normalises by itself, (x - {_numbers(mean)}) / {_numbers(std)}, as for pixels in "
        f"[0, {255 if is_pixels else 1}]; with {right} nothing is done twice"
    ]


def _affine(node: onnx.NodeProto, at: str, constants: Mapping[str, Array], axis: int) -> tuple[Array, Array] | None:
    """(scale, shift) by channel of a node that scales or shifts the image `at`, None for other nodes."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    is_left = node.input[0] == at
    value = constants.get(node.input[1] if is_left else node.input[0])
    if value is None or value.size not in (1, CHANNELS) or value.ndim > 4:
        return None
    if value.size == CHANNELS and value.reshape((1,) * (4 - value.ndim) + value.shape).shape[axis] != CHANNELS:
        return None
    by = np.broadcast_to(value.reshape(-1).astype(np.float64), CHANNELS)
    one, nothing = np.ones(CHANNELS), np.zeros(CHANNELS)
    steps = {
        "Add": (one, by),
        "Sub": (one, -by) if is_left else (-one, by),
        "Mul": (by, nothing),
        "Div": (1 / by, nothing) if is_left and by.all() else None,
    }
    return steps[node.op_type]


def _numbers(values: Array) -> str:
    return ",".join(f"{value:.4g}" for value in values)
