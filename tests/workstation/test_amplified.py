"""Networks that amplify rounding: float32 engines differ in their maps, and landmarks decide whether that is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxsim
import pytest
import torch
from torch import nn

from pipnet_edge import bundle as bundles
from pipnet_edge.converters import core, golden
from pipnet_edge.converters.checkpoint import from_onnx
from pipnet_edge.converters.checkpoint.network import Network, maps_of
from pipnet_edge.decode import Decoder, map_names
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("quiet")

NAMES = ["outputs_cls", "outputs_x", "outputs_y", "outputs_nb_x", "outputs_nb_y"]
SIZE = 1e5


@pytest.fixture
def net(tiny_net: Callable[[], nn.Module]) -> nn.Module:
    """The smallest network. Its features go through channels as large as SIZE, which cancel up to float32's rounding.

    Offsets are small, as those of trained networks are.
    """
    random = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(256, 16, generator=random))[0]
    shift = SIZE * torch.randn(256, generator=random)
    there, back = nn.Conv2d(16, 256, 1), nn.Conv2d(256, 16, 1)
    for layer, weight, bias in ((there, turn, shift), (back, turn.T, -(turn.T @ shift))):
        layer.requires_grad_(False).weight.copy_(weight[:, :, None, None])
        layer.bias.copy_(bias)
    made = tiny_net()
    made.backbone.add_module("there", there)
    made.backbone.add_module("back", back)
    for name, head in made.heads.items():
        if name != "score":
            head.weight.div_(1000)
            head.bias.div_(1000)
    return made.eval()


def test_it_amplifies_rounding(net: nn.Module, tiny_spec: ModelSpec) -> None:
    """Otherwise the next tests show nothing."""
    network, crops = Network(tiny_spec, net, 0), golden.faces(64)
    single, exact = maps_of(network, crops), maps_of(network, crops, torch.float64)
    assert np.abs(single.score - exact.score).max() > 5e-4 * np.abs(exact.score).max()
    found, wanted = Decoder(tiny_spec)(single), Decoder(tiny_spec)(exact)
    assert np.linalg.norm(found.points - wanted.points, axis=-1).mean() * 64 < 0.01
    assert (found.cell == wanted.cell).all()


def test_its_export_is_right(
    net: nn.Module, tiny_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def disagreement(self, session, real=core._Reference._disagreement):
        asked.append(real(self, session))
        return asked[-1]

    monkeypatch.setattr(core._Reference, "_disagreement", disagreement)
    made = core.export(net, tiny_spec, tmp_path)
    # Its maps do not pass by themselves.
    assert asked
    assert set(map(tuple, asked)) == {()}
    assert made.outputs == map_names(tiny_spec.num_nb)


def test_a_wrong_export_is_not(
    net: nn.Module, tiny_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    def spoil(model, real=onnxsim.simplify):
        spoiled, ok = real(model)
        tensor = next(t for t in spoiled.graph.initializer if len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1.1)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return spoiled, ok

    monkeypatch.setattr(core.onnxsim, "simplify", spoil)
    with pytest.raises(EdgeError, match=r"ONNX simplification changed the maps: .* on faces: .*px.*limit") as refused:
        core.export(net, tiny_spec, tmp_path)
    assert refused.value.code == 3


def to_onnx(net: nn.Module, path: Path) -> Path:
    image = torch.zeros(1, 3, 64, 64)
    torch.onnx.export(net, (image,), str(path), input_names=["img"], output_names=NAMES, dynamo=False)
    return path


def test_its_onnx_file_is_read(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = to_onnx(net, tmp_path / "net.onnx")
    from_onnx.read(path)
    # Float64 shows that the difference is rounding. Without it the file would be refused.
    monkeypatch.setattr(from_onnx, "AS_ROUNDED", 0)
    with pytest.raises(EdgeError, match="between torch and ONNX Runtime"):
        from_onnx.read(path)


def test_it_converts(net: nn.Module, tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    to_onnx(net, tmp_path / "net.onnx")
    (tmp_path / "five.txt").write_text("0.2 0.2 0.8 0.3 0.5 0.5 0.3 0.8 0.7 0.9\n")
    words = ("convert", "net.onnx", "--meanface", "five.txt", "--precision", "fp32", "-o", tmp_path / "b")
    code, out, error = say(*words, "--to", "onnx,ncnn,mnn")
    assert code == 0, out + error
    assert all(variant.parity.px_max <= 0.05 for variant in bundles.read(tmp_path / "b").variants)
