"""What a TFLite file holds: its operations in order, their tensors and constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")


@dataclass(frozen=True, eq=False)
class Tensor:
    """scale and zero: (channels,) or (1,), empty in float. data: the values of a constant, else None."""

    name: str
    kind: np.dtype[Any]
    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    data: NDArray[Any] | None

    @property
    def step(self) -> NDArray[np.float64]:
        """Its scale; 0 in float."""
        return self.scale.astype(np.float64) if self.scale.size else np.zeros(1)

    @property
    def values(self) -> NDArray[np.float64]:
        """What the integers of a symmetric constant (channels,) stand for; in float its data."""
        assert self.data is not None
        return self.data * self.step if self.scale.size else self.data.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Operation:
    """kind is the schema's name, `CONV_2D`. relu6: whether the output is clipped to 0 to 6."""

    kind: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    relu6: bool

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the inputs that are no constants."""
        return tuple(tensor.name for tensor in self.inputs if tensor.data is None)

    @property
    def channel_axis(self) -> int:
        """The axis of the output channels in a convolution's weight (channels last)."""
        return 3 if self.kind == "DEPTHWISE_CONV_2D" else 0


def read(path: Path) -> list[Operation]:
    """The operations of a file's first graph, in order."""
    from ai_edge_litert.tools import flatbuffer_utils as schema

    model = schema.read_model(str(path))
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    graph = model.subgraphs[0]

    def tensor(index: int) -> Tensor:
        found = graph.tensors[index]
        kind = np.dtype(types[found.type].lower())
        raw, steps = model.buffers[found.buffer].data, found.quantization
        scale, zero = (None, None) if steps is None else (steps.scale, steps.zeroPoint)
        return Tensor(
            name=found.name.decode(),
            kind=kind,
            scale=np.ravel([] if scale is None else scale).astype(np.float32),
            zero=np.ravel([] if zero is None else zero).astype(np.int64),
            data=None if raw is None or not len(raw) else np.frombuffer(bytes(raw), kind).reshape(found.shape),
        )

    return [
        Operation(
            kind=kinds[model.operatorCodes[operation.opcodeIndex].builtinCode],
            inputs=tuple(tensor(index) for index in operation.inputs if index >= 0),
            output=tensor(operation.outputs[0]),
            relu6=getattr(operation.builtinOptions, "fusedActivationFunction", 0)
            == schema.ActivationFunctionType.RELU6,
        )
        for operation in graph.operators
    ]


def weights(operations: Sequence[Operation]) -> list[tuple[Operation, Tensor]]:
    """Every convolution and the constant that is its weight. A DEQUANTIZE may come between them."""
    made = {operation.output.name: operation for operation in operations}
    found = []
    for operation in operations:
        if operation.kind in CONVOLUTIONS:
            weight = operation.inputs[1]
            found.append((operation, weight if weight.data is not None else made[weight.name].inputs[0]))
    return found


def out_first(convolution: Operation, weight: Tensor) -> NDArray[Any]:
    """A convolution's weight as (out, in, height, width)."""
    assert weight.data is not None
    return weight.data.transpose(3, 0, 1, 2) if convolution.channel_axis else weight.data.transpose(0, 3, 1, 2)


def bias(convolution: Operation) -> Tensor:
    """The constant that is a convolution's bias. A transposed convolution has its output's shape as first input."""
    return convolution.inputs[3 if convolution.kind == "TRANSPOSE_CONV" else 2]


def int8_weights(path: Path) -> list[NDArray[np.int8]]:
    """The weights of a file's int8 convolutions, (out, in, height, width) each, in the file's order."""
    return [out_first(*pair) for pair in weights(read(path)) if pair[1].kind == np.int8]
