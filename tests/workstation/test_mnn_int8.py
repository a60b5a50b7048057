"""int8 for MNN: what it computes against integers rounded as we round them, what its files hold, what stays float."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import MNN
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipnet_edge import runtimes
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.core import Core, export
from pipnet_edge.converters.graph import Run, convolutions, gates, heads, module, points, trace
from pipnet_edge.converters.mnn import fp
from pipnet_edge.converters.mnn import int8 as mnn_int8
from pipnet_edge.converters.quantize import match
from pipnet_edge.converters.quantize.scheme import FULL, Quantized, grid, pixel_lattice, stored, weight_steps
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec

CHANNELS = 8
SPEC = ModelSpec("tiny", CHANNELS, 1, 16, 64, MeanFace("eight", tuple((i / 8, i * i / 64) for i in range(CHANNELS))))
CROP: NDArray[np.uint8] = match.face((64, 64))
# The node that each map shows, in the order of the maps.
SHOWN = ("depthwise_1", "block_activation", "project", "mul", "last_1")

Array = NDArray[np.float32]


class Tiny(nn.Module):
    """Every kind of layer there is; the maps are twice what layers inside give."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        n = CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(3, n, 5, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.down = nn.Sequential(nn.Conv2d(n, n, 3, 2, 1), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(n, n, 3, 1, 1, groups=n), nn.ReLU6())
        self.project = nn.Conv2d(n, n, 1)
        body = nn.Sequential(nn.Conv2d(n, 2 * n, 3, 1, 1), nn.ReLU(), nn.Conv2d(2 * n, n, 3, 1, 1))
        self.block = nets.Residual(body, relu=True)
        self.swish = nn.Sequential(nn.Conv2d(n, n, 1), nn.Hardswish())
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Conv2d(n, n, 1), nn.Hardsigmoid())
        self.last = nn.Sequential(nn.Conv2d(n, n, 3, 1, 1), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Conv2d(n, n, 1) for name in nets.HEAD_KEYS})
        for head in self.heads.values():
            nn.init.dirac_(head.weight.data).mul_(2)
            nn.init.zeros_(head.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        small = self.depthwise(self.down(self.stem(image)))
        signed = self.project(small)
        block = self.block(signed)
        swish = self.swish(block)
        gated = swish * self.gate(self.pool(swish))
        shown = (small, block, signed, gated, self.last(gated))
        return tuple(head(tensor) for head, tensor in zip(self.heads.values(), shown, strict=True))


class Excited(nn.Module):
    """A depthwise layer, a squeeze-and-excite gate and a hard swish, as in MobileNetV3; all that the maps show is this.

    As in equalised networks, the depthwise layer reads small values. One of its channels has weights that are almost
    zero, and one has zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        n = CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(3, n, 5, 16, 2), nn.ReLU())
        self.depthwise = nn.Conv2d(n, n, 5, 1, 2, groups=n)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, n, 1), nn.ReLU(), nn.Conv2d(n, n, 1), nn.Hardsigmoid()
        )
        self.swish, self.project = nn.Hardswish(), nn.Conv2d(n, n, 1)
        self.heads = nn.ModuleDict({name: nn.Conv2d(n, n, 1) for name in nets.HEAD_KEYS})
        self.stem[0].weight.data.mul_(1e-3)
        self.stem[0].bias.data.mul_(1e-3)
        self.depthwise.weight.data.mul_(1e3)
        self.depthwise.weight.data[:2] = 0.0
        self.depthwise.weight.data[0, 0, 2, 2] = 1e-5
        self.gate[1].weight.data.mul_(20)
        for head in self.heads.values():
            nn.init.dirac_(head.weight.data).mul_(2)
            nn.init.zeros_(head.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        deep = self.depthwise(self.stem(image))
        gate = self.gate(deep)
        swish = self.swish(deep * gate)
        shown = (deep, gate.expand_as(deep), swish, self.project(swish), deep)
        return tuple(head(tensor) for head, tensor in zip(self.heads.values(), shown, strict=True))


def prepare(
    folder: Path, extra_keep: frozenset[str] = frozenset(), on_grid: bool = True, net: type[nn.Module] = Tiny
) -> tuple[Core, Quantized]:
    """A core whose weights lie on their grids, and the ranges of one crop."""
    graph = trace(net().eval())
    spec = pixel_lattice(graph, SPEC)
    keep = heads(graph) | gates(graph) | extra_keep
    for name, node in convolutions(graph).items():
        layer = module(graph, node)
        if name not in keep and on_grid:
            assert isinstance(layer, nn.Conv2d)
            steps = weight_steps(layer.weight, FULL)
            layer.weight.copy_((layer.weight / steps).round() * steps)
    values = run(Quantized(graph, spec, {}, keep, FULL), quantize=False)
    ranges = {name: (float(values[name].min()), float(values[name].max())) for name in points(graph)}
    ranges["image"] = (-116.0, 139.0)
    return export(graph, spec, folder), Quantized(graph, spec, ranges, keep, FULL)


def run(quantized: Quantized, quantize: bool) -> dict[str, Array]:
    """Node name -> what it gives for the crop, in float or stored in 8 bits wherever there is a range."""
    values: dict[str, Array] = {}

    def hook(node: Any, value: Tensor) -> Tensor:
        if quantize and node.name in quantized.ranges:
            value = stored(value, quantized.ranges[node.name])
        values[node.name] = value[0].numpy().copy()
        return value

    with torch.no_grad():
        Run(quantized.graph, hook).run(torch.from_numpy(match.image(quantized, CROP)))
    return values


def run_mnn(folder: Path, spec: ModelSpec) -> list[Array]:
    """What the maps show, (8, 4, 4) each."""
    session = runtimes.load("mnn", folder, spec, "fp32", 1)
    maps = session.run(CROP)
    session.close()
    return [np.asarray(getattr(maps, name)).reshape(CHANNELS, 4, 4) / 2 for name in MAP_NAMES]


def kinds(folder: Path) -> dict[str, str]:
    """Name of each operation that MNN runs -> its kind, with `[ DT_INT8 ]` after those that compute with int8."""
    interpreter = MNN.Interpreter(str(folder / "model.mnn"))
    session = interpreter.createSession({"numThread": 1, "backend": "CPU", "precision": "high"})
    found = {}

    def after(_: Any, operation: MNN.OpInfo) -> bool:
        found[operation.getName()] = operation.getType()
        return True

    interpreter.runSessionWithCallBackInfo(session, lambda *_: True, after)
    return found


def steps_apart(maps: list[Array], quantized: Quantized, values: Mapping[str, Array]) -> list[Array]:
    """How many steps of the tensor that a map shows it lies from that tensor's values."""
    apart = []
    for map_, name in zip(maps, SHOWN, strict=True):
        step, _ = grid(quantized.ranges[name])
        apart.append(np.abs(map_ - values[name]) / step)
    return apart


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Core, Quantized]:
    return prepare(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def int8(prepared: tuple[Core, Quantized], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnn-int8")
    mnn_int8.convert(*prepared, 8, folder)
    return folder


@pytest.fixture(scope="module")
def weights_only(prepared: tuple[Core, Quantized], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnn-int8-weights")
    mnn_int8.convert(*prepared, 0, folder)
    return folder


def test_zero_points_are_honoured_to_one_step(prepared: tuple[Core, Quantized], int8: Path) -> None:
    _, quantized = prepared
    assert any(-120 < -128 + grid(quantized.ranges[name])[1] < 120 for name in SHOWN)
    apart = steps_apart(run_mnn(int8, quantized.spec), quantized, run(quantized, quantize=True))
    for name, steps in zip(SHOWN, apart, strict=True):
        # Ties, and biases of depthwise layers, round differently; a later layer can make two steps of one. The gate's
        # product is stored only for the int8 layer that reads it, not for the map.
        assert steps.max() < 2.5
        assert (steps < (1.0 if name == "mul" else 0.01)).mean() > 0.9


def test_int8_differs_from_float(prepared: tuple[Core, Quantized], int8: Path) -> None:
    # Else the test above would pass for a model that never stored anything in 8 bits.
    _, quantized = prepared
    simulated, real = run(quantized, quantize=True), run(quantized, quantize=False)
    maps = run_mnn(int8, quantized.spec)
    near = np.mean([apart.mean() for apart in steps_apart(maps, quantized, simulated)])
    far = np.mean([apart.mean() for apart in steps_apart(maps, quantized, real)])
    assert far > 3 * near


def test_layers_sums_compute_with_int8_and_the_rest_with_float(int8: Path, prepared: tuple[Core, Quantized]) -> None:
    found = kinds(int8)
    integer = [name for name, kind in found.items() if kind.startswith("Convolution") and "INT8" in kind]
    assert len(integer) == len(convolutions(prepared[1].graph)) - len(prepared[1].keep)
    assert "INT8" in next(kind for name, kind in found.items() if "Add" in name and kind.startswith("Binary"))
    # MNN's int8 pooling is wrong on x86 and rounds means down everywhere.
    assert not any("INT8" in kind for kind in found.values() if kind.startswith("Pooling"))


def test_int8_weights_alone_change_nothing(prepared: tuple[Core, Quantized], weights_only: Path) -> None:
    _, quantized = prepared
    real = run(quantized, quantize=False)
    for map_, name in zip(run_mnn(weights_only, quantized.spec), SHOWN, strict=True):
        np.testing.assert_allclose(map_, real[name], atol=1e-4 * np.abs(real[name]).max())
    assert not any("INT8" in kind for kind in kinds(weights_only).values())


@pytest.mark.parametrize("variant", ["int8", "weights_only"])
def test_the_file_holds_the_networks_integers(
    variant: str, prepared: tuple[Core, Quantized], request: pytest.FixtureRequest
) -> None:
    graph, keep = prepared[1].graph, prepared[1].keep
    expected = []
    for name in convolutions(graph):
        if name not in keep:
            weight = graph.get_submodule(name).get_parameter("weight")
            expected.append((weight / weight_steps(weight, FULL)).round().numpy().astype(np.int8))
    found = mnn_int8.int8_weights(request.getfixturevalue(variant) / "model.mnn")
    assert [w.shape for w in found.values()] == [w.shape for w in expected]
    for one, other in zip(found.values(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def excited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Core, Quantized]:
    return prepare(tmp_path_factory.mktemp("excited"), net=Excited)


def test_biases_survive_weights_that_are_almost_zero(excited: tuple[Core, Quantized], tmp_path: Path) -> None:
    core, quantized = excited
    mnn_int8.convert(core, quantized, 8, tmp_path)
    step, out_step = (grid(quantized.ranges[name])[0] for name in ("stem_1", "depthwise"))
    weights = quantized.graph.get_submodule("depthwise").get_parameter("weight")
    # As a multiple of input step times weight step, a zero point would outgrow 32 bits.
    assert 100 * out_step / (step * weights[0].max() / FULL) > 2**31
    deep = run_mnn(tmp_path, quantized.spec)[0]
    np.testing.assert_allclose(deep, run(quantized, quantize=True)["depthwise"], atol=1.01 * out_step)


def test_gates_get_means_that_are_not_rounded(excited: tuple[Core, Quantized], tmp_path: Path) -> None:
    core, quantized = excited
    mnn_int8.convert(core, quantized, 8, tmp_path)
    assert not any("INT8" in kind for kind in kinds(tmp_path).values() if kind.startswith("Pooling"))
    _, gate, swish, project, _ = run_mnn(tmp_path, quantized.spec)
    expected = run(quantized, quantize=True)
    assert np.ptp(expected["gate_4"]) > 0.1
    np.testing.assert_allclose(gate, np.broadcast_to(expected["gate_4"], gate.shape), atol=2e-3)
    # The product and its hard swish are float in MNN; the simulation stores both.
    np.testing.assert_allclose(swish, expected["swish"], atol=2 * grid(quantized.ranges["swish"])[0])
    np.testing.assert_allclose(project, expected["project"], atol=2.01 * grid(quantized.ranges["project"])[0])


def test_biases_of_depthwise_layers_are_rounded_and_not_cut(excited: tuple[Core, Quantized], tmp_path: Path) -> None:
    core, quantized = excited
    low, high = quantized.ranges["stem_1"]
    # One whole number of a sum is then two thirds of a step of what is stored.
    quantized = replace(quantized, ranges={**quantized.ranges, "stem_1": (low, 300 * high)})
    mnn_int8.convert(core, quantized, 8, tmp_path)
    deep = run_mnn(tmp_path, quantized.spec)[0]
    apart = np.abs(deep - run(quantized, quantize=True)["depthwise"]) / grid(quantized.ranges["depthwise"])[0]
    # A channel of zeros is exact. Rounding moves others by a sixth of a step on average before they are stored, cutting
    # by more than that and in one direction.
    assert apart[1].max() < 0.01
    assert apart.mean() < 0.2


def test_two_runs_and_two_sessions_give_the_same_bits(int8: Path, prepared: tuple[Core, Quantized]) -> None:
    first, second = (np.stack(run_mnn(int8, prepared[1].spec)) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    "kept",
    [
        {"stem.0"},
        {"down.0", "project"},
        {"depthwise.0"},
        # The sum is computed in float then, and so has to be its ReLU: a map reads what an int8 layer would clip.
        {"block.body.2"},
    ],
)
def test_layers_to_keep_stay_in_float(kept: set[str], tmp_path: Path) -> None:
    core, quantized = prepare(tmp_path, frozenset(kept))
    folder = core.work("int8")
    mnn_int8.convert(core, quantized, 8, folder)
    assert len(mnn_int8.int8_weights(folder / "model.mnn")) == len(convolutions(quantized.graph)) - len(quantized.keep)
    integer = [kind for kind in kinds(folder).values() if kind.startswith("Convolution") and "INT8" in kind]
    assert len(integer) == len(convolutions(quantized.graph)) - len(quantized.keep)
    for apart in steps_apart(run_mnn(folder, quantized.spec), quantized, run(quantized, quantize=False)):
        assert apart.max() < 5


@pytest.mark.parametrize("bits", [4, 16])
def test_other_bits_are_refused(bits: int, prepared: tuple[Core, Quantized], tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=f"{bits}-bit activations; allowed: 8, or 0"):
        mnn_int8.convert(*prepared, bits, tmp_path)


def test_weights_off_their_grid_are_refused(tmp_path: Path) -> None:
    core, quantized = prepare(tmp_path, on_grid=False)
    with pytest.raises(EdgeError, match=r"the weights of stem\.0 do not lie on an int8 grid"):
        mnn_int8.convert(core, quantized, 8, core.work("int8"))


def test_a_network_that_is_not_the_cores_is_refused(prepared: tuple[Core, Quantized]) -> None:
    core, quantized = prepared
    other = trace(quantized.graph)
    layer = other.get_submodule("project")
    assert isinstance(layer, nn.Conv2d)
    layer.weight.neg_()
    with pytest.raises(EdgeError, match="0 convolutions of MNN's model give what project gives, not one"):
        mnn_int8.convert(core, replace(quantized, graph=other), 8, core.work("other"))


def test_loading_prints_no_more_than_fp32_does(prepared: tuple[Core, Quantized], int8: Path, tmp_path: Path) -> None:
    fp.convert(prepared[0], "fp32", tmp_path)
    code = "import sys, MNN; i = MNN.Interpreter(sys.argv[1]); s = i.createSession({'precision': 'high'})"
    code += "; i.runSession(s)"
    printed = []
    for folder in (tmp_path, int8):
        command = [sys.executable, "-P", "-c", code, str(folder / "model.mnn")]
        printed.append(subprocess.run(command, capture_output=True, text=True, check=True))
    assert (printed[0].stdout, printed[0].stderr) == (printed[1].stdout, printed[1].stderr)
