"""Tensors that still lie in their file: described and checked before any of their memory is taken."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pipnet_edge.converters.checkpoint.pickled import Made, Name, Reference
from pipnet_edge.errors import EdgeError

# torch's storages by the name of their class, without "Storage": their dtype and its bytes.
STORAGES = {
    **{"Double": ("float64", 8), "Float": ("float32", 4), "Half": ("float16", 2), "BFloat16": ("bfloat16", 2)},
    **{"Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2), "Char": ("int8", 1), "Byte": ("uint8", 1)},
    **{"Bool": ("bool", 1), "ComplexDouble": ("complex128", 16), "ComplexFloat": ("complex64", 8)},
    **{"QInt8": ("qint8", 1), "QUInt8": ("quint8", 1), "QInt32": ("qint32", 4)},
    **{"QUInt4x2": ("quint4x2", 1), "QUInt2x4": ("quint2x4", 1), "Untyped": ("uint8", 1)},
}
WEIGHTS = {dtype: (getattr(torch, dtype), size) for dtype, size in list(STORAGES.values())[:4]}
NEEDED = f"dense numbers are needed, {', '.join(WEIGHTS)}"
MOST_AXES = 8

MOST_WRAPPERS = 3  # a parameter, of a class, around a tensor

# The functions with which torch makes tensors from a pickle, and what it is if not numbers side by side in a storage.
DENSE = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
TYPED = "torch._tensor._rebuild_from_type_v2"
ODD = {
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_meta_tensor_no_storage": "on the meta device, so without numbers",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of another device",
    "numpy.core.multiarray._reconstruct": "an array of NumPy",
    "numpy._core.multiarray._reconstruct": "an array of NumPy",
}


@dataclass(frozen=True)
class Span:
    """Bytes of a file. crc: their CRC-32, None if the file does not say it."""

    start: int
    size: int
    crc: int | None = None

    def read(self, path: Path, first: int = 0, size: int | None = None) -> bytearray:
        """The bytes, or a part of them. Raises EdgeError if there are fewer, or all of them do not fit the CRC."""
        found = bytearray(self.size if size is None else size)
        with path.open("rb") as file:
            file.seek(self.start + first)
            count = file.readinto(found)
        is_known = self.crc is not None and len(found) == self.size
        if count != len(found) or (is_known and zlib.crc32(found) != self.crc):
            raise EdgeError(f"{path} is damaged: bytes {self.start} to {self.start + self.size} are not what was saved")
        return found


class Weight(Protocol):
    """A tensor under a name in a checkpoint, in its file or in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    def fault(self) -> str | None:
        """Why it is no weight ("is sparse"), None if it is one: dense, floating point, no larger than its storage."""

    def load(self, path: Path) -> Tensor:
        """Its numbers as float32. Only for what has no fault."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. what: said of one that is not dense; offset and strides: in numbers, of `span`."""

    what: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    offset: int = 0
    span: Span | None = None

    def fault(self) -> str | None:
        if self.what:
            return f"is {self.what}; {NEEDED}"
        if self.dtype not in WEIGHTS:
            return f"is of type {self.dtype}; {NEEDED}"
        return self._fault_of_place(WEIGHTS[self.dtype][1])

    def _fault_of_place(self, item: int) -> str | None:
        """Why it cannot lie where it is said to; item: the bytes of a number."""
        axes = (*self.shape, *self.strides, self.offset)
        if len(self.shape) > MOST_AXES or len(self.shape) != len(self.strides) or any(n < 0 for n in axes):
            return f"has the shape {_listed(self.shape)} and the strides {_listed(self.strides)}"
        if self.span is None:
            return "has no numbers in the file"
        if math.prod(self.shape) * item > self.span.size:
            return f"has the shape {_listed(self.shape)}, but {self.span.size:,} bytes in the file"
        if (end := (self.offset + self._reach) * item) > self.span.size:
            return f"ends {end - self.span.size:,} bytes beyond its storage"
        return None

    @property
    def _reach(self) -> int:
        """The numbers of the storage from its first to its last one."""
        steps = ((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return 1 + sum(steps) if math.prod(self.shape) else 0

    def load(self, path: Path) -> Tensor:
        if not math.prod(self.shape):
            return torch.zeros(self.shape)
        assert self.span
        dtype, size = WEIGHTS[self.dtype]
        numbers = torch.frombuffer(self.span.read(path, self.offset * size, self._reach * size), dtype=dtype)
        return numbers.as_strided(self.shape, self.strides).float()


@dataclass(frozen=True, eq=False)
class Loaded:
    """A tensor that torch has loaded already."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def fault(self) -> str | None:
        tensor = self.tensor
        if tensor.is_quantized or tensor.is_meta or tensor.layout is not torch.strided or tensor.is_nested:
            kind = (
                "quantized" if tensor.is_quantized else "on the meta device" if tensor.is_meta else "sparse or nested"
            )
            return f"is {kind}"
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in WEIGHTS:
            return f"is of type {dtype}; {NEEDED}"
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            return f"has the shape {_listed(self.shape)}, but {tensor.untyped_storage().nbytes():,} bytes"
        return None

    def load(self, path: Path) -> Tensor:
        return self.tensor.detach().cpu().float()


def stored(made: Made, spans: Mapping[str, Span]) -> Stored | None:
    """The tensor that torch would make here; None if it is something else. spans: the file's storages by key."""
    kind, arguments = made.kind, made.arguments
    for _ in range(MOST_WRAPPERS):
        if not isinstance(arguments, tuple):
            break
        if kind in WRAPPED and arguments and isinstance(arguments[0], Made):
            kind, arguments = arguments[0].kind, arguments[0].arguments
        elif kind == TYPED and len(arguments) > 2 and isinstance(arguments[0], Name):
            kind, arguments = arguments[0].text, arguments[2]
    if kind in ODD:
        return Stored(ODD[kind])
    if kind not in DENSE:
        return None
    return _dense(arguments, spans) or Stored("described in a way that torch does not use")


def storage(reference: object) -> tuple[str, str, int, int] | None:
    """(key, dtype, bytes a number, first number) of a storage as torch's pickles refer to it; None if it is none."""
    to = reference.to if isinstance(reference, Reference) else None
    if not (isinstance(to, tuple) and len(to) >= 5 and to[0] == "storage" and isinstance(to[1], Name)):
        return None
    dtype, size = STORAGES.get(to[1].text.rpartition(".")[2].removesuffix("Storage"), ("", 0))
    # Files of 2017 and before may refer to a part of a storage: its key, first number and length.
    view = to[5] if len(to) > 5 else None
    first = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
    if not (isinstance(to[2], str) or _whole((to[2],))) or not dtype or not isinstance(first, int):
        return None
    return str(to[2]), dtype, size, first


def _dense(arguments: object, spans: Mapping[str, Span]) -> Stored | None:
    if not isinstance(arguments, tuple) or len(arguments) < 4:
        return None
    reference, offset, shape, strides = arguments[:4]
    found, sizes, steps = storage(reference), _whole(shape), _whole(strides)
    if found is None or sizes is None or steps is None:
        return None
    key, dtype, _, first = found
    starts = _whole((offset, first))
    if starts is None:
        return None
    if len(arguments) > 6 and isinstance(arguments[6], Name):  # bytes, whose type is said here
        dtype = arguments[6].text.removeprefix("torch.")
    flags = arguments[-1] if isinstance(arguments[-1], dict) else {}
    what = "a view that is conjugated or negated" if flags.get("conj") or flags.get("neg") else ""
    return Stored(what, dtype, sizes, steps, sum(starts), spans.get(key))


def _whole(numbers: object) -> tuple[int, ...] | None:
    """Whole numbers of 64 bits as a tuple: of a tuple, a list or torch.Size. None for anything else."""
    if isinstance(numbers, Made) and isinstance(numbers.arguments, tuple) and numbers.arguments:
        numbers = numbers.arguments[0]
    if not isinstance(numbers, tuple | list) or not all(type(n) is int and abs(n) < 2**63 for n in numbers):
        return None
    return tuple(numbers)


def _listed(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:MOST_AXES]))
    return f"({shown}{', …' if len(numbers) > MOST_AXES else ''})"
