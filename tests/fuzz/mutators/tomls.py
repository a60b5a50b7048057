"""Changes of a TOML document: it stays TOML, and another value, key or shape stands in it."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from tests.fuzz.mutators import jsons, plain
from tests.fuzz.target import Random


def change(chance: Random, data: bytes, other: bytes) -> bytes:
    """One place of the document changes."""
    try:
        document = tomllib.loads(data.decode())
        holder, key = chance.choice(jsons.places(document))
        jsons.alter(chance, holder, key, json.dumps(tomllib.loads(other.decode())).encode())
        return jsons.unmarked("\n".join(f"{json.dumps(name)} = {_text(value)}" for name, value in document.items()))
    except (ValueError, ArithmeticError, RecursionError, IndexError):  # no TOML, or numbers of an earlier change
        return plain.word(chance, data, other)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(name))} = {_text(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value) if isinstance(value, str | bool | int) else '"null"'


ALL = (*[change] * 16, *plain.TEXT)
