"""The face detector's checkpoint: the network of it against the original's arithmetic, and files that are none."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipnet_edge.converters.checkpoint import faceboxes
from pipnet_edge.converters.checkpoint.faceboxes import SPEC
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import convolutions, trace
from pipnet_edge.errors import EdgeError

State = dict[str, Tensor]


@pytest.fixture
def state(detector_state: State) -> State:
    return dict(detector_state)


def test_the_keys_are_those_of_the_file(state: State) -> None:
    assert len(state) == 192
    values = sum(t.numel() for key, t in state.items() if not key.endswith("num_batches_tracked"))
    assert values == 1_028_738


def original(state: State, bgr: Tensor) -> list[Tensor]:
    """FaceBoxesV2 in evaluation mode, as the original has it; bgr: (1, 3, H, W), the mean subtracted."""

    def layer(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = state[f"module.{name}.conv.weight"]
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, var, gain, bias = (
            state[f"module.{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.relu(functional.batch_norm(x, mean, var, gain, bias, eps=1e-5))

    x, maps = bgr, list[Tensor]()
    for index in range(1, 6):
        x = layer(f"conv{index}", x, 2)
    for index in range(1, 4):
        name = f"inception{index}"
        third = layer(f"{name}.branch3x3", layer(f"{name}.branch3x3_reduce", x))
        fourth = layer(f"{name}.branch3x3_2", layer(f"{name}.branch3x3_reduce_2", x))
        averages = functional.avg_pool2d(x, 3, 1, 1)
        branches = [layer(f"{name}.branch1x1", x), layer(f"{name}.branch1x1_2", averages)]
        x = torch.cat([*branches, third, layer(f"{name}.branch3x3_3", fourth)], 1)
    for index in range(3):
        if index:
            x = layer(f"conv{index + 5}_2", layer(f"conv{index + 5}_1", x), 2)
        for head in ("loc", "conf"):
            kernel, bias = (state[f"module.{head}.{index}.{part}"] for part in ("weight", "bias"))
            maps.append(functional.conv2d(x, kernel, bias, padding=1))
    return maps


@pytest.mark.parametrize("size", [(640, 480), (320, 240), (131, 197)])
def test_maps_are_the_originals(state: State, saved: Callable[..., Path], size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    bgr = torch.from_numpy(pixels[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32))
    wanted = original(state, bgr.permute(2, 0, 1)[None])
    detector = faceboxes.read(saved(state))
    with torch.no_grad():
        found = detector.net(normalise(pixels[None], detector.spec))
    assert {n: tuple(m.shape[1:]) for n, m in zip(SPEC.map_names, found, strict=True)} == SPEC.at(size).map_shapes
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).abs().max() <= 2e-5 * theirs.abs().max()
    assert sum(p.numel() for p in detector.net.parameters()) == detector.parameters == 1_023_818 + 3 * 32 * 128 * 8


def test_layers_are_plain_and_named_as_in_the_file(state: State, saved: Callable[..., Path]) -> None:
    """No pool, no normalization."""
    net = faceboxes.read(saved(state)).net
    layers = {type(layer).__name__ for layer in net.modules()}
    assert layers == {"FaceBoxes", "Inception", "ModuleList", "Conv2d", "ReLU"}
    named = {key.removeprefix("module.").removesuffix(".weight") for key in state if key.endswith(".weight")}
    kernels = {key.removesuffix(".conv") for key in named if not key.endswith(".bn")}
    assert set(convolutions(trace(net))) == kernels
    assert len(kernels) == 36


def test_other_ways_to_save_it(state: State, saved: Callable[..., Path]) -> None:
    def heads(path: Path) -> Tensor:
        return faceboxes.read(path).net.loc[2].weight

    plain = {k.removeprefix("module."): v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    wanted = state["module.loc.2.weight"]
    assert torch.equal(heads(saved(plain)), wanted)
    assert torch.equal(heads(saved(state, _use_new_zipfile_serialization=False)), wanted)
    assert torch.equal(heads(saved({k: v.half() for k, v in plain.items()})), wanted.half().float())


# --- Files that are none.


def spoilt(state: State, key: str, value: object) -> dict[str, object]:
    return {**state, f"module.{key}": value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "module.conf.1.bias"}, "has no 'conf.1.bias'"),
        (lambda s: {}, "has no 'conv1.conv.weight'"),
        (lambda s: spoilt(s, "fc.weight", torch.ones(1)), "has 'fc.weight', which is none of its 162 tensors"),
        (lambda s: spoilt(s, "loc.0.bias", torch.ones(4)), "has 'loc.0.bias' of shape (4,), not (84,)"),
        (lambda s: spoilt(s, "conv1.conv.weight", torch.ones(24, 3, 7, 7)), "of shape (24, 3, 7, 7), not (8, 3, 3, 3)"),
        (lambda s: spoilt(s, "loc.0.bias", [1.0]), "has a list as 'loc.0.bias'"),
        (lambda s: spoilt(s, "loc.0.bias", torch.full((84,), torch.nan)), "'loc.0.bias' holds NaN or infinity"),
        (lambda s: spoilt(s, "loc.0.bias", torch.ones(84, dtype=torch.int32)), "'loc.0.bias' is of type int32"),
        (lambda s: spoilt(s, "loc.0.bias", torch.ones(1).expand(84)), "has the shape (84), but 4 bytes in the file"),
        (lambda s: spoilt(s, "conv2.bn.running_var", torch.full((16,), -1.0)), "'conv2.bn.running_var' holds negative"),
        (lambda s: list(s.values()), "holds a list; the state_dict of FaceBoxesV2 is needed"),
        (lambda s: {"state_dict": s}, "has no 'conv1.conv.weight'"),
        (lambda s: {**s, 7: torch.ones(1)}, None),
    ],
)
def test_other_checkpoints_are_refused(
    state: State, saved: Callable[..., Path], change: Callable[[State], object], message: str | None
) -> None:
    path = saved(change(state))
    if message is None:  # a key that is no name is nobody's weight
        faceboxes.read(path)
        return
    with pytest.raises(EdgeError) as refused:
        faceboxes.read(path)
    line = str(refused.value)
    assert message in line
    assert line.startswith(str(path))
    assert line.isprintable()


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("print('this was run')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY\x01\x00", "is a NumPy file; the state_dict of FaceBoxesV2 is needed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer; the state_dict"),
        (b"<!doctype html>", "is an HTML page; the state_dict"),
        (b"", "is empty; the state_dict"),
        (b"noise" * 100, "is not a PyTorch checkpoint"),
        (pickle.dumps(Runs(), protocol=2), "FaceBoxesV2.pth"),
    ],
    ids=["numpy", "lfs", "html", "empty", "noise", "code"],
)
def test_other_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "FaceBoxesV2.pth"
    path.write_bytes(content)
    with pytest.raises(EdgeError) as refused:
        faceboxes.read(path)
    assert message in str(refused.value)
    assert str(refused.value).isprintable()
    assert "this was run" not in capsys.readouterr().out


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="is a folder, no checkpoint"):
        faceboxes.read(tmp_path)
    with pytest.raises(EdgeError, match="there is no file"):
        faceboxes.read(tmp_path / "none.pth")
