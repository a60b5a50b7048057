"""Networks that amplify rounding: float32 engines differ in their maps, and landmarks decide whether that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxsim
import pytest
import torch
from torch import nn

from pipnet_edge import bundle as bundles
from pipnet_edge.converters import core, cores, golden, variants
from pipnet_edge.converters.checkpoint import from_onnx
from pipnet_edge.converters.checkpoint.network import Network, maps_of
from pipnet_edge.converters.graph import convolutions
from pipnet_edge.converters.ncnn import fp
from pipnet_edge.converters.ncnn import model as ncnn_model
from pipnet_edge.converters.quantize import prepare
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.scheme import FULL, SAFE
from pipnet_edge.decode import MAP_NAMES, Decoder, map_names
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

    def disagreement(self, session, real=core._Landmarks.disagreement):
        asked.append(real(self, session))
        return asked[-1]

    monkeypatch.setattr(core._Landmarks, "disagreement", disagreement)
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


def uneven(net: nn.Module) -> nn.Module:
    """The network for RGB - 125, with 9x9 heads, and channels between layers that differ a hundredfold and cancel."""
    random = torch.Generator().manual_seed(2)
    net.backbone.stem[0].weight.div_(60)
    # Below ReLU6's bound, channels may only be smaller than they were.
    for block, largest in (("mobilenet", 1.0), ("plain", 100.0), ("down", 100.0)):
        first, _, last = getattr(net.backbone, block).body
        factors = largest * 10 ** (-2 * torch.rand(first.out_channels, generator=random))
        first.weight.mul_(factors[:, None, None, None])
        first.bias.mul_(factors)
        last.weight.div_(factors[:, None, None])
    for name, head in net.heads.items():
        wide = nn.Conv2d(head.in_channels, head.out_channels, 9, padding=4).requires_grad_(False)
        spread = 0.003 * head.weight.abs().mean()
        wide.weight.copy_(spread * torch.randn(wide.weight.shape, generator=random))
        wide.weight[:, :, 4, 4] += head.weight[:, :, 0, 0]
        wide.bias.copy_(head.bias)
        if name != "score":
            wide.weight.div_(1000)
            wide.bias.div_(1000)
        net.heads[name] = wide
    return net


def test_uneven_channels_convert_in_float(
    tiny_net: Callable[[], nn.Module], tmp_path: Path, say, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    to_onnx(uneven(tiny_net()), tmp_path / "net.onnx")
    (tmp_path / "five.txt").write_text("0.2 0.2 0.8 0.3 0.5 0.5 0.3 0.8 0.7 0.9\n")
    image = ("--mean", ",".join([str(125 / 255)] * 3), "--std", ",".join([str(1 / 255)] * 3))
    words = ("convert", "net.onnx", "--meanface", "five.txt", *image, "-o", tmp_path / "b")
    code, out, error = say(*words)
    assert code == 0, out + error
    assert "heads are dense: sparse ones have to be 1x1 convolutions" in out
    made = bundles.read(tmp_path / "b").variants
    assert len(made) == 7
    assert not any(variant.is_sparse for variant in made)


def test_small_weights_are_no_zeros_in_ncnn_fp16(
    tiny_net: Callable[[], nn.Module], tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    """Float16 has steps of 2**-24 below 2**-14, where these heads have most of their weights."""
    exported = cores.export(uneven(tiny_net()), tiny_spec, tmp_path / "float", simplify=True, is_sparse=False)
    found = {}
    for precision in ("fp32", "fp16"):
        folder = tmp_path / precision
        folder.mkdir()
        fp.convert(exported.core, precision, folder)
        layers = ncnn_model.read_model(folder / "model.param", folder / "model.bin").layers
        found[precision] = np.concatenate([layer.arrays["weight"] for layer in layers if "weight" in layer.arrays])
    single, half = found["fp32"], found["fp16"]
    np.testing.assert_array_equal(half, single.astype(np.float16))
    assert ((half != 0) & (np.abs(half) < 2**-14)).mean() > 0.5
    assert (tmp_path / "fp16" / "model.bin").stat().st_size < 0.55 * (tmp_path / "fp32" / "model.bin").stat().st_size


def test_what_the_reader_of_ncnn_models_does_not_know_is_fp16_too(
    tiny_net: Callable[[], nn.Module], tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    net = tiny_net()
    net.backbone.add_module("norm", nn.BatchNorm2d(16).requires_grad_(False).eval())
    exported = cores.export(net, tiny_spec, tmp_path / "float", simplify=True, is_sparse=False)
    sizes = {}
    for precision in ("fp32", "fp16"):
        folder = tmp_path / precision
        folder.mkdir()
        fp.convert(exported.core, precision, folder)
        assert "BatchNorm" in (folder / "model.param").read_text()
        sizes[precision] = (folder / "model.bin").stat().st_size
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_uneven_channels_cost_int8_nothing(
    tiny_net: Callable[[], nn.Module], tiny_spec: ModelSpec, tiny_faces: np.ndarray, tmp_path: Path, run_int8, distance
) -> None:
    unscaled = replace(tiny_spec, mean=(125 / 255,) * 3, std=(1 / 255,) * 3)
    costs = []
    for net, spec in ((tiny_net(), tiny_spec), (uneven(tiny_net()), unscaled)):
        network, work = Network(spec, net, 0), tmp_path / f"work{len(costs)}"
        work.mkdir()
        prepared = prepare.roughly(network, tiny_faces, [SAFE, FULL])
        networks, maps = cores.Cores(prepared, work, True, False), maps_of(network, tiny_faces)
        wanted = [getattr(maps, name).reshape(len(tiny_faces), -1, spec.grid, spec.grid) for name in MAP_NAMES]
        costs.append({})
        for runtime in ("onnx", "ncnn", "mnn", "tflite"):
            variants.quantized(networks, prepare.Options("minmax", "nearest"), runtime, "int8", work)
            found = run_int8(runtime, work / f"{runtime}-int8", prepared[FULL].spec, tiny_faces)
            costs[-1][runtime] = distance(found, wanted)
    even, amplified = costs
    assert all(amplified[runtime] < 1.2 * even[runtime] < 0.1 for runtime in even), costs


def test_wide_heads_are_rounded_only_for_precisions_that_store_them(
    tiny_net: Callable[[], nn.Module], tiny_spec: ModelSpec, tiny_calibration: Calibration, cache: Path
) -> None:
    net = uneven(tiny_net())
    assert not variants.rounds_heads(net, ("fp32", "fp16", "int8"))
    assert variants.rounds_heads(net, ("int8", "int8-full"))
    assert variants.rounds_heads(tiny_net(), ("int8",)), "seconds, and all commands then share a rounding"
    network, heads = Network(tiny_spec, net, 0), {f"heads.{name}" for name in MAP_NAMES}

    def prepared(options: prepare.Options) -> tuple[set[str], set[str]]:
        """The layers that are said to be rounded, and those with other weights than before."""
        told = set[str]()
        made = prepare.prepare(network, tiny_calibration, options, [FULL], lambda what, *_: told.add(what))[FULL]
        before, after = (
            {name: graph.get_submodule(name).weight for name in convolutions(graph)}
            for graph in (made.float_, made.rounded)
        )
        changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
        return {what.split()[1] for what in told if what.startswith("round ")}, changed

    every, without = prepare.Options("minmax"), prepare.Options("minmax", heads=False)
    told, changed = prepared(every)
    assert told == changed > heads
    assert prepared(without) == (told - heads, told - heads), "the cache tells the two apart"
    assert prepared(every) == (set(), told)
    assert prepared(without) == (set(), told - heads)
