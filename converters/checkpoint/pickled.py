"""Reads a pickle as data: nothing that it names is imported, called or made, so no file can run code."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import IO, Any

from pipnet_edge.errors import EdgeError

MOST_STEPS = 4_000_000  # a trained PIPNet takes a few thousand; so many take less than 10 s
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


def read(file: IO[bytes]) -> object:
    """The object in the next pickle of a file: Python's plain data, Name, Reference and Made.

    Sets are lists. Of dicts, the items under texts and whole numbers are kept, under str. Raises EdgeError for more
    than MOST_STEPS steps, ValueError for what is no pickle or a truncated one.
    """
    machine = _Machine()
    for count, (step, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_STEPS:
            raise EdgeError(f"it describes more than {MOST_STEPS // 1_000_000} million things")
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
        stack = self.stack
        match step:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEXT_BUFFER":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(step == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._tuple(int(step[-1]))
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "LIST" | "FROZENSET":
                stack.append(self._marked())
            case "DICT":
                pairs = self._marked()
                stack.append({})
                self._set(pairs)
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._marked())
            case "SETITEM":
                value = stack.pop()
                self._set([stack.pop(), value])
            case "SETITEMS":
                self._set(self._marked())
            case "GLOBAL":
                stack.append(Name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(Name(f"{module}.{name}" if type(module) is type(name) is str else ""))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Name(f"extension {argument}"))
            case "REDUCE" | "NEWOBJ":
                self._make(stack.pop())
            case "NEWOBJ_EX":
                stack.pop()  # arguments by name
                self._make(stack.pop())
            case "INST":
                arguments = self._marked()
                stack.append(Made(Name(argument.replace(" ", ".", 1)), tuple(arguments)))
            case "OBJ":
                maker, *arguments = self._marked()
                stack.append(Made(maker, tuple(arguments)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Made):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(Reference(stack.pop()))
            case "PERSID":
                stack.append(Reference(argument))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._marked()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "READONLY_BUFFER" | "STOP":
                pass
            case _:  # all that is left puts its argument on the stack: numbers, texts, bytes
                stack.append(argument)

    def _marked(self) -> list[Any]:
        """Takes what was put on the stack after the last mark, and the mark."""
        start = len(self.stack) - 1
        while start >= 0 and self.stack[start] is not _MARK:
            start -= 1
        if start < 0:
            raise IndexError
        found = self.stack[start + 1 :]
        del self.stack[start:]
        return found

    def _tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _make(self, arguments: object) -> None:
        self.stack.append(Made(self.stack.pop(), arguments))

    def _extend(self, members: list[Any]) -> None:
        target = self.stack[-1]
        (target.members if isinstance(target, Made) else target).extend(members)

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Made) else target
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Keys of other types are no names of weights, and a file could choose such that take hours to hash.
            if type(key) is str or (type(key) is int and abs(key) < 2**63):
                items[str(key)] = value
