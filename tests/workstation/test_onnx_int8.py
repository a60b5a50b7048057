"""int8 for ONNX Runtime: what the file holds, what ONNX Runtime makes of it, and how near it is to the simulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.core import Core, export
from pipnet_edge.converters.graph import Run, convolutions, trace
from pipnet_edge.converters.onnx import int8
from pipnet_edge.converters.quantize import prepare, ranges, rounding, scheme
from pipnet_edge.converters.quantize.prepare import Prepared
from pipnet_edge.converters.quantize.scheme import Quantized, grid, stored, weight_steps
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Array = np.ndarray[Any, Any]
Made = tuple[Quantized, Path]
MapsOf = Callable[[Path, ModelSpec, Array], list[Array]]
Distance = Callable[[list[Array], list[Array]], float]


@pytest.fixture(scope="module")
def make(tiny_prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Converts the tiny network: (layers to keep) and bits -> what was converted, and its folder."""

    def convert(keep: frozenset[str], bits: int) -> Made:
        given, folder = tiny_prepared.keeping(keep), tmp_path_factory.mktemp("onnx")
        core = export(given.graph, given.spec, folder)
        (folder / "int8").mkdir()
        int8.convert(core, given, bits, folder / "int8")
        return given, folder / "int8"

    return convert


@pytest.fixture(scope="module")
def made(make: Callable[..., Made], tiny_prepared: Prepared) -> Made:
    return make(graphs.heads(tiny_prepared.float_), 8)


@pytest.fixture(scope="module")
def full(make: Callable[..., Made]) -> Made:
    return make(frozenset(), 8)


@pytest.fixture(scope="module")
def weights_only(make: Callable[..., Made]) -> Made:
    return make(frozenset(), 0)


def simulate(given: Quantized, crops: Array, maps_too: bool = False, bits: int = 8) -> list[Array]:
    """The maps, (n, C, H, W) each, of a network that stores its activations in 8 bits; in float where bits is 0."""
    names = {*graphs.points(given.graph), *(graphs.maps(given.graph) if maps_too else ())}

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        return stored(value, given.ranges[node.name]) if bits and node.name in names else value

    with torch.no_grad():
        return [map_.numpy() for map_ in Run(given.graph, hook).run(normalise(crops, given.spec))]


@pytest.fixture(scope="session")
def run(run_int8: Callable[..., list[Array]]) -> MapsOf:
    """run(folder, spec, crops): the maps that ONNX Runtime gives, (n, C, H, W) each."""
    return partial(run_int8, "onnx")


def constants(folder: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(folder / "model.onnx").graph.initializer}


def optimised(folder: Path, path: Path) -> dict[str, int]:
    """How many nodes of each kind ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    return {kind: kinds.count(kind) for kind in kinds}


def unoptimised(folder: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def read_by_nobody(folder: Path) -> set[str]:
    """Tensors that are computed for nothing."""
    graph = onnx.load(folder / "model.onnx").graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    return {name for node in graph.node for name in node.output} - read


@pytest.mark.parametrize("variant", ["made", "full", "weights_only"])
def test_the_file_holds_the_networks_integers(variant: str, request: pytest.FixtureRequest) -> None:
    given, folder = request.getfixturevalue(variant)
    found, integers = constants(folder), scheme.integers(given)
    held = {name for name, value in found.items() if value.dtype == np.int8 and value.ndim == 4}
    assert held == {f"{name}.weight" for name in integers}
    assert len(integers) == len(convolutions(given.graph)) - len(given.keep)
    for name in convolutions(given.graph):
        weight = given.graph.get_parameter(f"{name}.weight")
        if name in given.keep:
            np.testing.assert_array_equal(found[f"{name}.weight"], weight.numpy())
        else:
            np.testing.assert_array_equal(found[f"{name}.weight"], integers[name])
            steps = found[f"{name}.weight/step"]
            np.testing.assert_array_equal(steps, weight_steps(weight, given.levels).flatten().numpy())
            np.testing.assert_allclose(integers[name] * steps[:, None, None, None], weight, atol=1e-6)


def test_onnx_runtime_computes_all_int8_layers_with_integers(made: Made, full: Made, tmp_path: Path) -> None:
    for (given, folder), maps in ((made, 5), (full, 0)):
        kinds = optimised(folder, tmp_path / "optimised.onnx")
        layers = len(convolutions(given.graph)) - len(given.keep)
        assert kinds["QLinearConv"] == layers
        assert kinds.get("Conv", 0) + kinds.get("FusedConv", 0) == len(given.keep) == maps
        # The last sum is stored for int8 heads only.
        assert kinds["QLinearAdd"] == (2 if maps else 3)
        assert kinds["QuantizeLinear"] == 1
        # The two summands of the last sum, or the maps.
        assert kinds["DequantizeLinear"] == (2 if maps else 5)
        # Storing cuts off what activations cut off, but where the sum is float.
        assert kinds.get("Relu", 0) == (1 if maps else 0)
        assert "Clip" not in kinds


def test_activations_stay_where_storing_does_not_cut_off_what_they_do(
    made: Made, tiny_faces: Array, tmp_path: Path, run: MapsOf, distance: Distance
) -> None:
    given, folder = made

    def kinds(path: Path) -> list[str]:
        return [node.op_type for node in onnx.load(path).graph.node if node.op_type in ("Relu", "Clip")]

    assert kinds(folder / "model.onnx") == ["Relu"]  # of the last sum, which float layers read
    wider = {"backbone_expand_1": (0.0, 9.0), "backbone_plain_body_1": (-4.0, 9.0)}
    wide = Quantized(given.graph, given.spec, {**given.ranges, **wider}, given.keep, given.levels)
    int8.convert(export(given.graph, given.spec, tmp_path), wide, 8, tmp_path)
    assert kinds(tmp_path / "model.onnx") == ["Clip", "Relu", "Relu"]
    wanted = simulate(wide, tiny_faces)
    noise = distance(simulate(wide, tiny_faces, bits=0), wanted)
    assert distance(run(tmp_path, wide.spec, tiny_faces), wanted) < 0.6 * noise


@pytest.mark.parametrize("variant", ["made", "full"])
def test_maps_are_those_of_the_simulation(
    variant: str, tiny_faces: Array, request: pytest.FixtureRequest, run: MapsOf, distance: Distance
) -> None:
    given, folder = request.getfixturevalue(variant)
    got, wanted = run(folder, given.spec, tiny_faces), simulate(given, tiny_faces, variant == "full")
    noise = distance(simulate(given, tiny_faces, bits=0), wanted)
    # A tie that is rounded the other way makes a step, and that more of them behind it.
    assert distance(got, wanted) < 0.6 * noise
    assert noise > 1e-3


def test_maps_are_stored_in_8_bits(full: Made, made: Made, tiny_faces: Array, run: MapsOf) -> None:
    for (given, folder), whole in ((full, True), (made, False)):
        for name, map_ in zip(MAP_NAMES, run(folder, given.spec, tiny_faces[:4]), strict=True):
            step, zero = grid(given.ranges[f"heads_{name}"])
            steps = map_ / step + zero
            assert (np.abs(steps - steps.round()).max() < 0.01) == whole
            if whole:
                assert steps.min() > -0.01
                assert steps.max() < 255.01
                assert len(np.unique(steps.round())) > 10


def test_int8_weights_alone_give_the_rounded_networks_maps(weights_only: Made, tiny_faces: Array, run: MapsOf) -> None:
    given, folder = weights_only
    for got, wanted in zip(run(folder, given.spec, tiny_faces), simulate(given, tiny_faces, bits=0), strict=True):
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert not any(value.dtype == np.uint8 for value in constants(folder).values())


@pytest.mark.parametrize("bits", [4, 16])
def test_other_bits_are_refused(bits: int, tiny_prepared: Prepared, tmp_path: Path) -> None:
    given = tiny_prepared.keeping(())
    core = Core(given.graph, given.spec, tmp_path / "none.onnx", (0, 0), (0, 0))
    message = f"^ONNX Runtime int8 with {bits}-bit activations; allowed: 0, 8$"
    with pytest.raises(EdgeError, match=message):
        int8.convert(core, given, bits, tmp_path)
    assert not list(tmp_path.iterdir())


LAYERS = (
    *("stem.0", "expand.0", "depthwise.0", "project", "mobilenet.body.0", "mobilenet.body.2"),
    *("plain.body.0", "plain.body.2", "down.body.0", "down.body.2", "down.shortcut"),
)


@pytest.mark.parametrize("kept", [*LAYERS, "stem.0 expand.0", "expand.0 project", "down.shortcut down.body.0"])
def test_layers_to_keep_compute_in_float(
    kept: str,
    make: Callable[..., Made],
    tiny_prepared: Prepared,
    tiny_faces: Array,
    tmp_path: Path,
    run: MapsOf,
    distance: Distance,
) -> None:
    """ONNX Runtime by itself rounds the weights of layers between two stored tensors, on one grid for all channels."""
    keep = graphs.heads(tiny_prepared.float_) | {f"backbone.{name}" for name in kept.split()}
    given, folder = make(keep, 8)
    kinds = optimised(folder, tmp_path / "optimised.onnx")
    assert kinds["QLinearConv"] == len(convolutions(given.graph)) - len(given.keep)
    assert kinds.get("Conv", 0) + kinds.get("FusedConv", 0) == len(given.keep)
    assert not read_by_nobody(folder)
    session = unoptimised(folder)
    exact = [session.run(MAP_NAMES, {"crop": crop[None]}) for crop in tiny_faces]
    as_written = [np.concatenate(maps) for maps in zip(*exact, strict=True)]
    noise = distance(simulate(given, tiny_faces), simulate(given, tiny_faces, bits=0))
    assert distance(run(folder, given.spec, tiny_faces), as_written) < 0.1 * noise
    assert distance(as_written, simulate(given, tiny_faces, bits=0)) < 1.2 * noise


def test_nothing_to_quantize_is_the_float_network(
    make: Callable[..., Made], tiny_prepared: Prepared, tiny_faces: Array, run: MapsOf
) -> None:
    given, folder = make(frozenset(convolutions(tiny_prepared.float_)), 8)
    got = run(folder, given.spec, tiny_faces[:4])
    for one, other in zip(got, simulate(given, tiny_faces[:4], bits=0), strict=True):
        assert np.abs(one - other).max() < 1e-4 * np.abs(other).max()


def test_a_bias_that_does_not_fit_is_refused(tiny_prepared: Prepared, tmp_path: Path) -> None:
    given = tiny_prepared.keeping(graphs.heads(tiny_prepared.float_))
    given.graph.get_parameter("backbone.project.bias")[2] = 1e9
    core = export(given.graph, given.spec, tmp_path)
    with pytest.raises(EdgeError, match=r"^layer 'backbone\.project' has a bias that does not fit int8 arithmetic"):
        int8.convert(core, given, 8, tmp_path)


def test_a_layer_that_the_export_lacks_is_named(tiny_prepared: Prepared, tmp_path: Path) -> None:
    given = tiny_prepared.keeping(graphs.heads(tiny_prepared.float_))
    core = export(given.graph, given.spec, tmp_path)
    model = onnx.load(core.path)
    for node in model.graph.node:
        node.input[:] = [name.replace("backbone.project", "backbone.other") for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("backbone.project", "backbone.other")
    onnx.save(model, core.path)
    with pytest.raises(EdgeError, match=r"^the ONNX export has no layer 'backbone\.project' to round$"):
        int8.convert(core, given, 8, tmp_path)


class Others(nn.Module):
    """What the tiny network lacks: a gate, hard swishes and a transposed layer."""

    def __init__(self) -> None:
        super().__init__()
        from pipnet_edge.converters.checkpoint import nets

        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.Hardswish())
        self.gate = nets.SqueezeExcite(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1))
        self.act, self.down = nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3, 8, 1), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Hardswish())
        rows = {"neighbor_x": 10, "neighbor_y": 10}
        self.heads = nn.ModuleDict({name: nn.Conv2d(8, rows.get(name, 5), 1) for name in nets.HEAD_KEYS})

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.last(self.up(self.down(self.act(self.gate(self.stem(image))))))
        return tuple(head(features) for head in self.heads.values())


@pytest.mark.parametrize(("kinds", "integer"), [(["heads", "gates", "transposed"], 3), (["gates", "transposed"], 8)])
def test_gates_hard_swishes_and_transposed_layers(
    kinds: list[str],
    integer: int,
    tiny_spec: ModelSpec,
    tiny_faces: Array,
    tmp_path: Path,
    run: MapsOf,
    distance: Distance,
) -> None:
    graph = trace(Others().eval())
    spec = scheme.pixel_lattice(graph, tiny_spec)
    bounds = ranges.observe(graph, spec, tiny_faces, "minmax")
    made = prepare.Prepared(
        graph, rounding.nearest(graph, graphs.transposed(graph), scheme.SAFE), spec, bounds, scheme.SAFE
    )
    given = made.keeping(made.kinds(kinds))
    int8.convert(export(given.graph, spec, tmp_path), given, 8, tmp_path)
    found = optimised(tmp_path, tmp_path / "optimised.onnx")
    assert found["QLinearConv"] == integer
    assert found["ConvTranspose"] == 1
    held = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "optimised.onnx").graph.initializer]
    up = graph.get_parameter("up.0.weight").numpy()
    assert any(value.shape == up.shape and np.array_equal(value, up) for value in held)
    got, exact = run(tmp_path, spec, tiny_faces), simulate(given, tiny_faces, bits=0)
    noise = distance(simulate(given, tiny_faces, integer == 8), exact)
    assert distance(got, exact) < 1.3 * noise
    assert distance(got, simulate(given, tiny_faces, integer == 8)) < noise
