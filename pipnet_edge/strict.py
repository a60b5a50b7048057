"""Turns JSON into frozen dataclasses, strictly by their type hints: manifests are untrusted."""

from __future__ import annotations

import functools
import json
import math
import reprlib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pipnet_edge.errors import EdgeError
from pipnet_edge.words import clean

Kind = TypeVar("Kind")
# The largest whole number that a field may have, and how many digits are read at all.
LARGEST, MOST_DIGITS = 2**63 - 1, 1000
# The text of a value is made short, not cut: that of a deeply nested list cannot be made.
SHOWN = reprlib.Repr()
SHOWN.maxlevel, SHOWN.maxstring, SHOWN.maxlong = 3, 1000, 60


def read(kind: type[Kind], data: object, where: str) -> Kind:
    """Turns `data`, as the json module gives it, into a value of the type `kind`.

    `kind` is a dataclass, tuple, list, mapping with str keys, int, float, str or bool, or a union of types that differ
    in JSON, such as str | int | None, or of dataclasses that have other fields. Every field has to be there, and no
    other. A whole number is taken as a float; nothing else is converted. Raises EdgeError that says where in the
    document, what was found and what is needed.
    """
    return cast(Kind, _read(kind, data, where))


def json_value(text: str | bytes, what: str) -> object:
    """The value of a JSON text. Raises EdgeError for anything else; `what` names the text in its message."""
    try:
        value: object = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise EdgeError(f"{what} is no JSON that can be read: it is nested too deeply") from None
    except UnicodeDecodeError:
        raise EdgeError(f"{what} is no JSON: it is not in UTF-8") from None
    except ValueError as e:
        raise EdgeError(f"{what} is no JSON: {e}"[:300]) from None
    return value


def json_object(text: str, what: str) -> dict[str, Any]:
    """The JSON object in a text. Raises EdgeError for anything else; `what` names the text in its message."""
    return _need(dict, json_value(text, what), what)


def printable(text: str) -> str:
    """The text as `read` accepts it: on one line, with "?" for each character that cannot be printed."""
    return clean(" ".join(text.split()))


def shown(data: object) -> str:
    """A value of any size in a few characters, for messages."""
    return SHOWN.repr(data)[:60]


def _read(kind: Any, data: object, where: str) -> object:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_one_of(arguments, data, where)
    if is_dataclass(kind):
        return _read_fields(kind, _need(dict, data, where), where)
    if origin in (tuple, list):
        items = _need(list, data, where)
        kinds = [arguments[0]] * len(items) if origin is list or arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(items):
            raise EdgeError(f"{where} has {len(items)} entries, {len(kinds)} are needed")
        return origin(_read(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, items, strict=True)))
    if origin is Mapping:
        return {_text(k, where): _read(arguments[1], v, f"{where}.{k}") for k, v in _need(dict, data, where).items()}
    if kind is float:
        return _number(data, where)
    return _text(data, where) if kind is str else _need(kind, data, where)


def _read_one_of(kinds: tuple[Any, ...], data: object, where: str) -> object:
    """Reads `data` as one of several types that differ in JSON. If it is none, the error names the first."""
    if data is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others:
        if is_dataclass(kind):
            if isinstance(data, dict) and {field.name for field in fields(kind)} == set(data):
                return _read(kind, data, where)
        elif type(data) is (list if get_origin(kind) in (tuple, list) else kind):
            return _read(kind, data, where)
    return _read(others[0], data, where)


def _read_fields(kind: Any, data: dict[str, Any], where: str) -> object:
    hints = _hints(kind)
    names = [field.name for field in fields(kind)]
    for missing in (name for name in names if name not in data):
        raise EdgeError(f"{where} has no {missing!r}")
    for unknown in (name for name in data if name not in names):
        raise EdgeError(f"{where} has an unknown field {unknown[:60]!r}")
    return kind(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in names})


# Half of the time of a long manifest, if it were looked up again for each layer.
_hints = functools.cache(get_type_hints)


def _need(kind: type[Kind], data: object, where: str) -> Kind:
    if type(data) is not kind:
        raise EdgeError(f"{where} is {shown(data)}, {kind.__name__} is needed")
    if isinstance(data, int) and abs(data) > LARGEST:
        raise EdgeError(f"{where} is {shown(data)}, a number up to {LARGEST} is needed")
    return data


def _whole(digits: str) -> int:
    # Python itself refuses some thousands of digits, in words for programmers.
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _number(data: object, where: str) -> float:
    # A bool is an int to Python, but not a number to anybody who writes a manifest.
    number = float(data) if type(data) is float or (type(data) is int and abs(data) < 2**53) else math.nan
    if not math.isfinite(number):
        raise EdgeError(f"{where} is {shown(data)}, a finite number is needed")
    return number


def _text(data: object, where: str) -> str:
    text = _need(str, data, where)
    if not text.isprintable():
        raise EdgeError(f"{where} is {shown(data)}, which cannot be printed")
    return text
