"""Changes of bytes and of the words of a text, whatever the format."""

from __future__ import annotations

import re

from tests.fuzz.target import Random

BYTES = (0, 1, 0x1B, 0x20, 0x7F, 0x80, 0xFF)
INTEGERS = (0, 1, -1, 2, 3, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63, 10**30)
WORDS = (
    *(b"nan", b"-nan", b"inf", b"-inf", b"1e400", b"-1e400", b"1e-400", b"-0", b"0", b"1_0", b"0x1f", b"1e308", b"-1"),
    *(
        "٣".encode(),
        "１２".encode(),
        b"1,5",
        b"1.5.5",
        b"",
        b" ",
        b"\t",
        b"\x00",
        b"\x1b[2J",
        b"\xff\xfe",
        b"\r",
        b"\x85",
    ),
    *(
        "\u2028".encode(),
        "\u202e".encode(),
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"{",
        b"}",
        b'"',
        b"'",
        b"#",
        b"=",
        b"<=",
    ),
    *(b"../x", b"/etc/passwd", b"~", b"%s%n", b"A" * 300, b"9" * 5000, b"[" * 3000, b"null", b"True", b"1e5", b"0.5px"),
    *(str(number).encode() for number in INTEGERS),
)
WORD = re.compile(rb"[^\s,=:]+")
LARGEST = 1 << 20  # an input that has grown to this is not doubled again


def flip(chance: Random, data: bytes, other: bytes) -> bytes:
    """Some bytes or bits become others."""
    if not data:
        return bytes([chance.choice(BYTES)])
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(changed))
        changed[at] = chance.choice(
            (changed[at] ^ 1 << chance.randrange(8), chance.choice(BYTES), chance.randrange(256))
        )
    return bytes(changed)


def chunk(chance: Random, data: bytes, other: bytes) -> bytes:
    """A chunk is left out, doubled, moved, cut off, or comes from another seed."""
    start, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
    end = chance.choice((end, min(end, start + 8)))
    how = chance.randrange(5)
    if how == 0:
        return data[:start] + data[end:]
    if how == 1 and len(data) < LARGEST:
        return data[:end] + data[start:end] * chance.choice((1, 1, 2, 30)) + data[end:]
    if how == 2:
        return data[:start]
    if how == 3:
        at = chance.randrange(len(other) + 1)
        return data[:start] + other[at : at + end - start] + data[end:]
    at = chance.randrange(start + 1)
    return data[:at] + data[start:end] + data[at:start] + data[end:]


def number(chance: Random, data: bytes, other: bytes) -> bytes:
    """A number in binary, of 1 to 8 bytes and any byte order, becomes an unusual one."""
    size = chance.choice((1, 2, 4, 8))
    if len(data) < size:
        return flip(chance, data, other)
    at = chance.randrange(len(data) - size + 1)
    value = chance.choice(INTEGERS) % (1 << 8 * size)
    return data[:at] + value.to_bytes(size, chance.choice(("big", "little"))) + data[at + size :]


def word(chance: Random, data: bytes, other: bytes) -> bytes:
    """A word of a text becomes an unusual one, is left out, doubled, or changes places with the next."""
    words = list(WORD.finditer(data))
    if not words:
        return data + chance.choice(WORDS)
    found = chance.choice(words)
    how = chance.randrange(8)
    text = found[0]
    new = {
        0: b"",
        1: text + b" " + text,
        2: text + chance.choice(WORDS),
        3: chance.choice(WORDS) + text,
        4: chance.choice(words)[0],
    }.get(how, chance.choice(WORDS))
    return data[: found.start()] + new + data[found.end() :]


def line(chance: Random, data: bytes, other: bytes) -> bytes:
    """A line of a text is left out, doubled, moved, joined with the next, or comes from another seed."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    how = chance.randrange(6)
    if how == 0:
        del lines[at]
    elif how == 1 and len(data) < LARGEST:
        lines[at:at] = [lines[at]] * chance.choice((1, 1, 2, 50))
    elif how == 2:
        lines.insert(chance.randrange(len(lines)), lines.pop(at))
    elif how == 3:
        lines[at : at + 2] = [chance.choice((b"", b" ", b"\t")).join(lines[at : at + 2])]
    elif how == 4:
        lines.insert(at, chance.choice(other.split(b"\n")))
    else:
        lines.insert(at, chance.choice(WORDS))
    return chance.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines)


BINARY = (flip, chunk, number)
TEXT = (word, word, word, line, line, flip, chunk)
