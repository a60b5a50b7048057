"""What remote.py, the far end of a connection, says: one JSON object a line, some followed by bytes.

What comes from a board is untrusted, so it is read strictly. What is asked of the far end stands in remote.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pipnet_edge import strict
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker.call import LARGEST, last_line

# How such a line begins.
FAR = '{"far": '


@dataclass(frozen=True)
class Python:
    """None of the Pythons will do; their versions, or "none", separated by spaces."""

    found: str


@dataclass(frozen=True)
class Hello:
    """The session's folder, and what the board's Python is and finds there (packages: modules)."""

    folder: str
    python: str
    version: str
    machine: str
    bits: int
    venv: bool
    ensurepip: bool
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """An OSError: its number's name, reason and path, and how many bytes are free."""

    errno: str
    reason: str | None
    path: str
    free: int


@dataclass(frozen=True)
class Placed:
    """The files (path, sha256, size) that have to be sent, and how many bytes are free."""

    lacking: tuple[tuple[str, str, int], ...]
    free: int


@dataclass(frozen=True)
class Put:
    """The files lie there."""


@dataclass(frozen=True)
class Ended:
    """The worker's exit status (negative: a signal) and the last line of its stderr."""

    status: int
    stderr: str


@dataclass(frozen=True)
class Taken:
    """So many bytes follow."""

    bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.bytes <= LARGEST:
            raise EdgeError(f"a board offers {self.bytes} bytes; at most {LARGEST} are read")


@dataclass(frozen=True)
class Alive:
    """A sign of life."""


Message = Python | Hello | Failed | Placed | Put | Ended | Taken | Alive
MESSAGES: Mapping[str, type[Message]] = {
    "python": Python,
    "hello": Hello,
    "failed": Failed,
    "placed": Placed,
    "put": Put,
    "ended": Ended,
    "taken": Taken,
    "alive": Alive,
}


def read(line: str) -> Message:
    """The message in a line. Raises EdgeError for anything else."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise EdgeError(f"a board wrote what is no JSON: {' '.join(str(e).split())[:100]}") from None
    if not isinstance(data, dict):
        raise EdgeError(f"a board wrote {data!r:.60}, an object is needed")
    name = data.pop("far", None)
    if not isinstance(name, str) or name not in MESSAGES:
        raise EdgeError(f"a board says {name!r:.60}; allowed: {', '.join(MESSAGES)}")
    if name == "ended" and isinstance(data.get("stderr"), str):
        data["stderr"] = strict.printable(last_line(data["stderr"]))
    return strict.read(MESSAGES[name], data, f"a board's message {name}")
