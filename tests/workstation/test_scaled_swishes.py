"""Hard swishes whose channels are scaled: every runtime gives what the simulated int8 network gives."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import Network, normalise
from pipnet_edge.converters.core import export
from pipnet_edge.converters.graph import Run, ScaledSwish, Storage, convolutions, trace
from pipnet_edge.converters.ncnn import model as ncnn_model
from pipnet_edge.converters.quantize import scheme, sensitivity
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.prepare import Options, Prepared, prepare
from pipnet_edge.converters.quantize.scheme import SAFE, Quantized
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.decode import MAP_NAMES, Decoder, Maps, map_shapes
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Array = np.ndarray[Any, Any]
Distance = Callable[[list[Array], list[Array]], float]
SWISHES = {"backbone.stem.1", "backbone.block.body.act1"}


def network() -> nn.Module:
    """A stem, a residual block with a squeeze-and-excite gate, and what makes the maps; channels are uneven."""
    random = torch.Generator().manual_seed(3)

    def conv(inner: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        layer = nn.Conv2d(inner, out, kernel, stride, kernel // 2, groups=groups).requires_grad_(False)
        spread = torch.exp(0.7 * torch.randn(out, 1, 1, 1, generator=random))
        scale = (2 / layer.weight[0].numel()) ** 0.5
        layer.weight.copy_(scale * spread * torch.randn(layer.weight.shape, generator=random))
        layer.bias.copy_(0.3 * torch.randn(out, generator=random))
        return layer

    body = nn.Sequential()
    for name, layer in {
        "expand": conv(12, 24, 1),
        "act0": nn.Hardswish(),
        "depthwise": conv(24, 24, 3, groups=24),
        "gate": nets.SqueezeExcite(conv(24, 8, 1), conv(8, 24, 1)),
        "act1": nn.Hardswish(),
        "project": conv(24, 12, 1),
    }.items():
        body.add_module(name, layer)
    backbone = nn.Sequential()
    backbone.add_module("stem", nn.Sequential(conv(3, 12, 3, 4), nn.Hardswish()))
    backbone.add_module("block", nets.Residual(body))
    backbone.add_module("down", nn.Sequential(conv(12, 16, 3, 4), nn.Hardswish()))
    rows = {"neighbor_x": 10, "neighbor_y": 10}
    return nets.Pipnet(backbone, {name: conv(16, rows.get(name, 5), 1) for name in nets.HEAD_KEYS}).eval()


@pytest.fixture(scope="module")
def ready(tiny_spec: ModelSpec, tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return prepare(Network(tiny_spec, network(), 0), tiny_calibration, Options("mse", "nearest"), [SAFE])[SAFE]


@pytest.fixture(scope="module")
def given(ready: Prepared) -> Quantized:
    return ready.keeping(ready.kinds(recipes()["int8"].keep))


@pytest.fixture(scope="module")
def make(given: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """make(runtime): the folder of its int8 model."""
    folder = tmp_path_factory.mktemp("core")
    with torch.no_grad():
        core = export(given.graph, given.spec, folder)

    def convert(runtime: str) -> Path:
        made = folder / runtime
        if not made.is_dir():
            made.mkdir()
            import_module(f"pipnet_edge.converters.{runtime}.destination").HERE.int8(core, given, 8, made)
        return made

    return convert


def maps_of(given: Quantized, names: frozenset[str], crops: Array) -> list[Array]:
    """The maps, (n, C, H, W) each, of a network that stores these nodes in 8 bits."""

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        return scheme.stored(value, given.ranges[node.name]) if node.name in names else value

    with torch.no_grad():
        return [map_.numpy() for map_ in Run(given.graph, hook).run(normalise(crops, given.spec))]


def test_only_what_an_int8_layer_reads_is_scaled(ready: Prepared, tiny_spec: ModelSpec, tiny_faces: Array) -> None:
    swishes = {name: layer for name, layer in ready.float_.named_modules() if isinstance(layer, ScaledSwish)}
    assert swishes.keys() == SWISHES
    for layer in swishes.values():
        assert float((6 * layer.sixth - 1).abs().max()) > 0.1
    assert ready.kinds(["swished"]).keys() == {"backbone.stem.0", "backbone.block.body.depthwise"}
    # In float it is the same network; its images have a border that is padded with another value.
    with torch.no_grad():
        exact = trace(network())(normalise(tiny_faces, tiny_spec))
        scaled = ready.float_(normalise(tiny_faces, ready.spec))
    for one, other in zip(scaled, exact, strict=True):
        assert float((one - other).abs().mean()) < 2e-3 * float(other.abs().mean())


@pytest.mark.parametrize("runtime", ["onnx", "ncnn", "mnn", "tflite"])
def test_every_runtime_gives_the_simulated_maps(
    runtime: str,
    ready: Prepared,
    given: Quantized,
    make: Callable[[str], Path],
    tiny_faces: Array,
    run_int8: Callable[..., list[Array]],
    distance: Distance,
) -> None:
    wanted = maps_of(given, Storage(ready.float_).stored(convolutions(ready.float_).keys() - given.keep), tiny_faces)
    exact = maps_of(given, frozenset(), tiny_faces)
    noise = distance(wanted, exact)
    assert noise > 1e-3
    got = run_int8(runtime, make(runtime), given.spec, tiny_faces)
    # ncnn rounds to 254 steps instead of 255, and keeps depthwise layers and sums in float.
    assert distance(got, wanted) < (1.5 if runtime == "ncnn" else 0.6) * noise


def test_the_simulated_maps_are_those_that_are_measured(ready: Prepared, given: Quantized, tiny_faces: Array) -> None:
    crops, decoder, spec = tiny_faces[:4], Decoder(given.spec), given.spec
    wanted = sensitivity.simulate(ready.float_, given, crops)
    stored = Storage(ready.float_).stored(convolutions(ready.float_).keys() - given.keep)
    for index, maps in enumerate(zip(*maps_of(given, stored, crops), strict=True)):
        shaped = {name: maps[at].reshape(map_shapes(spec)[name]) for at, name in enumerate(MAP_NAMES)}
        np.testing.assert_allclose(decoder(Maps(**shaped)).points, wanted.points[index], atol=1e-4)


def test_no_weight_saturates_a_cpu_without_int8_dot_products(given: Quantized, make: Callable[[str], Path]) -> None:
    path = make("onnx") / "model.onnx"
    held = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    weights = [value for value in held if value.dtype == np.int8 and value.ndim == 4]
    assert len(weights) == len(scheme.integers(given)) == 3
    assert {int(np.abs(value.astype(int)).max()) for value in weights} == {64}


def test_ncnn_computes_them_in_two_layers(make: Callable[[str], Path]) -> None:
    model = ncnn_model.read_model(make("ncnn") / "model.param", make("ncnn") / "model.bin")
    kinds = [layer.kind for layer in model.layers]
    assert (kinds.count("HardSwish"), kinds.count("MemoryData"), kinds.count("Clip")) == (4, 2, 0)
