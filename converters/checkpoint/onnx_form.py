"""A foreign ONNX network in one form: its input and outputs, their layout, and its graph, simplified."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto, helper, numpy_helper

from pipnet_edge.converters.checkpoint.onnx_data import messages
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import LARGEST_INPUT

# The names that an output may have. The last part of its name decides, never its position.
OUTPUT_NAMES = {
    "score": ("score", "cls", "outputs_cls"),
    "offset_x": ("offset_x", "x", "outputs_x"),
    "offset_y": ("offset_y", "y", "outputs_y"),
    "neighbor_x": ("neighbor_x", "neighbour_x", "nb_x", "outputs_nb_x"),
    "neighbor_y": ("neighbor_y", "neighbour_y", "nb_y", "outputs_nb_y"),
}
NAME_THEM = "or name them with --outputs SCORE,X,Y,NB_X,NB_Y"
DECODING_OPS = ("ArgMax", "TopK")
LARGEST_TENSOR, LARGEST_SUM = 1 << 26, 1 << 30  # numbers
MOST_NODES = 10_000
MOST_BATCH = 64
FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64"}
Shape = tuple[int, ...]
CHANNELS = 3


@dataclass(frozen=True)
class Image:
    """The image input: its name, side in pixels, numpy dtype, fixed batch (1 if it is open) and whether it is NHWC."""

    name: str
    size: int
    dtype: str
    batch: int
    is_last: bool

    @property
    def shape(self) -> Shape:
        plane = (self.size, self.size)
        return (self.batch, *plane, CHANNELS) if self.is_last else (self.batch, CHANNELS, *plane)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def image_input(graph: onnx.GraphProto, input_size: int | None) -> Image:
    """The image input, its size S from the file or else from input_size.

    Raises EdgeError for several inputs, other kinds and shapes, and sizes that are open or do not fit.
    """
    weights = {t.name for t in graph.initializer}
    images = [i for i in graph.input if i.name not in weights]
    if len(images) != 1:
        raise EdgeError(f"its inputs are {', '.join(i.name for i in images) or 'none'}; allowed: one image")
    tensor = images[0].type.tensor_type
    shape = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    given = f"its input is {kind} ({', '.join('?' if n is None else str(n) for n in shape)})"
    allowed = f"{given}; needed is float (1, 3, S, S) or (1, S, S, 3), S up to {LARGEST_INPUT}"
    if tensor.elem_type not in FLOATS or len(shape) != 4:
        raise EdgeError(allowed)
    is_last = shape[1] != CHANNELS and (
        shape[3] == CHANNELS or (shape[1:] == [None] * 3 and _is_turned(graph, images[0].name))
    )
    channels = shape[3] if is_last else shape[1]
    sizes = {n for n in (shape[1:3] if is_last else shape[2:]) if n is not None}
    if channels not in (CHANNELS, None) or len(sizes) > 1 or max(sizes, default=1) > LARGEST_INPUT:
        raise EdgeError(allowed)
    batch = shape[0] or 1
    if batch > MOST_BATCH:
        raise EdgeError(f"{given}; allowed: a batch of up to {MOST_BATCH} images")
    if not sizes and not (input_size and 0 < input_size <= LARGEST_INPUT):
        got = "" if input_size is None else f", not {input_size}"
        raise EdgeError(
            f"{given}, of any size: give the one it was trained for as --input-size, up to {LARGEST_INPUT}{got}"
        )
    size = min(sizes or {input_size or 0})
    if input_size not in (None, size):
        raise EdgeError(f"{given}, --input-size is {input_size}; allowed: {size}, or leaving the option out")
    return Image(images[0].name, size, FLOATS[tensor.elem_type], batch, is_last)


def _is_turned(graph: onnx.GraphProto, image: str) -> bool:
    """Whether all that reads the image first moves its last axis to the second place."""
    readers = [node for node in graph.node if image in node.input]
    return bool(readers) and all(perm(node) == [0, 3, 1, 2] for node in readers)


def perm(node: onnx.NodeProto) -> list[int]:
    """How a Transpose node orders the axes; empty for other nodes."""
    return next((list(a.ints) for a in node.attribute if a.name == "perm" and node.op_type == "Transpose"), [])


def bound_outputs(found: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """The maps' outputs in the order of MAP_NAMES, five or three: those asked for, or by known names.

    Empty if no name is known. Raises EdgeError if some are, but not one for each map.
    """
    if missing := [name for name in asked if name not in found]:
        raise EdgeError(f"it has no output {missing[0]!r}; its outputs are {', '.join(found)}")
    if asked:
        return tuple(asked)
    bound = {key: [n for n in found if re.split(r"[/.:]", n)[-1] in OUTPUT_NAMES[key]] for key in MAP_NAMES}
    counts = [len(names) for names in bound.values()]
    if counts == [1, 1, 1, 1, 1] or (counts == [1, 1, 1, 0, 0] and len(found) == 3):
        return tuple(names[0] for names in bound.values() if names)
    if any(counts):
        allowed = "; ".join(", ".join(names) for names in OUTPUT_NAMES.values())
        raise EdgeError(f"its outputs are {', '.join(found)}; needed is exactly one of each of: {allowed}; {NAME_THEM}")
    return ()


def outputs_by_order(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """The outputs that are maps, in the file's order, where their shapes fit that of the original.

    Raises EdgeError if they do not: three of one shape, and two of one shape with a multiple of the channels or none.
    """
    maps = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    axis = 3 if channels_are_last(list(maps.values())) else 1
    counts = [shape[axis] for shape in maps.values()]
    planes = {shape[1:3] if axis == 3 else shape[2:] for shape in maps.values()}
    neighbors = counts[3:]
    if (
        len(counts) not in (3, 5)
        or len(planes) != 1
        or len(set(counts[:3])) != 1
        or len(set(neighbors)) > 1
        or any(not counts[0] or count % counts[0] for count in neighbors)
    ):
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise EdgeError(f"its outputs are {given}, without known names; needed are a PIPNet's five maps, {NAME_THEM}")
    return tuple(maps)


def channels_are_last(shapes: Sequence[Shape]) -> bool:
    """Whether maps are (1, H, H, C) and cannot be (1, C, H, H)."""
    fit = [len(shape) == 4 for shape in shapes]
    return all(fit) and any(s[2] != s[3] for s in shapes) and all(s[1] == s[2] for s in shapes)


def keep_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Leaves these outputs in this order, and the nodes that they need, in place."""
    outputs = {output.name: output for output in graph.output}
    del graph.output[:], graph.value_info[:]
    graph.output.extend(outputs[name] for name in names)
    needed, nodes = set(names), []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            inner = (m for m in messages(node) if isinstance(m, onnx.NodeProto))
            needed.update(name for one in inner for name in one.input)
    kept = nodes[::-1]
    del graph.node[:]
    graph.node.extend(kept)


def refuse_decoding(graph: onnx.GraphProto, named: bool) -> None:
    """Raises EdgeError for a network that gives landmarks. named: its outputs have the names of maps."""
    decoding = next((f"a node {n.op_type}" for n in graph.node if n.op_type in DECODING_OPS), None)
    if decoding or (len(graph.output) <= 2 and not named):
        only = f"its only outputs are {', '.join(output.name for output in graph.output)}"
        raise EdgeError(
            f"this ONNX already decodes ({decoding or only}); export the network without decoding, with its five maps "
            "as outputs"
        )


def fix_input(graph: onnx.GraphProto, image: Image) -> None:
    """Gives the input its fixed shape and leaves the outputs' open, in place."""
    for given in graph.input:
        if given.name == image.name:
            given.CopyFrom(helper.make_tensor_value_info(image.name, given.type.tensor_type.elem_type, image.shape))
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")


def check_sizes(model: onnx.ModelProto) -> None:
    """Raises EdgeError if a tensor, or all together, are larger than any PIPNet's, as far as shapes can be inferred."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as e:  # its C++ core may raise anything
        raise EdgeError(f"its shapes do not fit each other: {first_line(e)}") from e
    shapes = [(v.name, [d.dim_value for d in v.type.tensor_type.shape.dim]) for v in (*graph.value_info, *graph.output)]
    for name, shape in shapes:
        if prod(shape) > LARGEST_TENSOR:
            size = " x ".join(map(str, shape))
            raise EdgeError(f"its tensor {name!r} has {size} numbers; allowed are {LARGEST_TENSOR}")
    total = sum(prod(shape) for _, shape in shapes)
    if total > LARGEST_SUM:
        raise EdgeError(f"its tensors have {total} numbers together; allowed are {LARGEST_SUM}")


def simplified(model: onnx.ModelProto, image: Image, names: Sequence[str], is_last: bool) -> onnx.ModelProto:
    """The network from (1, 3, S, S) to the maps (1, C, H, H) in this order, simplified. The model given is spent.

    is_last: the outputs are (1, H, H, C).
    """
    graph = model.graph
    keep_outputs(graph, names)
    if image.batch > 1:
        _one_image(graph, image.batch)
    given = image.name
    if image.is_last:
        given = _unused(graph, f"{image.name}_nchw")
        graph.node.insert(0, helper.make_node("Transpose", [given], [image.name], perm=[0, 2, 3, 1]))
    weights = {t.name for t in graph.initializer}
    for value in [v for v in graph.input if v.name == image.name or v.name in weights]:
        graph.input.remove(value)
    shape = (1, CHANNELS, image.size, image.size)
    graph.input.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, shape))
    outputs = [_unused(graph, f"{name}_nchw") if is_last else name for name in names]
    for name, output in zip(names, outputs, strict=True):
        if is_last:
            graph.node.append(helper.make_node("Transpose", [name], [output], perm=[0, 3, 1, 2]))
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs)
    import onnxsim  # takes most of a second, which a file that is refused need not wait for

    try:
        simple: onnx.ModelProto = onnxsim.simplify(model)[0]
    except Exception as e:  # its C++ core may raise anything
        raise EdgeError(f"onnxsim cannot simplify it for an input of {shape}: {first_line(e)}") from e
    if len(simple.graph.node) > MOST_NODES:
        raise EdgeError(f"it has {len(simple.graph.node)} nodes; allowed are {MOST_NODES}")
    return simple


def _one_image(graph: onnx.GraphProto, batch: int) -> None:
    """Where a constant shape begins with the batch, it takes the batch of what is reshaped instead (0), in place."""
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    constants = {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    for name, tensor in [*constants.items(), *((t.name, t) for t in graph.initializer)]:
        if name in shapes:
            value = numpy_helper.to_array(tensor).copy()
            if value.ndim == 1 and value.size and value[0] == batch:
                value[0] = 0
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _unused(graph: onnx.GraphProto, name: str) -> str:
    taken = {n for node in graph.node for n in (*node.input, *node.output)} | {v.name for v in graph.initializer}
    while name in taken:
        name += "_"
    return name
