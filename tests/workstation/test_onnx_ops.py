"""Single ONNX operators, written as text: torch gives what ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from pipnet_edge.converters.checkpoint import from_onnx

pytestmark = pytest.mark.usefixtures("quiet")

Write = Callable[..., Path]
Check = Callable[..., None]
OURS = ["score", "offset_x", "offset_y", "neighbor_x", "neighbor_y"]


def image(size: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 3, size, size), dtype=np.float32))


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float32)


CONV = {"w": (4, 3, 3, 3), "b": (4,)}
SQUEEZE = "p = GlobalAveragePool (image)\n{}\nfeatures = Mul (image, gate)"
OPERATORS: dict[str, tuple[str, dict[str, Any], int]] = {
    "conv": ("features = Conv <pads=[1,1,1,1]> (image, w, b)", CONV, 17),
    "conv-stride": ("features = Conv <strides=[2,2], dilations=[2,2], pads=[1,1,1,1]> (image, w)", CONV, 17),
    "conv-valid": ('features = Conv <auto_pad="VALID"> (image, w, b)', CONV, 17),
    "conv-asymmetric": ("features = Conv <pads=[0,1,2,1], strides=[2,2]> (image, w, b)", CONV, 17),
    "conv-same-upper": ('features = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (image, w, b)', CONV, 17),
    "conv-same-lower": ('features = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (image, w, b)', CONV, 17),
    "conv-oblong": ("features = Conv <pads=[0,2,0,2]> (image, w)", {"w": (4, 3, 1, 5)}, 17),
    "depthwise": ("features = Conv <group=3, pads=[1,1,1,1]> (image, w)", {"w": (6, 1, 3, 3)}, 17),
    "deconv": (
        "features = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (image, w, b)",
        {"w": (3, 4, 4, 4), "b": (4,)},
        17,
    ),
    "deconv-asymmetric": (
        "features = ConvTranspose <strides=[2,2], pads=[0,0,1,1], output_padding=[1,1]> (image, w)",
        {"w": (3, 4, 2, 2)},
        17,
    ),
    "deconv-grouped": ("features = ConvTranspose <group=3, strides=[2,2]> (image, w)", {"w": (3, 2, 2, 2)}, 17),
    "max-pool": ("features = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (image)", {}, 17),
    "max-pool-asymmetric": (
        "n = Sub (image, far)\nfeatures = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]> (n)",
        {"far": floats(9)},
        17,
    ),
    "max-pool-ceil": ("features = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (image)", {}, 17),
    "max-pool-same": ('features = MaxPool <kernel_shape=[3,3], auto_pad="SAME_LOWER"> (image)', {}, 17),
    "average-pool": ("features = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (image)", {}, 17),
    "average-pool-asymmetric": ("features = AveragePool <kernel_shape=[3,3], pads=[0,0,1,1]> (image)", {}, 17),
    "average-pool-counting": (
        "features = AveragePool <kernel_shape=[3,3], pads=[0,1,2,1], count_include_pad=1> (image)",
        {},
        17,
    ),
    "average-pool-same": ('features = AveragePool <kernel_shape=[4,4], auto_pad="SAME_UPPER"> (image)', {}, 17),
    "batch-norm": (
        "features = BatchNormalization <epsilon=0.01> (image, gain, shift, mean, var)",
        {"gain": (3,), "shift": (3,), "mean": (3,), "var": floats(0.5, 1, 2)},
        17,
    ),
    "clip-relu6": (
        "y = Mul (image, s)\nfeatures = Clip (y, l, h)",
        {"s": floats(5), "l": 0 * floats(1)[0], "h": floats(6)[0]},
        17,
    ),
    "clip-relu": ("features = Clip (image, l)", {"l": 0 * floats(1)[0]}, 17),
    "clip-both": ("features = Clip (image, l, h)", {"l": floats(-0.5)[0], "h": floats(0.3)[0]}, 17),
    "clip-attributes": ("features = Clip <min=-0.25, max=0.75> (image)", {}, 9),
    "hard-sigmoid": ("features = HardSigmoid (image)", {}, 17),
    "hard-sigmoid-shifted": ("features = HardSigmoid <alpha=0.16666667, beta=0.25> (image)", {}, 17),
    "hard-swish": ("features = HardSwish (image)", {}, 17),
    "sigmoid": ("features = Sigmoid (image)", {}, 17),
    "leaky-relu": ("features = LeakyRelu <alpha=0.2> (image)", {}, 17),
    "leaky-relu-default": ("features = LeakyRelu (image)", {}, 17),
    "slope-by-channel": ("features = PRelu (image, s)", {"s": (3, 1, 1)}, 17),
    "slope-for-all": ("features = PRelu (image, s)", {"s": floats(0.3)}, 17),
    "elu": ("features = Elu <alpha=0.5> (image)", {}, 17),
    "softplus": ("features = Softplus (image)", {}, 17),
    "tanh": ("features = Tanh (image)", {}, 17),
    "mish": ("features = Mish (image)", {}, 18),
    "swish": ("s = Sigmoid (image)\nfeatures = Mul (s, image)", {}, 17),
    "subtract-from": ("features = Sub (one, image)", {"one": floats(1)}, 17),
    "divide-into": ("e = Sigmoid (image)\nfeatures = Div (one, e)", {"one": floats(1)[0]}, 17),
    "divide-by-six": ("r = Clip (image, l, h)\nfeatures = Div (r, h)", {"l": 0 * floats(1)[0], "h": floats(6)[0]}, 17),
    "per-channel": ("y = Mul (image, c)\nr = Relu (y)\nfeatures = Add (c, r)", {"c": (3, 1, 1)}, 17),
    "tensors": ("r = Relu (image)\ns = Sigmoid (image)\nd = Div (r, s)\nfeatures = Sub (d, s)", {}, 17),
    "higher-rank": ("features = Add (image, c)", {"c": np.ones((1, 1, 1, 1), np.float32)}, 17),
    "concat": ("r = Relu (image)\nfeatures = Concat <axis=1> (r, image, c)", {"c": (1, 2, 8, 8)}, 17),
    "transpose": (
        "t = Transpose <perm=[0,2,3,1]> (image)\nr = Relu (t)\nfeatures = Transpose <perm=[0,3,1,2]> (r)",
        {},
        17,
    ),
    "pad": ("r = Relu (image)\nfeatures = Pad (r, p, v)", {"p": ints(0, 0, 1, 0, 0, 0, 1, 2), "v": floats(0.5)[0]}, 11),
    "pad-axes": ("r = Relu (image)\nfeatures = Pad (r, p, , a)", {"p": ints(0, 1, 2, 1), "a": ints(-1, 2)}, 18),
    "pad-attributes": ("r = Relu (image)\nfeatures = Pad <pads=[0,0,1,1,0,0,1,1], value=0.5> (r)", {}, 10),
    "reduce-mean": ("gate = ReduceMean <axes=[2,3]> (image)\nfeatures = Mul (image, gate)", {}, 17),
    "reduce-mean-input": ("gate = ReduceMean (image, a)\nfeatures = Mul (image, gate)", {"a": ints(-1, -2)}, 18),
    "reduce-mean-flat": (
        "m = ReduceMean <axes=[2,3], keepdims=0> (image)\ng = MatMul (m, w)\ngate = Reshape (g, s)\n"
        "features = Mul (image, gate)",
        {"w": (3, 3), "s": ints(0, -1, 1, 1)},
        17,
    ),
    "gemm": (
        SQUEEZE.format("f = Flatten (p)\ng = Gemm <alpha=0.5, beta=2.0> (f, w, b)\ngate = Reshape (g, s)"),
        {"w": (3, 3), "b": (1, 3), "s": ints(1, 3, 1, 1)},
        17,
    ),
    "gemm-transposed": (
        SQUEEZE.format("f = Squeeze (p, a)\ng = Gemm <transB=1> (f, w)\ngate = Unsqueeze (g, a)"),
        {"w": (3, 3), "a": ints(2, 3)},
        17,
    ),
    "squeeze-attributes": (
        SQUEEZE.format(
            "f = Squeeze <axes=[2,3]> (p)\ng = Gemm (f, w, b)\nr = Relu (g)\ngate = Unsqueeze <axes=[2,3]> (r)"
        ),
        {"w": (3, 3), "b": floats(0.5)},
        11,
    ),
    "squeeze-all": (
        SQUEEZE.format("f = Squeeze (p)\nh = Sigmoid (f)\ngate = Unsqueeze (h, a)"),
        {"a": ints(0, 2, 3)},
        17,
    ),
    "reshape-back": ("f = Flatten (image)\nr = Relu (f)\nfeatures = Reshape (r, s)", {"s": ints(1, 3, 8, 8)}, 17),
    "constants": (
        "c = Constant <value_floats=[0.5,1.5,2.5,0.5,1.5,2.5,0.5,1.5]> ()\nfeatures = Mul (image, c)",
        {},
        17,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_equal_onnxruntime(tmp_path: Path, name: str, tiny_onnx: Write, assert_same: Check) -> None:
    nodes, weights, opset = OPERATORS[name]
    path = tiny_onnx(tmp_path / "net.onnx", nodes, weights, opset=opset, whole=True)
    read = from_onnx.read(path)
    assert (read.net_stride, read.input_size) == (8, 8)
    sample = image(8)
    want = onnxruntime.InferenceSession(path.read_bytes()).run(OURS, {"image": sample.numpy()})
    assert_same(read.net(sample), want)


def test_layers_that_share_a_weight_are_apart(tmp_path: Path, tiny_onnx: Write) -> None:
    nodes = "a = Conv <pads=[1,1,1,1]> (image, w)\nfeatures = Conv <pads=[1,1,1,1]> (a, w)"
    read = from_onnx.read(tiny_onnx(tmp_path / "net.onnx", nodes, {"w": (3, 3, 3, 3)}))
    first, second = (read.net.get_submodule(name) for name in ("a", "features"))
    assert torch.equal(first.weight, second.weight)
    first.weight.zero_()
    assert second.weight.abs().sum() > 0
