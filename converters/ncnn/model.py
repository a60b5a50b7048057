"""ncnn's model files, .param (text) and .bin (weights), read and written without loss.

ncnn's docs/developer-guide/param-and-model-file-structure.md describes the format. The load_model of each layer in
src/layer/ (Tencent/ncnn) shows what the layer keeps in the .bin, and in which order. Text written by pnnx comes back
byte for byte, and so do weights in float32, float16 and int8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError

Array = NDArray[np.float32]

MAGIC = "7767517"
ARRAY_ID = -23300  # array parameter k is written as -23300-k=count,value,…
# The word before a weight says how its values are stored. Each weight is padded to a multiple of four bytes.
TAGS: dict[int, type[np.generic]] = {0: np.float32, 0x01306B47: np.float16, 0x000D4B38: np.int8}


@dataclass(frozen=True)
class Weights:
    """The ids of the three parameters that say how much a kind of layer keeps in the .bin.

    outputs: number of output channels. bias: 1 if it has a bias. size: number of weights.
    """

    outputs: int
    bias: int
    size: int


CONV = Weights(outputs=0, bias=5, size=6)
WEIGHTS = {
    "Convolution": CONV,
    "ConvolutionDepthWise": CONV,
    "Deconvolution": CONV,
    "DeconvolutionDepthWise": CONV,
    "InnerProduct": Weights(outputs=0, bias=1, size=2),
}
# This kind keeps as many slopes as its first parameter says.
SLOPES, CONSTANT = "PReLU", "MemoryData"
# The files do not say whether any other kind keeps weights, so the list has to be explicit.
WEIGHTLESS = frozenset(
    {"BinaryOp", "Clip", "Concat", "Crop", "Dropout", "ELU", "Eltwise", "Flatten", "HardSigmoid", "HardSwish"}
    | {"Input", "Interp", "Mish", "Noop", "Permute", "PixelShuffle", "Pooling", "ReLU", "Reshape", "Sigmoid", "Slice"}
    | {"Softmax", "Softplus", "Split", "Swish", "TanH", "UnaryOp"}
)
# Parameters of convolutions. Every layer has FEATURES_OFF (docs/developer-guide/layer-feat-mask.md).
GROUPS, INT8, ACTIVATION, ACTIVATION_PARAMS, PAD_VALUE, DYNAMIC, FEATURES_OFF = 7, 8, 9, 10, 18, 19, 31
LOADED = 21  # how MemoryData is stored; 1, the default: plain float32
NO_WINOGRAD = 1 << 6


@dataclass(frozen=True, eq=False)
class Layer:
    """One line of a .param file and what belongs to it in the .bin.

    kind: ncnn's layer type. inputs and outputs: names of blobs. params: id -> text as in the file, array parameters
    under -23300-id as `count,value,…`. arrays: `weight` (flat; float32, float16 or int8; output channel first), `bias`
    (one per channel). Int8 layers also have `weight_scales`, `input_scale` and, if their output is int8, `output_scale`
    (float32; int8 value = value * scale).
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[int, str] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def integer(self, key: int, default: int = 0) -> int:
        """A whole-number parameter. Raises EdgeError when it is something else."""
        try:
            return int(self.params.get(key, default))
        except ValueError:
            raise EdgeError(
                f"ncnn layer {self.name!r}: parameter {key}={self.params[key]} is no whole number"
            ) from None

    def floats(self, key: int) -> tuple[float, ...]:
        """A parameter's numbers: those of an array, a single one, or none. Raises EdgeError for anything else."""
        text = self.params.get(ARRAY_ID - key)
        values = self.params.get(key, "").split(",") if text is None else text.split(",")[1:]
        try:
            return tuple(float(value) for value in values if value)
        except ValueError:
            raise EdgeError(f"ncnn layer {self.name!r}: parameter {key} is {values}, numbers are needed") from None


def number(value: float) -> str:
    """A float parameter's text. ncnn tells floats from integers by a point or an exponent and reads 15 characters."""
    return f"{np.float32(value):.8e}"


@dataclass(frozen=True, eq=False)
class Model:
    """Layers in the order of the file. Raises EdgeError for blobs read before they are made, or read or made twice."""

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        made: set[str] = set()
        read: set[str] = set()
        names: set[str] = set()
        for layer in self.layers:
            for blob in layer.inputs:
                if blob not in made or blob in read:
                    why = "read twice without a Split" if blob in read else "read before it is made"
                    raise EdgeError(f"ncnn layer {layer.name!r}: blob {blob!r} is {why}")
                read.add(blob)
            twice = ({layer.name} & names) | (set(layer.outputs) & made)
            if twice or len(set(layer.outputs)) != len(layer.outputs):
                raise EdgeError(f"ncnn layer {layer.name!r}: its name or an output's is used twice")
            names.add(layer.name)
            made.update(layer.outputs)

    def __getitem__(self, name: str) -> Layer:
        """The layer of that name. Raises EdgeError when there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise EdgeError(f"the ncnn model has no layer {name!r}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _makers(self) -> dict[str, Layer]:
        return {blob: layer for layer in self.layers for blob in layer.outputs}

    @cached_property
    def _readers(self) -> dict[str, Layer]:
        return {blob: layer for layer in self.layers for blob in layer.inputs}

    def maker(self, blob: str) -> Layer:
        """The layer that makes a blob. Splits are skipped."""
        return self._makers[self.origin(blob)]

    def origin(self, blob: str) -> str:
        """The blob that Splits copied this one from, or the blob itself."""
        layer = self._makers[blob]
        return self.origin(layer.inputs[0]) if layer.kind == "Split" else blob

    def readers(self, blob: str) -> list[Layer]:
        """The layers that read a blob or, through Splits, a copy of it. Empty if none does: an output of the model."""
        layer = self._readers.get(blob)
        if layer is None or layer.kind != "Split":
            return [] if layer is None else [layer]
        return [reader for copy in layer.outputs for reader in self.readers(copy)]

    def is_output(self, blob: str) -> bool:
        """Whether the blob, or a copy of it, is an output of the model."""
        layer = self._readers.get(blob)
        return layer is None or (layer.kind == "Split" and any(map(self.is_output, layer.outputs)))

    def outputs(self) -> list[str]:
        """Names of the model's output blobs."""
        return [blob for blob in self._makers if blob not in self._readers]


def read_model(param: Path, weights: Path) -> Model:
    """The model in a .param and a .bin file. A .bin must hold exactly what the .param asks for.

    Raises EdgeError that names the file and, in the .param, the line: for unreadable files, malformed lines, unknown
    kinds of layers (they may keep weights), weights that are stored in another way, and a .bin that is too short or too
    long.
    """
    try:
        text, data = param.read_text("utf-8"), weights.read_bytes()
    except (OSError, UnicodeDecodeError) as e:
        raise EdgeError(f"{param} and {weights} are not a readable ncnn model: {e}") from e
    lines = text.splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise EdgeError(f"{param} is not an ncnn .param file: its first line is not {MAGIC}")
    layers = []
    position = 0
    for row, line in enumerate(lines[2:], 3):
        if not line.strip():
            continue
        try:
            layer = _parse(line)
            arrays, position = _take(layer, data, position)
        except EdgeError as e:
            raise EdgeError(f"{param}, line {row}: {e}") from e
        layers.append(replace(layer, arrays=arrays))
    if position != len(data):
        raise EdgeError(f"{weights} has {len(data)} bytes, {param} asks for {position}")
    model = Model(tuple(layers))
    if lines[1].split() != _counts(model).split():
        raise EdgeError(f"{param}, line 2: announces {lines[1].strip()!r} layers and blobs, has {_counts(model)!r}")
    return model


def write_model(model: Model, param: Path, weights: Path) -> None:
    """Writes both files; the folder must be there."""
    param.write_text("".join(f"{line}\n" for line in (MAGIC, _counts(model), *map(_line, model.layers))), "utf-8")
    with weights.open("wb") as file:
        for layer in model.layers:
            for name, _ in _layout(layer):
                file.write(_bytes(name, layer.arrays[name]))


def _counts(model: Model) -> str:
    return f"{len(model.layers)} {sum(len(layer.outputs) for layer in model.layers)}"


def _line(layer: Layer) -> str:
    words = [f"{layer.kind:<24} {layer.name:<24} {len(layer.inputs)} {len(layer.outputs)}"]
    return " ".join([*words, *layer.inputs, *layer.outputs, *(f"{k}={v}" for k, v in layer.params.items())])


def _parse(line: str) -> Layer:
    words = line.split()
    if len(words) < 4 or not all(re.fullmatch("[0-9]+", word) for word in words[2:4]):
        raise EdgeError("is not `kind name inputs outputs …`")
    first, end = 4 + int(words[2]), 4 + int(words[2]) + int(words[3])
    params: dict[int, str] = {}
    for word in words[end:]:
        key, equals, value = word.partition("=")
        if not re.fullmatch("-?[0-9]+", key) or not equals or not value or int(key) in params:
            raise EdgeError(f"{word!r} is not a new parameter `id=value`")
        params[int(key)] = value
    if len(words) < end or "=" in "".join(words[4:end]):
        raise EdgeError(f"does not name {end - 4} blobs")
    if end == first or (first == 4) != (words[0] in ("Input", CONSTANT)):
        raise EdgeError(f"has no output, or only Input and {CONSTANT} have no input")
    layer = Layer(words[0], words[1], tuple(words[4:first]), tuple(words[first:end]), params)
    known = [*WEIGHTS, SLOPES, CONSTANT, *sorted(WEIGHTLESS)]
    if layer.kind not in known:
        raise EdgeError(f"layers of kind {layer.kind!r} are not known; known: {', '.join(known)}")
    return layer


def _layout(layer: Layer) -> list[tuple[str, int]]:
    """What the .bin holds for a layer: names and counts of values, in order."""
    if layer.kind == SLOPES:
        return [("slope", layer.integer(0))]
    if layer.kind == CONSTANT:
        sides = [layer.integer(key) or 1 for key in (0, 1, 11, 2)]
        if min(sides) < 1 or layer.integer(LOADED, 1) != 1:
            raise EdgeError(f"layer {layer.name!r} is no constant of {sides} numbers in float32")
        return [("data", math.prod(sides))]
    at = WEIGHTS.get(layer.kind)
    if at is None:
        return []
    outputs, size, int8 = layer.integer(at.outputs), layer.integer(at.size), layer.integer(INT8)
    if at == CONV and layer.integer(DYNAMIC) and layer.kind.startswith("Convolution"):
        raise EdgeError(f"layer {layer.name!r} takes its weights from a blob, which is not supported")
    if outputs < 1 or size < outputs or size % outputs:
        raise EdgeError(f"layer {layer.name!r} cannot have {size} weights for {outputs} outputs")
    groups = layer.integer(GROUPS, 1) if layer.kind.endswith("DepthWise") else 1
    if groups < 1 or outputs % groups:
        raise EdgeError(f"layer {layer.name!r} cannot have {outputs} outputs in {groups} groups")
    layout = [("weight", size)]
    if layer.integer(at.bias):
        layout.append(("bias", outputs))
    if int8:
        allowed = {"Convolution": (1, 2, 101, 102), "ConvolutionDepthWise": (1, 2, 101, 102), "InnerProduct": (1, 2)}
        if int8 not in allowed.get(layer.kind, ()):
            raise EdgeError(f"layer {layer.name!r}: {layer.kind} cannot have the int8 parameter 8={int8}")
        by_group = layer.kind == "ConvolutionDepthWise"
        scales = outputs if not by_group else groups if int8 % 100 == 1 else 1
        layout += [("weight_scales", scales), ("input_scale", 1)]
        if int8 > 100:
            layout.append(("output_scale", 1))
    return layout


def _take(layer: Layer, data: bytes, position: int) -> tuple[dict[str, NDArray[Any]], int]:
    """A layer's arrays from the .bin at a position, and the position behind them."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, count in _layout(layer):
        dtype: np.dtype[Any] = np.dtype(np.float32)
        start = position
        if name == "weight":
            tag = int.from_bytes(data[position : position + 4], "little")
            if tag not in TAGS:
                raise EdgeError(f"weights of {layer.name!r} are stored as 0x{tag:08X}; known: float32, float16, int8")
            dtype, start = np.dtype(TAGS[tag]), position + 4
        position = start + -(-count * dtype.itemsize // 4) * 4
        if position > len(data):
            raise EdgeError(
                f"the .bin ends within the {name} of {layer.name!r}: {position} bytes needed, has {len(data)}"
            )
        arrays[name] = np.frombuffer(data, dtype.newbyteorder("<"), count, start).astype(dtype)
    return arrays, position


def _bytes(name: str, values: NDArray[Any]) -> bytes:
    raw = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    if name != "weight":
        return raw
    tag = next(tag for tag, dtype in TAGS.items() if values.dtype == dtype)
    return tag.to_bytes(4, "little") + raw + bytes(-len(raw) % 4)


def run(model: Model, images: Iterable[Array], blobs: Collection[str]) -> Iterator[dict[str, Array]]:
    """What ncnn computes for some blobs: one dictionary per image. Only one image's blobs are in memory at a time.

    images: (3, S, S) float32, normalised RGB, as the model's input takes them. Yields blob -> (C, H, W) or (C,)
    float32, int8 blobs as whole numbers. fp16 and bf16 are off. Raises EdgeError when ncnn cannot load or run it.
    """
    import ncnn

    entries = [layer.outputs[0] for layer in model.layers if layer.kind == "Input"]
    if len(entries) != 1:
        raise EdgeError(f"the ncnn model has {len(entries)} inputs, one is needed")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.lightmode = False  # otherwise a blob is freed once it is read
    net.opt.use_vulkan_compute = False
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    with TemporaryDirectory() as folder:
        param, weights = Path(folder, "model.param"), Path(folder, "model.bin")
        write_model(model, param, weights)
        status = net.load_param(str(param)) or net.load_model(str(weights))
    if status:
        raise EdgeError(f"ncnn cannot load the model (status {status})")
    for image in images:
        extractor = net.create_extractor()
        # A Mat does not copy an array and ignores its strides. An array made from a Mat dies with the extractor.
        extractor.input(entries[0], ncnn.Mat(np.ascontiguousarray(image, np.float32)).clone())
        values = {}
        for blob in blobs:
            status, mat = extractor.extract(blob)
            if status:
                raise EdgeError(f"ncnn failed to compute blob {blob!r} (status {status})")
            values[blob] = np.array(mat)
        yield values
