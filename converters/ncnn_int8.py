"""int8 for ncnn: weights, activation scales and requantization, written into ncnn's model files.

ncnn's wheels carry neither ncnn2table nor ncnn2int8. What int8 layers keep and compute is in src/layer/convolution.cpp,
convolutiondepthwise.cpp and innerproduct.cpp of Tencent/ncnn: int8 value = round(value * scale), half away from zero, within
±127; one scale for a layer's input, one a channel (a group, if depthwise) for its weights; bias, fused activation and
everything between int8 layers in float, unless a layer's readers are all int8: then it hands them int8 (requantization).

ncnn knows no zero point, so a blob that is never negative wastes half of the range. `quantize` gets the half back by
*centring*: such a blob is stored less a constant. Its makers take the constant off their bias, its readers add
constant * sum(weights) to theirs and pad with minus the constant (parameter 18). That is exact, also at the borders, and
costs nothing: saturation at ±127 even replaces the ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.converters.ncnn_model import (
    ACTIVATION,
    ACTIVATION_PARAMS,
    ARRAY_ID,
    GROUPS,
    INT8,
    PAD_VALUE,
    WEIGHTS,
    Layer,
    Model,
    Table,
    number,
    write_model,
)
from pipnet_edge.errors import EdgeError

Array = NDArray[np.float32]
Range = float | tuple[float, float]

LIMIT = 127
# Parameter 8 of an int8 layer that has float output; 100 more with int8 output, which an InnerProduct cannot have.
INT8_KINDS = {"Convolution": "2", "ConvolutionDepthWise": "1", "InnerProduct": "2"}
REQUANTIZING = frozenset({"Convolution", "ConvolutionDepthWise"})
HUGE = 3e38  # stands for infinity in a .param file


@dataclass(frozen=True)
class Grid:
    """How a blob becomes int8: round((value - shift) * scale). scale and shift * scale are above 0 and a whole number."""

    scale: float
    shift: float = 0.0


def quantizable(model: Model) -> dict[str, str]:
    """Layers that ncnn can run in int8 -> the blob each reads (Splits looked through), in the order of the file."""
    return {layer.name: model.origin(layer.inputs[0]) for layer in model.layers if layer.kind in INT8_KINDS}


def heads(model: Model) -> frozenset[str]:
    """The quantizable layers that make a net output."""
    return frozenset(name for name in quantizable(model) if model.is_output(model[name].outputs[0]))


def quantize(
    model: Model,
    ranges: Mapping[str, Range],
    keep_float: Collection[str] | None = None,
    *,
    centre: bool = True,
    weight_scales: Mapping[str, Array] | None = None,
) -> Model:
    """An int8 copy of a float model.

    ranges: what a layer's input may reach before it is clipped, by the name of the layer or of the blob it reads (the
    layer's is taken first): a threshold t for [-t, t], or for what the graph allows of it ([0, min(t, 6)] after a
    ReLU6); or a pair (low, high). Layers with different ranges for one blob do not share its int8 values.
    keep_float: names of layers to leave in float (None: heads); their bias may take up a neighbour's centring.
    centre: see above; False gives the plain symmetric grid of ncnn's own tools.
    weight_scales: by name of layer, instead of 127 / absmax of each output channel. Weights that lie on the grid k *
    absmax / 127 become exactly those k.

    Raises EdgeError for unknown names in keep_float, layers without a range, ranges and weights that are zero or not
    finite, layers that are int8 already.
    """
    keep = heads(model) if keep_float is None else frozenset(keep_float)
    sources = quantizable(model)
    unknown = sorted(keep - set(sources))
    if unknown:
        raise EdgeError(f"keep_float names {unknown[0]!r}; quantizable layers: {', '.join(sources)}")
    names = [name for name in sources if name not in keep]
    limits = {name: _limits(model, model[name], ranges, centre) for name in names}
    given = weight_scales or {}
    rounded = {name: _round(model[name], given.get(name)) for name in names}

    readers: dict[str, list[str]] = {}
    for name in names:
        readers.setdefault(sources[name], []).append(name)
    shifts = _Shifts(model)
    grids: dict[str, Grid] = {}
    for blob, sharing in readers.items():
        shared = len({limits[name] for name in sharing}) == 1
        grid = _centred(*limits[sharing[0]])
        if centre and shared and shifts.apply(blob, grid.shift):
            grids |= dict.fromkeys(sharing, grid)
        else:
            grids |= {name: Grid(LIMIT / max(-limits[name][0], limits[name][1])) for name in sharing}
    shift = shifts.settled()

    layers = []
    for layer in model.layers:
        if layer.kind in WEIGHTS:
            output = layer.outputs[0]
            taken = [grids.get(r.name) if r.kind in REQUANTIZING else None for r in model.readers(output)]
            hands_on = layer.kind in REQUANTIZING and layer.name in grids and not model.is_output(output)
            next_grid = taken[0] if hands_on and len(set(taken)) == 1 else None
            before, after = (shift.get(blob, 0.0) for blob in (model.origin(layer.inputs[0]), output))
            layers.append(_rewrite(layer, rounded.get(layer.name), grids.get(layer.name), next_grid, before, after))
        elif layer.kind in ("ReLU", "Clip") and layer.outputs[0] in shift:
            low, high = _bounds(layer) or (-math.inf, math.inf)
            by = shift[layer.outputs[0]]
            text = {key: number(v - by) for key, v in enumerate((low, high)) if math.isfinite(v)}
            layers.append(replace(layer, kind="Clip", params=text))
        else:
            layers.append(layer)
    return Model(tuple(layers))


def _limits(model: Model, layer: Layer, ranges: Mapping[str, Range], centre: bool) -> tuple[float, float]:
    blob = layer.inputs[0]
    key = next((key for key in (layer.name, blob, model.origin(blob)) if key in ranges), None)
    if key is None:
        raise EdgeError(
            f"no activation range for layer {layer.name!r}, nor for blob {model.origin(blob)!r} that it reads"
        )
    value = ranges[key]
    low, high = value if isinstance(value, tuple) else (-value, value)
    if centre:
        least, most = _blob_bounds(model, model.origin(blob))
        low, high = max(low, least), min(high, most)
    low, high = min(low, 0.0), max(high, 0.0)
    if not (math.isfinite(low) and math.isfinite(high) and high - low > 1e-30):
        raise EdgeError(f"activation range of {key!r} is {value}; a finite range above 0 is needed")
    return low, high


def _centred(low: float, high: float) -> Grid:
    scale = 2 * LIMIT / (high - low)
    # A whole number of steps, so that zero, which pads, is a value of the grid.
    return Grid(scale, round(LIMIT * (low + high) / (high - low)) / scale)


def _round(layer: Layer, scales: Array | None) -> tuple[NDArray[np.int8], Array]:
    """A layer's weights as (rows, weights a row) int8 and the scale of each row, an output channel or a group."""
    if layer.integer(INT8):
        raise EdgeError(f"ncnn layer {layer.name!r} is int8 already")
    count = layer.integer(GROUPS, 1) if layer.kind == "ConvolutionDepthWise" else layer.integer(0)
    weight = layer.arrays["weight"].astype(np.float64).reshape(count, -1)
    absmax = np.abs(weight).max(axis=1)
    if not np.isfinite(absmax).all():
        raise EdgeError(f"weights of ncnn layer {layer.name!r} are not finite")
    if scales is None:
        # A row of zeros gets scale 1: ncnn divides by it.
        scales = np.where(absmax > 1e-30, LIMIT / np.maximum(absmax, 1e-30), 1.0).astype(np.float32)
    elif scales.shape != (count,) or not (np.isfinite(scales) & (scales > 0)).all():
        raise EdgeError(f"ncnn layer {layer.name!r} needs {count} weight scales above 0, {scales.shape} are given")
    scaled = weight * scales[:, None]
    rounded = np.clip(np.trunc(scaled + np.copysign(0.5, scaled)), -LIMIT, LIMIT).astype(np.int8)
    return rounded, np.asarray(scales, np.float32)


def _bounds(layer: Layer) -> tuple[float, float] | None:
    """What a layer's activation limits its output to; None where it does more than limiting."""
    if layer.kind == "ReLU":
        return None if any(layer.floats(0)) else (0.0, math.inf)
    if layer.kind == "Clip":
        return (*layer.floats(0), -math.inf)[0], (*layer.floats(1), math.inf)[0]
    kind, limits = layer.integer(ACTIVATION), layer.floats(ACTIVATION_PARAMS)
    if kind == 3 and len(limits) == 2:
        return limits[0], limits[1]
    return {0: (-math.inf, math.inf), 1: (0.0, math.inf)}.get(kind)


def _is_max_pooling(layer: Layer) -> bool:
    return layer.kind == "Pooling" and layer.integer(0) == 0


def _blob_bounds(model: Model, blob: str) -> tuple[float, float]:
    layer = model.maker(blob)
    if _is_max_pooling(layer):
        return _blob_bounds(model, model.origin(layer.inputs[0]))
    bounds = _bounds(layer) if layer.kind in WEIGHTS or layer.kind in ("ReLU", "Clip") else None
    return bounds or (-math.inf, math.inf)


class _Shifts:
    """Which blobs are stored less a constant, such that the net's outputs stay the same."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._of: dict[str, float] = {}

    def apply(self, blob: str, shift: float) -> bool:
        """Shifts a blob if everything that makes and reads it can take that up; else changes nothing."""
        chain = self._chain(blob)
        if not shift or chain is None or self._model.is_output(blob):
            return not shift
        for reader in self._model.readers(blob):
            if reader.kind not in INT8_KINDS and self._absorber(reader) in (None, blob):
                return False
        self._of |= dict.fromkeys(chain, shift)
        return True

    def settled(self) -> dict[str, float]:
        """All shifts: those applied, and those of the convolutions that make up for them at additions."""
        for layer in self._model.layers:
            absorber = self._absorber(layer)
            if absorber is not None:
                others = sum(self._of.get(self._model.origin(blob), 0.0) for blob in layer.inputs if blob != absorber)
                self._of[absorber] = self._of.get(layer.outputs[0], 0.0) - others
        return {blob: shift for blob, shift in self._of.items() if shift}

    def _chain(self, blob: str) -> list[str] | None:
        """The blob and those before it that have to be shifted with it; None where that is impossible."""
        layer = self._model.maker(blob)
        if layer.kind in WEIGHTS:
            return None if _bounds(layer) is None else [blob]
        if self._absorber(layer) is not None:
            return [blob]
        if _is_max_pooling(layer) or (layer.kind in ("ReLU", "Clip") and _bounds(layer) is not None):
            before = layer.inputs[0]
            if self._model.readers(before) == [layer]:
                chain = self._chain(before)
                return None if chain is None else [blob, *chain]
        return None

    def _absorber(self, layer: Layer) -> str | None:
        """The input of an addition that can take up any shift: made by a layer without activation, for it alone."""
        if layer.kind != "BinaryOp" or layer.integer(0) or layer.integer(1) or len(layer.inputs) != 2:
            return None
        for blob in layer.inputs:
            maker = self._model.maker(blob)
            if maker.kind in WEIGHTS and self._model.readers(blob) == [layer] and not maker.integer(ACTIVATION):
                return blob
        return None


def _rewrite(
    layer: Layer,
    rounded: tuple[NDArray[np.int8], Array] | None,
    grid: Grid | None,
    next_grid: Grid | None,
    before: float,
    after: float,
) -> Layer:
    """A layer with weights whose input is stored less `before` and its output less `after`.

    It becomes int8 if it has rounded weights and the grid of its input, and hands on int8 if it has its readers' grid.
    """
    params, arrays = dict(layer.params), dict(layer.arrays)
    at = WEIGHTS[layer.kind]
    outputs = layer.integer(at.outputs)
    weight = arrays["weight"].astype(np.float64)
    pad = next(iter(layer.floats(PAD_VALUE)), 0.0) if layer.kind in REQUANTIZING else 0.0
    padding = pad - before
    if rounded and grid:
        integers, scales = rounded
        weight = integers / scales[:, None].astype(np.float64)
        # ncnn's x86 code spreads the byte over a word with its sign, which only values from 0 survive (-1 aside); the
        # byte of -127 is that of 129, and every kernel takes the lowest byte.
        padding = float(np.clip(round(padding * grid.scale), -LIMIT, LIMIT) % 256)
        params[INT8] = INT8_KINDS[layer.kind]
        arrays |= {"weight": integers.reshape(-1), "weight_scales": scales, "input_scale": _one(grid.scale)}
        if next_grid:
            params[INT8] = f"10{params[INT8]}"
            arrays["output_scale"] = _one(next_grid.scale)
    if padding != pad and layer.kind in REQUANTIZING:
        params[PAD_VALUE] = number(padding)
    if before or after:
        bias = arrays.get("bias", np.zeros(outputs, np.float32)).astype(np.float64)
        bias += before * weight.reshape(outputs, -1).sum(axis=1) - after
        arrays["bias"] = bias.astype(np.float32)
        params[at.bias] = "1"
    bounds = _bounds(layer)
    if bounds and (after or next_grid):
        _limit(params, bounds[0] - after, bounds[1] - after, next_grid)
    return replace(layer, params=params, arrays=arrays)


def _limit(params: dict[int, str], low: float, high: float, next_grid: Grid | None) -> None:
    """Sets a fused activation that limits to [low, high]. What int8 saturation does anyway needs no activation."""
    if next_grid:
        edge = LIMIT / next_grid.scale * (1 - 1e-6)
        low, high = (-math.inf if low <= -edge else low), (math.inf if high >= edge else high)
    for key in (ACTIVATION, ACTIVATION_PARAMS, ARRAY_ID - ACTIVATION_PARAMS):
        params.pop(key, None)
    if (low, high) == (0.0, math.inf):
        params[ACTIVATION] = "1"
    elif (low, high) != (-math.inf, math.inf):
        params[ACTIVATION] = "3"
        ends = (number(min(max(end, -HUGE), HUGE)) for end in (low, high))
        params[ARRAY_ID - ACTIVATION_PARAMS] = ",".join(["2", *ends])


def _one(value: float) -> Array:
    return np.array([value], np.float32)


def by_table(model: Model, table: Table) -> Model:
    """An int8 copy of a float model with a calibration table's scales: what ncnn2int8 makes of it.

    As there, layers without an input scale in the table stay in float, and nothing is centred. Raises EdgeError for
    layers that the model does not have, and for layers without weight scales or with a wrong number of them.
    """
    names = quantizable(model)
    for name in table.inputs:
        if name not in names or name not in table.weights:
            raise EdgeError(f"calibration table: {name!r} is no quantizable layer of the model or has no weight scales")
    ranges = {name: LIMIT / scale for name, scale in table.inputs.items()}
    return quantize(model, ranges, names.keys() - ranges.keys(), centre=False, weight_scales=table.weights)


def table_of(model: Model) -> Table:
    """The calibration table of an int8 model, for ncnn2int8. Raises EdgeError for a centred one: tables cannot say that."""
    layers = [layer for layer in model.layers if layer.integer(INT8) and layer.kind in INT8_KINDS]
    centred = [layer.name for layer in layers if layer.kind in REQUANTIZING and any(layer.floats(PAD_VALUE))]
    if centred:
        raise EdgeError(f"ncnn layer {centred[0]!r} reads a centred blob, which a calibration table cannot express")
    return Table(
        {layer.name: layer.arrays["weight_scales"] for layer in layers},
        {layer.name: float(layer.arrays["input_scale"][0]) for layer in layers},
    )


def match_weights(model: Model, weights: Mapping[str, Array]) -> dict[str, str]:
    """Quantizable layers -> names of the weights that they hold, to the last bit: how ranges and layers of a torch net are
    told to an ncnn model made from it.

    weights: (out, in / groups, height, width) or (out, in) float32 by name. Raises EdgeError for a layer with none of them
    or with several.
    """
    found: dict[bytes, list[str]] = {}
    for name, values in weights.items():
        found.setdefault(np.ascontiguousarray(values, np.float32).tobytes(), []).append(name)
    matched = {}
    for name in quantizable(model):
        same = found.get(model[name].arrays["weight"].astype(np.float32).tobytes(), [])
        if len(same) != 1:
            raise EdgeError(f"ncnn layer {name!r} holds the weights of {' and '.join(same) or 'no layer of the net'}")
        matched[name] = same[0]
    return matched


def activations(model: Model, images: Iterable[Array]) -> Iterator[dict[str, Array]]:
    """What ncnn computes in float for the inputs of all quantizable layers, one dictionary an image.

    images: (3, S, S) float32, normalised RGB, as the model's input takes them. Yields blob -> (C, H, W) or (C,) float32.
    One image's blobs are held at a time. Raises EdgeError when ncnn cannot run the model.
    """
    import ncnn

    blobs = sorted(set(quantizable(model).values()))
    entries = [layer.outputs[0] for layer in model.layers if layer.kind == "Input"]
    if len(entries) != 1:
        raise EdgeError(f"the ncnn model has {len(entries)} inputs, one is needed")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.lightmode = False
    net.opt.use_vulkan_compute = False
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    with TemporaryDirectory() as folder:
        param, weights = Path(folder, "model.param"), Path(folder, "model.bin")
        write_model(model, param, weights)
        if net.load_param(str(param)) or net.load_model(str(weights)):
            raise EdgeError("ncnn cannot load the model")
    for image in images:
        extractor = net.create_extractor()
        # A Mat neither copies an array nor honours its strides, and an array made from a Mat dies with the extractor.
        extractor.input(entries[0], ncnn.Mat(np.ascontiguousarray(image, np.float32)).clone())
        values = {}
        for blob in blobs:
            status, mat = extractor.extract(blob)
            if status:
                raise EdgeError(f"ncnn failed to compute blob {blob!r} (status {status})")
            values[blob] = np.array(mat)
        yield values


def observe(model: Model, images: Iterable[Array]) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each quantizable layer's input over images, by blob: ranges for quantize."""
    seen: dict[str, tuple[float, float]] = {}
    for values in activations(model, images):
        for blob, value in values.items():
            low, high = seen.get(blob, (math.inf, -math.inf))
            seen[blob] = min(low, float(value.min())), max(high, float(value.max()))
    return seen
