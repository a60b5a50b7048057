"""Reads a pickle as data: nothing that it names is imported, called or made, so no file can run code."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from pipnet_edge.errors import EdgeError

MOST_STEPS = 2_000_000  # a trained PIPNet takes a few thousand; so many take less than 10 s
_MARK = object()


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function by name, such as "torch._utils._rebuild_tensor_v2"."""

    text: str


@dataclass(frozen=True, slots=True)
class Reference:
    """What a pickle leaves to its reader: torch's storages."""

    to: object


@dataclass(slots=True, eq=False)
class Made:
    """What a pickle would make: maker(*arguments), then the items and members it puts in and the state it sets."""

    maker: object
    arguments: object
    items: dict[str, object] = field(default_factory=dict)
    members: list[object] = field(default_factory=list)
    state: object = None

    @property
    def kind(self) -> str:
        """The maker's name, "" if it has none."""
        return self.maker.text if isinstance(self.maker, Name) else ""


def read(file: IO[bytes], what: str) -> object:
    """The object in the next pickle of a file: Python's plain data, Name, Reference and Made.

    Sets are lists. Of dicts, the items under texts and whole numbers are kept, under str. Raises EdgeError for more
    than MOST_STEPS steps (`what` names the file in its message), ValueError for what is no pickle or a truncated one.
    """
    machine = _Machine()
    for count, (step, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_STEPS:
            raise EdgeError(f"{what} describes more than {MOST_STEPS // 1_000_000} million things")
        try:
            machine.do(step.name, argument)
        except (LookupError, TypeError, AttributeError) as e:
            raise ValueError(f"its step {step.name} takes what is not there") from e
    return machine.stack[-1] if machine.stack else None


class _Machine:
    """The pickle machine, with stand-ins for all that it would make."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, step: str, argument: Any) -> None:
        """Does one step, by its name in pickletools."""
        if step in _STEPS:
            _STEPS[step](self, argument)
        elif step not in _NOTHING_TO_DO:  # all that is left gives its argument: numbers, texts, bytes
            self.stack.append(argument)

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def marked(self) -> list[Any]:
        """Takes what was put on the stack after the last mark, and the mark."""
        start = len(self.stack) - 1
        while start >= 0 and self.stack[start] is not _MARK:
            start -= 1
        if start < 0:
            raise IndexError
        found = self.stack[start + 1 :]
        del self.stack[start:]
        return found

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def make(self, arguments: object) -> None:
        self.push(Made(self.pop(), arguments))

    def make_of(self, maker: object, *arguments: object) -> None:
        self.push(Made(maker, arguments))

    def build(self, state: object) -> None:
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def extend(self, members: list[Any]) -> None:
        target = self.stack[-1]
        (target.members if isinstance(target, Made) else target).extend(members)

    def set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Made) else target
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Keys of other types are no names of weights, and a file could choose such that take hours to hash.
            if type(key) is str or (type(key) is int and abs(key) < 2**63):
                items[str(key)] = value

    def set_one(self, value: object) -> None:
        self.set([self.pop(), value])

    def dict_of(self, pairs: list[Any]) -> None:
        self.push({})
        self.set(pairs)

    def name(self, name: object) -> None:
        self.push(Name(f"{self.pop()}.{name}" if type(self.stack[-1]) is type(name) is str else ""))


def _named(argument: str) -> Name:
    return Name(argument.replace(" ", ".", 1))


_NOTHING_TO_DO = {"PROTO", "FRAME", "READONLY_BUFFER", "STOP"}
_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, index: m.remember(index)),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    "MARK": lambda m, _: m.push(_MARK),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.marked(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    **dict.fromkeys(("NONE", "NEXT_BUFFER"), lambda m, _: m.push(None)),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.push([])),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, _: m.push(m.marked())),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.extend(m.marked())),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "TUPLE": lambda m, _: m.push(tuple(m.marked())),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.dict_of(m.marked()),
    "SETITEM": lambda m, _: m.set_one(m.pop()),
    "SETITEMS": lambda m, _: m.set(m.marked()),
    "GLOBAL": lambda m, names: m.push(_named(names)),
    "STACK_GLOBAL": lambda m, _: m.name(m.pop()),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda m, code: m.push(Name(f"extension {code}"))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.make(m.pop())),
    "NEWOBJ_EX": lambda m, _: m.make([m.pop(), m.pop()][1]),  # arguments by name are left out
    "INST": lambda m, names: m.make_of(_named(names), *m.marked()),
    "OBJ": lambda m, _: m.make_of(*m.marked()),
    "BUILD": lambda m, _: m.build(m.pop()),
    "PERSID": lambda m, to: m.push(Reference(to)),
    "BINPERSID": lambda m, _: m.push(Reference(m.pop())),
}
