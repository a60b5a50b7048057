"""int8 for ncnn: ncnn's results against a numpy reference of its int8 layers, and what is decided for each layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.converters.ncnn.int8_layers import depthwise, heads, observe, quantizable, quantize
from pipnet_edge.converters.ncnn.model import Layer, Model, run
from pipnet_edge.errors import EdgeError

pytest.importorskip("ncnn")

Values = NDArray[Any]
NONE: dict[int, str] = {}
RELU, RELU6, HARD_SWISH = {9: "1"}, {9: "3", -23310: "2,0.0,6.0"}, {9: "6", -23310: "2,1.6666667e-01,5.0e-01"}


class Net:
    """Builds a model layer by layer; every method returns the name of the blob it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.layers = [Layer("Input", "in0", (), ("in0",))]
        self.channels = {"in0": 3}

    def _add(self, kind: str, inputs: tuple[str, ...], params: dict[int, str], channels: int, **arrays: Values) -> str:
        blob = f"b{len(self.layers)}"
        self.channels[blob] = channels
        self.layers.append(Layer(kind, f"l{len(self.layers)}", inputs, (blob,), params, arrays))
        return blob

    def conv(self, blob: str, outputs: int, kernel: int = 1, stride: int = 1, act: dict[int, str] = NONE) -> str:
        return self._conv("Convolution", blob, (outputs, self.channels[blob], kernel, kernel), stride, act)

    def depthwise(self, blob: str, act: dict[int, str] = NONE) -> str:
        outputs = self.channels[blob]
        return self._conv("ConvolutionDepthWise", blob, (outputs, 1, 3, 3), 1, {7: str(outputs)} | act)

    def _conv(self, kind: str, blob: str, shape: tuple[int, ...], stride: int, more: dict[int, str]) -> str:
        weight = self.random.standard_normal(shape) * math.sqrt(2 / np.prod(shape[1:]))
        bias = 0.3 * self.random.standard_normal(shape[0])
        values = shape[0], shape[2], stride, shape[2] // 2, 1, weight.size
        params = dict(zip((0, 1, 3, 4, 5, 6), map(str, values), strict=True)) | more
        arrays = {"weight": weight.ravel().astype(np.float32), "bias": bias.astype(np.float32)}
        return self._add(kind, (blob,), params, shape[0], **arrays)

    def linear(self, blob: str, outputs: int, act: dict[int, str] = NONE) -> str:
        inputs = self.channels[blob]
        weight = (self.random.standard_normal(outputs * inputs) / math.sqrt(inputs)).astype(np.float32)
        params = {0: str(outputs), 1: "1", 2: str(weight.size)} | act
        bias = np.linspace(-1, 1, outputs, dtype=np.float32)
        return self._add("InnerProduct", (blob,), params, outputs, weight=weight, bias=bias)

    def other(self, kind: str, *inputs: str, **params: str) -> str:
        return self._add(kind, inputs, {int(k[1:]): v for k, v in params.items()}, self.channels[inputs[0]])

    def split(self, blob: str) -> tuple[str, str]:
        first = self.other("Split", blob)
        self.channels[f"{first}_"] = self.channels[blob]
        self.layers[-1] = replace(self.layers[-1], outputs=(first, f"{first}_"))
        return first, f"{first}_"

    def model(self) -> Model:
        return Model(tuple(self.layers))


def mobile(width: int = 8, act: dict[int, str] = RELU6, swap: bool = False) -> Model:
    """Stem, two inverted residuals, the second with a shortcut, two heads: a small MobileNetV2."""
    net = Net(1)
    x = net.conv(net.depthwise(net.conv("in0", 2 * width, 3, 2, act), act), width)
    body, shortcut = net.split(x)
    y = net.conv(net.depthwise(net.conv(body, 4 * width, act=act), act), width)
    x = net.other("BinaryOp", *((shortcut, y) if swap else (y, shortcut)), p0="0")
    for blob in net.split(net.conv(x, 4 * width, act=act)):
        net.conv(blob, 5)
    return net.model()


def residual(width: int = 8, act: dict[int, str] = NONE) -> Model:
    """Stem with max pooling, two residual blocks, the second with a projection, one head: a small ResNet."""
    net = Net(2)
    x = net.other("Pooling", net.conv("in0", width, 3, 1, RELU), p0="0", p1="3", p2="2", p3="1", p5="1")
    for stride in (1, 2):
        body, shortcut = net.split(x)
        y = net.conv(net.conv(body, width, 3, stride, RELU), width, 3, 1, act)
        shortcut = net.conv(shortcut, width, 1, 2) if stride == 2 else shortcut
        x = net.other("ReLU", net.other("BinaryOp", y, shortcut, p0="0"))
    net.conv(x, 5)
    return net.model()


def pictures(count: int = 3) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(7)
    return [random.standard_normal((3, 22, 22)).astype(np.float32) for _ in range(count)]


def whole(value: Values) -> NDArray[np.int64]:
    """Rounded half away from zero, within ±127."""
    return np.clip(np.trunc(value + np.copysign(0.5, value)), -127, 127).astype(np.int64)


def convolve(x: Values, layer: Layer, groups: int) -> Values:
    outputs, kernel, stride, pad = (layer.integer(key, 1 if key == 3 else 0) for key in (0, 1, 3, 4))
    value = sum(layer.floats(18))
    border = (int(value) + 128) % 256 - 128 if layer.integer(8) else value
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), constant_values=border)
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    weight = layer.arrays["weight"].astype(x.dtype).reshape(groups, outputs // groups, -1, kernel, kernel)
    windows = windows.reshape(groups, -1, *windows.shape[1:])
    return np.einsum("gohkl,ghyxkl->goyx", weight, windows).reshape(outputs, *windows.shape[2:4])


def activate(x: Values, layer: Layer) -> Values:
    kind, (low, high) = layer.integer(9), layer.floats(10) or (0.0, 0.0)
    if kind == 6:
        return x * np.clip(x * low + high, 0, 1)
    return np.clip(x, low, high) if kind == 3 else np.maximum(x, 0) if kind == 1 else x


def compute(layer: Layer, inputs: list[Values]) -> Values:
    """One layer's output, as float64 or, if it hands on int8, int64; inputs in int64 are int8 values."""
    x = inputs[0]
    if layer.kind == "BinaryOp":
        return x * inputs[1][:, None, None] if layer.integer(0) else x + (*inputs[1:], *layer.floats(2))[0]
    if layer.kind in ("ReLU", "Clip"):
        return np.clip(x, (*layer.floats(0), 0.0)[0], (*layer.floats(1), np.inf)[0])
    if layer.kind == "Pooling":
        if layer.integer(0):
            return x.mean(axis=(1, 2))
        x = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(3, 4))
    int8 = layer.integer(8)
    if int8 and x.dtype != np.int64:
        x = whole(x * layer.arrays["input_scale"])
    if layer.kind == "InnerProduct":
        y = layer.arrays["weight"].astype(x.dtype).reshape(layer.integer(0), -1) @ x
    else:
        y = convolve(x, layer, layer.integer(7, 1) if layer.kind == "ConvolutionDepthWise" else 1)
    spatial = (-1,) + (1,) * (y.ndim - 1)
    if int8:
        y = y / (layer.arrays["weight_scales"].astype(np.float64) * layer.arrays["input_scale"]).reshape(spatial)
    y = activate(y + layer.arrays["bias"].reshape(spatial), layer)
    return whole(y * layer.arrays["output_scale"]) if int8 > 100 else y


def blobs_of(model: Model, image: Values, given: dict[str, Values] | None = None) -> dict[str, Values]:
    """Every blob by the reference. With `given`, each layer starts from those (ncnn's) blobs: errors cannot add up."""
    blobs: dict[str, Values] = {}
    for layer in model.layers:
        if layer.kind == "Input":
            blobs[layer.outputs[0]] = image.astype(np.float64)
            continue
        inputs = [(given or blobs)[blob].astype(blobs[blob].dtype) for blob in layer.inputs]
        blobs |= dict.fromkeys(layer.outputs, inputs[0] if layer.kind == "Split" else compute(layer, inputs))
    return blobs


def check_against_ncnn(model: Model, images: list[NDArray[np.float32]]) -> None:
    """ncnn's int8 blobs are the reference's to one step, its float blobs to float accuracy."""
    names = [blob for layer in model.layers for blob in layer.outputs]
    used = set()
    for image, found in zip(images, run(model, images, names), strict=True):
        # Layer by layer from ncnn's own blobs, and the whole net from the image on, where single steps may add up.
        expected, alone = blobs_of(model, image, found), blobs_of(model, image)
        for name in names:
            difference = np.abs(found[name] - expected[name])
            if expected[name].dtype == np.int64:
                assert difference.max() <= 1, name
                assert (difference > 0).mean() < 0.01, name
                assert (np.abs(found[name] - alone[name]) <= 1).mean() > 0.98, name
                used |= {name} if np.ptp(expected[name]) > 100 else set()
            else:
                # x86 takes reciprocals to 12 bits in depthwise layers.
                assert difference.max() <= 1e-3 * max(1, np.abs(expected[name]).max()), name
    requantized = {layer.outputs[0] for layer in model.layers if layer.arrays and layer.integer(8) > 100}
    assert requantized <= used, "int8 blobs do not use their range: nothing was tested"


def with_weight(layer: Layer, weight: Values) -> Layer:
    return replace(layer, arrays={**layer.arrays, "weight": weight.astype(np.float32).ravel()})


def with_layers(model: Model, *layers: Layer) -> Model:
    named = {layer.name: layer for layer in layers}
    return Model(tuple(named.get(layer.name, layer) for layer in model.layers))


def snap(model: Model) -> Model:
    """The model with all weights on the grid k * absmax / 127, absmax among them."""
    layers = []
    for layer in (layer for layer in model.layers if layer.arrays):
        rows = layer.arrays["weight"].reshape(layer.integer(0), -1).astype(np.float64)
        step = np.abs(rows).max(axis=1, keepdims=True) / 127
        layers.append(with_weight(layer, np.round(rows / step) * step))
    return with_layers(model, *layers)


def outputs(model: Model, images: list[NDArray[np.float32]]) -> Values:
    """All channels of the net's outputs in ncnn: (images, channels, H, W)."""
    return np.stack([np.concatenate(list(found.values())) for found in run(model, images, model.outputs())])


def drift(model: Model, reference: Model, images: list[NDArray[np.float32]]) -> Values:
    """Root mean square difference of the net's outputs at each cell: (H, W)."""
    return np.sqrt(np.square(outputs(model, images) - outputs(reference, images)).mean(axis=(0, 1)))


BUILDS = {
    "mobile": mobile,
    "mobile, addition swapped": partial(mobile, swap=True),
    "mobile, unpacked": partial(mobile, 6),
    "mobile, ReLU": partial(mobile, act=RELU),
    "mobile, hard-swish": partial(mobile, act=HARD_SWISH),
    "residual": residual,
    "residual, unpacked": partial(residual, 6),
    "residual, additions of ReLUs": partial(residual, act=RELU),
}


@pytest.mark.parametrize("centre", [True, False], ids=["centred", "symmetric"])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_ncnn_computes_what_the_reference_does(build: Callable[[], Model], centre: bool) -> None:
    model, images = build(), pictures()
    check_against_ncnn(model, images)
    int8 = quantize(model, observe(model, images), centre=centre)
    assert sum(layer.integer(8) > 100 for layer in int8.layers if layer.arrays) >= 2
    assert any(any(layer.floats(18)) for layer in int8.layers) == centre
    check_against_ncnn(int8, images)
    assert drift(int8, model, images).mean() < 0.05 * np.sqrt(np.mean(np.square(outputs(model, images))))


def test_squeeze_and_excite_in_int8() -> None:
    net = Net(4)
    x, gate = net.split(net.conv("in0", 16, 3, 1, RELU))
    gate = net.linear(net.linear(net.other("Pooling", gate, p0="1", p4="1"), 8, RELU), 16)
    net.conv(net.other("BinaryOp", x, gate, p0="2"), 4)
    model, images = net.model(), pictures()
    int8 = quantize(model, observe(model, images))
    assert [layer.params[8] for layer in int8.layers if layer.kind == "InnerProduct"] == ["2", "2"]
    check_against_ncnn(int8, images)


@pytest.mark.parametrize("build", [mobile, residual])
def test_centring_halves_the_steps_and_is_exact_at_the_borders(build: Callable[[int], Model]) -> None:
    model, images = snap(build(16)), pictures(6)
    ranges = observe(model, images)
    symmetric, centred = (drift(quantize(model, ranges, centre=c), model, images) for c in (False, True))
    assert centred.mean() < 0.85 * symmetric.mean()
    border = np.concatenate([centred[0], centred[-1], centred[:, 0], centred[:, -1]])
    assert border.mean() < 1.3 * centred[1:-1, 1:-1].mean()


def test_a_threshold_means_what_the_graph_allows() -> None:
    model, images = mobile(), pictures()
    ranges = observe(model, images)
    thresholds = {blob: max(-low, high) for blob, (low, high) in ranges.items()}
    int8 = quantize(model, thresholds)
    depth = next(layer for layer in int8.layers if layer.kind == "ConvolutionDepthWise")
    assert depth.arrays["input_scale"][0] == np.float32(254 / ranges[model[depth.name].inputs[0]][1])
    assert depth.floats(18) == (129.0,)
    # A threshold above what ReLU6 lets through wastes nothing.
    wide = quantize(model, dict.fromkeys(thresholds, 100.0))
    assert wide[depth.name].arrays["input_scale"][0] == np.float32(254 / 6)
    # Without centring it is taken as it is, and the limit at 6 has to stay.
    plain = quantize(model, dict.fromkeys(thresholds, 100.0), centre=False)
    assert plain[depth.name].arrays["input_scale"][0] == np.float32(1.27)
    assert plain["l1"].floats(10) == (0.0, 6.0)
    tight = quantize(model, dict.fromkeys(thresholds, 5.0), centre=False)
    assert (tight["l1"].integer(9), tight["l1"].floats(10)) == (1, ())
    check_against_ncnn(int8, images)
    check_against_ncnn(tight, images)


def test_layers_are_looked_up_before_blobs_and_may_differ() -> None:
    net = Net(5)
    left, right = net.split(net.conv("in0", 8, 1, 1, RELU))
    net.conv(net.other("BinaryOp", net.conv(left, 8), net.conv(right, 8), p0="0"), 4)
    model = net.model()
    ranges = dict.fromkeys(["in0", "b1", "b5"], 2.0)
    assert quantize(model, ranges)["l1"].params[8] == "102"
    differing = quantize(model, {**ranges, "l3": 3.0})
    assert differing["l1"].params[8] == "2"
    scales = [differing[name].arrays["input_scale"][0] for name in ("l3", "l4")]
    assert scales == [np.float32(127 / 3), np.float32(127 / 2)]


def test_which_layers_hand_on_int8() -> None:
    model = mobile()
    ranges = dict.fromkeys(quantizable(model), 3.0)

    def kinds(keep: frozenset[str]) -> str:
        return " ".join(layer.params.get(8, "-") for layer in quantize(model, ranges, keep).layers if layer.arrays)

    # An addition and float heads want float, and so do depthwise layers kept in float.
    assert kinds(heads(model)) == "102 101 2 102 101 2 2 - -"
    assert kinds(heads(model) | depthwise(model)) == "2 - 2 2 - 2 2 - -"
    assert kinds(frozenset()) == "102 101 2 102 101 2 102 2 2"


def test_layers_kept_in_float_keep_their_weights() -> None:
    model, images = mobile(), pictures()
    keep = {*heads(model), "l2"}
    int8 = quantize(model, observe(model, images), keep)
    for name in keep:
        assert int8[name].arrays["weight"].dtype == np.float32
        assert np.array_equal(int8[name].arrays["weight"], model[name].arrays["weight"])
    assert int8["l1"].arrays["weight"].dtype == np.int8
    check_against_ncnn(int8, images)
    every = quantize(model, observe(model, images), ())
    assert all(layer.arrays["weight"].dtype == np.int8 for layer in every.layers if layer.arrays)
    # The bias makes up for the centred input with the weights that int8 has, not with those it was made from.
    head, before = every["l11"].arrays, model["l11"].arrays["bias"]
    sums = head["weight"].reshape(5, -1).sum(axis=1, dtype=np.int64) / head["weight_scales"].astype(np.float64)
    assert head["bias"] == pytest.approx(before + 127 / head["input_scale"] * sums, rel=1e-6, abs=1e-6)


def test_a_float_layer_can_read_a_centred_blob() -> None:
    net = Net(6)
    left, right = net.split(net.conv("in0", 8, 3, 1, RELU))
    net.conv(net.other("BinaryOp", net.conv(left, 8, 3), net.conv(right, 8, 3), p0="0"), 4)
    model, images = snap(net.model()), pictures(4)
    keep, ranges = set(quantizable(model)) - {"l3"}, observe(model, images)
    centred = quantize(model, ranges, keep)
    assert centred["l4"].floats(18)[0] == pytest.approx(-ranges["b1"][1] / 2)
    assert centred["l3"].floats(18) == (129.0,)
    check_against_ncnn(centred, images)
    symmetric = quantize(model, ranges, keep, centre=False)
    assert drift(centred, model, images).mean() < 0.6 * drift(symmetric, model, images).mean()


def test_weights_on_the_grid_become_those_integers() -> None:
    random = np.random.default_rng(8)
    model, layers, integers = mobile(), [], {}
    for layer in (layer for layer in model.layers if layer.arrays):
        count = layer.integer(0)
        rows = random.integers(-127, 128, (count, layer.arrays["weight"].size // count))
        rows[:, random.integers(rows.shape[1])] = 127 * random.choice([-1, 1], count)
        absmax = np.exp(random.uniform(-6, 3, (count, 1))).astype(np.float32)
        integers[layer.name] = rows
        layers.append(with_weight(layer, rows * (absmax / 127)))
    model = with_layers(model, *layers)
    int8 = quantize(model, dict.fromkeys(quantizable(model), 1.0), ())
    for name, rows in integers.items():
        assert np.array_equal(int8[name].arrays["weight"], rows.ravel())


def test_rows_of_zeros() -> None:
    model, images = mobile(), pictures(1)
    model = with_layers(model, with_weight(model["l2"], model["l2"].arrays["weight"] * (np.arange(144) >= 9)))
    for centre in (True, False):
        int8 = quantize(model, observe(model, images), centre=centre)
        assert int8["l2"].arrays["weight_scales"][0] == 1
        check_against_ncnn(int8, images)


def test_winograd_is_kept_from_overflowing() -> None:
    net = Net(9)
    net.conv(net.conv(net.conv("in0", 64, 1, 1, RELU), 64, 3, 1, RELU), 4)
    model = net.model()
    model, images = with_layers(model, with_weight(model["l2"], np.ones(64 * 64 * 9))), pictures(1)
    ranges = observe(model, images)
    assert not {18, 31} & set(quantize(model, ranges)["l2"].params)
    without = quantize(model, ranges, winograd=False)
    assert (without["l2"].floats(18), without["l2"].integer(31)) == ((129.0,), 64)
    assert 31 not in without["l1"].params
    check_against_ncnn(without, images)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, (-1.0, math.nan), (0.0, 0.0), (2.0, 1.0)])
def test_wrong_ranges(value: float | tuple[float, float]) -> None:
    with pytest.raises(EdgeError, match=r"activation range of 'in0' is .*; a finite range"):
        quantize(mobile(), {"in0": value})


def test_wrong_names() -> None:
    with pytest.raises(EdgeError, match="no activation range for layer 'l1', nor for blob 'in0'"):
        quantize(mobile(), {"b1": 1.0})
    with pytest.raises(EdgeError, match="keep_float names 'l4'; quantizable layers: l1, l2, l3, l5"):
        quantize(mobile(), {}, ["l4"])


def test_wrong_weights() -> None:
    model = mobile()
    ranges = dict.fromkeys(quantizable(model), 1.0)
    with pytest.raises(EdgeError, match="'l1' is int8 already"):
        quantize(quantize(model, ranges), ranges)
    with pytest.raises(EdgeError, match="'l2' needs 16 weight scales above 0"):
        quantize(model, ranges, weight_scales={"l2": np.ones(3, np.float32)})
    bad = with_weight(model["l1"], model["l1"].arrays["weight"] * np.nan)
    with pytest.raises(EdgeError, match="weights of ncnn layer 'l1' are not finite"):
        quantize(with_layers(model, bad), ranges)
