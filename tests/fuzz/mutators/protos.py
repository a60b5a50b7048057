"""Changes of an ONNX file's fields: it stays a protobuf message, but says something else."""

from __future__ import annotations

from typing import Any

from tests.fuzz.mutators import plain
from tests.fuzz.target import Random

TEXTS = (
    "",
    "x",
    "image",
    "score",
    "../x",
    "\x1b[2J",
    "x" * 300,
    "Conv",
    "Loop",
    "If",
    "ConstantOfShape",
    "Reshape",
    "é",
)
KINDS = (
    "Conv",
    "Relu",
    "Add",
    "Reshape",
    "Resize",
    "Expand",
    "Tile",
    "Pad",
    "Gemm",
    "MatMul",
    "Concat",
    "Slice",
    "Cast",
)
MOST = 3000  # messages looked at


def field(chance: Random, data: bytes, other: bytes) -> bytes:
    """Fields of messages anywhere in the model change, are cleared, doubled or moved."""
    import onnx
    from google.protobuf.message import DecodeError, EncodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            _change(chance, chance.choice(_messages(model)))
        return model.SerializeToString()
    except (DecodeError, EncodeError, ValueError, TypeError, OverflowError):
        return plain.number(chance, data, other)


def _messages(model: Any) -> list[Any]:
    """All messages in a model that have fields, each kind of message equally often as far as that is easy."""
    found, left = [], [model]
    while left and len(found) < MOST:
        message = left.pop()
        fields = message.ListFields()
        if fields:
            found.append(message)
        for kind, value in fields:
            if kind.message_type is not None:
                left.extend([value] if hasattr(value, "ListFields") else value)
    return found


def _change(chance: Random, message: Any) -> None:
    kind, value = chance.choice(message.ListFields())
    if hasattr(value, "append") or hasattr(value, "add"):
        _change_repeated(chance, kind, value)
    elif chance.random() < 0.2:
        message.ClearField(kind.name)
    elif kind.message_type is not None:
        _change_inside(chance, value)
    elif kind.name == "op_type":
        message.op_type = chance.choice((*KINDS, *TEXTS))
    else:
        setattr(message, kind.name, _scalar(chance, value))


def _change_repeated(chance: Random, kind: Any, values: Any) -> None:
    at, to, how = chance.randrange(len(values)), chance.randrange(len(values)), chance.randrange(4)
    if how == 0:
        del values[at]
    elif kind.message_type is None:
        if how == 1:
            values.append(values[at])
        else:
            values[at] = _scalar(chance, values[at])
    elif how == 1:
        values.add().CopyFrom(values[at])
    elif how == 2:
        kept = type(values[at])()
        kept.CopyFrom(values[at])
        values[at].CopyFrom(values[to])
        values[to].CopyFrom(kept)
    else:
        _change_inside(chance, values[at])


def _change_inside(chance: Random, message: Any) -> None:
    if message.ListFields():
        _change(chance, message)


def _scalar(chance: Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice((*plain.INTEGERS[:-1], value + 1, value - 1, value * 2, -value, 1 << 20, 5000))
    if isinstance(value, float):
        return chance.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), -value))
    if isinstance(value, str):
        return chance.choice((*TEXTS, value + "x", value[:-1]))
    return chance.choice(plain.BINARY)(chance, value, b"")


ALL = (field, field, field, field, *plain.BINARY)
