"""Networks without their offset heads give what whole ones give, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipnet_edge.benchmarks.accuracy import parity
from pipnet_edge.bundle import HEADS
from pipnet_edge.converters import Plan, convert, cores, sparse
from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.decode import MAP_NAMES, Decoder, Features, Maps
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec, mean_faces

# tests/golden/README.md: the input of every case.
IMAGE = torch.from_numpy(np.random.RandomState(7).standard_normal((1, 3, 256, 256)).astype(np.float32))
OFFSET_HEADS = {f"heads.{name}" for name in MAP_NAMES[1:]}
Make = Callable[[], nn.Module]


def run(net: nn.Module, image: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [out.numpy() for out in net(image)]


def test_every_backbone_split_gives_its_maps_and_landmarks(case) -> None:
    _, stride, net = nets.build(case.state())
    spec = ModelSpec(case.backbone, case.num_lms, case.num_nb, stride, case.input_size, mean_faces()[case.data])
    part, heads = sparse.split(net, case.num_lms)
    assert {name for name in graphs.convolutions(part) if name.startswith("heads.")} == {"heads.score"}
    assert not OFFSET_HEADS & {name for name, _ in part.named_modules()}
    score, features = run(part, IMAGE)
    found = Features.from_outputs({"score": score, "features": features}, spec)
    dense = Maps.from_outputs(dict(zip(MAP_NAMES, run(net, IMAGE), strict=True)), spec)
    maps = heads.maps(found)
    for name in MAP_NAMES:
        want = getattr(dense, name)
        assert np.abs(getattr(maps, name) - want).max() <= 1e-5 * np.abs(want).max(), name
    got, whole = Decoder(spec, heads)(found), Decoder(spec)(dense)
    np.testing.assert_array_equal(got.cell, whole.cell)
    assert np.abs(got.points - whole.points).max() <= 1e-5 * max(1.0, float(np.abs(whole.points).max()))
    # As tests/workstation/test_nets.py asks of the whole network.
    merged = case.maps()["merged"].reshape(-1, 2)
    assert np.abs(got.points - merged).max() <= 1e-4 * max(1.0, float(np.abs(merged).max()))


def test_the_network_itself_stays_whole(tiny_net: Make) -> None:
    net, again = tiny_net(), tiny_net()
    sparse.split(net, 5)
    assert [name for name, _ in net.named_modules()] == [name for name, _ in again.named_modules()]
    assert len(run(net, torch.zeros(1, 3, 64, 64))) == 5


def test_heads_without_a_bias_have_zeros(tiny_net: Make) -> None:
    net = tiny_net()
    with_bias = sparse.split(net, 5)[1]
    net.heads["offset_y"].bias = None
    heads = sparse.split(net, 5)[1]
    assert heads.bias.dtype == np.float32
    assert not heads.bias[:, 1, 0].any()
    np.testing.assert_array_equal(heads.bias[:, 0], with_bias.bias[:, 0])
    np.testing.assert_array_equal(heads.bias[:, 1, 1:], with_bias.bias[:, 1, 1:])


@pytest.mark.parametrize("half", [False, True])
def test_heads_are_written_as_bundles_read_them(tiny_net: Make, tmp_path: Path, half: bool) -> None:
    _, heads = sparse.split(tiny_net(), 5)
    sparse.write(heads, "fp16" if half else "fp32", tmp_path)
    with np.load(tmp_path / HEADS) as arrays:
        assert set(arrays) == {"weight", "bias"}
        np.testing.assert_array_equal(arrays["bias"], heads.bias)
        np.testing.assert_array_equal(arrays["weight"], heads.weight.astype(np.float16 if half else np.float32))
        assert arrays["weight"].dtype == (np.float16 if half else np.float32)


# --- Networks that cannot be split.


class Apart(nn.Module):
    """The tiny network with one head that reads what no other head does."""

    def __init__(self, net: nn.Module, name: str, before: nn.Module) -> None:
        super().__init__()
        self.net, self.name, self.before = net, name, before

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.net.backbone(image)
        return tuple(
            head(self.before(features) if name == self.name else features) for name, head in self.net.heads.items()
        )


class Scaled(nn.Module):
    """The tiny network whose last map is no convolution's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *others, last = self.net(image)
        return (*others, last * 2.0)


def other_head(net: nn.Module, name: str, **options: int) -> nn.Module:
    torch.manual_seed(0)
    rows = net.heads[name].out_channels
    net.heads[name] = nn.Conv2d(16, rows, **{"kernel_size": 1} | options).requires_grad_(False)
    return net.eval()


WHOLE_NETS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "3x3 offsets": lambda net: other_head(net, "offset_x", kernel_size=3, padding=1),
    "3x3 neighbours": lambda net: other_head(net, "neighbor_y", kernel_size=3, padding=1),
    "groups": lambda net: other_head(net, "neighbor_x", groups=2),
    "offset reads something else": lambda net: Apart(net, "offset_y", nn.ReLU6()).eval(),
    "scaled map": lambda net: Scaled(net).eval(),
}


@pytest.mark.parametrize("kind", WHOLE_NETS)
def test_networks_that_cannot_be_split(
    tiny_net: Make, tiny_spec: ModelSpec, tmp_path: Path, kind: str, one_thread: None
) -> None:
    net = WHOLE_NETS[kind](tiny_net())
    for work in (
        lambda: sparse.split(net, 5),
        lambda: cores.export(net, tiny_spec, tmp_path / "float", simplify=True, is_sparse=True),
    ):
        with pytest.raises(EdgeError, match="--heads sparse needs 1x1 convolutions") as refusal:
            work()
        assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


SCORES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "3x3": lambda net: other_head(net, "score", kernel_size=3, padding=1),
    "reads something else": lambda net: Apart(net, "score", nn.ReLU6()).eval(),
}


@pytest.mark.parametrize("kind", SCORES)
def test_the_score_may_be_made_in_any_way(tiny_net: Make, kind: str, one_thread: None) -> None:
    """It stays in the network; only offset heads are taken out."""
    net = SCORES[kind](tiny_net())
    part, heads = sparse.split(net, 5)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32))
    score, features = run(part, image)
    whole = run(net, image)
    np.testing.assert_array_equal(score, whole[0])
    maps = heads.maps(Features(score, features))
    for name, want in zip(MAP_NAMES, whole, strict=True):
        np.testing.assert_allclose(getattr(maps, name).reshape(want.shape), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("heads", ["other", "", "Sparse"])
def test_unknown_heads(heads: str) -> None:
    with pytest.raises(EdgeError, match=rf"^--heads {heads}; allowed: sparse, dense$"):
        Plan(("onnx",), ("fp32",), heads)


@pytest.mark.parametrize(("heads", "files"), [((), True), (("dense",), False)])
def test_a_plan_says_what_is_made(cases, save_checkpoint, tmp_path: Path, heads: tuple[str, ...], files: bool) -> None:
    name = "lapa_mobilenet_v3_s32"
    options = checkpoints.Options(data=cases[name].data, input_size=64)
    made = convert(save_checkpoint(name), tmp_path / "b", Plan(("onnx",), ("fp32",), *heads), options, parity.verify)
    assert (made.folder / "onnx-fp32" / HEADS).is_file() == files
    assert (made.variants[0].heads is not None) == made.variants[0].is_sparse == files
