"""Each ONNX operator in torch: one small function each, in the table OPS."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint.onnx_graph import Op, Operator, Value, shape_of, tensor_of, unreshaped

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
    return op.net.call(torch.clamp, op.data(), low, high)


def _hard_sigmoid(op: Op) -> fx.Node:
    alpha, beta = op.attr("alpha", 0.2), op.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return op.elementwise(nn.Hardsigmoid())
    scaled = op.net.call(operator.mul, op.data(), alpha)
    return op.net.call(torch.clamp, op.net.call(operator.add, scaled, beta), 0.0, 1.0)


def _arithmetic(function: Callable[[Any, Any], Any]) -> Operator:
    def handle(op: Op) -> fx.Node:
        left, right = op.inputs
        for x, other in ((left, right), (right, left)):
            if isinstance(x, fx.Node) and isinstance(other, Tensor) and other.numel() == 1 >= other.ndim:
                pair = (unreshaped(x) if value is x else other.item() for value in (left, right))
                return op.net.reshape(op.net.call(function, *pair), shape_of(x))
        return op.net.call(function, op.net.node(left), op.net.node(right))

    return handle


def _mul(op: Op) -> Value:
    """x * hardsigmoid(x) becomes one Hardswish, which opsets before 14 lack: one step to quantize instead of two."""
    left, right = op.inputs
    for x, gate in ((left, right), (right, left)):
        if isinstance(op.net.module(gate), nn.Hardsigmoid) and isinstance(gate, fx.Node) and gate.args[0] is x:
            return op.layer(nn.Hardswish(), cast(fx.Node, x))
    return _arithmetic(operator.mul)(op)


def _div(op: Op) -> Value:
    """relu6(x + 3) / 6, which the original's MobileNetV3 writes, becomes one Hardsigmoid."""
    top, six = op.inputs
    if isinstance(top, fx.Node) and isinstance(six, Tensor) and six.numel() == 1 and six.item() == 6:
        relu6 = unreshaped(top)
        added = relu6.args[0] if isinstance(op.net.module(relu6), nn.ReLU6) else None
        if isinstance(added, fx.Node) and added.target is operator.add and added.args[1] == 3:
            x = cast(fx.Node, added.args[0])
            return op.net.reshape(op.layer(nn.Hardsigmoid(), x), shape_of(top))
    return _arithmetic(operator.truediv)(op)


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
