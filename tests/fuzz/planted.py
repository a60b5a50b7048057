"""Parsers with a fault, to see that the harness finds it: an exception, a hang, a death, too much memory.

The fault of `deep` lies behind five bytes; only those who build on the inputs that got a byte further find it.
"""

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


def deep(data: bytes, folder: Path) -> None:
    if data[:1] != b"\x00":
        raise EdgeError("no first")
    if data[1:2] != b"\xff":
        raise EdgeError("no second")
    if data[2:3] != b"\x1b":
        raise EdgeError("no third")
    if data[3:4] != b"\x80":
        raise EdgeError("no fourth")
    if data[4:5] != b"\x01":
        raise EdgeError("no fifth")
    raise KeyError("planted")


# Each parser, and what the harness has to say of it.
FAULTS = (
    ("raises", "exception", "KeyError: 'planted'"),
    ("hangs", "hang", "more than 5 s"),
    ("dies", "kill", "SIGSEGV"),
    ("takes", "exception", "MemoryError"),
)
TARGETS = (
    *(
        Target(f"planted-{parse.__name__}", parse, _seeds, lambda data: len(data) == 8, (plain.flip,))
        for parse in (raises, hangs, dies, takes)
    ),
    Target("planted-deep", deep, _seeds, lambda data: True, (plain.flip,)),
)
