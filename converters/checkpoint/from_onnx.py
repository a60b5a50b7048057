"""A five-map PIPNet ONNX file as a torch network, for the steps that need torch: weight rounding and TFLite.

The simplified graph is rebuilt node by node as a torch.fx module with real convolution layers. A sample input is
computed along the way, so every shape is known. The result is compared with what ONNX Runtime computes from the file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint.nets import HEAD_KEYS
from pipnet_edge.converters.checkpoint.onnx_graph import Net, Op, Value, tensor_of
from pipnet_edge.converters.checkpoint.onnx_ops import OPS
from pipnet_edge.errors import CHECK_FAILED, EdgeError

# The names that an output may have. The last part of its name decides, never its position.
OUTPUT_NAMES = {
    "score": ("score", "cls", "outputs_cls"),
    "offset_x": ("offset_x", "x", "outputs_x"),
    "offset_y": ("offset_y", "y", "outputs_y"),
    "neighbor_x": ("neighbor_x", "neighbour_x", "nb_x", "outputs_nb_x"),
    "neighbor_y": ("neighbor_y", "neighbour_y", "nb_y", "outputs_nb_y"),
}
DECODING_OPS = ("ArgMax", "TopK")
OLDEST_OPSET = 9  # from here on BatchNormalization and broadcasting mean what they mean today
Array = NDArray[np.float32]
TOLERANCE = 1e-4  # of each map's largest magnitude, against ONNX Runtime


@dataclass(frozen=True)
class OnnxNet:
    """A network read from ONNX.

    net: (1, 3, S, S) float32 normalised RGB -> the five maps in the order of nets.HEAD_KEYS: score, offset_x, offset_y
    (1, L, H, H), neighbor_x, neighbor_y (1, L*N, H, H), H = S / net_stride. A torch.fx.GraphModule in eval mode, its
    layers named after the file's. num_lms L, num_nb N; net_stride and input_size S in pixels.
    """

    net: nn.Module
    num_lms: int
    num_nb: int
    net_stride: int
    input_size: int


def read(path: Path, input_size: int | None = None) -> OnnxNet:
    """The network in a five-map ONNX file. input_size in pixels is needed if the file leaves its size open.

    Raises EdgeError, one line with the file's name, for unreadable or external data, wrong input or outputs, an
    operator without a torch counterpart here, or maps that differ from ONNX Runtime's (code CHECK_FAILED).
    """
    try:
        return _read(path, input_size)
    except EdgeError as e:
        raise EdgeError(f"{path}: {e}", e.code) from e


def _read(path: Path, input_size: int | None) -> OnnxNet:
    data, model = _load(path)
    outputs = _bind_outputs(model.graph)
    image, size = _bind_input(model.graph, input_size)
    sample = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    with torch.no_grad():
        net = _build(_simplify(model, image, size), image, tuple(outputs.values()), torch.from_numpy(sample))
        maps = [m.numpy() for m in net(torch.from_numpy(sample))]
    num_lms, num_nb, grid = _layout(dict(zip(outputs, (m.shape for m in maps), strict=True)), size)
    _verify(dict(zip(outputs.values(), maps, strict=True)), data, image, sample)
    return OnnxNet(net, num_lms, num_nb, size // grid, size)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load(path: Path) -> tuple[bytes, onnx.ModelProto]:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise EdgeError(f"cannot be read: {e.strerror}") from e
    try:
        model = onnx.load_model_from_string(data)
        external = [m for m in _messages(model) if isinstance(m, onnx.TensorProto) and m.data_location]
        if not external:  # the checker follows paths, and an untrusted file must not choose them
            onnx.checker.check_model(model)
    except Exception as e:  # protobuf's and the checker's errors share no base class
        raise EdgeError(f"not a readable ONNX file: {_first_line(e)}") from e
    if external:
        raise EdgeError(
            f"{len(external)} of its tensors, such as {external[0].name!r}, lie in other files; allowed: one ONNX file "
            "that holds all of its weights"
        )
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise EdgeError(f"its opset is {opset}; allowed: {OLDEST_OPSET} and newer")
    return data, model


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all messages inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(inner)


def _bind_outputs(graph: onnx.GraphProto) -> dict[str, str]:
    """The name of each map's output, in the order of HEAD_KEYS."""
    found = [o.name for o in graph.output]
    bound = {key: [n for n in found if re.split(r"[/.:]", n)[-1] in OUTPUT_NAMES[key]] for key in HEAD_KEYS}
    matched = sum(map(len, bound.values()))
    decoding = next((f"a node {n.op_type}" for n in graph.node if n.op_type in DECODING_OPS), None)
    if decoding or (len(found) <= 2 and not matched):
        raise EdgeError(
            f"this ONNX already decodes ({decoding or 'its only outputs are ' + ', '.join(found)}); export the network "
            "without decoding, with its five maps as outputs"
        )
    if matched != len(found) or any(len(names) != 1 for names in bound.values()):
        allowed = "; ".join(", ".join(names) for names in OUTPUT_NAMES.values())
        raise EdgeError(f"its outputs are {', '.join(found)}; needed is exactly one of each of: {allowed}")
    return {key: names[0] for key, names in bound.items()}


def _bind_input(graph: onnx.GraphProto, input_size: int | None) -> tuple[str, int]:
    """The image input's name and its size S, from the file or else from input_size."""
    weights = {t.name for t in graph.initializer}
    images = [i for i in graph.input if i.name not in weights]
    if len(images) != 1:
        raise EdgeError(f"its inputs are {', '.join(i.name for i in images) or 'none'}; allowed: one image")
    tensor = images[0].type.tensor_type
    shape = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    given = f"its input is {kind} ({', '.join('?' if n is None else str(n) for n in shape)})"
    sizes = {n for n in shape[2:] if n is not None}
    if kind != "float" or len(shape) != 4 or shape[0] not in (1, None) or shape[1] not in (3, None) or len(sizes) > 1:
        raise EdgeError(f"{given}; needed is float (1, 3, S, S)")
    if not sizes and not (input_size and 0 < input_size <= 4096):
        got = "" if input_size is None else f", not {input_size}"
        raise EdgeError(f"{given}, of any size: give the one it was trained for as --input-size, up to 4096{got}")
    size = min(sizes or {input_size or 0})
    if input_size not in (None, size):
        raise EdgeError(f"{given}, --input-size is {input_size}; allowed: {size}, or leaving the option out")
    return images[0].name, size


def _simplify(model: onnx.ModelProto, image: str, size: int) -> onnx.GraphProto:
    shapes = {image: [1, 3, size, size]}
    try:
        with redirect_stdout(sys.stderr):  # stdout is for data
            simple, _ = onnxsim.simplify(model, overwrite_input_shapes=shapes)
    except Exception as e:  # its C++ core may raise anything
        raise EdgeError(f"onnxsim cannot simplify it for an input of (1, 3, {size}, {size}): {_first_line(e)}") from e
    return cast(onnx.GraphProto, simple.graph)


def _layout(shapes: Mapping[str, tuple[int, ...]], size: int) -> tuple[int, int, int]:
    """(L, N, cells along a side) of the five maps' shapes."""
    score, neighbor = shapes["score"], shapes["neighbor_x"]
    if (
        any(len(s) != 4 or s[0] != 1 or s[2:] != score[2:] for s in shapes.values())
        or not score == shapes["offset_x"] == shapes["offset_y"]
        or neighbor != shapes["neighbor_y"]
        or neighbor[1] % score[1]
        or score[2] != score[3]
        or size % score[2]
    ):
        given = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise EdgeError(
            f"its maps are {given}; needed are three (1, L, H, H) and two (1, L*N, H, H), where H divides the input's "
            f"{size}"
        )
    return score[1], neighbor[1] // score[1], score[2]


def _verify(maps: Mapping[str, Array], data: bytes, image: str, sample: Array) -> None:
    """Raises EdgeError if a map is not what ONNX Runtime computes from the original file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        expected = session.run(list(maps), {image: sample})
    except Exception as e:  # onnxruntime's errors share no base class
        raise EdgeError(f"ONNX Runtime cannot run it: {_first_line(e)}") from e
    for (name, got), want in zip(maps.items(), expected, strict=True):
        if not np.isfinite(want).all():
            raise EdgeError(f"output {name!r} is NaN or infinite in ONNX Runtime itself", CHECK_FAILED)
        allowed = TOLERANCE * float(np.abs(want).max())
        difference = float(np.abs(want - got).max()) if want.shape == got.shape else float("inf")
        if not difference <= allowed:  # NaN fails too
            raise EdgeError(
                f"output {name!r} differs by {difference:.3g} between torch and ONNX Runtime; allowed: {allowed:.3g}",
                CHECK_FAILED,
            )


def _build(graph: onnx.GraphProto, image: str, outputs: Sequence[str], sample: Tensor) -> fx.GraphModule:
    """The graph as a module that returns `outputs` in this order."""
    net = Net(sample)
    values = _Values({"": None, image: net.image})
    values.update({tensor.name: tensor_of(tensor) for tensor in graph.initializer})
    for node in graph.node:
        op = Op(node, values, net)
        if op.type not in OPS:
            raise op.refuse(f"has no counterpart here; supported: {', '.join(OPS)}")
        try:
            values[node.output[0]] = OPS[op.type](op)
        except (RuntimeError, ValueError, IndexError, TypeError) as e:  # numbers that torch does not take
            raise op.refuse(f"cannot be built in torch: {_first_line(e)}") from e
    return net.finished([net.node(values[name]) for name in outputs])


class _Values(dict[str, Value]):
    """The graph's values by name."""

    def __missing__(self, name: str) -> Value:
        raise EdgeError(f"its graph uses {name!r}; allowed: dense weights and the first output of each node")
