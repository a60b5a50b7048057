"""The parts of MNN's files that matter for int8: operations, weights, and which tensors are stored in 8 bits.

The files are flatbuffers in MNN's schema (schema/default/*.fbs). There, the fields of tables have numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipnet_edge.errors import EdgeError

# (step, zero point) of a tensor of signed integers.
Grid = tuple[float, int]

# MNN's integers are signed; those of scheme.grid start at 0.
OFFSET = 128

# Kinds of operations, a way to keep weights (eight bits each), and a kind of tensor.
BINARY, CONVOLUTION, DEPTHWISE, POOLING, GLOBAL_POOLING = 7, 12, 13, 47, 112
DENSE, INT8 = 1, 6
# Numbers of fields.
NET_STORED, NET_OPERATIONS, NET_TENSORS = 1, 3, 7
INPUTS, MAIN, NAME, OUTPUTS, KIND = 0, 2, 3, 4, 5
BINARY_ACTIVATION = 2
CONVOLUTION_COMMON, CONVOLUTION_BIAS, CONVOLUTION_WEIGHTS = 0, 2, 3
KERNEL_X, KERNEL_Y, CHANNELS = 2, 3, 10
WEIGHTS_PACKED, WEIGHTS_STEPS, WEIGHTS_WAY, WEIGHTS_WIDE = 0, 1, 2, 10


@dataclass(frozen=True, eq=False)
class Operation:
    """kind is one of the numbers above. reads, writes: indices of tensors. tensor: the first written one's name."""

    table: Table
    kind: int
    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    tensor: str


@dataclass(frozen=True, eq=False)
class Int8:
    """Weights (out, in / groups, height, width) int8 of a convolution, and the steps (out,) float32 of its channels."""

    weights: NDArray[np.int8]
    steps: NDArray[np.float32]


def read(path: Path) -> Table:
    """A file's outermost table, which may be changed."""
    data = bytearray(path.read_bytes())
    return Table(data, _integer(data, 0))


def operations(net: Table) -> list[Operation]:
    """A model's operations, in order."""
    names = net.texts(NET_TENSORS)
    found = []
    for table in net.tables(NET_OPERATIONS):
        reads, writes = table.array(INPUTS, "<i4").tolist(), table.array(OUTPUTS, "<i4").tolist()
        tensor = names[writes[0]] if writes else ""
        found.append(Operation(table, table.number(KIND), table.text(NAME), tuple(reads), tuple(writes), tensor))
    return found


def convolutions(net: Table) -> dict[str, Operation]:
    """Name of the tensor that it writes -> convolution."""
    return {op.tensor: op for op in operations(net) if op.kind in (CONVOLUTION, DEPTHWISE)}


def int8_layers(net: Table) -> dict[str, Int8]:
    """Name of the tensor that it writes -> what a convolution with int8 weights holds.

    Raises EdgeError for weights that are packed in any other way than one byte each.
    """
    return {
        tensor: _unpack(operation)
        for tensor, operation in convolutions(net).items()
        if operation.table.table(MAIN).has(CONVOLUTION_WEIGHTS)
    }


def change(operation: Operation, layer: Int8, bias: NDArray[np.float32]) -> None:
    """Gives a convolution with int8 weights others, in the same shapes."""
    main = operation.table.table(MAIN)
    stored = main.table(CONVOLUTION_WEIGHTS)
    packed = stored.array(WEIGHTS_PACKED, np.uint8)
    packed[_first_weight(operation, packed) :] = (layer.weights.ravel().astype(np.int16) + OFFSET).astype(np.uint8)
    stored.set_array(WEIGHTS_PACKED, packed)
    stored.set_array(WEIGHTS_STEPS, layer.steps)
    main.set_array(CONVOLUTION_BIAS, bias)


def _unpack(operation: Operation) -> Int8:
    layer = operation.table.table(MAIN)
    common, stored = layer.table(CONVOLUTION_COMMON), layer.table(CONVOLUTION_WEIGHTS)
    packed = stored.array(WEIGHTS_PACKED, np.uint8)
    # The bytes count from -128.
    weights = (packed[_first_weight(operation, packed) :].astype(np.int16) - OFFSET).astype(np.int8)
    shape = (common.number(CHANNELS), -1, common.number(KERNEL_Y, 1), common.number(KERNEL_X, 1))
    return Int8(weights.reshape(shape), stored.array(WEIGHTS_STEPS, "<f4"))


def _first_weight(operation: Operation, packed: NDArray[np.uint8]) -> int:
    # Before the weights are their shape and the table of all 256 values; a 0 stands for 256.
    stored = operation.table.table(MAIN).table(CONVOLUTION_WEIGHTS)
    head = 1 + int(packed[0]) * (4 if stored.flag(WEIGHTS_WIDE) else 2)
    if stored.number(WEIGHTS_WAY) != DENSE or packed[head] != 0:
        raise EdgeError(f"the weights of {operation.name} in an MNN file are not packed as one byte each", code=3)
    return head + 257


def store(net: Table, grids: Mapping[int, Grid]) -> None:
    """Makes tensors, by index, int8 and all others float: writes a new list of them to the end of the file."""
    data = net.data
    data += bytes(-len(data) % 4)
    start = len(data)
    data += struct.pack("<I", len(grids)) + bytes(4 * len(grids))
    for number, (index, (step, zero)) in enumerate(grids.items()):
        position = start + 4 * (number + 1)
        struct.pack_into("<I", data, position, len(data) + 16 - position)
        # Two tables, each after its fields' offsets: a tensor's index and its grid; step, zero, lowest, highest.
        data += struct.pack("<7Hxx", 14, 12, 0, 4, 0, 0, 8) + struct.pack("<iiI", 16, index, 20)
        data += struct.pack("<7Hxx", 14, 24, 4, 8, 12, 16, 20)
        data += struct.pack("<iffffi", 16, step, zero, -OFFSET, OFFSET - 1, INT8)
    net.point(NET_STORED, start)


@dataclass(frozen=True, eq=False)
class Table:
    """A table at a position of a flatbuffer. A field with its default value may be missing."""

    data: bytearray
    at: int

    def has(self, field: int) -> bool:
        return self._position(field) != 0

    def flag(self, field: int) -> bool:
        position = self._position(field)
        return bool(position and self.data[position])

    def number(self, field: int, default: int = 0) -> int:
        """A 32-bit integer."""
        position = self._position(field)
        return _integer(self.data, position) if position else default

    def set_number(self, field: int, value: int) -> None:
        """Changes a 32-bit integer; a missing one keeps its default."""
        position = self._position(field)
        if position:
            struct.pack_into("<i", self.data, position, value)

    def text(self, field: int) -> str:
        return bytes(self.array(field, np.uint8)).decode()

    def texts(self, field: int) -> list[str]:
        return [bytes(_array(self.data, target, np.uint8)).decode() for target in self._targets(field)]

    def array(self, field: int, kind: DTypeLike) -> NDArray[Any]:
        """A list of numbers, empty if it is missing."""
        position = self._position(field)
        return _array(self.data, self._target(position), kind) if position else np.zeros(0, kind)

    def set_array(self, field: int, values: NDArray[Any]) -> None:
        """Changes a list of numbers that is not missing to as many others of its kind."""
        start = self._target(self._position(field)) + 4
        self.data[start : start + values.nbytes] = values.tobytes()

    def table(self, field: int) -> Table:
        """A table that is not missing."""
        return Table(self.data, self._target(self._position(field)))

    def tables(self, field: int) -> list[Table]:
        return [Table(self.data, target) for target in self._targets(field)]

    def point(self, field: int, target: int) -> None:
        """Makes a field that is not missing point to a later position."""
        position = self._position(field)
        struct.pack_into("<I", self.data, position, target - position)

    def _position(self, field: int) -> int:
        offsets, entry = self.at - _integer(self.data, self.at), 4 + 2 * field
        (size,) = struct.unpack_from("<H", self.data, offsets)
        (offset,) = struct.unpack_from("<H", self.data, offsets + entry) if entry < size else (0,)
        return self.at + int(offset) if offset else 0

    def _target(self, position: int) -> int:
        return position + _integer(self.data, position)

    def _targets(self, field: int) -> list[int]:
        position = self._position(field)
        start = self._target(position) if position else 0
        count = _integer(self.data, start) if position else 0
        return [self._target(start + 4 * (number + 1)) for number in range(count)]


def _integer(data: bytearray, position: int) -> int:
    return int(struct.unpack_from("<i", data, position)[0])


def _array(data: bytearray, start: int, kind: DTypeLike) -> NDArray[Any]:
    # A copy: the data could not grow while an array looks at it.
    return np.frombuffer(data, kind, _integer(data, start), start + 4).copy()
