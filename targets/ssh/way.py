"""Boards over ssh."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipnet_edge.targets.place import Place
from pipnet_edge.targets.ssh import board
from pipnet_edge.worker.call import Call

GIVES = "measured"
IS_APART = True


@contextmanager
def connect(place: Place, keep: bool = False) -> Iterator[Call]:
    """keep: the board keeps what was pushed. Raises EdgeError when it cannot be reached."""
    assert place.host is not None
    with board.connect(place.host, keep=keep) as found:
        yield found.call
