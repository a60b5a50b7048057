"""int8 for ncnn: what the files hold, which layers stay in float, and how near the maps are to the network's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.core import Core, export
from pipnet_edge.converters.graph import Run, convolutions
from pipnet_edge.converters.ncnn import int8 as ncnn_int8
from pipnet_edge.converters.ncnn import int8_layers
from pipnet_edge.converters.ncnn import model as ncnn_model
from pipnet_edge.converters.ncnn.model import Model
from pipnet_edge.converters.quantize import scheme
from pipnet_edge.converters.quantize.prepare import Prepared
from pipnet_edge.converters.quantize.scheme import Quantized, stored
from pipnet_edge.decode import MAP_NAMES, Decoder, Maps, map_shapes
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

pytest.importorskip("ncnn")
pytestmark = pytest.mark.usefixtures("one_thread")

Array = np.ndarray[Any, Any]
Made = tuple[Quantized, Path]
MapsOf = Callable[[Path, ModelSpec, Array], list[Array]]
Distance = Callable[[list[Array], list[Array]], float]
DEPTHWISE = "backbone.depthwise.0"


@pytest.fixture(scope="module")
def make(tiny_prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable[[frozenset[str]], Made]:
    """Converts the tiny network: layers to keep -> what was converted, and its folder."""

    def convert(keep: frozenset[str]) -> Made:
        given, folder = tiny_prepared.keeping(keep), tmp_path_factory.mktemp("ncnn")
        (folder / "int8").mkdir()
        ncnn_int8.convert(export(given.graph, given.spec, folder), given, 8, folder / "int8")
        return given, folder / "int8"

    return convert


@pytest.fixture(scope="module")
def made(make: Callable[[frozenset[str]], Made], tiny_prepared: Prepared) -> Made:
    return make(graphs.heads(tiny_prepared.float_))


@pytest.fixture(scope="module")
def full(make: Callable[[frozenset[str]], Made]) -> Made:
    return make(frozenset())


def read(folder: Path) -> Model:
    return ncnn_model.read_model(folder / "model.param", folder / "model.bin")


def simulate(given: Quantized, crops: Array, bits: int = 8) -> list[Array]:
    names = graphs.points(given.graph) if bits else {}

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        return stored(value, given.ranges[node.name]) if node.name in names else value

    with torch.no_grad():
        return [map_.numpy() for map_ in Run(given.graph, hook).run(normalise(crops, given.spec))]


@pytest.fixture(scope="session")
def run(run_int8: Callable[..., list[Array]]) -> MapsOf:
    """run(folder, spec, crops): the maps that ncnn gives, (n, C, H, W) each."""
    return partial(run_int8, "ncnn")


@pytest.mark.parametrize("variant", ["made", "full"])
def test_the_files_hold_the_networks_integers(variant: str, request: pytest.FixtureRequest) -> None:
    given, folder = request.getfixturevalue(variant)
    model, integers = read(folder), scheme.integers(given)
    held = {}
    for name in int8_layers.quantizable(model):
        if model[name].arrays["weight"].dtype == np.int8:
            held[model[name].arrays["weight"].tobytes()] = name
    assert held.keys() == {whole.tobytes() for name, whole in integers.items() if name != DEPTHWISE}
    assert len(held) == len(convolutions(given.graph)) - len(given.keep) - 1
    for name, whole in integers.items():
        if name != DEPTHWISE:
            layer = model[held[whole.tobytes()]]
            steps = scheme.weight_steps(given.graph.get_parameter(f"{name}.weight"), given.levels).flatten().numpy()
            np.testing.assert_allclose(layer.arrays["weight_scales"] * steps, 1, rtol=1e-5)


@pytest.mark.parametrize("variant", ["made", "full"])
def test_layers_to_keep_and_depthwise_ones_hold_float_weights(variant: str, request: pytest.FixtureRequest) -> None:
    given, folder = request.getfixturevalue(variant)
    model = read(folder)
    held = [model[name].arrays["weight"] for name in int8_layers.quantizable(model)]
    held = [weight for weight in held if weight.dtype != np.int8]
    wanted = given.keep | {DEPTHWISE}
    assert len(held) == len(wanted)
    for name in wanted:
        weight = given.graph.get_parameter(f"{name}.weight").numpy().ravel()
        assert any(np.array_equal(weight, other) for other in held)
    (depthwise,) = int8_layers.depthwise(model)
    rounded = given.graph.get_parameter(f"{DEPTHWISE}.weight").numpy().ravel()
    np.testing.assert_array_equal(model[depthwise].arrays["weight"], rounded)


@pytest.mark.parametrize("variant", ["made", "full"])
def test_maps_are_near_the_networks(
    variant: str, tiny_faces: Array, request: pytest.FixtureRequest, run: MapsOf, distance: Distance
) -> None:
    given, folder = request.getfixturevalue(variant)
    exact, int8 = simulate(given, tiny_faces, bits=0), simulate(given, tiny_faces)
    got, noise = run(folder, given.spec, tiny_faces), distance(int8, exact)
    # ncnn rounds to 254 steps instead of 255, and stores less.
    assert 0.1 * noise < distance(got, exact) < 1.5 * noise


def landmarks(spec: ModelSpec, maps: list[Array]) -> Array:
    shapes = map_shapes(spec)
    named = {name: m.reshape(-1, *shapes[name]) for name, m in zip(MAP_NAMES, maps, strict=True)}
    return Decoder(spec)(Maps(**named)).points


def test_landmarks_are_near_the_networks(
    tmp_path: Path, tiny_prepared: Prepared, tiny_faces: Array, run: MapsOf
) -> None:
    """Offsets are scaled to what trained networks give: less than a cell."""
    given = tiny_prepared.keeping(graphs.heads(tiny_prepared.float_))
    for name, map_ in zip(nets.HEAD_KEYS, simulate(given, tiny_faces, bits=0), strict=True):
        for part in ("weight", "bias"):
            given.graph.get_parameter(f"heads.{name}.{part}").div_(np.abs(map_).max() / 2)
    ncnn_int8.convert(export(given.graph, given.spec, tmp_path), given, 8, tmp_path)
    exact, int8 = (landmarks(given.spec, simulate(given, tiny_faces, bits)) for bits in (0, 8))
    got = landmarks(given.spec, run(tmp_path, given.spec, tiny_faces))
    drift, expected = (np.median(np.linalg.norm(points - exact, axis=-1)) * 64 for points in (got, int8))
    assert 0 < drift < 2 * expected
    assert drift < 0.5


@pytest.mark.parametrize("kept", [{"backbone.stem.0"}, {"backbone.expand.0", "backbone.plain.body.2"}])
def test_more_layers_can_be_kept(
    kept: set[str],
    make: Callable[[frozenset[str]], Made],
    made: Made,
    tiny_prepared: Prepared,
    tiny_faces: Array,
    run: MapsOf,
    distance: Distance,
) -> None:
    given, folder = make(graphs.heads(tiny_prepared.float_) | kept)
    whole = sum(layer.arrays["weight"].dtype == np.int8 for layer in read(folder).layers if "weight" in layer.arrays)
    assert whole == len(convolutions(given.graph)) - len(given.keep) - 1
    exact = simulate(given, tiny_faces, bits=0)
    assert distance(run(folder, given.spec, tiny_faces), exact) < 1.5 * distance(simulate(given, tiny_faces), exact)


def test_nothing_to_quantize_is_the_float_network(
    make: Callable[[frozenset[str]], Made], tiny_prepared: Prepared, tiny_faces: Array, run: MapsOf
) -> None:
    given, folder = make(frozenset(convolutions(tiny_prepared.float_)))
    for got, wanted in zip(
        run(folder, given.spec, tiny_faces[:4]), simulate(given, tiny_faces[:4], bits=0), strict=True
    ):
        assert np.abs(got - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("bits", [0, 4, 16])
def test_other_bits_are_refused(bits: int, tiny_prepared: Prepared, tmp_path: Path) -> None:
    given = tiny_prepared.keeping(())
    core = Core(given.graph, given.spec, tmp_path / "none.onnx", (0, 0), (0, 0))
    with pytest.raises(EdgeError, match=f"^ncnn int8 with {bits}-bit activations; allowed: 8$"):
        ncnn_int8.convert(core, given, bits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_the_cores_is_refused(tiny_prepared: Prepared, tmp_path: Path) -> None:
    given = tiny_prepared.keeping(graphs.heads(tiny_prepared.float_))
    core = export(given.graph, given.spec, tmp_path)
    other = graphs.trace(given.graph)
    other.get_parameter("backbone.project.weight").neg_()
    with pytest.raises(EdgeError, match="holds the weights of none of the net"):
        ncnn_int8.convert(core, replace(given, graph=other), 8, tmp_path)


def test_weights_off_their_grid_are_never_written(tiny_prepared: Prepared, tmp_path: Path) -> None:
    """Halfway between two steps torch rounds to even and ncnn away from zero: not the integers of other runtimes."""
    given = tiny_prepared.keeping(graphs.heads(tiny_prepared.float_))
    layer = given.graph.get_submodule("backbone.project")
    assert isinstance(layer, nn.Conv2d)
    layer.weight[0].zero_()
    layer.weight[0, :2, 0, 0] = torch.tensor([float(given.levels), 2.5])
    with pytest.raises(EdgeError, match=r"does not hold the int8 weights of 'backbone\.project'"):
        ncnn_int8.convert(export(given.graph, given.spec, tmp_path), given, 8, tmp_path)
    assert not (tmp_path / "model.bin").exists()
