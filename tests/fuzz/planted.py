"""Parsers with a fault, to see that the harness finds it: an exception, a hang, a death, too much memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pipnet_edge.errors import EdgeError
from tests.fuzz.mutators import plain
from tests.fuzz.target import Target


def _seeds() -> list[bytes]:
    return [b"abcdefgh"]


def raises(data: bytes, folder: Path) -> None:
    if b"\xff" in data:
        raise KeyError("planted")
    raise EdgeError("no")


def hangs(data: bytes, folder: Path) -> None:
    while b"\xff" in data:
        pass


def dies(data: bytes, folder: Path) -> None:
    if b"\xff" in data:
        os.kill(os.getpid(), signal.SIGSEGV)


def takes(data: bytes, folder: Path) -> None:
    if b"\xff" in data:
        bytearray(3 << 30)


TARGETS = tuple(
    Target(f"planted-{parse.__name__}", parse, _seeds, lambda data: len(data) == 8, (plain.flip,))
    for parse in (raises, hangs, dies, takes)
)
