"""A torch.fx graph under construction, and one ONNX node as the operators of onnx_ops see it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from pipnet_edge.converters.checkpoint.onnx_form import LARGEST_TENSOR
from pipnet_edge.errors import EdgeError

T = TypeVar("T")
Pair = tuple[int, int]  # along H, along W
Value = fx.Node | Tensor | None  # computed from the image, constant, or left out
Operator = Callable[["Op"], Value]
RESERVED = frozenset(dir(fx.GraphModule({}, fx.Graph())))  # a layer cannot be called `train`


def tensor_of(tensor: onnx.TensorProto) -> Tensor:
    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    if kind not in ("float", "int64", "int32", "bool"):
        raise EdgeError(f"its tensor {tensor.name!r} is {kind}; allowed: a float32 network, neither quantized nor half")
    try:
        return torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    except ValueError as e:
        raise EdgeError(f"its tensor {tensor.name!r} does not hold what it says: {e}") from e


class Net:
    """A torch.fx graph under construction. Each node's `meta["sample"]` is a tensor without data that has its shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.graph = fx.Graph()
        self.root = fx.GraphModule({}, fx.Graph(), "Pipnet")  # gets its layers in the order they run
        self.names: set[str] = set()
        self.image = self._computed(self.graph.placeholder("image"), torch.empty(shape, device="meta"))

    def layer(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        name = self._free(name)
        self.root.add_submodule(name, module.eval().requires_grad_(False))
        state = {key: value.to("meta") for key, value in module.state_dict().items()}
        sample = functional_call(module, state, (x.meta["sample"],))
        return self._computed(self.graph.call_module(name, (x,)), sample)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(function, args, kwargs)
        return self._computed(node, function(*fx.node.map_arg(args, lambda n: n.meta["sample"]), **kwargs))

    def node(self, value: Value) -> fx.Node:
        """A value as a node; constants become buffers."""
        if isinstance(value, fx.Node):
            return value
        name = self._free(f"constant_{len(self.names)}")
        self.root.register_buffer(name, value)
        return self._computed(self.graph.get_attr(name), None if value is None else value.to("meta"))

    def module(self, value: Value) -> nn.Module | None:
        """The layer that computes a value."""
        if isinstance(value, fx.Node) and value.op == "call_module":
            return self.root.get_submodule(str(value.target))
        return None

    def reshape(self, x: fx.Node, shape: Sequence[int]) -> fx.Node:
        """x in another shape. Two reshapes that undo each other leave no node."""
        source, target = unreshaped(x), tuple(x.meta["sample"].reshape(shape).shape)
        return source if shape_of(source) == target else self.call(torch.reshape, source, target)

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
        """A name like this one that no layer has, and that puts no layer inside another."""
        if any(name.startswith(f"{taken}.") for taken in self.names):
            name = name.replace(".", "_")
        while any(f"{taken}.".startswith(f"{name}.") for taken in self.names):
            name += "_"
        self.names.add(name)
        return name

    @staticmethod
    def _computed(node: fx.Node, sample: Any) -> fx.Node:
        if isinstance(sample, Tensor) and sample.numel() > LARGEST_TENSOR:
            raise EdgeError(f"its layer {node.name!r} gives {sample.numel()} numbers; allowed are {LARGEST_TENSOR}")
        node.meta["sample"] = sample
        return node


def shape_of(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["sample"].shape)


def unreshaped(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.target is torch.reshape else node
    assert isinstance(source, fx.Node)
    return source


class Op:
    """One ONNX node with its inputs, and the network it is to be added to."""

    def __init__(self, node: onnx.NodeProto, values: Mapping[str, Value], net: Net) -> None:
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
        if not isinstance(x, fx.Node) or rank not in (None, len(shape_of(x))):
            what = f"shape {shape_of(x)}" if isinstance(x, fx.Node) else "a constant"
            raise self.refuse(f"is applied to {what}; allowed: image data of rank {rank or 'any'}")
        return x

    def constant(self, index: int) -> Tensor | None:
        """An input that has to be constant. None if it is left out."""
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
        """Numbers that older opsets hold in an attribute and newer ones in an input. None if they are left out."""
        value = self.constant(index)
        return self.attr(name, None) if value is None else value.tolist()

    def layer(self, module: nn.Module, x: fx.Node) -> fx.Node:
        """module(x), named after the weight if that has the checkpoint's name, else after the exporter's path."""
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
        return self.net.reshape(self.layer(module, unreshaped(x)), shape_of(x))

    def pair(self, name: str, default: int) -> Pair:
        height, width = self.attr(name, [default, default])
        return height, width

    def window(self, kernel: Pair) -> tuple[Pair, Pair, Pair, Pair]:
        """(stride, dilation, padding before, padding after) of a kernel sliding over the first input."""
        stride, dilation, auto = self.pair("strides", 1), self.pair("dilations", 1), self.attr("auto_pad", "NOTSET")
        top, left, bottom, right = self.attr("pads", [0, 0, 0, 0])
        before, after = (top, left), (bottom, right)
        if auto.startswith("SAME"):
            steps = zip(shape_of(self.data(4))[2:], kernel, stride, dilation, strict=True)
            high, wide = (max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in steps)
            less, more = (high // 2, wide // 2), (high - high // 2, wide - wide // 2)
            before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
        return stride, dilation, before, after

    def padded(self, x: fx.Node, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> fx.Node:
        """x with more rows and columns before and after, or fewer for negative numbers."""
        return self.net.call(F.pad, x, (before[1], after[1], before[0], after[0]), value=fill)
