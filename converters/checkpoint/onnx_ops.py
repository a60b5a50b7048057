"""Each ONNX operator in torch: one small function each, in the table OPS."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint.onnx_graph import Op, Operator, shape_of, tensor_of, unreshaped

Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)


def _conv(op: Op) -> fx.Node:
    x, weight, groups = op.data(4), op.weight(1, 4), op.attr("group", 1)
    out, inner, kernel = weight.shape[0], weight.shape[1], (weight.shape[2], weight.shape[3])
    stride, dilation, pads, after = op.window(kernel)
    if pads != after:
        x, pads = op.padded(x, pads, after), (0, 0)
    layer = nn.Conv2d(inner * groups, out, kernel, stride, pads, dilation, groups, device="meta")
    return op.layer(_filled(layer, weight, op.constant(2)), x)


def _conv_transpose(op: Op) -> fx.Node:
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
    # Copies: layers that share a weight in the file are rounded separately.
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    layer.bias = nn.Parameter(torch.zeros(layer.out_channels) if bias is None else bias.clone())
    return layer


def _linear(op: Op, weight: Tensor, bias: Tensor | None) -> fx.Node:
    """(n, C) times an (out, C) weight, as a 1x1 convolution on (n, C, 1, 1)."""
    out, inner = weight.shape
    layer = _filled(nn.Conv2d(inner, out, 1, device="meta"), weight[:, :, None, None], bias)
    return op.net.reshape(op.layer(layer, op.net.reshape(op.data(2), (-1, inner, 1, 1))), (-1, out))


def _gemm(op: Op) -> fx.Node:
    op.only(transA=0)
    weight, bias = op.weight(1, 2), op.constant(2)
    weight = op.attr("alpha", 1.0) * (weight if op.attr("transB", 0) else weight.T)
    if bias is not None:
        bias = (op.attr("beta", 1.0) * bias).broadcast_to(1, len(weight))[0]
    return _linear(op, weight, bias)


def _batch_norm(op: Op) -> fx.Node:
    op.only(training_mode=0)
    names = ("weight", "bias", "running_mean", "running_var")
    layer = nn.BatchNorm2d(len(op.weight(1, 1)), eps=op.attr("epsilon", 1e-5))
    layer.load_state_dict({name: op.weight(i, 1) for i, name in enumerate(names, 1)}, strict=False)
    return op.layer(layer, op.data(4))


def _clip(op: Op) -> fx.Node:
    low, high = op.setting("min", 1), op.setting("max", 2)
    if low == 0 and high in (None, 6):
        return op.elementwise(nn.ReLU() if high is None else nn.ReLU6())
    if None not in (low, high) and low < high:
        return op.elementwise(nn.Hardtanh(low, high))
    return op.net.call(torch.clamp, op.data(), low, high)


def _hard_sigmoid(op: Op) -> fx.Node:
    alpha, beta = op.attr("alpha", 0.2), op.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return op.elementwise(nn.Hardsigmoid())
    scaled = op.net.call(operator.mul, op.data(), alpha)
    return op.net.call(torch.clamp, op.net.call(operator.add, scaled, beta), 0.0, 1.0)


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Op], fx.Node]:
    def handle(op: Op) -> fx.Node:
        left, right = op.inputs
        for x, other in ((left, right), (right, left)):
            if isinstance(x, fx.Node) and isinstance(other, Tensor) and other.numel() == 1 >= other.ndim:
                pair = (unreshaped(x) if value is x else other.item() for value in (left, right))
                return op.net.reshape(op.net.call(function, *pair), shape_of(x))
        return op.net.call(function, op.net.node(left), op.net.node(right))

    return handle


def _prelu(op: Op) -> fx.Node:
    slope, channels = op.constant(1), shape_of(op.data())[1]
    if slope is None or slope.numel() not in (1, channels):
        given = "nothing" if slope is None else f"the shape {tuple(slope.shape)}"
        raise op.refuse(f"has a slope of {given}; allowed: one, or one for each of {channels} channels")
    layer = nn.PReLU(slope.numel())
    layer.weight = nn.Parameter(slope.flatten().clone())
    return op.elementwise(layer)


def _scaled(value: fx.Node) -> tuple[float, fx.Node]:
    """A value as a number times a node."""
    number, node = 1.0, unreshaped(value)
    while node.target in (operator.mul, operator.truediv):
        constants = [arg for arg in node.args if isinstance(arg, float | int)]
        if len(constants) != 1 or (node.target is operator.truediv and node.args[1] in (0, *node.all_input_nodes)):
            break
        number = number * constants[0] if node.target is operator.mul else number / constants[0]
        node = unreshaped(node.all_input_nodes[0])
    return number, node


@dataclass(frozen=True)
class _Gate:
    """A node that is `scale` times a function of x from 0 to 1. swish: the activation that is x times that function.

    alone: the function itself, if nodes have to be replaced to get it.
    """

    x: fx.Node
    scale: float
    swish: nn.Module
    alone: nn.Module | None = None


def _is_one(number: float) -> bool:
    return abs(number - 1) < 1e-4


def _gate(op: Op, node: fx.Node) -> _Gate | None:
    layer = op.net.module(node)
    before = node.all_input_nodes[0] if node.all_input_nodes else node
    if isinstance(layer, nn.Hardsigmoid):
        return _Gate(before, 1.0, nn.Hardswish())
    if isinstance(layer, nn.ReLU6) and before.target is operator.add and 3 in before.args:
        return _Gate(before.all_input_nodes[0], 6.0, nn.Hardswish(), nn.Hardsigmoid())
    if isinstance(layer, nn.Sigmoid):
        return _Gate(before, 1.0, nn.SiLU())
    if isinstance(layer, nn.Tanh) and isinstance(op.net.module(before), nn.Softplus):
        return _Gate(before.all_input_nodes[0], 1.0, nn.Mish())
    return None


def _product(function: Callable[[Any, Any], Any]) -> Operator:
    """A product or quotient. One that is a whole activation, as older opsets write it, becomes one layer."""

    def handle(op: Op) -> fx.Node:
        made = _arithmetic(function)(op)
        number, node = _scaled(made)
        args = node.args if node.target is operator.mul else (node,)
        factors = [_scaled(arg) for arg in args if isinstance(arg, fx.Node)]
        number *= math.prod(scale for scale, _ in factors)
        nodes = [factor for _, factor in factors]
        for *others, last in (nodes, nodes[::-1]):
            gate = _gate(op, last)
            if gate and _is_one(number * gate.scale) and others in ([], [gate.x]):
                layer = gate.swish if others else gate.alone
                return op.net.reshape(op.layer(layer, gate.x), shape_of(made)) if layer else made
        return made

    return handle


def _reduce_mean(op: Op) -> fx.Node:
    x = op.data(4)
    if sorted(axis % 4 for axis in op.setting("axes", 1) or ()) != [2, 3]:
        raise op.refuse(f"is over the axes {op.setting('axes', 1)}; allowed: 2 and 3")
    mean = op.layer(nn.AdaptiveAvgPool2d(1), x)
    return mean if op.attr("keepdims", 1) else op.net.reshape(mean, shape_of(x)[:2])


def _max_pool(op: Op) -> fx.Node:
    x, kernel = op.data(4), op.pair("kernel_shape", 1)
    stride, dilation, pads, after = op.window(kernel)
    if pads != after:
        x, pads = op.padded(x, pads, after, float("-inf")), (0, 0)
    return op.layer(nn.MaxPool2d(kernel, stride, pads, dilation, ceil_mode=bool(op.attr("ceil_mode", 0))), x)


def _average_pool(op: Op) -> fx.Node:
    op.only(dilations=[1, 1])
    x, kernel = op.data(4), op.pair("kernel_shape", 1)
    counts, ceil = bool(op.attr("count_include_pad", 0)), bool(op.attr("ceil_mode", 0))
    stride, _, pads, after = op.window(kernel)
    if pads == after:
        return op.layer(nn.AvgPool2d(kernel, stride, pads, ceil, counts), x)
    pool = nn.AvgPool2d(kernel, stride, 0, ceil)  # counts the explicit padding; the last line corrects that
    mean = op.layer(pool, op.padded(x, pads, after))
    inside = pool(F.pad(torch.ones(1, 1, *shape_of(x)[2:]), (pads[1], after[1], pads[0], after[0])))
    return mean if counts else op.net.call(operator.truediv, mean, op.net.node(inside))


def _pad(op: Op) -> fx.Node:
    op.only(mode="constant")
    x, pads = op.data(4), op.setting("pads", 1)
    axes = [axis % 4 for axis in op.setting("axes", 3) or range(4)]
    before, after = [0] * 4, [0] * 4
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    if any(before[:2] + after[:2]):
        raise op.refuse(f"pads by {pads} the axes {axes}; allowed: 2 and 3")
    return op.padded(x, before[2:], after[2:], op.setting("value", 2) or 0.0)


def _reshape(op: Op) -> fx.Node:
    op.only(allowzero=0)
    x = op.data()
    return op.net.reshape(x, [n or shape_of(x)[i] for i, n in enumerate(op.weight(1, 1).tolist())])


def _flatten(op: Op) -> fx.Node:
    x, axis = op.data(), op.attr("axis", 1)
    return op.net.reshape(x, (int(np.prod(shape_of(x)[:axis])), -1))


def _squeeze(op: Op) -> fx.Node:
    x, axes = op.data(), op.setting("axes", 1)
    sample = x.meta["sample"]
    return op.net.reshape(x, sample.squeeze().shape if axes is None else sample.squeeze(tuple(axes)).shape)


def _unsqueeze(op: Op) -> fx.Node:
    x, axes = op.data(), op.setting("axes", 1)
    rank, sizes = len(shape_of(x)) + len(axes), iter(shape_of(x))
    new = {axis % rank for axis in axes}
    return op.net.reshape(x, [1 if i in new else next(sizes) for i in range(rank)])


def _transpose(op: Op) -> fx.Node:
    x = op.data()
    return op.net.call(torch.permute, x, op.attr("perm", list(range(len(shape_of(x))))[::-1]))


def _constant(op: Op) -> Tensor:
    value = op.attr("value", None)
    if isinstance(value, onnx.TensorProto):
        return tensor_of(value)
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
    "Div": _product(operator.truediv),
    "Elu": lambda op: op.elementwise(nn.ELU(op.attr("alpha", 1.0))),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda op: op.layer(nn.AdaptiveAvgPool2d(1), op.data(4)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda op: op.elementwise(nn.Hardswish()),
    "Identity": lambda op: op.inputs[0],
    "LeakyRelu": lambda op: op.elementwise(nn.LeakyReLU(op.attr("alpha", 0.01))),
    "MatMul": lambda op: _linear(op, op.weight(1, 2).T, None),
    "MaxPool": _max_pool,
    "Mish": lambda op: op.elementwise(nn.Mish()),
    "Mul": _product(operator.mul),
    "Pad": _pad,
    "PRelu": _prelu,
    "ReduceMean": _reduce_mean,
    "Relu": lambda op: op.elementwise(nn.ReLU()),
    "Reshape": _reshape,
    "Sigmoid": lambda op: op.elementwise(nn.Sigmoid()),
    "Softplus": lambda op: op.elementwise(nn.Softplus()),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(operator.sub),
    "Tanh": lambda op: op.elementwise(nn.Tanh()),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
