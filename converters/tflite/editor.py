"""TFLite files as objects that can be changed, and operations to add to them (schema.fbs of TensorFlow Lite)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 16  # of constants in a file
# The types of constants that are read or written here.
CONSTANTS = ("FLOAT32", "FLOAT16", "INT8", "UINT8", "INT16", "INT32", "INT64")
# The version of the operation CONV_2D in which a float convolution may have int8 weights.
CONVOLUTION = 5
# Constants of at least so many bytes lie behind the flatbuffer, where they can be aligned.
SMALL = 1024


def load(model: bytes) -> Any:
    """A file's ModelT. Each constant is in its buffer's data, no matter where it lay in the file."""
    from ai_edge_litert import schema_py_generated as schema

    net = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    for buffer in net.buffers:
        if buffer.offset:
            buffer.data = np.frombuffer(model, np.uint8, buffer.size, buffer.offset)
    return net


def dump(net: Any) -> bytes:
    """The file of a ModelT. Equal vectors are kept once: each int8 weight and bias has 8 bytes of zeros per channel."""
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        def CreateNumpyVector(self, x: NDArray[Any]) -> int:
            key = x.dtype.str, x.tobytes()
            if key not in made:
                if x.dtype == np.uint8:  # a constant, which the schema wants aligned
                    self.Prep(ALIGNMENT, x.nbytes)
                made[key] = super().CreateNumpyVector(x)
            return made[key]

    def packed() -> bytes:
        made.clear()
        builder = Builder(1 << 20)
        builder.Finish(net.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    made: dict[tuple[str, bytes], int] = {}
    outside = []
    for buffer in net.buffers:
        if buffer.data is not None and len(buffer.data) >= SMALL:
            outside.append((buffer, bytes(buffer.data)))
            # An offset of 0 would not be written. With any other, the flatbuffer is as long as with the true one.
            buffer.data, buffer.offset, buffer.size = None, 1, len(buffer.data)
        else:
            buffer.offset = buffer.size = 0
    end = len(packed())
    for buffer, data in outside:
        buffer.offset = end = -(-end // ALIGNMENT) * ALIGNMENT
        end += len(data)
    file = bytearray(packed())
    for buffer, data in outside:
        file = file.ljust(buffer.offset, b"\0") + data
        buffer.data = np.frombuffer(data, np.uint8)
    return bytes(file)


class Editor:
    """The only graph of a TFLite file with one signature. A tensor is named by its index."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema, self._path = schema, path
        self._net = load(path.read_bytes())
        (self._graph,), (self._signature,) = self._net.subgraphs, self._net.signatureDefs
        self._kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        types = {name: value for name, value in vars(schema.TensorType).items() if name in CONSTANTS}
        self._types = {value: np.dtype(name.lower()) for name, value in types.items()}

    def save(self) -> None:
        """Writes the file without operations and constants that nobody reads any more: operations would still run."""
        used, kept = set(self._graph.outputs), []
        for operation in reversed(self._graph.operators):
            if used.intersection(operation.outputs):
                used.update(operation.inputs)
                kept.append(operation)
        self._graph.operators = kept[::-1]
        read = {self._graph.tensors[index].buffer for index in used if index >= 0}
        read |= {note.buffer for note in self._net.metadata or ()}
        for index, buffer in enumerate(self._net.buffers):
            if index not in read:
                buffer.data = None
        self._path.write_bytes(dump(self._net))

    def output(self, name: str) -> int:
        """The tensor that the signature gives under this name."""
        return int(self._named(name).tensorIndex)

    def replace_output(self, old: str, new: str, tensor: int) -> None:
        """Makes the signature give `tensor` under the name `new` instead of its output `old`."""
        named = self._named(old)
        kept = [tensor if index == named.tensorIndex else index for index in self._graph.outputs]
        named.tensorIndex, named.name, self._graph.outputs = tensor, new.encode(), np.array(kept, np.int32)

    def operations(self, kind: str) -> list[Any]:
        """The operations of a kind, in order."""
        return [operation for operation in self._graph.operators if self._kind(operation) == kind]

    def makers(self, tensor: int, kind: str) -> list[Any]:
        """The operation that makes a tensor, if it is of this kind; else an empty list."""
        return [operation for operation in self.operations(kind) if tensor in operation.outputs]

    def before(self, kind: str, tensor: int) -> int:
        """The first input of the operation that makes a tensor, if it is of this kind; else the tensor itself."""
        return next((int(operation.inputs[0]) for operation in self.makers(tensor, kind)), tensor)

    def reread(self, convolution: Any, inputs: Sequence[int]) -> None:
        """Makes a convolution read other tensors: image, weight and bias."""
        convolution.opcodeIndex = self._code("CONV_2D", CONVOLUTION)
        convolution.inputs = np.array(inputs, np.int32)

    def change(self, operation: Any, kind: str, inputs: Sequence[int], shape: tuple[int, ...] | None = None) -> None:
        """Turns an operation into another one without options, and gives its output another shape if one is given."""
        operation.opcodeIndex, operation.inputs = self._code(kind, 2), np.array(inputs, np.int32)
        operation.builtinOptions, operation.builtinOptionsType = None, 0
        if shape:
            self.reshape_in_place(int(operation.outputs[0]), shape)

    def readers(self, tensor: int) -> list[Any]:
        """The operations that read a tensor."""
        return [operation for operation in self._graph.operators if tensor in operation.inputs]

    def reshape_in_place(self, tensor: int, shape: tuple[int, ...]) -> None:
        self._graph.tensors[tensor].shape = np.array(shape, np.int32)

    def pool_and_cut(self, pool: Any, image: int) -> None:
        """Makes a pool read another image, with SAME padding, and cuts its output to the size that it had."""
        made = int(pool.outputs[0])
        _, height, width, channels = self.shape(made)
        larger = self._like(made, (1, height + 1, width + 1, channels))
        pool.inputs, pool.outputs = np.array([image], np.int32), np.array([larger], np.int32)
        pool.builtinOptions.padding = self._schema.Padding.SAME
        start, size = (self.constant(np.array(n, np.int32)) for n in ((0, 0, 0, 0), self.shape(made)))
        after = self._graph.operators[self._graph.operators.index(pool) + 1 :]
        self._add("SLICE", [larger, start, size], made, self._schema.SliceOptionsT(), 2)
        self._moved(made, next(iter(after), None))

    def kind(self, tensor: int) -> np.dtype[Any]:
        """The type of a tensor's values."""
        kind: np.dtype[Any] = self._types[self._graph.tensors[tensor].type]
        return kind

    def store(self, tensor: int, steps: NDArray[np.float32], zero: int = 0) -> None:
        """Says that a tensor's integers stand for (integer - zero) * step. steps: (1,) or (out,)."""
        quantization = self._schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = steps, np.full(len(steps), zero, np.int64)
        self._graph.tensors[tensor].quantization = quantization

    def zero_point(self, tensor: int) -> int | None:
        """The integer that stands for zero, None in float."""
        quantization = self._graph.tensors[tensor].quantization
        zero = None if quantization is None else quantization.zeroPoint
        return None if zero is None or not len(zero) else int(zero[0])

    def values(self, tensor: int) -> NDArray[Any]:
        """A constant's values; of size 0 if the tensor is no constant."""
        found = self._graph.tensors[tensor]
        data = self._net.buffers[found.buffer].data
        if data is None:
            return np.empty(0)
        return np.frombuffer(bytes(data), self.kind(tensor)).reshape(found.shape)

    def replace_values(self, tensor: int, values: NDArray[Any]) -> None:
        """Gives a constant other values; its quantization stays. No other operation may read this tensor."""
        found = self._graph.tensors[tensor]
        if sum(other.buffer == found.buffer for other in self._graph.tensors) > 1:
            found.buffer = len(self._net.buffers)
            self._net.buffers.append(self._schema.BufferT())
        self._net.buffers[found.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
        self.reshape_in_place(tensor, values.shape)

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(map(int, self._graph.tensors[tensor].shape))

    def reshape(self, tensor: int, shape: tuple[int, ...], before: Any = None) -> int:
        """Adds a reshape. before: the operation that it has to come before; with None it comes last."""
        options = self._schema.ReshapeOptionsT()
        options.newShape = list(shape)
        made = self._like(tensor, shape)
        self._add("RESHAPE", [tensor, self.constant(np.array(shape, np.int32))], made, options)
        return self._moved(made, before)

    def quantize(self, tensor: int, like: int, before: Any) -> int:
        """Puts a float tensor on the grid of `like`. before: the operation that this has to come before."""
        return self._moved(self._add("QUANTIZE", [tensor], self._like(like, self.shape(tensor)), None), before)

    def arg_max(self, tensor: int, axis: int) -> int:
        """The lowest index of the largest value along an axis of a matrix, int32."""
        options = self._schema.ArgMaxOptionsT()
        options.outputType = self._schema.TensorType.INT32
        made = self._tensor((self.shape(tensor)[1 - axis],), np.dtype(np.int32))
        return self._add("ARG_MAX", [tensor, self.constant(np.array(axis, np.int32))], made, options, 2)

    def gather(self, tensor: int, rows: int) -> int:
        """These rows (n,) of a matrix."""
        made = self._like(tensor, (*self.shape(rows), self.shape(tensor)[1]))
        return self._add("GATHER", [tensor, rows], made, self._schema.GatherOptionsT(), 2)

    def to_float(self, tensor: int) -> int:
        """The tensor in float: dequantized if it is quantized."""
        if self.kind(tensor) == np.float32:
            return tensor
        made = self._tensor(self.shape(tensor), np.dtype(np.float32))
        return self._add("DEQUANTIZE", [tensor], made, None, 2)

    def convolve(self, tensor: int, weight: int, bias: int) -> int:
        """A 1x1 convolution in float: weight (out, 1, 1, in / groups), int8 with steps or float; bias (out,) float."""
        options = self._schema.Conv2DOptionsT()
        options.padding = self._schema.Padding.VALID
        options.strideW = options.strideH = options.dilationWFactor = options.dilationHFactor = 1
        made = self._tensor((*self.shape(tensor)[:3], self.shape(weight)[0]), np.dtype(np.float32))
        return self._add("CONV_2D", [tensor, weight, bias], made, options, CONVOLUTION)

    def constant(self, values: NDArray[Any], steps: NDArray[np.float32] | None = None) -> int:
        """Adds a constant. steps: (out,), for values whose first axis is the output channel."""
        made = self._tensor(values.shape, values.dtype, values)
        if steps is not None:
            self.store(made, steps)
        return made

    def _named(self, name: str) -> Any:
        (found,) = (named for named in self._signature.outputs if named.name == name.encode())
        return found

    def _tensor(self, shape: tuple[int, ...], kind: np.dtype[Any], values: NDArray[Any] | None = None) -> int:
        tensor, buffer = self._schema.TensorT(), self._schema.BufferT()
        tensor.shape, tensor.type = np.array(shape, np.int32), getattr(self._schema.TensorType, kind.name.upper())
        tensor.name, tensor.buffer = f"added_{len(self._graph.tensors)}", len(self._net.buffers)
        if values is not None:
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self._net.buffers.append(buffer)
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _like(self, tensor: int, shape: tuple[int, ...]) -> int:
        """A tensor of the same type and quantization."""
        made, source = self._tensor(shape, np.dtype(np.float32)), self._graph.tensors[tensor]
        self._graph.tensors[made].type, self._graph.tensors[made].quantization = source.type, source.quantization
        return made

    def _moved(self, made: int, before: Any) -> int:
        """Moves the last operation before another one, if one is given. Returns `made`, what it makes."""
        operators = self._graph.operators
        if before is not None:
            operators.insert(operators.index(before), operators.pop())
        return made

    def _add(self, kind: str, inputs: list[int], output: int, options: Any, version: int = 1) -> int:
        operation = self._schema.OperatorT()
        operation.opcodeIndex = self._code(kind, version)
        operation.inputs, operation.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options is not None:
            operation.builtinOptions = options
            operation.builtinOptionsType = getattr(
                self._schema.BuiltinOptions, type(options).__name__.removesuffix("T")
            )
        self._graph.operators.append(operation)
        return output

    def _kind(self, operation: Any) -> str:
        code = self._net.operatorCodes[operation.opcodeIndex]
        kind: str = self._kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return kind

    def _code(self, kind: str, version: int) -> int:
        code = self._schema.OperatorCodeT()
        code.builtinCode = getattr(self._schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        self._net.operatorCodes.append(code)
        return len(self._net.operatorCodes) - 1
