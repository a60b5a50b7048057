"""FaceBoxesV2, the face detector that PIPNet comes with, from its checkpoint: network and spec.

Layer names are the checkpoint's own. The layout follows FaceBoxesV2/models in jhb86253817/PIPNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipnet_edge.converters.checkpoint import archive, kind
from pipnet_edge.converters.checkpoint.kind import Kind
from pipnet_edge.converters.checkpoint.state_dict import weight
from pipnet_edge.converters.checkpoint.weights import Weights
from pipnet_edge.detect.spec import DetectorSpec, Level, Margins, Prior, Sized
from pipnet_edge.errors import EdgeError

PREFIX, COUNTER = "module.", "num_batches_tracked"
NEEDED = "the state_dict of FaceBoxesV2 is needed, FaceBoxesV2.pth of PIPNet"
# The original takes blue, green, red minus (104, 117, 123). Here all networks take RGB, so its first layer is turned.
SPEC = DetectorSpec(
    detector="faceboxes_v2",
    levels=(
        Level(32, (Prior(32, 4), Prior(64, 2), Prior(128))),
        Level(64, (Prior(256),)),
        Level(128, (Prior(512),)),
    ),
    variances=(0.1, 0.2),
    mean=(123 / 255, 117 / 255, 104 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    threshold=0.5,
    overlap=0.3,
    input_sizes=((640, 480), (320, 240)),
    margins=Margins(left=0.03, top=-0.2, right=0.03, bottom=0.03),  # measured: its boxes have foreheads, and are tight
)

# Convolutions with BatchNorm and ReLU: channels in and out, side of the kernel, stride.
Shape = tuple[int, int, int, int]
STEM: dict[str, Shape] = {
    "conv1": (3, 8, 3, 2),
    "conv2": (8, 16, 3, 2),
    "conv3": (16, 32, 3, 2),
    "conv4": (32, 64, 3, 2),
    "conv5": (64, 128, 3, 2),
}
INCEPTIONS = ("inception1", "inception2", "inception3")
# What an inception concatenates, in order: chains of convolutions.
BRANCHES: tuple[dict[str, Shape], ...] = (
    {"branch1x1": (128, 32, 1, 1)},
    {"branch1x1_2": (128, 32, 1, 1)},
    {"branch3x3_reduce": (128, 24, 1, 1), "branch3x3": (24, 32, 3, 1)},
    {"branch3x3_reduce_2": (128, 24, 1, 1), "branch3x3_2": (24, 32, 3, 1), "branch3x3_3": (32, 32, 3, 1)},
)
FIRST = "conv1"  # reads blue, green, red
AVERAGED = "branch1x1_2"  # reads the average of 3 x 3 cells
TAILS: tuple[dict[str, Shape], ...] = (
    {"conv6_1": (128, 128, 1, 1), "conv6_2": (128, 256, 3, 2)},
    {"conv7_1": (256, 128, 1, 1), "conv7_2": (128, 256, 3, 2)},
)
WIDTHS = (128, 256, 256)  # channels that the heads of each level read
HEADS = {"loc": 4, "conf": 2}  # and their numbers for a prior


class Chains(nn.Module):
    """Layers in chains, each under the checkpoint's own name for it whatever its chain."""

    def __init__(self, chains: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.names = [[name for name, _ in chain.named_children()] for chain in chains]
        for chain in chains:
            for name, layer in chain.named_children():
                self.add_module(name, layer)

    def through(self, chain: Iterable[str], x: Tensor) -> Tensor:
        """What the layers of these names, one after the other, make of x."""
        for name in chain:
            x = self.get_submodule(name)(x)
        return x


class Inception(Chains):
    """Chains side by side; their channels one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.through(chain, x) for chain in self.names], 1)


class FaceBoxes(Chains):
    """A backbone in three chains, after each of which two 3x3 heads give the maps of one level.

    `forward` takes (B, 3, H, W) float32 normalised RGB of any size, and returns the maps in the order of
    DetectorSpec.map_names: boxes (B, 4 * priors, rows, columns), scores (B, 2 * priors, rows, columns), raw.
    """

    def __init__(self, chains: Sequence[nn.Sequential], loc: Iterable[nn.Module], conf: Iterable[nn.Module]) -> None:
        super().__init__(chains)
        self.loc, self.conf = nn.ModuleList(loc), nn.ModuleList(conf)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for chain, loc, conf in zip(self.names, self.loc, self.conf, strict=True):
            image = self.through(chain, image)
            maps += [loc(image), conf(image)]
        return tuple(maps)


@dataclass(frozen=True)
class Detector:
    """A trained detector: what it takes and gives, and the network."""

    spec: DetectorSpec
    net: FaceBoxes
    parameters: int

    def at(self, size: tuple[int, int] | None = None) -> SizedDetector:
        """The detector for pictures of this (width, height), else of the usual size."""
        return SizedDetector(self.spec.at(size), self.net)


@dataclass(frozen=True)
class SizedDetector:
    """A trained detector for pictures of one size, a network.Trained."""

    spec: Sized
    net: FaceBoxes


def read(path: Path) -> Detector:
    """Reads FaceBoxesV2.pth, or another training of the same network.

    Raises EdgeError, one line, for files that are no state_dict of it, with other keys or shapes, and for weights that
    are no finite numbers. No code in the file runs.
    """
    if not path.is_file():
        raise EdgeError(f"{path} is a folder, no checkpoint" if path.is_dir() else f"there is no file {path}")
    what = kind.of(path)
    if what not in (None, Kind.TORCH):
        raise EdgeError(f"{path} is {what}; {NEEDED}")
    root = archive.read(path, is_safetensors=False)
    if not isinstance(root, Mapping):
        raise EdgeError(f"{path} holds a {type(root).__name__}; {NEEDED}")
    # Keys of other types are no names of weights, and some would take hours to print.
    found = {key.removeprefix(PREFIX): value for key, value in root.items() if type(key) is str}
    state = {key: value for key, value in found.items() if not key.endswith(COUNTER)}
    if fault := _fault(state):
        raise EdgeError(f"{path} {fault}; {NEEDED}")
    weights = {key: weight(path, key, value) for key, value in state.items()}
    try:
        net = build(weights)
    except EdgeError as e:
        raise EdgeError(f"{path}: {e}", e.code) from e
    return Detector(SPEC, net, sum(parameter.numel() for parameter in net.parameters()))


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint, by its key without prefix, but for BatchNorm's counters."""
    layers = {key: shape for chain in (STEM, *TAILS) for key, shape in chain.items()}
    for name in INCEPTIONS:
        layers |= {f"{name}.{key}": shape for chain in BRANCHES for key, shape in chain.items()}
    found = dict[str, tuple[int, ...]]()
    for key, (inner, out, side, _) in layers.items():
        found[f"{key}.conv.weight"] = (out, inner, side, side)
        found |= {f"{key}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    for index, (level, inner) in enumerate(zip(SPEC.levels, WIDTHS, strict=True)):
        for head, numbers in HEADS.items():
            out = level.in_cell * numbers
            found |= {f"{head}.{index}.weight": (out, inner, 3, 3), f"{head}.{index}.bias": (out,)}
    return found


def _fault(state: Mapping[str, object]) -> str | None:
    """Why these are not the tensors of a checkpoint, None if they are."""
    needed = shapes()
    for name in (key for key in needed if key not in state):
        return f"has no {name!r}"
    for name in (key for key in state if key not in needed):
        return f"has {name!r:.80}, which is none of its {len(needed)} tensors"
    for name, shape in needed.items():
        tensor = state[name]
        if not isinstance(tensor, Tensor):
            return f"has a {type(tensor).__name__} as {name!r}"
        if tuple(tensor.shape) != shape:
            return f"has {name!r} of shape {tuple(tensor.shape)!s:.60}, not {shape}"
    return None


def build(state: Mapping[str, Tensor]) -> FaceBoxes:
    """The network from a state_dict of float tensors with the keys and sizes of `shapes`."""
    weights = Weights(state)
    first = _chain(weights, STEM)
    for name in INCEPTIONS:
        first.add_module(name, Inception([_chain(weights, chain, f"{name}.") for chain in BRANCHES]))
    chains = [first, *(_chain(weights, chain) for chain in TAILS)]
    loc, conf = ([weights.conv(f"{head}.{i}") for i in range(len(chains))] for head in HEADS)
    return FaceBoxes(chains, loc, conf).eval()


def _chain(weights: Weights, layers: Mapping[str, Shape], above: str = "") -> nn.Sequential:
    """Convolutions one after the other, each with its BatchNorm folded in and a ReLU. above: "inception1."."""
    chain = nn.Sequential()
    for key, (*_, stride) in layers.items():
        layer = weights.conv(f"{above}{key}.conv", f"{above}{key}.bn", stride)
        if key == FIRST:
            layer.weight = nn.Parameter(layer.weight.flip(1), requires_grad=False)
        chain.add_module(key, _averaging(layer) if key == AVERAGED else layer)
        chain.add_module(f"{key}_relu", nn.ReLU())
    return chain


def _averaging(layer: nn.Conv2d) -> nn.Conv2d:
    """A 1x1 convolution of the average of 3x3 cells, zeros beyond the border, as one 3x3 convolution."""
    wide = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    wide.weight = nn.Parameter((layer.weight / 9).expand(-1, -1, 3, 3).contiguous(), requires_grad=False)
    wide.bias = layer.bias
    return wide
