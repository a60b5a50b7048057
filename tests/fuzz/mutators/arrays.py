"""Changes of zip archives, .npy and .npz files whose sizes and checksums are right again afterwards."""

from __future__ import annotations

import io
import struct
import zipfile

from tests.fuzz.mutators import plain
from tests.fuzz.target import Random

Members = list[tuple[str, bytes]]
MAGIC = b"\x93NUMPY"
DESCRS = (
    *(
        "'<f4'",
        "'<f8'",
        "'>f4'",
        "'<f2'",
        "'|u1'",
        "'|b1'",
        "'|O'",
        "'<i8'",
        "'<U1'",
        "'<U1000000000'",
        "'|V2147483647'",
    ),
    *(
        "'<M8[ns]'",
        "'<c16'",
        "'|S0'",
        "[('a', '<f4')]",
        "[('a', '<f4', (1000000, 1000000))]",
        "''",
        "None",
        "1",
        "'f4,f4'",
    ),
    *(
        "'<m8[0s]'",
        "'<M8[Y/0]'",
        "'(9,9)f4'",
        "[]",
        "{'names': ['a'], 'formats': ['<f4'], 'offsets': [-4]}",
        "b'<f4'",
        "'<f3'",
    ),
)
SHAPES = (
    *("()", "(0,)", "(-1,)", "(1,)", "(2**31,)", "(1000000000000,)", "(4294967296, 4294967296)", "(0, 9999999999999)"),
    *(
        "(1, 1, 1, 1, 1)",
        "(True,)",
        "(1.0,)",
        "('a',)",
        "None",
        "5",
        "[5]",
        "(5)",
        "(9223372036854775808,)",
        "(1,) * 40",
    ),
    *(
        "(" + "1, " * 70 + ")",
        "(5, 2, 3)",
        "(5, 2, 3, 4)",
        "(2, 48, 48, 3)",
        "(1, 48, 48, 3)",
        "(-5, -2, -3)",
        "(1,), 'x': 1",
    ),
)
HEADERS = (
    *("", "{}", "[", "{'descr': ", "(" * 3000, "x" * 11_000, "__import__('os')", "1", "{1: 2}", "{'descr': '<f4'}"),
    *(
        "\0" * 64,
        "{**{}}",
        "lambda: 0",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}",
        "-" * 5000 + "1",
    ),
    *("{'descr': '<f4', 'fortran_order': 3, 'shape': (1,)}", "[" * 3000, "{[]: 1}", "'" + "\\N{DOG}" + "'"),
)


def npy(chance: Random, data: bytes, other: bytes) -> bytes:
    """The header of a .npy file says something else."""
    if not data.startswith(MAGIC) or len(data) < 12:
        return plain.number(chance, data, other)
    wide = data[6] > 1
    size = int.from_bytes(data[8 : 12 if wide else 10], "little")
    start = 12 if wide else 10
    header, body = data[start : start + size].decode("latin1"), data[start + size :]
    how = chance.randrange(7)
    if how == 0:
        header = chance.choice(HEADERS)
    elif how == 1:
        header = header.replace("False", chance.choice(("True", "None", "0")))
    elif how <= 3:
        header = _with(header, "'descr': ", ", 'fortran", chance.choice(DESCRS))
    elif how <= 5:
        header = _with(header, "'shape': ", ", }", chance.choice(SHAPES))
    else:
        header = plain.word(chance, header.encode("latin1"), b"").decode("latin1")
    version = chance.choice((b"\1\0",) * 5 + (b"\2\0", b"\3\0", b"\4\0", b"\0\0"))
    coded = header.encode("latin1", "replace")[:65_000] + b"\n"
    length = struct.pack("<H" if version[0] < 2 else "<I", len(coded))
    return MAGIC + version + length + coded + chance.choice((body, body, body, body[:8], b"", body * 2))


def _with(header: str, before: str, after: str, value: str) -> str:
    head, found, rest = header.partition(before)
    _, ends, tail = rest.partition(after)
    return head + found + value + ends + tail


def members(data: bytes) -> Members | None:
    """The names and contents of a zip archive; None if it is none, or lies about its sizes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > 1 << 26:
                return None
            return [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # whatever an earlier change has made of it
        return None


def packed(parts: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive with right sizes and checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in parts:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
            info.compress_type = method
            archive.writestr(info, content)
    return out.getvalue()


def entry(chance: Random, data: bytes, other: bytes) -> bytes:
    """A member of an archive is left out, doubled, renamed, cut or takes another's place, and checksums are mended."""
    parts = members(data)
    if not parts:
        return plain.chunk(chance, data, other)
    at = chance.randrange(len(parts))
    name, content = parts[at]
    how = chance.randrange(7)
    if how == 0:
        del parts[at]
    elif how == 1:
        parts.append((name, content))
    elif how == 2:
        parts[at] = (
            chance.choice((name + "x", "../" + name, "/" + name, "a\0b", "\x1b[2J", name.upper(), "x" * 999)),
            content,
        )
    elif how == 3:
        parts[at] = name, content[: chance.randrange(len(content) + 1)]
    elif how == 4:
        parts[at] = name, chance.choice(parts)[1]
    elif how == 5:
        parts[at] = name, chance.choice(members(other) or parts)[1]
    else:
        parts.insert(at, (chance.choice(("x", "x.npy", "version", ".data/x")), chance.choice((b"", b"x", content))))
    return packed(parts, _method(chance))


def inside(chance: Random, data: bytes, other: bytes) -> bytes:
    """Bytes of a member change, and checksums are mended."""
    parts = members(data)
    if not parts:
        return plain.flip(chance, data, other)
    at = chance.randrange(len(parts))
    parts[at] = parts[at][0], chance.choice((*plain.BINARY, npy, npy, npy, npy))(chance, parts[at][1], other)
    return packed(parts, _method(chance))


def bomb(chance: Random, data: bytes, other: bytes) -> bytes:
    """A member becomes megabytes of zeros, deflated; its .npy header may say so."""
    parts = members(data)
    if not parts:
        return plain.number(chance, data, other)
    at = chance.randrange(len(parts))
    name, content = parts[at]
    head = npy(chance, content, other)[:128] if chance.random() < 0.5 else content[:128]
    parts[at] = name, head + bytes(chance.choice((1 << 20, 1 << 22)))
    return packed(parts, zipfile.ZIP_DEFLATED)


def record(chance: Random, data: bytes, other: bytes) -> bytes:
    """A field of the archive's own records changes, near their signatures, and nothing is mended."""
    marks = [at for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for at in _all(data, mark)]
    if not marks:
        return plain.number(chance, data, other)
    at, size = chance.choice(marks) + chance.randrange(4, 46), chance.choice((2, 4))
    return data[:at] + (chance.choice(plain.INTEGERS) % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0 and len(found) < 50:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def _method(chance: Random) -> int:
    return chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))


NPY = (npy, npy, npy, *plain.BINARY)
NPZ = (inside, inside, inside, inside, entry, entry, record, bomb, plain.flip, plain.chunk)
