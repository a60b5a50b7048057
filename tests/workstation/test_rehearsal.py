"""What no rounding would mend is said before the rounding that takes minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipnet_edge.converters import demo, rehearsal
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.checkpoint.read import Options
from pipnet_edge.converters.convert import convert
from pipnet_edge.converters.losses import Losses
from pipnet_edge.converters.plan import Plan, Quantize
from pipnet_edge.converters.quantize import prepare
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.scheme import FULL, SAFE
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread", "cache")

Make = Callable[[], nn.Module]


WANTED = [("onnx", "int8"), ("ncnn", "int8"), ("mnn", "int8")]


def rehearsed(
    net: nn.Module, spec: ModelSpec, faces: Calibration, folder: Path, lost: Callable[[str, EdgeError], None]
) -> tuple[list[tuple[str, str]], list[str]]:
    """The variants that can be made, and the names of those that were tried."""
    told: list[str] = []
    losses = Losses(Plan(("onnx", "ncnn", "mnn"), ("int8",)), folder, lost)
    given = Network(spec, net, 0), faces, prepare.Options("mse", "sequential"), folder / "new", True, False, losses
    return rehearsal.passing(WANTED, *given, told.append), told


def test_each_quantized_variant_is_made_and_removed(
    tiny_net: Make, tiny_spec: ModelSpec, tiny_calibration: Calibration, cache: Path, tmp_path: Path
) -> None:
    def lost(name: str, error: EdgeError) -> None:
        raise error

    passing, told = rehearsed(tiny_net(), tiny_spec, tiny_calibration, tmp_path, lost)
    assert passing == WANTED
    assert told == ["onnx-int8", "ncnn-int8", "mnn-int8"]
    assert list(tmp_path.iterdir()) == list(cache.iterdir()) == []


def test_a_variant_that_fails_is_told_and_left_out(
    tiny_net: Make, tiny_spec: ModelSpec, tiny_calibration: Calibration, tmp_path: Path
) -> None:
    net = tiny_net()
    net.get_submodule("backbone.stem")[1] = nn.GELU()
    lost: dict[str, EdgeError] = {}
    passing, told = rehearsed(net, tiny_spec, tiny_calibration, tmp_path, lost.__setitem__)
    assert passing == [("onnx", "int8"), ("mnn", "int8")]
    assert told == ["onnx-int8", "ncnn-int8", "mnn-int8"]
    assert "layers of kind 'GELU' are not known" in str(lost.pop("ncnn-int8"))
    assert not lost
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rounding", "takes_long"), [("sequential", True), ("nearest", False)])
def test_only_what_takes_long_is_rehearsed(
    rounding: str, takes_long: bool, tiny_net: Make, tiny_spec: ModelSpec, tiny_calibration: Calibration
) -> None:
    network, methods = Network(tiny_spec, tiny_net(), 0), prepare.Options("minmax", rounding)
    assert prepare.takes_long(network, tiny_calibration, methods, [SAFE, FULL]) == takes_long
    prepare.prepare(network, tiny_calibration, methods, [SAFE, FULL])
    assert not prepare.takes_long(network, tiny_calibration, methods, [SAFE, FULL]), "the cache has it now"


def test_a_network_that_a_converter_cannot_take_is_refused_before_it_is_rounded(tmp_path: Path) -> None:
    state = torch.load(demo.CHECKPOINT, weights_only=True)
    # Weights too fine for ai-edge-quantizer, in a block whose input is added to what little it gives.
    state["features.3.conv.1.1.weight"] = state["features.3.conv.1.1.weight"].float() * 1e-12
    state["features.3.conv.1.1.bias"] = torch.zeros(144)
    torch.save(state, tmp_path / "net.pth")
    faces = {(path, None): None for path in sorted(demo.CALIBRATION.glob("*.jpg"))[:16]}
    told: list[str] = []
    lost: dict[str, EdgeError] = {}
    with pytest.raises(EdgeError, match="no variant passed") as refused:
        convert(
            tmp_path / "net.pth",
            tmp_path / "bundle",
            Plan(("tflite",), ("int8",)),
            Options(data="300w", input_size=64),
            lambda _: {},
            lambda what, *_: told.append(what),
            quantize=Quantize(faces),
            lost=lost.__setitem__,
        )
    assert refused.value.code == CHECK_FAILED
    assert "other weights for backbone.features.3.body.depthwise than" in str(lost["tflite-int8"])
    assert told == ["load", "export", "tflite-int8: rehearse"]
    assert not (tmp_path / "bundle").exists()
