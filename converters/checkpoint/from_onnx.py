"""A PIPNet ONNX file as a torch network, for the steps that need torch: weight rounding and TFLite.

A process of its own (onnx_file) reads the foreign file and leaves a simplified graph in one form. Here that is rebuilt
node by node as a torch.fx module with real convolution layers, and compared with what ONNX Runtime computed there.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx, nn

from pipnet_edge import strict
from pipnet_edge.converters import tool
from pipnet_edge.converters.checkpoint import onnx_file
from pipnet_edge.converters.checkpoint.onnx_file import ANSWER, MAPS, NETWORK, Answer
from pipnet_edge.converters.checkpoint.onnx_form import first_line
from pipnet_edge.converters.checkpoint.onnx_graph import Net, Op, Value, tensor_of
from pipnet_edge.converters.checkpoint.onnx_ops import OPS
from pipnet_edge.errors import CHECK_FAILED, EdgeError

Array = NDArray[np.float32]
SECONDS, SECONDS_PER_BYTE = 60.0, 0.5e-6  # what reading may take, and more for large networks
# ONNX Runtime may be off by so many times as much as torch is in float32. Their sums have different orders.
AS_ROUNDED = 10


@dataclass(frozen=True)
class OnnxNet:
    """A network read from ONNX.

    net: (1, 3, S, S) float32 normalised RGB -> the five maps in the order of nets.HEAD_KEYS: score, offset_x, offset_y
    (1, L, H, H), neighbor_x, neighbor_y (1, L*N, H, H), H = S / net_stride; the first three for num_nb = 0. It is a
    torch.fx.GraphModule in eval mode, its layers named after the file's. num_lms L, num_nb N; net_stride and
    input_size S in pixels. notes: what was left aside or taken for granted, a line each.
    """

    net: nn.Module
    num_lms: int
    num_nb: int
    net_stride: int
    input_size: int
    notes: tuple[str, ...] = ()


def read(path: Path, input_size: int | None = None, outputs: Sequence[str] = ()) -> OnnxNet:
    """The network in an ONNX file of five maps, or three of a network without neighbours.

    input_size in pixels is needed if the file leaves its size open. outputs: the maps' names in the order of
    nets.HEAD_KEYS, if they are none that are known (onnx_form.OUTPUT_NAMES) and not in that order.

    Raises EdgeError, one line with the file's name, for unreadable files and data files, wrong input or outputs,
    quantized networks, files that take too much memory or time, an operator without a torch counterpart here, or maps
    that differ from ONNX Runtime's (code CHECK_FAILED).
    """
    try:
        with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder, torch.no_grad():
            return _read(path, Path(folder), input_size, outputs)
    except EdgeError as e:
        raise EdgeError(f"{path}: {e}", e.code) from e


def _read(path: Path, folder: Path, input_size: int | None, outputs: Sequence[str]) -> OnnxNet:
    answer = _answer(path, folder, input_size, outputs)
    with np.load(folder / MAPS, allow_pickle=False) as arrays:
        sample, *maps = (arrays[name] for name in arrays.files)
    net = _build(onnx.load(folder / NETWORK, load_external_data=False).graph, sample.shape)
    _verify(net, sample, dict(zip(answer.outputs, maps, strict=True)), answer.tolerance)
    return OnnxNet(net, answer.num_lms, answer.num_nb, answer.size // answer.grid, answer.size, answer.notes)


def _answer(path: Path, folder: Path, input_size: int | None, outputs: Sequence[str]) -> Answer:
    """What the process says that reads the file. It leaves the network and the maps in `folder`."""
    try:
        size = path.stat().st_size
    except OSError as e:
        raise EdgeError(f"cannot be read: {e.strerror}") from e
    task = [str(path.absolute()), str(folder), "" if input_size is None else str(input_size), *outputs]
    command = [*tool.PYTHON, "-m", onnx_file.__name__, *task]
    found = folder / ANSWER
    try:
        tool.run("onnx", command, folder, makes=(found,), seconds=SECONDS + SECONDS_PER_BYTE * size)
    except EdgeError as e:
        raise EdgeError(f"it is damaged, or takes more memory or time than a network of its size: {e}") from e
    answer = strict.read(Answer, strict.json_object(found.read_text(), ANSWER), ANSWER)
    if answer.refusal is not None:
        raise EdgeError(answer.refusal, answer.code)
    return answer


def _verify(net: nn.Module, sample: Array, maps: dict[str, Array], tolerance: float) -> None:
    """Raises EdgeError if a map is not what ONNX Runtime computed, or as near to it as float32 allows this network."""
    image, exact = torch.from_numpy(sample), list[Array]()
    for index, ((name, want), got) in enumerate(zip(maps.items(), (m.numpy() for m in net(image)), strict=True)):
        allowed = tolerance * float(np.abs(want).max())
        difference = float(np.abs(want - got).max()) if want.shape == got.shape else float("inf")
        if allowed < difference < float("inf"):
            # A network may amplify rounding. In float64, torch says how much of the difference is that.
            exact = exact or [m.numpy() for m in copy.deepcopy(net).double()(image.double())]
            allowed = max(allowed, AS_ROUNDED * float(np.abs(got - exact[index]).max()))
            difference = float(np.abs(want - exact[index]).max())
        if not difference <= allowed:  # NaN fails too
            raise EdgeError(
                f"output {name!r} differs by {difference:.3g} between torch and ONNX Runtime; allowed: {allowed:.3g}",
                CHECK_FAILED,
            )


def _build(graph: onnx.GraphProto, shape: Sequence[int]) -> fx.GraphModule:
    """The graph as a module that returns its outputs for an input of this shape."""
    net = Net(shape)
    values = _Values({"": None, graph.input[0].name: net.image})
    values.update({tensor.name: tensor_of(tensor) for tensor in graph.initializer})
    for node in graph.node:
        op = Op(node, values, net)
        if op.type not in OPS:
            raise op.refuse(f"has no counterpart here; supported: {', '.join(OPS)}")
        try:
            values[node.output[0]] = OPS[op.type](op)
        except (RuntimeError, ValueError, IndexError, TypeError) as e:  # numbers that torch does not take
            raise op.refuse(f"cannot be built in torch: {first_line(e)}") from e
    return net.finished([net.node(values[output.name]) for output in graph.output])


class _Values(dict[str, Value]):
    """The graph's values by name."""

    def __missing__(self, name: str) -> Value:
        raise EdgeError(f"its graph uses {name!r}; allowed: dense weights and the first output of each node")
