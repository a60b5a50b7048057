"""Rewritten int8 TFLite files compute the very same, with the operations that they were rewritten for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation half needs torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from pipnet_edge.converters.tflite import rewrites  # noqa: E402
from pipnet_edge.converters.tflite.editor import Editor  # noqa: E402

SIDE, STEP, ZERO = 16, 0.5, -7


def file(
    path: Path,
    kernel: int,
    channels: int = 3,
    width: int = SIDE,
    stride: int = 2,
    border: int = ZERO,
    pixels: type | None = None,
) -> Path:
    """An int8 image, a padded convolution of stride 2 and a pool behind a PADV2, as converters write them.

    pixels: the type of what the image is cast and quantized from.
    """
    from ai_edge_litert import schema_py_generated as schema

    net, graph = schema.ModelT(), schema.SubGraphT()
    net.version, net.buffers, net.operatorCodes, net.subgraphs = 3, [schema.BufferT()], [], [graph]
    graph.tensors, graph.operators, graph.inputs = [], [], np.array([0], np.int32)
    image, signature = schema.TensorMapT(), schema.SignatureDefT()
    image.name, image.tensorIndex, signature.signatureKey, signature.subgraphIndex = b"crop", 0, b"main", 0
    net.signatureDefs, signature.inputs, signature.outputs = [signature], [image], []
    path.write_bytes(b"")
    made = Editor.__new__(Editor)
    made._schema, made._path, made._net, made._graph, made._signature = schema, path, net, graph, signature

    def tensor(shape: tuple[int, ...]) -> int:
        index = made._tensor(shape, np.dtype(np.int8))
        made.store(index, np.array([STEP], np.float32), ZERO)
        return index

    random, reach = np.random.default_rng(kernel), kernel // 2
    if pixels:
        whole = made._tensor((1, SIDE, width, channels), np.dtype(pixels))
        floats = made._tensor((1, SIDE, width, channels), np.dtype(np.float32))
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = graph.tensors[whole].type, graph.tensors[floats].type
        made._add("CAST", [whole], floats, options)
    crop = tensor((1, SIDE, width, channels))
    if pixels:
        made._add("QUANTIZE", [floats], crop, schema.QuantizeOptionsT())
    borders = made.constant(np.array([[0, 0], [reach, reach], [reach, reach], [0, 0]], np.int32))
    padded = made._add(
        "PAD", [crop, borders], tensor((1, SIDE + 2 * reach, width + 2 * reach, channels)), schema.PadOptionsT(), 2
    )
    weight = made.constant(
        random.integers(-127, 128, (8, kernel, kernel, channels)).astype(np.int8), np.full(8, 0.01, np.float32)
    )
    bias = made.constant(random.integers(-99, 99, 8).astype(np.int32), np.full(8, 0.01 * STEP, np.float32))
    options = schema.Conv2DOptionsT()
    options.padding, options.strideW, options.strideH = schema.Padding.VALID, stride, 2
    options.dilationWFactor = options.dilationHFactor = 1
    cells = (width - 1) // stride + 1
    seen = made._add("CONV_2D", [padded, weight, bias], tensor((1, SIDE // 2, cells, 8)), options, 3)
    around = made.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    filled = tensor(())
    values = schema.BufferT()
    values.data = np.frombuffer(np.array(border, np.int8).tobytes(), np.uint8)
    net.buffers.append(values)
    graph.tensors[filled].buffer = len(net.buffers) - 1
    wide = made._add(
        "PADV2", [seen, around, filled], tensor((1, SIDE // 2 + 2, cells + 2, 8)), schema.PadV2OptionsT(), 2
    )
    pool = schema.Pool2DOptionsT()
    pool.padding, pool.filterHeight, pool.filterWidth = schema.Padding.VALID, 3, 3
    pool.strideH = pool.strideW = 2
    last = made._add("MAX_POOL_2D", [wide], tensor((1, SIDE // 4, (cells - 1) // 2 + 1, 8)), pool, 2)
    named = schema.TensorMapT()
    named.name, named.tensorIndex, signature.outputs, graph.outputs = b"out", last, [named], np.array([last], np.int32)
    signature.outputs = [named]
    made.save()
    return path


def kinds(path: Path) -> list[str]:
    editor = Editor(path)
    return [editor._kind(operation) for operation in editor._graph.operators]


def run(path: Path, crop: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    found: np.ndarray = Interpreter(str(path), num_threads=1).get_signature_runner()(crop=crop)["out"]
    return found


LAST = {ZERO: ["PAD", "MAX_POOL_2D"], -128: ["MAX_POOL_2D", "SLICE"]}


@pytest.mark.parametrize("border", LAST)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_rewritten_files_give_the_very_same(tmp_path: Path, kernel: int, border: int) -> None:
    before = file(tmp_path / "before.tflite", kernel, border=border)
    after = Path(shutil.copy(before, tmp_path / "after.tflite"))
    rewrites.rewrite(after)
    assert kinds(before) == ["PAD", "CONV_2D", "PADV2", "MAX_POOL_2D"]
    assert kinds(after) == ["RESHAPE", "PAD", "CONV_2D", *LAST[border]]
    (convolution,) = Editor(after).operations("CONV_2D")
    assert Editor(after).shape(int(convolution.inputs[1]))[3] == 6
    crops = np.random.default_rng(0).integers(-128, 128, (4, 1, SIDE, SIDE, 3)).astype(np.int8)
    wanted = [run(before, crop) for crop in crops]
    assert len({each.tobytes() for each in wanted}) == 4
    np.testing.assert_array_equal([run(after, crop) for crop in crops], wanted)


def test_pixels_become_floats_by_an_operation_that_xnnpack_has(tmp_path: Path) -> None:
    before = file(tmp_path / "before.tflite", 3, pixels=np.uint8)
    after = Path(shutil.copy(before, tmp_path / "after.tflite"))
    rewrites.rewrite(after)
    assert kinds(before)[:2] == ["CAST", "QUANTIZE"]
    assert kinds(after)[:2] == ["DEQUANTIZE", "QUANTIZE"]
    crops = np.random.default_rng(0).integers(0, 256, (4, 1, SIDE, SIDE, 3)).astype(np.uint8)
    wanted = [run(before, crop) for crop in crops]
    assert len({each.tobytes() for each in wanted}) == 4
    np.testing.assert_array_equal([run(after, crop) for crop in crops], wanted)
    int32 = file(tmp_path / "int32.tflite", 3, pixels=np.int32)
    rewrites.rewrite(int32)
    assert kinds(int32)[0] == "CAST"


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"channels": 4}, ["PAD", "CONV_2D", "PAD", "MAX_POOL_2D"]),
        ({"width": 15}, ["PAD", "CONV_2D", "PAD", "MAX_POOL_2D"]),
        ({"stride": 1}, ["PAD", "CONV_2D", "PAD", "MAX_POOL_2D"]),
        ({"border": -100}, ["RESHAPE", "PAD", "CONV_2D", "PADV2", "MAX_POOL_2D"]),
        ({"border": -128, "width": 14}, ["RESHAPE", "PAD", "CONV_2D", "PADV2", "MAX_POOL_2D"]),
    ],
)
def test_what_does_not_fit_is_left(tmp_path: Path, change: dict[str, int], left: list[str]) -> None:
    path = file(tmp_path / "model.tflite", 3, **change)
    rewrites.rewrite(path)
    assert kinds(path) == left


@given(kernel=st.sampled_from([3, 5, 7]), half=st.integers(4, 9), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_pairs_are_the_same_convolution(kernel: int, half: int, seed: int) -> None:
    random, reach = np.random.default_rng(seed), kernel // 2
    weight = random.integers(-127, 128, (4, kernel, kernel, 3)).astype(np.int8)
    paired, before, after = rewrites.in_pairs(weight, reach)
    assert np.count_nonzero(paired) == np.count_nonzero(weight)
    image = random.integers(-128, 128, (1, 2 * half, 2 * half, 3))

    def convolved(image: np.ndarray, weight: np.ndarray, sides: tuple[int, int], stride: int) -> np.ndarray:
        padded = np.pad(image, ((0, 0), (reach, reach), sides, (0, 0)))
        parts = (torch.from_numpy(part.astype(np.float64)).permute(0, 3, 1, 2) for part in (padded, weight))
        return torch.nn.functional.conv2d(*parts, stride=(2, stride)).numpy()

    pairs = image.reshape(1, 2 * half, half, 6)
    np.testing.assert_array_equal(
        convolved(pairs, paired, (before, after), 1), convolved(image, weight, (reach, reach), 2)
    )
