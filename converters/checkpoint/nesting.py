"""Bounds how tuples lie in each other in a pickle. Python hashes one that is a key without end: a few hundred bytes can
name 2^40 tuples, which takes days, and a depth of 100,000 ends the process."""

from __future__ import annotations

import pickletools
from typing import IO

from pipnet_edge.errors import EdgeError

MOST_STEPS = 2_000_000  # a trained PIPNet takes a few thousand; torch does so many in 10 s
MOST_NESTED = 1 << 26  # about the tuples' items, each as often as it is looked at, doubled at each depth


def check(file: IO[bytes], what: str) -> None:
    """Goes over the next pickle of a file; nothing is made. Raises EdgeError, with `what`; ValueError for no pickle."""
    stack, marks, memo = list[int](), list[int](), dict[object, int]()
    nested = 0
    for count, (step, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_STEPS:
            raise EdgeError(f"{what} describes more than {MOST_STEPS // 1_000_000} million things")
        if step.name == "MARK":
            marks.append(len(stack))
        elif "PUT" in step.name:
            memo[argument] = stack[-1]
        elif "GET" in step.name:
            stack.append(memo[argument])
        else:
            takes = step.stack_before
            is_marked = pickletools.markobject in takes
            below = takes.index(pickletools.markobject) if is_marked else len(takes)
            start = (marks.pop() if is_marked else len(stack)) - below
            if start < 0:
                raise ValueError
            inside = stack[start:]
            del stack[start:]
            size = sum(inside)
            nested += size
            if nested > MOST_NESTED:
                raise EdgeError(f"{what} has tuples in tuples as no checkpoint has")
            stack += [_size(made, inside, size) for made in step.stack_after]


def _size(made: pickletools.StackObject, inside: list[int], size: int) -> int:
    if made is pickletools.pytuple:
        return len(inside) + size + max(inside, default=0)
    # The others have no hash or do not look inside, but a torch.Size does.
    return 0 if made in (pickletools.pydict, pickletools.pylist) else size
