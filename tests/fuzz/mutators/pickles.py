"""Changes of pickles, opcode by opcode, alone or as the data.pkl of a checkpoint whose checksums are mended."""

from __future__ import annotations

import pickletools
import struct

from tests.fuzz.mutators import arrays, plain
from tests.fuzz.target import Random

GLOBALS = (
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ccollections\nOrderedDict\n"),
    *(
        b"ctorch\nFloatStorage\n",
        b"ctorch\nHalfStorage\n",
        b"ctorch\nBFloat16Storage\n",
        b"ctorch\nComplexFloatStorage\n",
    ),
    *(b"ctorch\nQInt8Storage\n", b"ctorch\nBoolStorage\n", b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nSize\n"),
    *(b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch._utils\n_rebuild_qtensor\n", b"ctorch\ndevice\n", b"c\n\n"),
    *(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"ctorch\nfloat16\n", b"cnumpy._core.multiarray\nscalar\n"),
    *(
        b"cnumpy._core.multiarray\n_reconstruct\n",
        b"cpathlib\nPosixPath\n",
        b"cargparse\nNamespace\n",
        b"cnumpy\ndtype\n",
    ),
    *(b"ctorch.serialization\n_get_layout\n", b"cnumpy\nndarray\n", b"ctorch._tensor\n_rebuild_from_type_v2\n"),
)
OPERATIONS = (
    *(
        b"N",
        b"\x88",
        b"\x89",
        b"]",
        b"}",
        b")",
        b"(",
        b"0",
        b"2",
        b"1",
        b"R",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"s",
        b"u",
    ),
    *(b"b", b"a", b"e", b"d", b"l", b".", b"Q", b"\x81", b"\x94", b"G" + struct.pack(">d", float("nan"))),
    *(
        b"h\x00",
        b"h\xff",
        b"j\xff\xff\xff\x7f",
        b"q\x00",
        b"r\xff\xff\xff\x7f",
        b"X\xff\xff\xff\xff",
        b"\x80\x02",
        b"\x80\x09",
    ),
)


def opcode(chance: Random, data: bytes, other: bytes) -> bytes:
    """Operations of a pickle are left out, doubled, moved or replaced; numbers and texts change with their lengths."""
    found = _operations(data)
    if not found:
        return plain.chunk(chance, data, other)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(found))
        name, argument, text = found[at]
        how = chance.randrange(12)
        if name.startswith(("BININT", "LONG1")) and how < 9:
            new = _integer(
                chance.choice((*plain.INTEGERS, *(int(argument) * f + d for f, d in ((1, 1), (-1, 0), (2, 0)))))
            )
        elif name == "BINUNICODE" and how < 8:
            changed = chance.choice((plain.word, plain.flip))(chance, str(argument).encode("utf-8", "replace"), other)
            new = b"X" + struct.pack("<I", len(changed)) + changed
        elif name == "GLOBAL" and how < 8:
            new = chance.choice(GLOBALS)
        elif how == 8:
            new = b""
        elif how == 9:
            new = text + text
        elif how == 10:
            new = chance.choice(found)[2]
        else:
            new = chance.choice((text, b"")) + chance.choice((*OPERATIONS, *GLOBALS))
        found[at] = "", None, new
    return b"".join(text for _, _, text in found)


def checkpoint(chance: Random, data: bytes, other: bytes) -> bytes:
    """The data.pkl of a checkpoint changes, and the archive's checksums are mended; an old checkpoint's pickles do."""
    parts = arrays.members(data)
    if not parts:
        return opcode(chance, data, other)
    for at, (name, content) in enumerate(parts):
        if name.endswith("data.pkl"):
            parts[at] = name, opcode(chance, content, other)
    return arrays.packed(parts)


def _operations(data: bytes) -> list[tuple[str, object, bytes]]:
    """(name, argument, bytes) of the operations of all pickles in a row; the bytes that are none come last."""
    found: list[tuple[str, object, bytes]] = []
    start = 0
    try:
        while start < len(data) and len(found) < 20_000:
            steps = [(op.name, argument, at or 0) for op, argument, at in pickletools.genops(data[start:])]
            ends = [at for _, _, at in steps[1:]] + [steps[-1][2] + 1]
            found += [
                (name, arg, data[start + at : start + end]) for (name, arg, at), end in zip(steps, ends, strict=True)
            ]
            start += ends[-1]
    except Exception:  # the storages of an old checkpoint, or what an earlier change has made
        pass
    return [*found, ("", None, data[start:])] if found else []


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    coded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(coded)]) + coded


CHECKPOINT = (checkpoint, checkpoint, checkpoint, checkpoint, arrays.entry, arrays.record, *plain.BINARY)
