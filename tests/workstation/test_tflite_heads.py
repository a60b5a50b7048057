"""Offset heads inside a TFLite file give what decode makes of them in numpy; and how such files are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation half needs torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from pipnet_edge.converters import sparse  # noqa: E402
from pipnet_edge.converters.checkpoint import nets  # noqa: E402
from pipnet_edge.converters.quantize.scheme import FULL, weight_steps  # noqa: E402
from pipnet_edge.converters.tflite import heads as tflite_heads  # noqa: E402
from pipnet_edge.converters.tflite.editor import ALIGNMENT, SMALL, dump, load  # noqa: E402
from pipnet_edge.converters.tflite.file import bias, out_first, read, weights  # noqa: E402
from pipnet_edge.decode import Decoder, Features, Heads, Winners  # noqa: E402
from pipnet_edge.spec import MeanFace, ModelSpec, mean_faces  # noqa: E402

# tests/golden/README.md: the input of every case.
IMAGE = torch.from_numpy(np.random.RandomState(7).standard_normal((1, 3, 256, 256)).astype(np.float32))
FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)))
SPEC = ModelSpec("any", 5, 2, 32, 96, FACE)
# Features in int8: step and zero point.
STEP, ZERO = 0.05, -3


def graph(spec: ModelSpec, channels: int, is_int8: bool) -> Any:
    """A ModelT that ends as networks without offset heads do, and begins there: scores and features channels last."""
    from ai_edge_litert import schema_py_generated as schema

    kinds, order = schema.TensorType, np.array([0, 3, 1, 2], np.int32)
    made = schema.ModelT()
    made.version, made.buffers = 3, [schema.BufferT(), schema.BufferT()]
    made.buffers[1].data = np.frombuffer(order.tobytes(), np.uint8)

    def tensor(name: str, shape: tuple[int, ...], kind: int = kinds.FLOAT32, buffer: int = 0) -> Any:
        one = schema.TensorT()
        one.name, one.shape, one.type, one.buffer = name, np.array(shape, np.int32), kind, buffer
        return one

    def operation(code: int, inputs: list[int], output: int) -> Any:
        one = schema.OperatorT()
        one.opcodeIndex, one.inputs, one.outputs = code, np.array(inputs, np.int32), np.array([output], np.int32)
        return one

    def code(kind: int, version: int) -> Any:
        one = schema.OperatorCodeT()
        one.builtinCode = one.deprecatedBuiltinCode = kind
        one.version = version
        return one

    def named(tensors: dict[bytes, int]) -> list[Any]:
        every = [schema.TensorMapT() for _ in tensors]
        for one, (name, index) in zip(every, tensors.items(), strict=True):
            one.name, one.tensorIndex = name, index
        return every

    cells = (1, spec.grid, spec.grid)
    made.operatorCodes = [code(schema.BuiltinOperator.TRANSPOSE, 1), code(schema.BuiltinOperator.DEQUANTIZE, 2)]
    first = operation(0, [0, 1], 2)
    first.builtinOptions, first.builtinOptionsType = schema.TransposeOptionsT(), schema.BuiltinOptions.TransposeOptions
    only = schema.SubGraphT()
    only.tensors = [
        tensor("cells", (*cells, spec.num_lms)),
        tensor("order", (4,), kinds.INT32, 1),
        tensor("score", (1, spec.num_lms, *cells[1:])),
        tensor("features", (*cells, channels)),
    ]
    only.operators, seen = [first], 3
    if is_int8:
        seen = 4
        only.tensors.append(tensor("stored", (*cells, channels), kinds.INT8))
        only.tensors[4].quantization = schema.QuantizationParametersT()
        only.tensors[4].quantization.scale = np.array([STEP], np.float32)
        only.tensors[4].quantization.zeroPoint = np.array([ZERO], np.int64)
        only.operators.append(operation(1, [4], 3))
    only.inputs, only.outputs = np.array([0, seen], np.int32), np.array([2, 3], np.int32)
    signature = schema.SignatureDefT()
    signature.signatureKey = b"serving_default"
    signature.inputs = named({b"cells": 0, b"seen": seen})
    signature.outputs = named({b"score": 2, b"features": 3})
    made.subgraphs, made.signatureDefs = [only], [signature]
    return made


@pytest.fixture
def append(tmp_path: Path) -> Callable[..., Path]:
    """append(spec, heads, precision, is_int8=False): a file of `graph` with these heads."""

    def make(spec: ModelSpec, heads: Heads, precision: str, is_int8: bool = False) -> Path:
        path = tmp_path / f"{precision}.tflite"
        path.write_bytes(dump(graph(spec, heads.weight.shape[-1], is_int8)))
        tflite_heads.append(path, heads, precision)
        return path

    return make


def run(path: Path, spec: ModelSpec, found: Features) -> Winners:
    """What a file of `graph` makes of features without a batch axis, and of scores."""
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(path), num_threads=1).get_signature_runner()
    given = [np.ascontiguousarray(np.moveaxis(part, 0, -1))[None] for part in (found.score, found.features)]
    outputs = model(cells=given[0], seen=given[1])
    assert set(outputs) == {"score", "offsets"}
    return Winners.from_outputs(outputs, spec)


def wanted(heads: Heads, found: Features) -> NDArray[np.float32]:
    """The offsets at winning cells, of all that the heads give."""
    return Winners.at(heads.maps(found), found.score.reshape(len(found.score), -1).argmax(-1)).offsets


def rounded(heads: Heads) -> Heads:
    """These heads with int8 weights, as quantized variants have them."""
    weight = torch.from_numpy(heads.weight.reshape(-1, 1, 1, heads.weight.shape[-1]))
    steps = weight_steps(weight, FULL)
    return replace(heads, weight=(torch.round(weight / steps) * steps).numpy().reshape(heads.weight.shape))


def random_heads(spec: ModelSpec, channels: int, seed: int) -> Heads:
    """Heads that give offsets of a few cells; rows are uneven, as those of trained networks, and one is all zeros."""
    random, shape = np.random.default_rng(seed), (spec.num_lms, 2, 1 + spec.num_nb)
    weight = random.normal(0, 1 / np.sqrt(channels), (*shape, channels)) * random.uniform(0.1, 3, (*shape, 1))
    weight[0, 1, 0] = 0.0
    return Heads(weight.astype(np.float32), random.normal(0, 1, shape).astype(np.float32))


def random_features(spec: ModelSpec, channels: int, seed: int) -> Features:
    """Small whole scores, so that ties are frequent."""
    random = np.random.default_rng(seed)
    score = random.integers(-3, 3, (spec.num_lms, spec.grid, spec.grid)).astype(np.float32)
    return Features(score, random.standard_normal((channels, spec.grid, spec.grid), dtype=np.float32))


# --- Heads.


def test_every_backbone_s_heads_in_float(case, append: Callable[..., Path]) -> None:
    """The sizes that there are, with features that a network gave: 1e-5 is the limit of what is exact."""
    _, stride, net = nets.build(case.state())
    spec = ModelSpec(case.backbone, case.num_lms, case.num_nb, stride, case.input_size, mean_faces()[case.data])
    part, heads = sparse.split(net, case.num_lms)
    with torch.no_grad():
        score, features = (value[0].numpy() for value in part(IMAGE))
    found = Features(score, features)
    got, want = run(append(spec, heads, "fp32"), spec, found), wanted(heads, found)
    np.testing.assert_array_equal(got.score, score)
    assert np.abs(got.offsets - want).max() <= 1e-5 * np.abs(want).max()
    ours, theirs = Decoder(spec)(got), Decoder(spec, heads)(found)
    np.testing.assert_array_equal(ours.cell, theirs.cell)
    assert np.abs(ours.points - theirs.points).max() <= 1e-5 * max(1.0, float(np.abs(theirs.points).max()))


@pytest.mark.parametrize("seed", range(4))
def test_the_model_chooses_the_cell_that_decode_does_on_ties(append: Callable[..., Path], seed: int) -> None:
    """Had it chosen another, its offsets would be those of other features."""
    heads = random_heads(SPEC, 7, 0)
    found = random_features(SPEC, 7, seed)
    found.score[seed] = 1.0
    found.score[4, 0, 1], found.score[4, 0, 2] = 8.0, 8.0
    tied = [(one == one.max()).sum() > 1 for one in found.score]
    assert sum(tied) >= 2
    got, whole = run(append(SPEC, heads, "fp32"), SPEC, found), Decoder(SPEC)(heads.maps(found))
    np.testing.assert_allclose(got.offsets, wanted(heads, found), rtol=0, atol=1e-5)
    ours = Decoder(SPEC)(got)
    np.testing.assert_array_equal(ours.cell, whole.cell)
    assert ours.cell[seed] == 0
    np.testing.assert_allclose(ours.points, whole.points, rtol=0, atol=1e-5)


def test_the_lowest_of_zeros_of_both_signs_wins(append: Callable[..., Path]) -> None:
    """They are equal numbers: after negative scores the first of them is the highest."""
    heads, found = random_heads(SPEC, 7, 0), random_features(SPEC, 7, 1)
    found.score[:] = -1.0
    found.score[:, 1, 0], found.score[:, 2, 2] = -0.0, 0.0
    got = run(append(SPEC, heads, "fp32"), SPEC, found)
    assert Decoder(SPEC)(got).cell.tolist() == [3] * 5
    np.testing.assert_allclose(got.offsets, wanted(heads, found), rtol=0, atol=1e-5)


def test_half_precision_is_of_weights_alone(append: Callable[..., Path]) -> None:
    heads, found = random_heads(SPEC, 200, 2), random_features(SPEC, 200, 3)
    path = append(SPEC, heads, "fp16")
    ((_, stored),) = weights(read(path))
    assert stored.kind == np.float16
    half = replace(heads, weight=heads.weight.astype(np.float16).astype(np.float32))
    got = run(path, SPEC, found).offsets
    np.testing.assert_allclose(got, wanted(half, found), rtol=0, atol=1e-5)
    assert np.abs(got - wanted(heads, found)).max() > 1e-4


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_a_file_stores_are_the_heads(append: Callable[..., Path], precision: str) -> None:
    """In int8: whole numbers times steps are the rounded heads again, to float's last digit."""
    heads = rounded(random_heads(SPEC, 40, 4))
    ((convolution, stored),) = weights(read(append(SPEC, heads, precision)))
    assert stored.kind == {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[precision]
    matrix = out_first(convolution, stored)[:, :, 0, 0].astype(np.float64)
    if precision == "int8":
        np.testing.assert_array_equal(np.abs(matrix).max(1)[np.abs(heads.weight).max(-1).ravel() > 0], FULL)
        assert stored.zero.tolist() == [0] * len(matrix)
        matrix = matrix * stored.step[:, None]
    want = heads.weight.reshape(-1, 40)
    np.testing.assert_allclose(matrix, want, rtol=1e-3 if precision == "fp16" else 1e-6, atol=0)
    np.testing.assert_array_equal(bias(convolution).values.astype(np.float32), heads.bias.ravel())


@pytest.mark.parametrize("is_int8", [False, True])
def test_int8_rounds_features_and_nothing_else(append: Callable[..., Path], is_int8: bool) -> None:
    """An offset is off by what its weights make of half a step of the features: 1/255 of what they span, at most."""
    heads, found = rounded(random_heads(SPEC, 300, 5)), random_features(SPEC, 300, 6)
    path, seen = append(SPEC, heads, "int8", is_int8), found
    if is_int8:
        stored = np.clip(np.rint(found.features / STEP) + ZERO, -128, 127).astype(np.int8)
        seen = replace(found, features=stored)
        found = replace(found, features=(stored.astype(np.float32) - ZERO) * np.float32(STEP))
        # They are gathered before they are float.
        (gather,) = (operation for operation in read(path) if operation.kind == "GATHER")
        assert gather.output.kind == np.int8
    span = max(float(found.features.max()), 0.0) - min(float(found.features.min()), 0.0)
    most = np.abs(heads.weight).sum(-1) * span / 255 / 2 * 1.01 + 1e-4
    difference = np.abs(run(path, SPEC, seen).offsets - wanted(heads, found))
    assert (difference <= most).all()
    assert difference.max() > 1e-4


def test_the_file_lacks_what_it_no_longer_gives(append: Callable[..., Path]) -> None:
    """A signature that shows features, or float features that nobody reads, would cost time in every frame."""
    net = load(append(SPEC, random_heads(SPEC, 7, 0), "int8", True).read_bytes())
    (signature,), (only,) = net.signatureDefs, net.subgraphs
    shown = {named.name: named.tensorIndex for named in signature.outputs}
    assert set(shown) == {b"score", b"offsets"}
    assert sorted(only.outputs) == sorted(shown.values())
    used = {int(index) for operation in only.operators for index in operation.inputs} | set(only.outputs)
    assert [operation for operation in only.operators if not used.intersection(operation.outputs)] == []
    assert unread(net) == []


# --- Files.


def buffers(model: bytes) -> list[tuple[int, bytes]]:
    """Where every constant of a file lies, and what it is."""
    from ai_edge_litert import schema_py_generated as schema

    file, found = schema.Model.GetRootAs(model), []
    for index in range(file.BuffersLength()):
        buffer = file.Buffers(index)
        if buffer.Offset():
            found.append((buffer.Offset(), model[buffer.Offset() : buffer.Offset() + buffer.Size()]))
        elif buffer.DataLength():
            found.append((buffer._tab.Vector(buffer._tab.Offset(4)), buffer.DataAsNumpy().tobytes()))
    return found


def unread(net: Any) -> list[int]:
    """Constants that no operation reads, such as a matrix that another took the place of."""
    (only,) = net.subgraphs
    used = {only.tensors[index].buffer for operation in only.operators for index in operation.inputs}
    used |= {note.buffer for note in net.metadata or ()}
    return [index for index, buffer in enumerate(net.buffers) if buffer.data is not None and index not in used]


SIZES = st.integers(1, 40) | st.integers(SMALL - 20, SMALL + 20) | st.sampled_from((SMALL, 4 * SMALL, 70_000))


@given(sizes=st.lists(SIZES, max_size=6), seed=st.integers(0, 2**32), twice=st.booleans())
@settings(max_examples=40)
def test_constants_are_kept_and_aligned(sizes: list[int], seed: int, twice: bool) -> None:
    from ai_edge_litert import schema_py_generated as schema

    random, net = np.random.default_rng(seed), graph(SPEC, 7, True)
    constants = [random.integers(0, 256, size, dtype=np.uint8) for size in sizes] * (1 + twice)
    for constant in constants:
        buffer = schema.BufferT()
        buffer.data = constant
        net.buffers.append(buffer)
    model = dump(net)
    kept = buffers(model)
    assert [data for _, data in kept] == [net.buffers[1].data.tobytes(), *(each.tobytes() for each in constants)]
    assert all(place % ALIGNMENT == 0 for place, _ in kept)
    # Read, and written again, also by whom it was written from.
    again = load(model)
    assert [bytes(b.data) for b in again.buffers if b.data is not None] == [data for _, data in kept]
    assert dump(again) == dump(net) == model


def test_equal_small_constants_lie_in_a_file_once() -> None:
    from ai_edge_litert import schema_py_generated as schema

    net = graph(SPEC, 7, False)
    before = len(dump(net))
    for _ in range(10):
        buffer = schema.BufferT()
        buffer.data = np.arange(SMALL - 1).astype(np.uint8)
        net.buffers.append(buffer)
    assert len(dump(net)) < before + 2 * SMALL


@pytest.mark.parametrize("name", ["tflite-fp32", "tflite-fp16", "tflite-int8"])
def test_a_whole_network_read_and_written_again(demo_bundle: Path, tmp_path: Path, name: str) -> None:
    """Every constant is read and aligned, and the file still runs and gives the same."""
    from pipnet_edge import bundle as bundles
    from pipnet_edge import runtimes

    bundle = bundles.read(demo_bundle)
    model = (demo_bundle / name / "model.tflite").read_bytes()
    assert len(buffers(model)) > 50
    assert all(place % ALIGNMENT == 0 for place, _ in buffers(model))
    assert unread(load(model)) == []
    (tmp_path / "model.tflite").write_bytes(dump(load(model)))
    quantized = bundle.variant(name).quantization
    spec = replace(bundle.spec, mean=quantized.mean, std=quantized.std) if quantized else bundle.spec
    crop = bundle.read_golden()[0][0]
    sessions = [runtimes.load("tflite", folder, spec, "fp32", 1) for folder in (demo_bundle / name, tmp_path)]
    ours, theirs = (session.run(crop) for session in sessions)
    assert isinstance(ours, Winners)
    for part in ("score", "offsets"):
        np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))
