"""Devices that only have published timings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.place import Place
from pipnet_edge.worker.call import Call

GIVES = "predicted"
IS_APART = False


@contextmanager
def connect(place: Place, keep: bool = False) -> Iterator[Call]:
    """Always raises EdgeError."""
    raise EdgeError(f"{place.name} is only predicted; nothing can be run there")
    yield
