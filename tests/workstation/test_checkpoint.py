"""What a file is, inferred; and one line with the reason for what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.read import Options
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import mean_faces

R18 = "wflw_resnet18_s32"


class Whole(nn.Module):
    """A module that is pickled whole, as some projects publish their nets."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def state_dict(self, *_, **__):
        return self.state


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 59},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"net": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["bare", "state_dict", "model", "net", "module.", "both", "half", "no counters"],
)
def test_layouts(tmp_path, cases, wrap):
    torch.save(wrap(cases[R18].state()), tmp_path / "net.pth")
    network = checkpoints.load(tmp_path / "net.pth", Options())
    spec = network.spec
    assert (spec.backbone, spec.num_lms, spec.num_nb, spec.net_stride) == ("resnet18", 98, 10, 32)
    assert spec.mean_face.name == "wflw"
    assert all(parameter.dtype == torch.float32 for parameter in network.net.parameters())


@pytest.mark.parametrize(
    ("name", "options", "face"),
    [
        ("wflw_mobilenet_v2_s32", Options(), "wflw"),
        ("cofw_resnet50_s32", Options(), "cofw"),
        ("lapa_mobilenet_v3_s32", Options(), "lapa"),
        ("300w_resnet18_s64", Options(data="300w"), "300w"),
        ("300w_resnet18_s64", Options(data="data_300W"), "300w"),
        ("300w_resnet18_s64", Options(data="300W_COFW_WFLW"), "300w-cofw-wflw"),
    ],
)
def test_dataset(save_checkpoint, name, options, face):
    spec = checkpoints.load(save_checkpoint(name), options).spec
    assert spec.mean_face == mean_faces()[face]


def test_custom_mean_face(tmp_path, save_checkpoint):
    face = tmp_path / "mine.txt"
    face.write_text(" ".join(f"{x},{y}" for x, y in mean_faces()["300w"].points))
    spec = checkpoints.load(save_checkpoint("300w_resnet18_s64"), Options(meanface=face, input_size=384)).spec
    assert (spec.mean_face.name, spec.mean_face.points) == ("mine", mean_faces()["300w"].points)
    assert spec.grid == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(), "--data 300w or 300w-celeba or 300w-cofw-wflw"),
        (Options(data="wflw"), "the checkpoint has 68 landmarks, wflw has 98"),
        (Options(data="ibug"), "--data ibug; allowed: aflw, cofw, wflw"),
        (Options(data="300w", input_size=250), "input size 250 is not a multiple of the net stride 64"),
        (Options(data="300w", meanface=Path("x.txt")), "exclude each other"),
        (Options(meanface=Path("missing.txt")), "cannot read the mean face missing.txt"),
        (Options(data="300w", std=(0.0, 1.0, 1.0)), "std 0,1,1: numbers above 0"),
    ],
)
def test_options_that_do_not_fit(save_checkpoint, options, message):
    with pytest.raises(EdgeError) as refusal:
        checkpoints.load(save_checkpoint("300w_resnet18_s64"), options)
    assert message in str(refusal.value)


def without_heads(state):
    return {key: value for key, value in state.items() if "_layer" not in key} | {"fc.weight": torch.ones(1000, 512)}


def with_nan(state):
    state["layer2.0.conv1.weight"][3, 2, 1, 0] = float("nan")
    return state


def uneven(state):
    state["nb_y_layer.weight"] = state["nb_y_layer.weight"][:-1]
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without_heads, "no PIPNet head"),
        (without_heads, "classifier"),
        (with_nan, "'layer2.0.conv1.weight' holds NaN"),
        (uneven, "do not fit each other"),
        (lambda state: list(state.values()), "holds a list"),
        (lambda state: {"epoch": 3, "lr": 0.1}, "holds a dict of epoch, lr"),
        (lambda state: {}, "not a state_dict"),
    ],
)
def test_other_contents(tmp_path, cases, content, message):
    torch.save(content(cases[R18].state()), tmp_path / "net.pth")
    with pytest.raises(EdgeError) as refusal:
        checkpoints.load(tmp_path / "net.pth", Options())
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("size", [3, 1000, 100_000, -1000])
def test_truncated(tmp_path, save_checkpoint, size):
    content = save_checkpoint(R18).read_bytes()
    (tmp_path / "net.pth").write_bytes(content[:size])
    with pytest.raises(EdgeError, match="is not a PyTorch checkpoint"):
        checkpoints.load(tmp_path / "net.pth", Options())


@pytest.mark.parametrize("content", [b".", b"a.", b"\x80\x02.", b"h\x05.", b"\x80\x02}q\x00(."])
def test_pickles_that_take_what_is_not_there(tmp_path, content):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(EdgeError, match="is not a PyTorch checkpoint"):
        checkpoints.load(tmp_path / "net.pth", Options())


def test_text_and_missing_files(tmp_path):
    (tmp_path / "net.pth").write_text("hello")
    with pytest.raises(EdgeError, match="not a PyTorch checkpoint"):
        checkpoints.load(tmp_path / "net.pth", Options())
    with pytest.raises(EdgeError, match="there is no file"):
        checkpoints.load(tmp_path / "other.pth", Options())


def test_pickled_modules_need_trust(tmp_path, cases):
    torch.save(Whole(cases[R18].state()), tmp_path / "net.pth")
    with pytest.raises(EdgeError, match="--trust-pickle"):
        checkpoints.load(tmp_path / "net.pth", Options())
    assert checkpoints.load(tmp_path / "net.pth", Options(trust_pickle=True)).spec.num_lms == 98


def test_torchscript_is_named(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "net.pth")
    with pytest.raises(EdgeError, match="TorchScript"):
        checkpoints.load(tmp_path / "net.pth", Options())
