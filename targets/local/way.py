"""This machine: a worker is a child process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipnet_edge.targets.place import Place
from pipnet_edge.worker.call import Call, here

GIVES = "measured"
IS_APART = False


@contextmanager
def connect(place: Place, keep: bool = False) -> Iterator[Call]:
    yield here
