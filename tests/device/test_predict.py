"""The latency model: networks' costs, and predictions from the fit."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.bundle import TRANSPOSED, Bundle, File, Quantization, Variant
from pipnet_edge.bundle import Layer as Described
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.devices import Cores, Device, device, devices
from pipnet_edge.targets.predicted import cost as costs
from pipnet_edge.targets.predicted.cost import BYTES, Cost, Layer, convolution, dense, other
from pipnet_edge.targets.predicted.model import ANY_ARM, BORROWED, PUBLISHED, latency, predict, predict_variant
from pipnet_edge.targets.predicted.networks import NETWORKS

NETS = {name: NETWORKS[name]() for name in ("resnet18", "resnet50", "mobilenet_v2")}
NETS["mobilenet_v3"] = NETWORKS["mobilenet_v3_large"]()

arm = st.sampled_from([found for found in devices().values() if found.machine == "aarch64"])
runtimes = st.sampled_from(sorted(PUBLISHED))
precisions = st.sampled_from(sorted(BYTES))
nets = st.sampled_from(sorted(NETS)).map(NETS.__getitem__)
layers = st.one_of(
    st.builds(
        convolution,
        *(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 5, 7]), st.integers(1, 60)),
        stride=st.integers(1, 2),
    ),
    st.builds(dense, st.integers(1, 2000), st.integers(1, 2000)),
    st.builds(other, st.integers(0, 10**6)),
)


# --- Costs.


@pytest.mark.parametrize(
    ("name", "gmacs", "million_weights"),
    [
        ("resnet18", 1.814, 11.68),
        ("resnet50", 4.089, 25.50),
        ("mobilenet", 0.569, 4.21),
        ("mobilenet_v2", 0.3008, 3.47),
        ("mobilenet_v3_large", 0.2166, 5.45),
        ("mobilenet_v3_small", 0.0565, 2.52),
    ],
)
def test_classifiers_cost_what_is_published(name: str, gmacs: float, million_weights: float) -> None:
    cost = NETWORKS[name]()
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=2e-3)
    assert cost.weights / 1e6 == pytest.approx(million_weights, rel=2e-3)


def test_winograd_counts_by_hand() -> None:
    # 64 channels: 6x6 tiles, 10 of them across 56; 64 products a tile and channel pair.
    assert convolution(64, 64, 3, 56).winograd == (100 * 64 * 64 * 64, 64 * 64 * 64)
    # 256 channels: 4x4 tiles, 4 across 14; 36 products.
    assert convolution(256, 256, 3, 14).winograd == (16 * 36 * 256 * 256, 36 * 256 * 256)
    assert convolution(3, 64, 3, 224).winograd is None
    assert convolution(64, 64, 3, 28, 2).winograd is None
    assert convolution(64, 64, 3, 28, 1, 64).winograd is None
    assert convolution(64, 64, 1, 28).winograd is None


def test_a_layer_by_hand() -> None:
    layer = convolution(8, 16, 3, 10, 2)
    assert astuple(layer) == ("conv", 100 * 8 * 16 * 9, 8 * 16 * 9, 20 * 20 * 8 + 100 * 16, None, False)
    assert astuple(convolution(8, 8, 5, 10, 1, 8)) == ("depthwise", 100 * 8 * 25, 8 * 25, 2 * 800, None, False)
    cost = Cost((layer, dense(10, 20), other(50)))
    assert cost.operations(False) == 2 * (layer.macs + 200)
    assert cost.bytes("fp16", False) == 2 * (layer.weights + layer.activations + 200 + 30 + 50)


@pytest.mark.parametrize("layer", [("pool", 1, 1, 1, None), ("conv", -1, 1, 1, None), ("conv", 1, 1, 1, (1, -1))])
def test_layers_that_cannot_be_are_refused(layer: tuple[Any, ...]) -> None:
    with pytest.raises(EdgeError):
        Layer(*layer)


@given(st.lists(layers, max_size=5), st.sampled_from(sorted(BYTES)))
def test_costs_add_up(chosen: list[Layer], precision: str) -> None:
    whole, parts = Cost(tuple(chosen)), [Cost((layer,)) for layer in chosen]
    for winograd in (False, True):
        assert whole.operations(winograd) == pytest.approx(sum(part.operations(winograd) for part in parts))
        assert whole.bytes(precision, winograd) == pytest.approx(sum(part.bytes(precision, winograd) for part in parts))


HEADS = tuple(f"heads.{name}" for name in MAP_NAMES)
KEPT = ("backbone", "heads.score")


def variant(runtime: str, precision: str, *kept: str) -> Variant:
    how = Quantization("minmax", "nearest", dict.fromkeys(kept, "heads"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    file = File(f"{runtime}-{precision}/model", "0" * 64, 1)
    return Variant(f"{runtime}-{precision}", runtime, precision, (file,), quantization=how if kept else None)


def costs_of(bundle: Bundle, *layers: Described) -> list[tuple[Any, ...]]:
    found = costs.of(replace(bundle, layers=layers), bundle.variants[0])
    return [astuple(layer) for layer in found.layers]


def test_layers_of_a_bundle_by_hand(null_bundle: Bundle) -> None:
    conv = Described("c", "conv", ((8, 20, 12),), (16, 10, 4), (5, 3), (2, 3))
    assert costs_of(null_bundle, conv) == [("conv", 40 * 15 * 8 * 16, 15 * 8 * 16, 1920 + 640, None, False)]
    depthwise = Described("d", "conv", ((8, 9, 9),), (8, 9, 9), (3, 3), groups=8)
    assert costs_of(null_bundle, depthwise) == [("depthwise", 81 * 9 * 8, 72, 2 * 648, None, False)]
    # 4x4 of stride 2: every input cell meets every weight once, every output cell a quarter of them.
    up = Described("u", TRANSPOSED, ((8, 8, 8),), (4, 16, 16), (4, 4), (2, 2))
    assert costs_of(null_bundle, up) == [("conv", 64 * 16 * 32, 16 * 32, 512 + 1024, None, False)]
    add = Described("a", "add", ((8, 9, 9), (8, 1, 1)), (8, 9, 9))
    assert costs_of(null_bundle, add) == [("other", 0, 0, 648 + 8 + 648, None, False)]
    # 6x6 tiles, 2 down and 3 across.
    oblong = Described("w", "conv", ((16, 7, 13),), (16, 7, 13), (3, 3))
    assert costs_of(null_bundle, oblong)[0][4] == (6 * 64 * 256, 64 * 256)
    assert costs_of(null_bundle, replace(oblong, stride=(1, 2), output=(16, 7, 7)))[0][4] is None


def test_what_a_variant_keeps_in_float_is_marked(null_bundle: Bundle) -> None:
    kept = ("heads.score", "heads.offset_x")
    found = costs.of(null_bundle, variant("ncnn", "int8", *kept))
    marked = {layer.name for layer, work in zip(null_bundle.layers, found.layers, strict=True) if work.in_float}
    assert marked == set(kept)
    assert costs.of(null_bundle, variant("ncnn", "fp32")).part(in_float=True).layers == ()
    with pytest.raises(EdgeError, match="variant 'ncnn-int8' keeps layer 'tail' in float, which the bundle lacks"):
        costs.of(null_bundle, variant("ncnn", "int8", "tail"))


@pytest.mark.parametrize("inside", [True, False])
def test_sparse_variants_do_not_compute_their_offset_heads_in_every_cell(null_bundle: Bundle, inside: bool) -> None:
    """Whether the model evaluates them or decode does, with a file of them; what else there is, is as in dense ones."""
    layers = tuple(replace(layer, is_offset_head=layer.name in HEADS[1:]) for layer in null_bundle.layers)
    bundle, dense = replace(null_bundle, layers=layers), variant("tflite", "int8", *HEADS[:1])
    files = dense.files if inside else (*dense.files, File("tflite-int8/heads.npz", "0" * 64, 1))
    found = costs.of(bundle, replace(dense, files=files, is_sparse=True)).layers
    assert found == tuple(
        layer for layer, described in zip(costs.of(bundle, dense).layers, layers, strict=True) if described.name in KEPT
    )
    assert [layer.in_float for layer in found] == [False, True]
    # A file of heads that nothing needs does not make a variant sparse.
    assert len(costs.of(bundle, replace(dense, files=files)).layers) == len(layers)


# --- Predictions.


@given(arm, nets, runtimes, precisions, st.integers(1, 4))
def test_an_interval_holds_its_point_and_the_anchored_time_is_positive(
    found: Device, cost: Cost, runtime: str, precision: str, threads: int
) -> None:
    prediction = predict(found, cost, runtime, precision, threads)
    assert 0 < prediction.low <= prediction.ms <= prediction.high
    assert prediction.anchored is None or prediction.anchored > 0


@given(arm, nets, runtimes, precisions)
def test_more_threads_are_never_slower(found: Device, cost: Cost, runtime: str, precision: str) -> None:
    times = [predict(found, cost, runtime, precision, n).ms for n in range(1, found.core_count + 1)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[1]


@given(arm, st.lists(layers, min_size=1, max_size=4), layers, runtimes, precisions, st.integers(1, 4))
def test_more_layers_never_take_less(
    found: Device, chosen: list[Layer], more: Layer, runtime: str, precision: str, threads: int
) -> None:
    less = predict(found, Cost(tuple(chosen)), runtime, precision, threads)
    assert predict(found, Cost((*chosen, more)), runtime, precision, threads).ms >= less.ms


@given(arm, nets, runtimes, precisions, st.floats(1.01, 10))
def test_faster_memory_and_clocks_take_less(
    found: Device, cost: Cost, runtime: str, precision: str, factor: float
) -> None:
    before = predict(found, cost, runtime, precision, 4).ms
    assert predict(replace(found, memory_gb_s=found.memory_gb_s * factor), cost, runtime, precision, 4).ms < before
    faster = tuple(Cores(c.type, c.count, min(10_000, int(c.mhz * factor))) for c in found.cores)
    assert predict(replace(found, cores=faster), cost, runtime, precision, 4).ms < before


def test_a_prediction_by_hand() -> None:
    fit = next(f for f in latency().fits if (f.runtime, f.precision, f.kind) == ("tflite", "float", "a57-a75"))
    cost = Cost((dense(1000, 2000),))
    arithmetic = 2 * 2e6 / (8 * 1.8e9 * 2) * 1e3
    traffic = 4 * (2e6 + 3000) / 4.66e9 * 1e3
    found = predict(device("rpi4"), cost, "tflite", "fp32", 2)
    assert found.ms == pytest.approx(fit.a * arithmetic + fit.b * traffic)
    assert (found.low, found.high) == pytest.approx((found.ms * fit.low, found.ms * fit.high))
    assert found.note == ""


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "rpi5", "zero2w", "rk3588"])
def test_a_board_s_anchors_lie_within_its_predictions(name: str) -> None:
    found = device(name)
    inside = []
    for anchor in found.anchors:
        cost = NETWORKS[anchor.network]()
        prediction = predict(found, cost, anchor.runtime, anchor.precision, anchor.threads)
        assert prediction.anchor == anchor
        assert prediction.anchored == pytest.approx(anchor.ms)
        inside.append(prediction.low <= anchor.ms <= prediction.high)
    assert np.mean(inside) >= 0.75


def test_all_boards_anchors_lie_within_their_predictions_as_often_as_stated() -> None:
    inside = []
    for found in devices().values():
        for anchor in found.anchors:
            cost = NETWORKS[anchor.network]()
            prediction = predict(found, cost, anchor.runtime, anchor.precision, anchor.threads)
            inside.append(prediction.low <= anchor.ms <= prediction.high)
    assert len(inside) > 60
    assert np.mean(inside) >= latency().share


def test_layers_left_in_float_take_the_time_of_float() -> None:
    body, head = Cost((convolution(64, 64, 1, 32),)), convolution(64, 680, 1, 8)
    mixed = Cost((*body.layers, replace(head, in_float=True)))
    for runtime in ("ncnn", "tflite"):
        int8, fp32 = (predict(device("rpi5"), Cost((head,)), runtime, p, 4) for p in ("int8", "fp32"))
        alone, both = (predict(device("rpi5"), cost, runtime, "int8", 4) for cost in (body, mixed))
        assert both.ms == pytest.approx(alone.ms + fp32.ms)
        assert (both.low, both.high) == pytest.approx((alone.low + fp32.low, alone.high + fp32.high))
        assert fp32.ms > int8.ms
        float_all = predict(device("rpi5"), mixed, runtime, "fp32", 4)
        assert float_all == predict(device("rpi5"), Cost((*body.layers, head)), runtime, "fp32", 4)


def test_little_cores_are_left_out() -> None:
    four, eight = (predict(device("rk3588"), NETS["resnet18"], "ncnn", "fp16", n) for n in (4, 8))
    assert eight.ms == four.ms
    assert eight.anchor == four.anchor
    assert eight.note == "Predicted for the 4 Cortex-A76 cores alone."
    assert four.note == ""


def test_half_precision_is_full_precision_where_it_is_missing() -> None:
    half, full = (predict(device("rpi4"), NETS["mobilenet_v2"], "ncnn", p, 4) for p in ("fp16", "fp32"))
    assert (half.ms, half.anchor, half.anchored) == (full.ms, full.anchor, full.anchored)
    assert half.note == "Cortex-A72 has no fp16 arithmetic: predicted as fp32."
    half, full = (predict(device("rpi5"), NETS["mobilenet_v2"], "ncnn", p, 4) for p in ("fp16", "fp32"))
    assert half.ms == pytest.approx(full.ms / 2)
    half, full = (predict(device("rpi5"), NETS["mobilenet_v2"], "tflite", p, 4) for p in ("fp16", "fp32"))
    assert (half.ms, half.anchor) == (full.ms, full.anchor)
    assert half.note == "tflite has no fp16 arithmetic: predicted as fp32. " + full.note


def test_a_borrowed_fit_says_so_and_is_wider() -> None:
    own = predict(device("rpi4"), NETS["resnet18"], "tflite", "int8", 4)
    borrowed = predict(device("rpi4"), NETS["resnet18"], "onnxruntime", "int8", 4)
    assert borrowed.ms == own.ms
    assert (borrowed.low, borrowed.high) == pytest.approx((own.low * BORROWED[0], own.high * BORROWED[1]))
    assert own.note == "Predicted by timings on all Arm cores (3 devices)."
    assert borrowed.note == "Too few published timings of onnxruntime: predicted by those of tflite. " + own.note
    assert ANY_ARM in {fit.kind for fit in latency().fits}


def test_the_nearest_anchor_is_of_the_runtime_then_precision_then_threads() -> None:
    def nearest(runtime: str, precision: str, threads: int, net: str) -> tuple[str, str, int, str]:
        anchor = predict(device("rpi5"), NETS[net], runtime, precision, threads).anchor
        assert anchor is not None
        return anchor.runtime, anchor.precision, anchor.threads, anchor.network

    assert nearest("ncnn", "fp16", 1, "resnet18") == ("ncnn", "fp16", 1, "resnet18")
    assert nearest("ncnn", "int8", 4, "mobilenet_v2") == ("ncnn", "int8", 4, "resnet18")
    assert nearest("tflite", "int8", 4, "mobilenet_v3") == ("tflite", "int8", 4, "mobilenet_v2")
    assert nearest("tflite", "int8", 4, "resnet50") == ("tflite", "int8", 4, "resnet50")
    assert predict(device("arm64"), NETS["resnet18"], "ncnn", "fp16", 4).anchor is None


def test_anchored_scales_by_the_model() -> None:
    more = Cost((*NETS["resnet18"].layers, convolution(512, 2254, 1, 8)))
    found = predict(device("rpi4"), more, "ncnn", "fp32", 4)
    same = predict(device("rpi4"), NETWORKS["resnet18"](), "ncnn", "fp32", 4)
    assert found.anchor
    assert found.anchored == pytest.approx(found.anchor.ms * found.ms / same.ms)
    assert predict(device("rpi4"), NETS["resnet18"], "ncnn", "fp32", 2).anchored is None
    assert predict(device("rpi4"), NETS["resnet18"], "mnn", "fp32", 4).anchored is None


@pytest.mark.parametrize(
    ("runtime", "precision", "threads", "name", "told"),
    [
        ("tvm", "fp32", 1, "rpi4", "runtime 'tvm' cannot be predicted; allowed: ncnn, mnn, tflite, onnxruntime"),
        ("ncnn", "w8", 1, "rpi4", "precision 'w8' cannot be predicted; allowed: fp32, fp16, int8"),
        ("ncnn", "fp32", 0, "rpi4", "0 threads cannot be predicted for rpi4; allowed: 1 to 4"),
        ("ncnn", "fp32", 5, "rpi4", "5 threads cannot be predicted for rpi4; allowed: 1 to 4"),
        ("tflite", "int8", 4, "x86_64", "int8 of tflite on x86 cores cannot be predicted: nothing alike was published"),
    ],
)
def test_what_cannot_be_predicted_is_refused(runtime: str, precision: str, threads: int, name: str, told: str) -> None:
    with pytest.raises(EdgeError) as caught:
        predict(device(name), NETS["resnet18"], runtime, precision, threads)
    assert str(caught.value) == told


# --- Variants of a bundle.

VARIANTS = (
    *(variant(runtime, precision) for runtime in ("onnx", "ncnn", "tflite") for precision in ("fp32", "fp16", "w8")),
    *(variant(runtime, "int8", *HEADS) for runtime in ("onnx", "ncnn", "mnn", "tflite")),
    *(variant("tflite", "int8-full"), variant("tflite", "int16x8", *HEADS)),
)


@pytest.fixture(scope="module")
def many(null_bundle: Bundle) -> Bundle:
    return replace(null_bundle, variants=(*null_bundle.variants, *VARIANTS))


@pytest.mark.parametrize(("name", "runtime"), [("onnx", "onnxruntime"), ("ncnn", "ncnn"), ("tflite", "tflite")])
def test_a_variant_is_predicted_from_its_layers(many: Bundle, name: str, runtime: str) -> None:
    board = device("rpi5")
    for precision in ("fp32", "fp16", "int8"):
        chosen = many.variant(f"{name}-{precision}")
        found = predict_variant(board, many, chosen.name, 2)
        assert found == predict(board, costs.of(many, chosen), runtime, precision, 2)
        assert found.anchor
    more = replace(many, layers=(*many.layers, replace(many.layers[0], name="more")))
    assert predict_variant(board, more, f"{name}-fp32", 2).ms > predict_variant(board, many, f"{name}-fp32", 2).ms


def test_int8_heads_take_less(many: Bundle) -> None:
    times = {p: predict_variant(device("rpi5"), many, f"tflite-{p}", 1).ms for p in ("fp32", "int8", "int8-full")}
    assert times["int8-full"] < times["int8"] < times["fp32"]


def test_int8_weights_alone_are_fp32_and_say_so(many: Bundle) -> None:
    found, fp32 = (predict_variant(device("rpi4"), many, f"onnx-{precision}", 4) for precision in ("w8", "fp32"))
    assert replace(found, note=fp32.note) == fp32
    assert found.note == f"Its int8 weights are made float when it is loaded: predicted as fp32. {fp32.note}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "tflite-int16x8",
            "tflite-int16x8 cannot be predicted: no speed of int16x8 was published; "
            "allowed: fp32, fp16, int8, int8-full, w8",
        ),
        ("null-fp32", "runtime 'null' cannot be predicted; allowed: ncnn, mnn, tflite, onnxruntime"),
    ],
)
def test_variants_that_cannot_be_predicted_are_refused(many: Bundle, name: str, told: str) -> None:
    with pytest.raises(EdgeError) as caught:
        predict_variant(device("rpi4"), many, name, 1)
    assert str(caught.value) == told
    with pytest.raises(EdgeError, match="has no variant 'ncnn-w4', only null-fp32"):
        predict_variant(device("rpi4"), many, "ncnn-w4", 1)


def test_x86_float_is_predicted_for_all_runtimes() -> None:
    times = {runtime: predict(device("x86_64"), NETS["resnet18"], runtime, "fp32", 1).ms for runtime in PUBLISHED}
    assert len(set(times.values())) == 1
