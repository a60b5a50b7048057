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
from pipnet_edge.converters.plan import Plan, Quantize
from pipnet_edge.converters.quantize import prepare
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread", "cache")

Make = Callable[[], nn.Module]


def rehearsed(net: nn.Module, spec: ModelSpec, faces: Calibration, rounding: str, folder: Path) -> list[str]:
    """The variants that were made, of all that there are."""
    told: list[str] = []
    plan = Plan(("onnx", "ncnn", "mnn"), ("fp32", "int8"))
    methods = prepare.Options("mse", rounding)
    rehearsal.rehearse(Network(spec, net, 0), faces, methods, plan, folder, True, told.append)
    return told


def test_each_quantized_variant_is_made_and_removed(
    tiny_net: Make, tiny_spec: ModelSpec, tiny_calibration: Calibration, cache: Path, tmp_path: Path
) -> None:
    made = rehearsed(tiny_net(), tiny_spec, tiny_calibration, "sequential", tmp_path / "new")
    assert made == ["onnx-int8", "ncnn-int8", "mnn-int8"]
    assert list(tmp_path.iterdir()) == list(cache.iterdir()) == []
    assert rehearsed(tiny_net(), tiny_spec, tiny_calibration, "nearest", tmp_path / "new") == []


def test_a_network_that_a_converter_cannot_take_is_refused_before_it_is_rounded(tmp_path: Path) -> None:
    state = torch.load(demo.CHECKPOINT, weights_only=True)
    # Weights too fine for ai-edge-quantizer, in a block whose input is added to what little it gives.
    state["features.3.conv.1.1.weight"] = state["features.3.conv.1.1.weight"].float() * 1e-12
    state["features.3.conv.1.1.bias"] = torch.zeros(144)
    torch.save(state, tmp_path / "net.pth")
    faces = {(path, None): None for path in sorted(demo.CALIBRATION.glob("*.jpg"))[:16]}
    told: list[str] = []
    with pytest.raises(EdgeError, match=r"other weights for backbone\.features\.3\.body\.depthwise than") as refused:
        convert(
            tmp_path / "net.pth",
            tmp_path / "bundle",
            Plan(("tflite",), ("int8",)),
            Options(data="300w", input_size=64),
            lambda _: {},
            lambda what, *_: told.append(what),
            quantize=Quantize(faces),
        )
    assert refused.value.code == CHECK_FAILED
    assert told == ["load", "export", "tflite-int8: rehearse"]
    assert not (tmp_path / "bundle").exists()
