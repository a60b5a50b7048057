"""Changes of a JSON document: it stays JSON, and another value, key or shape stands in it."""

from __future__ import annotations

import json
from typing import Any

from tests.fuzz.mutators import plain
from tests.fuzz.target import Random

# Texts that json.dumps cannot write stand between these marks until the end.
MARK = "\ue000"
RAW = ("1e400", "-1e400", "NaN", "Infinity", "-0.0", "9" * 5000, "1" + "0" * 400, "[" * 500 + "]" * 500, "[" * 100_000)
RAWS = (*RAW, '{"a":' * 500 + "1" + "}" * 500, "1e-400", "0.1e1", "1E5", "tru", "{,}", '"\\ud800"')
# Keys that say what a document is. They change more seldom than others, or nothing else would be read.
KINDS = ("far", "do", "event", "protocol", "schema", "command", "format", "version")
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        [],
        {},
        "",
        [[]],
        [{}],
        {"": 0},
        [None],
        "x" * 5000,
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "\0",
        "a/b",
    ),
    *(0.5, -0.5, 1e308, 5e-324, 1.0, 1e18, "0", "nan", "../x", "{}", "%s", "\n", "é", "ncnn-fp32", "null", [1, 2, 3]),
    *plain.INTEGERS,
)


def change(chance: Random, data: bytes, other: bytes) -> bytes:
    """One place of the document changes; of many lines, one line does."""
    lines = data.split(b"\n")
    rows = [at for at, line in enumerate(lines) if line.startswith(b"{") and line.endswith(b"}")]
    if len(rows) > 1:
        at = chance.choice(rows)
        return b"\n".join((*lines[:at], change(chance, lines[at], other), *lines[at + 1 :]))
    try:
        return _changed(chance, json.loads(data), other)
    except (ValueError, ArithmeticError, RecursionError):  # no JSON, or numbers of an earlier change
        return plain.chunk(chance, data, other)


def _changed(chance: Random, document: Any, other: bytes) -> bytes:
    found = [place for place in places(document) if place[1] not in KINDS or chance.random() < 0.3]
    if found:
        alter(chance, *chance.choice(found), other)
    elif isinstance(document, dict):
        document[chance.choice(("x", "", *KINDS))] = chance.choice(VALUES)
    else:
        return chance.choice(RAWS).encode()
    return unmarked(json.dumps(document, ensure_ascii=chance.random() < 0.5))


def unmarked(text: str) -> bytes:
    """The texts between marks, without the quotes around them."""
    # The mark is written as it is, or escaped.
    for mark in (MARK, json.dumps(MARK)[1:-1]):
        while f'"{mark}' in text:
            start, end = text.index(f'"{mark}'), text.index(f'{mark}"')
            text = (
                text[:start] + json.loads(text[start : end + len(mark) + 1]).strip(MARK) + text[end + len(mark) + 1 :]
            )
    return text.encode("utf-8", "surrogatepass")


def alter(chance: Random, holder: Any, key: Any, other: bytes) -> None:
    """Another value, key or place for a value in a container."""
    how, value = chance.randrange(10), holder[key]
    if how <= 2:
        holder[key] = chance.choice(VALUES)
    elif how == 3:
        holder[key] = MARK + chance.choice(RAWS) + MARK
    elif how == 4:
        del holder[key]
    elif how == 5 and isinstance(holder, list):
        holder[key:key] = [value] * chance.choice((1, 1, 2, 100))
    elif how == 5:
        holder[chance.choice((f"{key}_", "", "\x1b[2J", "x" * 300, "__class__", key.upper()))] = holder.pop(key)
    elif how == 6 and type(value) in (int, float):
        holder[key] = chance.choice((-value, value + 1, value - 1, value * 2, value * 1e6, float(value), str(value)))
    elif how == 6 and isinstance(value, str):
        holder[key] = chance.choice((value + "\n", value[:-1], value * 2, value + "\x1b", value.upper(), [value]))
    elif how == 7:
        holder[key] = [value] if chance.random() < 0.5 else {"x": value}
    elif how == 8 and isinstance(holder, list):
        at = chance.randrange(len(holder))
        holder[key], holder[at] = holder[at], value
    elif how == 8:
        at = chance.choice(list(holder))
        holder[key], holder[at] = holder[at], value
    else:
        holder[key] = _part(chance, other)


def _part(chance: Random, other: bytes) -> Any:
    """A value of another seed."""
    try:
        found = places(json.loads(chance.choice(other.splitlines() or [b""]) if b"\n{" in other else other))
    except (ValueError, RecursionError):
        found = []
    if not found:
        return chance.choice(VALUES)
    holder, key = chance.choice(found)
    return holder[key]


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document; a longer list is looked into at its first entries only."""
    found, left = [], [document] if isinstance(document, dict | list) else []
    while left:
        holder = left.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 6))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                left.append(holder[key])
    return found


ALL = (*[change] * 10, plain.flip, plain.chunk, plain.word)
