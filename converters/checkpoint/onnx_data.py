"""The tensors of a foreign ONNX file: those that lie in other files, and those of half precision or quantized."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipnet_edge.errors import EdgeError

OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all messages inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from messages(inner)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (m for m in messages(model) if isinstance(m, TensorProto))


def outside(model: onnx.ModelProto, folder: Path) -> list[tuple[onnx.TensorProto, Path]]:
    """The tensors whose data lie in other files, and those files. None is opened.

    Raises EdgeError for a file that is not there, is none, or lies outside of the folder of the ONNX file.
    """
    files: dict[str, Path] = {}
    found = []
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            location = _stated(tensor).get("location", "")
            if location not in files:
                files[location] = _beside(folder, location, tensor.name)
            found.append((tensor, files[location]))
    return found


def embed(tensor: onnx.TensorProto, file: Path) -> None:
    """Reads a tensor's data into the tensor. Raises EdgeError unless the file has all of them."""
    stated, size = _stated(tensor), file.stat().st_size
    try:
        needed = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        offset = int(stated.get("offset", "0"))
        length = int(stated.get("length", str(size - offset if len(stated) == 1 else needed)))
    except (KeyError, TypeError, ValueError):
        raise EdgeError(f"its tensor {tensor.name!r} says no plain place in its data file {file.name}") from None
    if not (0 <= offset <= size and length == needed >= 0 and needed <= size - offset):
        raise EdgeError(
            f"its tensor {tensor.name!r} is {length} bytes at {offset} of its data file {file.name}, which has {size}; "
            f"needed are {needed} bytes"
        )
    try:
        with file.open("rb") as data:
            data.seek(offset)
            tensor.raw_data = data.read(needed)
    except OSError as e:
        raise EdgeError(f"its data file {file.name} cannot be read: {e.strerror}") from e
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT


def check(model: onnx.ModelProto) -> None:
    """Raises EdgeError for a quantized network, and for tensors that do not hold what they say."""
    for node in messages(model):
        if isinstance(node, onnx.NodeProto) and (node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear")):
            raise EdgeError(
                f"it is quantized already (a node {node.op_type}); needed is the float network that it was made from"
            )
    for tensor in tensors(model):
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as e:
            raise EdgeError(f"its tensor {tensor.name!r} does not hold what it says: {e}") from e


def is_half(model: onnx.ModelProto) -> bool:
    """Whether the network computes in another float than float32, anywhere."""
    return any(tensor.data_type in OTHER_FLOATS for tensor in tensors(model)) or any(
        isinstance(m, onnx.TypeProto.Tensor) and m.elem_type in OTHER_FLOATS for m in messages(model.graph)
    )


def to_float32(model: onnx.ModelProto) -> None:
    """Makes all weights, casts, inputs and outputs of other floats float32, in place."""
    for message in messages(model):
        if isinstance(message, TensorProto) and message.data_type in OTHER_FLOATS:
            value = numpy_helper.to_array(message).astype(np.float32)
            message.CopyFrom(numpy_helper.from_array(value, message.name))
        elif isinstance(message, onnx.TypeProto.Tensor) and message.elem_type in OTHER_FLOATS:
            message.elem_type = TensorProto.FLOAT
        elif isinstance(message, onnx.NodeProto) and message.op_type == "Cast":
            for attribute in message.attribute:
                if attribute.name == "to" and attribute.i in OTHER_FLOATS:
                    attribute.i = TensorProto.FLOAT


def _stated(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data if entry.key != "checksum"}


def _beside(folder: Path, location: str, tensor: str) -> Path:
    """The data file at a path that the ONNX file states."""
    path = folder / location
    what = f"its tensor {tensor!r} lies in another file, {location[:100]!r}"
    if not location or "\\" in location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise EdgeError(f"{what}; allowed: a file in the same folder")
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        is_there = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no system takes, or links in a circle
        inside, is_there = True, False
    if not inside:
        raise EdgeError(f"{what}, a link out of the folder; allowed: a file in the same folder")
    if not is_there:
        raise EdgeError(f"{what}, which is not there: it has to lie beside the ONNX file")
    return path
