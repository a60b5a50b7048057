"""int8 variants of the embedded network: one set of integers a grid, small files, little drift, a budget."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import drift, metrics, parity
from pipnet_edge.benchmarks.judge import judge
from pipnet_edge.bundle import Bundle
from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.network import maps_of
from pipnet_edge.converters.mnn import file as mnn_file
from pipnet_edge.converters.ncnn import model as ncnn_model
from pipnet_edge.converters.quantize import calibration
from pipnet_edge.converters.quantize.scheme import FULL, SAFE
from pipnet_edge.converters.tflite import file as tflite_file
from pipnet_edge.decode import Decoder, Landmarks
from pipnet_edge.worker import call as calls

pytestmark = pytest.mark.usefixtures("cache")

RUNTIMES = ("onnx", "ncnn", "mnn", "tflite")
NET = (demo.CHECKPOINT, "--data", "300w")
COUNT = 60
QUICK = ("--calibrate-count", 16, "--rounding", "nearest", "--ranges", "minmax")
HEADS = {f"heads.{name}": "heads" for name in ("score", "offset_x", "offset_y", "neighbor_x", "neighbor_y")}


def onnx_weights(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Layer -> int8 weights (out, in / groups, height, width), layer -> steps (out,)."""
    model = onnx.load(folder / "onnx-int8" / "model.onnx")
    every = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    whole = {name: value for name, value in every.items() if name.endswith(".weight") and value.dtype == np.int8}
    return whole, {name: every[f"{name}/step"] for name in whole}


def multiset(weights: Any) -> list[tuple[tuple[int, ...], bytes]]:
    return sorted((weight.shape, weight.tobytes()) for weight in weights)


def largest(weights: np.ndarray) -> set[int]:
    """The largest weight of each output channel."""
    return set(np.abs(weights.astype(int)).reshape(len(weights), -1).max(axis=1).tolist())


def test_onnx_runtime_holds_weights_that_cannot_overflow(demo_bundle):
    whole, _ = onnx_weights(demo_bundle)
    assert len(whole) == 52
    assert all(largest(weight) == {SAFE} for weight in whole.values())


def test_all_other_runtimes_hold_the_same_integers(demo_bundle):
    held = mnn_file.int8_layers(mnn_file.read(demo_bundle / "mnn-int8" / "model.mnn"))
    whole, steps = ({name: getattr(layer, what) for name, layer in held.items()} for what in ("weights", "steps"))
    assert len(whole) == 52
    assert all(largest(weight) == {FULL} for weight in whole.values())
    heads, others = tflite_weights(demo_bundle)
    first = next(weight for weight in whole.values() if weight.shape[1] == 3)
    arranged = [in_pairs(weight) if weight is first else weight for weight in whole.values()]
    assert multiset(tflite_file.out_first(*pair) for pair in others) == multiset(arranged)
    assert [tensor.kind for _, tensor in heads] == [np.int8] * 2

    folder = demo_bundle / "ncnn-int8"
    layers = ncnn_model.read_model(folder / "model.param", folder / "model.bin").layers
    deep = {name: weight for name, weight in whole.items() if weight.shape[1:] == (1, 3, 3)}
    plain = [weight.ravel() for name, weight in whole.items() if name not in deep]
    stored = [layer.arrays["weight"] for layer in layers if layer.kind == "Convolution"]
    assert multiset(weight for weight in stored if weight.dtype == np.int8) == multiset(plain)
    # The score's; the others are decode's.
    assert len([weight for weight in stored if weight.dtype != np.int8]) == 1
    # Depthwise layers compute in float there, with values on the same grids.
    in_float = [layer.arrays["weight"] for layer in layers if layer.kind == "ConvolutionDepthWise"]
    grids = [(deep[name] * steps[name][:, None, None, None]).ravel() for name in deep]
    for weight in in_float:
        same = [grid for grid in grids if grid.shape == weight.shape and np.allclose(grid, weight, rtol=1e-5, atol=0)]
        assert len(same) == 1
    assert len(in_float) == len(grids) == 17


def tflite_weights(bundle: Path, precision: str = "int8") -> tuple[list[Any], list[Any]]:
    """A TFLite file's convolutions and their weights: its heads, the score's first, and all others."""
    every = tflite_file.weights(tflite_file.read(bundle / f"tflite-{precision}" / "model.tflite"))
    heads = [pair for pair in every if pair[1].data.shape[0] in (68, 68 * 2 * 11)]
    return sorted(heads, key=lambda pair: len(pair[1].data)), [pair for pair in every if pair not in heads]


def in_pairs(weight: np.ndarray) -> np.ndarray:
    """A 3x3 weight of three channels as TFLite has it: over two pixels as one, whose first starts a pixel earlier."""
    out = len(weight)
    wider = np.concatenate([np.zeros((out, 3, 3, 1), np.int8), weight], axis=3)
    return np.ascontiguousarray(wider.reshape(out, 3, 3, 2, 2).transpose(0, 4, 1, 2, 3)).reshape(out, 6, 3, 2)


def test_heads_inside_are_those_beside_others_rounded(demo_bundle):
    """Whole numbers times steps lie near the weights: sequential rounding moves some further, to make up for others."""
    heads, _ = tflite_weights(demo_bundle)
    every = {t.name: t for t in onnx.load(demo_bundle / "onnx-int8" / "model.onnx").graph.initializer}
    offsets = bundles.read(demo_bundle).read_heads("onnx-int8")
    score = onnx.numpy_helper.to_array(every["heads.score.weight"]).reshape(68, 1280)
    for (convolution, tensor), weight in zip(heads, (score, offsets.weight.reshape(-1, 1280)), strict=True):
        stored = tflite_file.out_first(convolution, tensor)[:, :, 0, 0]
        assert (np.abs(stored).max(1) == FULL).all()
        moved = np.abs(stored - weight / tensor.step[:, None])
        assert moved.max() <= 4
        assert moved.mean() <= 0.35
    (_, _), (convolution, _) = heads
    # Which take the mean error that is left.
    assert np.abs(tflite_file.bias(convolution).data - offsets.bias.ravel()).max() <= 0.01


def test_drift_on_faces_that_nobody_has_seen(demo_bundle):
    bundle = bundles.read(demo_bundle)
    crops = parity.crops_of(parity.images_in(demo.FACES), bundle.spec.input_size)
    truth = calls.infer(calls.here, demo_bundle, "onnx-fp32", 1, crops).landmarks
    found = {name: calls.infer(calls.here, demo_bundle, f"{name}-int8", 1, crops).landmarks for name in RUNTIMES}
    px = {name: distance(landmarks, truth, bundle) for name, landmarks in found.items()}
    for name, landmarks in found.items():
        assert 0.01 < px[name] <= 0.35
        assert (landmarks.cell != truth.cell).mean() <= 0.03
    for one, other in itertools.combinations(RUNTIMES, 2):
        assert distance(found[one], found[other], bundle) <= 1.5 * max(px[one], px[other])


def distance(a: Landmarks, b: Landmarks, bundle: Bundle) -> float:
    return float(metrics.measure(a, b, bundle.spec).px.mean())


def test_manifest_tells_how_variants_were_quantized(demo_bundle):
    bundle = bundles.read(demo_bundle)
    pictures = [path.read_bytes() for path in demo.CALIBRATION.glob("*.jpg")]
    assert bundle.calibration
    assert len(bundle.calibration.images) == len(pictures) == 117
    known = drift.overlap(sorted(demo.CALIBRATION.glob("*.jpg")), frozenset(bundle.calibration.images))
    assert len(known) == 117
    for variant in bundle.variants:
        how = variant.quantization
        assert (how is not None) == (variant.precision == "int8")
        for file in variant.files:
            file.verified(demo_bundle)
        if how:
            # TFLite has int8 weights in its heads too.
            kept = {} if variant.runtime == "tflite" else HEADS
            assert (how.ranges, how.rounding, how.kept, how.budget) == ("mse", "sequential", kept, None)
            assert how.mean == tuple(round(255 * m) / 255 for m in bundle.spec.mean)
            assert how.std == (1 / 255,) * 3


def size_of_heads(folder: Path, runtime: str, precision: str) -> int:
    """Bytes of weights: all in a TFLite file, elsewhere the score's in the model and the others beside it."""
    if runtime == "tflite":
        return sum(tensor.data.nbytes for _, tensor in tflite_weights(folder, precision)[0])
    beside = (folder / f"{runtime}-{precision}" / "heads.npz").stat().st_size
    return 4 * 68 * 1280 + beside


def test_sizes_without_the_heads(demo_bundle):
    bundle = bundles.read(demo_bundle)
    for runtime in RUNTIMES:
        heads = [size_of_heads(demo_bundle, runtime, precision) for precision in ("fp32", "int8")]
        assert 4 * 68 * 23 * 1280 <= heads[0] <= 8.1e6
        # int8 weights inside TFLite, half precision beside the others.
        assert heads[1] <= (0.26 if runtime == "tflite" else 0.55) * heads[0]
        sizes = [bundle.variant(f"{runtime}-{precision}").size for precision in ("fp32", "int8")]
        whole, less = (size - part for size, part in zip(sizes, heads, strict=True))
        # TFLite stores 12 bytes of step and zero point for every output calls.
        assert less <= 0.3 * whole


def test_layers_return_to_float_until_the_budget_holds(tmp_path, cli, faces):
    """Measured again here, on the faces that calibration left over. Crops of 192 pixels are quicker."""
    limit = "0.22px"
    folder = faces(tmp_path / "faces", 80)
    options = ("--input-size", 192, "--to", "onnx", "--precision", "int8", "--max-drift", limit)
    options = (*options, "--calibrate-count", COUNT)
    done = cli("convert", *NET, "--calibrate", folder, *QUICK, *options, "-o", tmp_path / "b", "--json")
    assert done.returncode == 0, done.stderr
    for part in (r"equalise: \d+ of 60 faces", r"one layer in int8: \d+ of \d+ runs", r"drift: \d+ of 20 faces"):
        assert re.search(rf"\] (onnx-int8: )?{part}$", done.stderr, re.MULTILINE), part
    bundle = bundles.read(tmp_path / "b")
    (variant,) = bundle.variants
    how = variant.quantization
    assert how
    spent = how.budget
    assert spent
    assert json.loads(done.stdout)["result"]["variants"][0]["quantization"]["budget"]["layers"] == list(spent.layers)
    assert (spent.limit, spent.images) == (limit, 20)
    assert spent.layers
    assert dict.fromkeys(spent.layers, "budget") | HEADS == how.kept
    assert spent.drift[0] > 0.3
    assert spent.drift[1] <= 0.22
    assert min(spent.milliseconds) > 0
    assert spent.size[0] < spent.size[1] == variant.size
    kept = {f"{name}.weight" for name in spent.layers}
    assert len(onnx_weights(tmp_path / "b")[0]) == 52 - len(kept)

    apart = calibration.split([(path, None) for path in folder.iterdir()], COUNT, 0)[1]
    crops = calibration.choose(apart, 192, len(apart)).crops
    network = checkpoints.load(demo.CHECKPOINT, checkpoints.Options(data="300w", input_size=192))
    truth = Decoder(network.spec)(maps_of(network, crops))
    assert judge(bundle, variant.name, crops, truth)["px"] == pytest.approx(spent.drift[1], rel=1e-3)
    assert bundle.calibration
    assert drift.overlap([path for path, _ in apart], frozenset(bundle.calibration.images)) == []
