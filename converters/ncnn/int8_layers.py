"""int8 for ncnn: weights, activation scales and requantization, written into ncnn's model files.

ncnn's wheels contain neither ncnn2table nor ncnn2int8. What int8 layers keep and compute is in
src/layer/convolution.cpp, convolutiondepthwise.cpp and innerproduct.cpp of Tencent/ncnn: int8 value =
round(value * scale), half away from zero, within ±127. A layer's input has one scale; its weights have one per channel
(per group, if depthwise). Bias, activation and everything between int8 layers are float. But if all readers of a layer
are int8, the layer gives them int8 (requantization).

ncnn has no zero point, so a blob that is never negative wastes half of the range. `quantize` gets that half back by
*centring*: a constant is subtracted from such a blob. The layers that make the blob subtract the constant from their
bias. The layers that read it add the constant times the sum of their weights to their bias, and pad with minus the
constant. This is exact, also at the borders, and costs nothing: saturation at ±127 even replaces the ReLU.
Behind a hard swish or a product, which cannot subtract, a layer of its own does it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.converters.ncnn import model as files
from pipnet_edge.converters.ncnn.model import WEIGHTS, Array, Layer, Model, number
from pipnet_edge.errors import EdgeError

Range = float | tuple[float, float]

LIMIT = 127
HUGE = 3e38  # stands for infinity in a .param file
TINY = 1e-30
# A layer that only subtracts a constant passes over memory once more. It is worth that from this share of a finer step.
WORTH = 0.25
# Parameter 8 of an int8 layer with float output. It is 100 more with int8 output; an InnerProduct cannot have that.
INT8_KINDS = {"Convolution": "2", "ConvolutionDepthWise": "1", "InnerProduct": "2"}
REQUANTIZING = frozenset({"Convolution", "ConvolutionDepthWise"})
# F(4x4, 3x3) on integers, conv3x3s1_winograd43_int8: its 32-bit sums hold 576 times the result.
WINOGRAD_FACTOR = 576


@dataclass(frozen=True)
class Grid:
    """How a blob becomes int8: round((value - shift) * scale), scale above 0, shift * scale a whole number."""

    scale: float
    shift: float = 0.0


@dataclass(frozen=True)
class Rounded:
    """A layer's int8 weights (rows, weights per row) and each row's scale. A row is an output channel or a group."""

    weight: NDArray[np.int8]
    scales: Array


def quantizable(model: Model) -> dict[str, str]:
    """Layers that ncnn can run in int8 -> the blob each reads, Splits skipped; in the order of the file."""
    return {layer.name: model.origin(layer.inputs[0]) for layer in model.layers if layer.kind in INT8_KINDS}


def heads(model: Model) -> frozenset[str]:
    """The quantizable layers that make an output of the model and that no other layer reads."""
    return frozenset(name for name in quantizable(model) if not model.readers(model[name].outputs[0]))


def depthwise(model: Model) -> frozenset[str]:
    """The depthwise layers. On x86 ncnn runs them slower in int8 than in float, and they drift most."""
    return frozenset(name for name in quantizable(model) if model[name].kind == "ConvolutionDepthWise")


def quantize(
    model: Model,
    ranges: Mapping[str, Range],
    keep_float: Collection[str] | None = None,
    *,
    centre: bool = True,
    winograd: bool = True,
    weight_scales: Mapping[str, Array] | None = None,
) -> Model:
    """An int8 copy of a float model.

    ranges: what a layer's input may reach before it is clipped, by the name of the layer or of the blob it reads (the
    layer's name comes first). A range is a pair (low, high), or a threshold t for [-t, t]. Centring uses only the part
    that the graph allows ([0, min(t, 6)] after a ReLU6). Layers with different ranges for one blob do not share its
    int8 values.
    keep_float: names of layers to leave in float (None: heads). Their bias and padding may change for a centred input.
    centre: see above; False gives the plain symmetric grid of ncnn's own tools.
    winograd: ncnn's int8 Winograd kernel overflows on large sums, and centring makes sums larger. True leaves inputs of
    3x3 layers symmetric if they might overflow. False centres them too and turns the kernel off for int8 layers: faster
    on CPUs with int8 dot products, half as fast on others.
    weight_scales: by name of layer, instead of 127 / absmax of each output channel. Weights that lie on the grid k *
    absmax / 127 become exactly those k.

    Raises EdgeError for unknown names in keep_float, layers without a range, ranges and weights that are zero or not
    finite, and layers that are int8 already.
    """
    keep = heads(model) if keep_float is None else frozenset(keep_float)
    sources = quantizable(model)
    unknown = sorted(keep - set(sources))
    if unknown:
        raise EdgeError(f"keep_float names {unknown[0]!r}; quantizable layers: {', '.join(sources)}")
    names = [name for name in sources if name not in keep]
    limits = {name: _limits(model, model[name], ranges, centre) for name in names}
    rounded = {name: _round(model[name], (weight_scales or {}).get(name)) for name in names}

    shifts = _Shifts(model)
    grids: dict[str, Grid] = {}
    for blob in dict.fromkeys(sources[name] for name in names):
        sharing = [name for name in names if sources[name] == blob]
        grid = _centred(*limits[sharing[0]])
        wanted = centre and len({limits[name] for name in sharing}) == 1
        unsafe = winograd and any(_may_overflow(model[name], rounded[name]) for name in sharing)
        if wanted and not unsafe and (shifts.apply(blob, grid.shift) or shifts.subtract(blob, grid)):
            grids |= dict.fromkeys(sharing, grid)
        else:
            grids |= {name: Grid(LIMIT / max(-limits[name][0], limits[name][1])) for name in sharing}
    shift = shifts.settled()

    layers = []
    for layer in model.layers:
        after = shift.get(layer.outputs[0], 0.0)
        if layer.kind in WEIGHTS:
            source = model.origin(layer.inputs[0])
            before = shifts.subtracted.get(source, shift.get(source, 0.0))
            if layer.name in grids:
                next_grid = _next_grid(model, layer, grids)
                new = _int8(layer, rounded[layer.name], grids[layer.name], next_grid, before, after, winograd)
            else:
                new = _shifted(layer, layer.arrays["weight"].astype(np.float64), before, after)
            layers.append(new)
        elif after and (bounds := _bounds(layer)):
            text = {key: number(end - after) for key, end in enumerate(bounds) if math.isfinite(end)}
            layers.append(replace(layer, kind="Clip", params=text))
        elif layer.outputs[0] in shifts.subtracted:
            layers += _subtracting(layer, shifts.subtracted[layer.outputs[0]])
        else:
            layers.append(layer)
    return Model(tuple(layers))


def _subtracting(layer: Layer, shift: float) -> tuple[Layer, Layer]:
    """A layer, and one behind it that subtracts a constant and takes its output's name."""
    (blob,) = layer.outputs
    whole, params = f"{blob}_whole", {0: "0", 1: "1", 2: number(-shift)}
    return replace(layer, outputs=(whole,)), Layer("BinaryOp", f"{layer.name}_shift", (whole,), (blob,), params)


def _limits(model: Model, layer: Layer, ranges: Mapping[str, Range], centre: bool) -> tuple[float, float]:
    blob = model.origin(layer.inputs[0])
    key = next((key for key in (layer.name, layer.inputs[0], blob) if key in ranges), None)
    if key is None:
        raise EdgeError(f"no activation range for layer {layer.name!r}, nor for blob {blob!r} that it reads")
    value = ranges[key]
    low, high = value if isinstance(value, tuple) else (-value, value)
    ordered = low <= high  # False for NaN
    if centre:
        least, most = _blob_bounds(model, blob)
        low, high = max(low, least), min(high, most)
    low, high = min(low, 0.0), max(high, 0.0)
    if not (ordered and math.isfinite(high - low) and high - low > TINY):
        raise EdgeError(f"activation range of {key!r} is {value}; a finite range that is not empty is needed")
    return low, high


def _centred(low: float, high: float) -> Grid:
    scale = 2 * LIMIT / (high - low)
    # A whole number of steps, so that zero, the padding, is on the grid.
    return Grid(scale, round(LIMIT * (low + high) / (high - low)) / scale)


def _round(layer: Layer, scales: Array | None) -> Rounded:
    if layer.integer(files.INT8):
        raise EdgeError(f"ncnn layer {layer.name!r} is int8 already")
    count = layer.integer(files.GROUPS, 1) if layer.kind == "ConvolutionDepthWise" else layer.integer(0)
    weight = layer.arrays["weight"].astype(np.float64).reshape(count, -1)
    absmax = np.abs(weight).max(axis=1)
    if not np.isfinite(absmax).all():
        raise EdgeError(f"weights of ncnn layer {layer.name!r} are not finite")
    if scales is None:
        # A row of zeros gets scale 1: ncnn divides by it.
        scales = np.where(absmax > TINY, LIMIT / np.maximum(absmax, TINY), 1.0).astype(np.float32)
    elif scales.shape != (count,) or not (np.isfinite(scales) & (scales > 0)).all():
        raise EdgeError(f"ncnn layer {layer.name!r} needs {count} weight scales above 0, {scales.shape} are given")
    scaled = weight * scales[:, None]
    integers = np.clip(np.trunc(scaled + np.copysign(0.5, scaled)), -LIMIT, LIMIT).astype(np.int8)
    return Rounded(integers, np.asarray(scales, np.float32))


def _is_winograd(layer: Layer) -> bool:
    sizes = {key: layer.integer(key, 1) for key in (1, 2, 3)}
    sizes |= {key + 10: layer.integer(key + 10, sizes[key]) for key in (1, 2, 3)}
    return layer.kind in REQUANTIZING and sizes == {1: 3, 11: 3, 2: 1, 12: 1, 3: 1, 13: 1}


def _may_overflow(layer: Layer, rounded: Rounded) -> bool:
    """Whether some input of ±127 makes ncnn's Winograd kernel exceed 32 bits."""
    sums = np.abs(rounded.weight.astype(np.int64)).reshape(layer.integer(0), -1).sum(axis=1)
    return _is_winograd(layer) and int(sums.max()) * LIMIT * WINOGRAD_FACTOR >= 2**31


def _bounds(layer: Layer) -> tuple[float, float] | None:
    """The limits that a layer's activation gives its output. None if it does more than limit."""
    if layer.kind == "ReLU":
        return None if any(layer.floats(0)) else (0.0, math.inf)
    if layer.kind == "Clip":
        return (*layer.floats(0), -math.inf)[0], (*layer.floats(1), math.inf)[0]
    if layer.kind not in WEIGHTS:
        return None
    kind, limits = layer.integer(files.ACTIVATION), layer.floats(files.ACTIVATION_PARAMS)
    if kind == 3 and len(limits) == 2:
        return limits[0], limits[1]
    return {0: (-math.inf, math.inf), 1: (0.0, math.inf)}.get(kind)


def _is_max_pooling(layer: Layer) -> bool:
    return layer.kind == "Pooling" and layer.integer(0) == 0


def _blob_bounds(model: Model, blob: str) -> tuple[float, float]:
    layer = model.maker(blob)
    if _is_max_pooling(layer):
        return _blob_bounds(model, layer.inputs[0])
    return _bounds(layer) or (-math.inf, math.inf)


class _Shifts:
    """The constant to subtract from each blob, such that the model's outputs stay the same."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._of: dict[str, float] = {}
        # Of the blobs that get a layer for it.
        self.subtracted: dict[str, float] = {}

    def apply(self, blob: str, shift: float) -> bool:
        """Shifts a blob if all layers that make and read it can make up for that; else changes nothing."""
        if not shift:
            return True
        chain = self._chain(blob)
        if chain is None or self._model.is_output(blob):
            return False
        for reader in self._model.readers(blob):
            if reader.kind not in INT8_KINDS and self._absorber(reader) in (None, blob):
                return False
        self._of |= dict.fromkeys(chain, shift)
        return True

    def subtract(self, blob: str, grid: Grid) -> bool:
        """Has a blob shifted by a layer of its own if that is worth it and all that read it can make up for it."""
        maker, worth = self._model.maker(blob), abs(grid.shift) * grid.scale > WORTH * LIMIT
        able = worth and maker.inputs and maker.kind not in WEIGHTS and not self._model.is_output(blob)
        if able and all(reader.kind in INT8_KINDS for reader in self._model.readers(blob)):
            self.subtracted[blob] = grid.shift
        return blob in self.subtracted

    def settled(self) -> dict[str, float]:
        """All shifts: the applied ones, and those of the layers that make up for them before additions."""
        for layer in self._model.layers:
            absorber = self._absorber(layer)
            if absorber is not None:
                inputs = map(self._model.origin, layer.inputs)
                others = sum(self._of.get(blob, 0.0) for blob in inputs if blob != absorber)
                self._of[absorber] = self._of.get(layer.outputs[0], 0.0) - others
        return {blob: shift for blob, shift in self._of.items() if shift}

    def _chain(self, blob: str) -> list[str] | None:
        """The blob and those before it that have to be shifted with it. None if that is impossible."""
        layer = self._model.maker(blob)
        if layer.kind in WEIGHTS:
            return None if _bounds(layer) is None else [blob]
        if self._absorber(layer) is not None:
            return [blob]
        if _is_max_pooling(layer) or _bounds(layer) is not None:
            before = layer.inputs[0]
            if self._model.readers(before) == [layer]:
                chain = self._chain(before)
                return None if chain is None else [blob, *chain]
        return None

    def _absorber(self, layer: Layer) -> str | None:
        """The input of an addition that can have any shift: its maker has no activation, and nothing else reads it."""
        if layer.kind != "BinaryOp" or layer.integer(0) or layer.integer(1) or len(layer.inputs) != 2:
            return None
        for blob in map(self._model.origin, layer.inputs):
            maker = self._model.maker(blob)
            if maker.kind in WEIGHTS and self._model.readers(blob) == [layer] and not maker.integer(files.ACTIVATION):
                return blob
        return None


def _next_grid(model: Model, layer: Layer, grids: Mapping[str, Grid]) -> Grid | None:
    """The grid of a layer's int8 output: its readers' grid, if they all share one. None for float output."""
    blob = layer.outputs[0]
    wanted = {grids.get(reader.name) if reader.kind in REQUANTIZING else None for reader in model.readers(blob)}
    return wanted.pop() if len(wanted) == 1 and layer.kind in REQUANTIZING and not model.is_output(blob) else None


def _shifted(layer: Layer, weight: NDArray[np.float64], before: float, after: float) -> Layer:
    """A layer with `before` subtracted from its input and `after` from its output. weight: what it multiplies by."""
    params, arrays = dict(layer.params), dict(layer.arrays)
    at = WEIGHTS[layer.kind]
    if before or after:
        outputs = layer.integer(at.outputs)
        bias = arrays.get("bias", np.zeros(outputs, np.float32)).astype(np.float64)
        bias += before * weight.reshape(outputs, -1).sum(axis=1) - after
        arrays["bias"] = bias.astype(np.float32)
        params[at.bias] = "1"
    if before and layer.kind in REQUANTIZING:
        params[files.PAD_VALUE] = number(_pad(layer) - before)
    bounds = _bounds(layer)
    if after and bounds:
        _limit(params, bounds[0] - after, bounds[1] - after)
    return replace(layer, params=params, arrays=arrays)


def _int8(
    layer: Layer, rounded: Rounded, grid: Grid, next_grid: Grid | None, before: float, after: float, winograd: bool
) -> Layer:
    """The int8 layer on the grid of its input. Its output is int8 if there is a next grid."""
    layer = _shifted(layer, rounded.weight / rounded.scales[:, None].astype(np.float64), before, after)
    params = {**layer.params, files.INT8: INT8_KINDS[layer.kind]}
    arrays = {**layer.arrays, "weight": rounded.weight.reshape(-1), "weight_scales": rounded.scales}
    arrays["input_scale"] = np.array([grid.scale], np.float32)
    if _pad(layer):
        # x86 copies the byte over a word by shifting the number. A minus sign would spoil all bytes but one. So -127 is
        # written as 129, which has the same lowest byte; every kernel takes that byte.
        params[files.PAD_VALUE] = number(float(np.clip(round(_pad(layer) * grid.scale), -LIMIT, LIMIT)) % 256)
    if next_grid:
        params[files.INT8] = f"10{params[files.INT8]}"
        arrays["output_scale"] = np.array([next_grid.scale], np.float32)
        if bounds := _bounds(layer):
            edge = LIMIT / next_grid.scale * (1 - 1e-6)  # saturation clips what is beyond
            low, high = bounds
            _limit(params, -math.inf if low <= -edge else low, math.inf if high >= edge else high)
    if not winograd and _is_winograd(layer):
        params[files.FEATURES_OFF] = str(layer.integer(files.FEATURES_OFF) | files.NO_WINOGRAD)
    return replace(layer, params=params, arrays=arrays)


def _pad(layer: Layer) -> float:
    return next(iter(layer.floats(files.PAD_VALUE)), 0.0) if layer.kind in REQUANTIZING else 0.0


def _limit(params: dict[int, str], low: float, high: float) -> None:
    """Sets the fused activation that limits to [low, high]."""
    for key in (files.ACTIVATION, files.ACTIVATION_PARAMS, files.ARRAY_ID - files.ACTIVATION_PARAMS):
        params.pop(key, None)
    if (low, high) == (0.0, math.inf):
        params[files.ACTIVATION] = "1"
    elif (low, high) != (-math.inf, math.inf):
        params[files.ACTIVATION] = "3"
        ends = (number(min(max(end, -HUGE), HUGE)) for end in (low, high))
        params[files.ARRAY_ID - files.ACTIVATION_PARAMS] = ",".join(["2", *ends])


def observe(model: Model, images: Iterable[Array]) -> dict[str, tuple[float, float]]:
    """Blob -> (least, largest value) over images, for each quantizable layer's input: ranges for quantize.

    images: as for model.run; only one is in memory at a time. Raises EdgeError when there is none.
    """
    seen: dict[str, tuple[float, float]] = {}
    for values in files.run(model, images, sorted(set(quantizable(model).values()))):
        for blob, value in values.items():
            low, high = seen.get(blob, (math.inf, -math.inf))
            seen[blob] = min(low, float(value.min())), max(high, float(value.max()))
    if not seen:
        raise EdgeError("no images to take activation ranges from")
    return seen


def match_weights(model: Model, weights: Mapping[str, Array]) -> dict[str, str]:
    """Quantizable layer -> name of the weights that it holds bit for bit: so which layer of the torch network it is.

    weights: (out, in / groups, height, width) or (out, in) float32 by name. Raises EdgeError for a layer whose
    weights are none of them, or several of them.
    """
    found: dict[bytes, list[str]] = {}
    for name, values in weights.items():
        found.setdefault(np.ascontiguousarray(values, np.float32).tobytes(), []).append(name)
    matched = {}
    for name in quantizable(model):
        same = found.get(model[name].arrays["weight"].astype(np.float32).tobytes(), [])
        if len(same) != 1:
            raise EdgeError(
                f"ncnn layer {name!r} holds the weights of {' and '.join(same) or 'none of the network’s layers'}"
            )
        matched[name] = same[0]
    return matched
