"""A five-map PIPNet ONNX file as a torch network, for the steps that need torch: weight rounding and TFLite.

The simplified graph is rebuilt node by node as a torch.fx module with real convolution layers. A sample input is
computed along the way, so every shape is known, and the result is compared with ONNX Runtime running the file itself.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pipnet_edge.converters.nets import HEAD_KEYS
from pipnet_edge.errors import CHECK_FAILED, EdgeError

# What an output may be called: the last part of its name decides, its position never does.
OUTPUT_NAMES = {
    "score": ("score", "cls", "outputs_cls"),
    "offset_x": ("offset_x", "x", "outputs_x"),
    "offset_y": ("offset_y", "y", "outputs_y"),
    "neighbor_x": ("neighbor_x", "neighbour_x", "nb_x", "outputs_nb_x"),
    "neighbor_y": ("neighbor_y", "neighbour_y", "nb_y", "outputs_nb_y"),
}
DECODING_OPS = ("ArgMax", "TopK")
OLDEST_OPSET = 9  # from here on BatchNormalization and broadcasting mean what they mean today
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
    """The network in a five-map ONNX file. input_size in pixels is needed where the file leaves its size open.

    Raises EdgeError, one line with the file's name: unreadable or external data, wrong input or outputs, an operator
    without a torch counterpart here, or maps that differ from ONNX Runtime's (code CHECK_FAILED).
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
        if not external:  # the checker follows paths, which an untrusted file is not to choose
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
    except Exception as e:  # its C++ core raises what it likes
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
    """Raises EdgeError where a map is not what ONNX Runtime computes from the original file."""
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
        if not difference <= allowed:  # NaN is not
            raise EdgeError(
                f"output {name!r} differs by {difference:.3g} between torch and ONNX Runtime; allowed: {allowed:.3g}",
                CHECK_FAILED,
            )


T = TypeVar("T")
Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)
Array = NDArray[np.float32]
Pair = tuple[int, int]  # along H, along W
Value = fx.Node | Tensor | None  # computed from the image, constant, or left out
Operator = Callable[["_Op"], Value]
RESERVED = frozenset(dir(fx.GraphModule({}, fx.Graph())))  # a layer cannot be called `train`


def _build(graph: onnx.GraphProto, image: str, outputs: Sequence[str], sample: Tensor) -> fx.GraphModule:
    """The graph as a module that returns `outputs` in this order."""
    net = _Net(sample)
    values = _Values({"": None, image: net.image})
    values.update({tensor.name: _tensor(tensor) for tensor in graph.initializer})
    for node in graph.node:
        op = _Op(node, values, net)
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


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    if kind not in ("float", "int64", "int32", "bool"):
        raise EdgeError(f"its tensor {tensor.name!r} is {kind}; allowed: a float32 network, neither quantized nor half")
    try:
        return torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    except ValueError as e:
        raise EdgeError(f"its tensor {tensor.name!r} does not hold what it says: {e}") from e


class _Net:
    """A torch.fx graph under construction. Each node's `meta["sample"]` is its value for the sample input."""

    def __init__(self, sample: Tensor) -> None:
        self.graph = fx.Graph()
        self.root = fx.GraphModule({}, fx.Graph(), "Pipnet")  # gets its layers in the order they run
        self.names: set[str] = set()
        self.image = self._computed(self.graph.placeholder("image"), sample)

    def layer(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        name = self._free(name)
        self.root.add_submodule(name, module.eval().requires_grad_(False))
        return self._computed(self.graph.call_module(name, (x,)), module(x.meta["sample"]))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(function, args, kwargs)
        return self._computed(node, function(*fx.node.map_arg(args, lambda n: n.meta["sample"]), **kwargs))

    def node(self, value: Value) -> fx.Node:
        """A value as a node; constants become buffers."""
        if isinstance(value, fx.Node):
            return value
        name = self._free(f"constant_{len(self.names)}")
        self.root.register_buffer(name, value)
        return self._computed(self.graph.get_attr(name), value)

    def module(self, value: Value) -> nn.Module | None:
        """The layer that computes a value."""
        if isinstance(value, fx.Node) and value.op == "call_module":
            return self.root.get_submodule(str(value.target))
        return None

    def reshape(self, x: fx.Node, shape: Sequence[int]) -> fx.Node:
        """x in another shape; a reshape there and back again leaves nothing behind."""
        source, target = _unreshaped(x), tuple(x.meta["sample"].reshape(shape).shape)
        return source if _shape(source) == target else self.call(torch.reshape, source, target)

    def finished(self, outputs: Sequence[fx.Node]) -> fx.GraphModule:
        self.graph.output(tuple(outputs))
        for node in self.graph.nodes:
            node.meta.clear()
        self.root.graph = self.graph
        self.root.graph.eliminate_dead_code()
        self.root.delete_all_unused_submodules()
        self.root.recompile()
        return self.root.eval()

    def _free(self, name: str) -> str:
        """A name like this one that no layer has; nor does a layer lie inside another."""
        if any(name.startswith(f"{taken}.") for taken in self.names):
            name = name.replace(".", "_")
        while any(f"{taken}.".startswith(f"{name}.") for taken in self.names):
            name += "_"
        self.names.add(name)
        return name

    @staticmethod
    def _computed(node: fx.Node, sample: Any) -> fx.Node:
        node.meta["sample"] = sample
        return node


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["sample"].shape)


def _unreshaped(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.target is torch.reshape else node
    assert isinstance(source, fx.Node)
    return source


class _Op:
    """One ONNX node with its inputs, and the network it is to be added to."""

    def __init__(self, node: onnx.NodeProto, values: Mapping[str, Value], net: _Net) -> None:
        self.type = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        self.name = node.name or node.output[0]
        self.net = net
        self.inputs = [values[name] for name in node.input]
        self._weight = node.input[1] if len(node.input) > 1 else ""
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def refuse(self, why: str) -> EdgeError:
        return EdgeError(f"{self.type} node {self.name!r} {why}")

    def attr(self, name: str, default: T) -> T:
        value = self._attributes.get(name, default)
        return cast(T, value.decode() if isinstance(value, bytes) else value)

    def only(self, **allowed: object) -> None:
        """Refuses other values of these attributes."""
        for name, value in allowed.items():
            if self.attr(name, value) != value:
                raise self.refuse(f"has {name} {self.attr(name, value)}; allowed: {value}")

    def data(self, rank: int | None = None) -> fx.Node:
        """The first input, which depends on the image."""
        x = self.inputs[0]
        if not isinstance(x, fx.Node) or rank not in (None, len(_shape(x))):
            what = f"shape {_shape(x)}" if isinstance(x, fx.Node) else "a constant"
            raise self.refuse(f"is applied to {what}; allowed: image data of rank {rank or 'any'}")
        return x

    def constant(self, index: int) -> Tensor | None:
        """An input that has to be constant, None where left out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, fx.Node):
            raise self.refuse(f"computes its input {index}; allowed: a constant")
        return value

    def weight(self, index: int, rank: int) -> Tensor:
        value = self.constant(index)
        if value is None or value.ndim != rank:
            raise self.refuse(f"has an input {index} of another rank; allowed: a constant of rank {rank}")
        return value

    def setting(self, name: str, index: int) -> Any:
        """Numbers that older opsets hold in an attribute and newer ones in an input; None where left out."""
        value = self.constant(index)
        return self.attr(name, None) if value is None else value.tolist()

    def layer(self, module: nn.Module, x: fx.Node) -> fx.Node:
        """module(x), named after the weight where that has the checkpoint's name, else after the exporter's path."""
        parts = [p for p in self.name.split("/") if p]
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if self._weight.endswith(".weight"):
                parts = [self._weight.removesuffix(".weight")]
            elif len(parts) > 1:
                parts.pop()  # the operator
        # torch writes layer1/layer1.0/conv1, where a part may repeat the one before.
        parts = [p for p, child in zip(parts, [*parts[1:], ""], strict=True) if not child.startswith(f"{p}.")]
        atoms = [re.sub(r"\W", "_", atom) for part in parts for atom in part.split(".") if atom]
        return self.net.layer(".".join(f"{a}_" if a in RESERVED else a for a in atoms) or self.type, module, x)

    def elementwise(self, module: nn.Module) -> fx.Node:
        """module(x), moved before a reshape, so that the gates of an SE block stay (1, C, 1, 1) throughout."""
        x = self.data()
        return self.net.reshape(self.layer(module, _unreshaped(x)), _shape(x))

    def pair(self, name: str, default: int) -> Pair:
        height, width = self.attr(name, [default, default])
        return height, width

    def window(self, kernel: Pair) -> tuple[Pair, Pair, Pair, Pair]:
        """(stride, dilation, padding before, padding after) of a kernel sliding over the first input."""
        stride, dilation, auto = self.pair("strides", 1), self.pair("dilations", 1), self.attr("auto_pad", "NOTSET")
        top, left, bottom, right = self.attr("pads", [0, 0, 0, 0])
        before, after = (top, left), (bottom, right)
        if auto.startswith("SAME"):
            steps = zip(_shape(self.data(4))[2:], kernel, stride, dilation, strict=True)
            high, wide = (max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in steps)
            less, more = (high // 2, wide // 2), (high - high // 2, wide - wide // 2)
            before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
        return stride, dilation, before, after

    def padded(self, x: fx.Node, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> fx.Node:
        """x with more rows and columns before and after, or fewer where negative."""
        return self.net.call(F.pad, x, (before[1], after[1], before[0], after[0]), value=fill)


def _conv(op: _Op) -> fx.Node:
    x, weight, groups = op.data(4), op.weight(1, 4), op.attr("group", 1)
    out, inner, kernel = weight.shape[0], weight.shape[1], (weight.shape[2], weight.shape[3])
    stride, dilation, pads, after = op.window(kernel)
    if pads != after:
        x, pads = op.padded(x, pads, after), (0, 0)
    layer = nn.Conv2d(inner * groups, out, kernel, stride, pads, dilation, groups, device="meta")
    return op.layer(_filled(layer, weight, op.constant(2)), x)


def _conv_transpose(op: _Op) -> fx.Node:
    op.only(auto_pad="NOTSET", output_shape=None)
    x, weight, groups = op.data(4), op.weight(1, 4), op.attr("group", 1)
    inner, out, kernel = weight.shape[0], weight.shape[1], (weight.shape[2], weight.shape[3])
    stride, dilation, pads, after = op.window(kernel)
    inside = pads if pads == after else (0, 0)
    layer = nn.ConvTranspose2d(
        inner, out * groups, kernel, stride, inside, op.pair("output_padding", 0), groups, True, dilation, device="meta"
    )
    y = op.layer(_filled(layer, weight, op.constant(2)), x)
    return y if pads == after else op.padded(y, [-p for p in pads], [-p for p in after])


def _filled(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    # Copies: layers that share a weight in the file are rounded apart.
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    layer.bias = nn.Parameter(torch.zeros(layer.out_channels) if bias is None else bias.clone())
    return layer


def _linear(op: _Op, weight: Tensor, bias: Tensor | None) -> fx.Node:
    """(n, C) times an (out, C) weight, as a 1x1 convolution on (n, C, 1, 1)."""
    out, inner = weight.shape
    layer = _filled(nn.Conv2d(inner, out, 1, device="meta"), weight[:, :, None, None], bias)
    return op.net.reshape(op.layer(layer, op.net.reshape(op.data(2), (-1, inner, 1, 1))), (-1, out))


def _gemm(op: _Op) -> fx.Node:
    op.only(transA=0)
    weight, bias = op.weight(1, 2), op.constant(2)
    weight = op.attr("alpha", 1.0) * (weight if op.attr("transB", 0) else weight.T)
    if bias is not None:
        bias = (op.attr("beta", 1.0) * bias).broadcast_to(1, len(weight))[0]
    return _linear(op, weight, bias)


def _batch_norm(op: _Op) -> fx.Node:
    op.only(training_mode=0)
    names = ("weight", "bias", "running_mean", "running_var")
    layer = nn.BatchNorm2d(len(op.weight(1, 1)), eps=op.attr("epsilon", 1e-5))
    layer.load_state_dict({name: op.weight(i, 1) for i, name in enumerate(names, 1)}, strict=False)
    return op.layer(layer, op.data(4))


def _clip(op: _Op) -> fx.Node:
    low, high = op.setting("min", 1), op.setting("max", 2)
    if low == 0 and high in (None, 6):
        return op.elementwise(nn.ReLU() if high is None else nn.ReLU6())
    return op.net.call(torch.clamp, op.data(), low, high)


def _hard_sigmoid(op: _Op) -> fx.Node:
    alpha, beta = op.attr("alpha", 0.2), op.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return op.elementwise(nn.Hardsigmoid())
    scaled = op.net.call(operator.mul, op.data(), alpha)
    return op.net.call(torch.clamp, op.net.call(operator.add, scaled, beta), 0.0, 1.0)


def _arithmetic(function: Callable[[Any, Any], Any]) -> Operator:
    def handle(op: _Op) -> fx.Node:
        left, right = op.inputs
        for x, other in ((left, right), (right, left)):
            if isinstance(x, fx.Node) and isinstance(other, Tensor) and other.numel() == 1 >= other.ndim:
                pair = (_unreshaped(x) if value is x else other.item() for value in (left, right))
                return op.net.reshape(op.net.call(function, *pair), _shape(x))
        return op.net.call(function, op.net.node(left), op.net.node(right))

    return handle


def _mul(op: _Op) -> Value:
    """x * hardsigmoid(x) is one Hardswish, which opsets before 14 cannot say: one step to quantize instead of two."""
    left, right = op.inputs
    for x, gate in ((left, right), (right, left)):
        if isinstance(op.net.module(gate), nn.Hardsigmoid) and isinstance(gate, fx.Node) and gate.args[0] is x:
            return op.layer(nn.Hardswish(), cast(fx.Node, x))
    return _arithmetic(operator.mul)(op)


def _div(op: _Op) -> Value:
    """relu6(x + 3) / 6, which the original's MobileNetV3 writes, is one Hardsigmoid."""
    top, six = op.inputs
    if isinstance(top, fx.Node) and isinstance(six, Tensor) and six.numel() == 1 and six.item() == 6:
        relu6 = _unreshaped(top)
        added = relu6.args[0] if isinstance(op.net.module(relu6), nn.ReLU6) else None
        if isinstance(added, fx.Node) and added.target is operator.add and added.args[1] == 3:
            x = cast(fx.Node, added.args[0])
            return op.net.reshape(op.layer(nn.Hardsigmoid(), x), _shape(top))
    return _arithmetic(operator.truediv)(op)


def _reduce_mean(op: _Op) -> fx.Node:
    x = op.data(4)
    if sorted(axis % 4 for axis in op.setting("axes", 1) or ()) != [2, 3]:
        raise op.refuse(f"is over the axes {op.setting('axes', 1)}; allowed: 2 and 3")
    mean = op.layer(nn.AdaptiveAvgPool2d(1), x)
    return mean if op.attr("keepdims", 1) else op.net.reshape(mean, _shape(x)[:2])


def _max_pool(op: _Op) -> fx.Node:
    x, kernel = op.data(4), op.pair("kernel_shape", 1)
    stride, dilation, pads, after = op.window(kernel)
    if pads != after:
        x, pads = op.padded(x, pads, after, float("-inf")), (0, 0)
    return op.layer(nn.MaxPool2d(kernel, stride, pads, dilation, ceil_mode=bool(op.attr("ceil_mode", 0))), x)


def _average_pool(op: _Op) -> fx.Node:
    op.only(dilations=[1, 1])
    x, kernel = op.data(4), op.pair("kernel_shape", 1)
    counts, ceil = bool(op.attr("count_include_pad", 0)), bool(op.attr("ceil_mode", 0))
    stride, _, pads, after = op.window(kernel)
    if pads == after:
        return op.layer(nn.AvgPool2d(kernel, stride, pads, ceil, counts), x)
    pool = nn.AvgPool2d(kernel, stride, 0, ceil)  # counts the explicit padding, which is divided out again
    mean = op.layer(pool, op.padded(x, pads, after))
    inside = pool(F.pad(torch.ones(1, 1, *_shape(x)[2:]), (pads[1], after[1], pads[0], after[0])))
    return mean if counts else op.net.call(operator.truediv, mean, op.net.node(inside))


def _pad(op: _Op) -> fx.Node:
    op.only(mode="constant")
    x, pads = op.data(4), op.setting("pads", 1)
    axes = [axis % 4 for axis in op.setting("axes", 3) or range(4)]
    before, after = [0] * 4, [0] * 4
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    if any(before[:2] + after[:2]):
        raise op.refuse(f"pads by {pads} the axes {axes}; allowed: 2 and 3")
    return op.padded(x, before[2:], after[2:], op.setting("value", 2) or 0.0)


def _reshape(op: _Op) -> fx.Node:
    op.only(allowzero=0)
    x = op.data()
    return op.net.reshape(x, [n or _shape(x)[i] for i, n in enumerate(op.weight(1, 1).tolist())])


def _flatten(op: _Op) -> fx.Node:
    x, axis = op.data(), op.attr("axis", 1)
    return op.net.reshape(x, (int(np.prod(_shape(x)[:axis])), -1))


def _squeeze(op: _Op) -> fx.Node:
    x, axes = op.data(), op.setting("axes", 1)
    sample = x.meta["sample"]
    return op.net.reshape(x, sample.squeeze().shape if axes is None else sample.squeeze(tuple(axes)).shape)


def _unsqueeze(op: _Op) -> fx.Node:
    x, axes = op.data(), op.setting("axes", 1)
    rank, sizes = len(_shape(x)) + len(axes), iter(_shape(x))
    new = {axis % rank for axis in axes}
    return op.net.reshape(x, [1 if i in new else next(sizes) for i in range(rank)])


def _transpose(op: _Op) -> fx.Node:
    x = op.data()
    return op.net.call(torch.permute, x, op.attr("perm", list(range(len(_shape(x))))[::-1]))


def _constant(op: _Op) -> Tensor:
    value = op.attr("value", None)
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    numbers = (op.attr(f"value_{kind}", None) for kind in ("float", "floats", "int", "ints"))
    return torch.tensor(next((n for n in numbers if n is not None), None))


OPS: dict[str, Operator] = {
    "Add": _arithmetic(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda op: op.net.call(torch.cat, [op.net.node(v) for v in op.inputs], op.attr("axis", 0)),
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda op: op.layer(nn.AdaptiveAvgPool2d(1), op.data(4)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda op: op.elementwise(nn.Hardswish()),
    "Identity": lambda op: op.inputs[0],
    "MatMul": lambda op: _linear(op, op.weight(1, 2).T, None),
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": lambda op: op.elementwise(nn.ReLU()),
    "Reshape": _reshape,
    "Sigmoid": lambda op: op.elementwise(nn.Sigmoid()),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(operator.sub),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
