"""The messages of remote.py, the far end of a connection: one JSON object per line, some followed by bytes.

A board's messages are untrusted, so they are read strictly. The requests to the far end are described in remote.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipnet_edge import strict
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker.call import LARGEST, last_line

# The beginning of such a line.
FAR = '{"far": '


@dataclass(frozen=True)
class Python:
    """No Python is new enough. found: their versions, or "none", separated by spaces."""

    found: str


@dataclass(frozen=True)
class Hello:
    """The session's folder and facts of the board's Python. packages: the modules that it finds."""

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
    """An OSError: errno (its name), reason and path, and how many bytes are free."""

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
    """This number of bytes follows."""

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
    data = strict.json_object(line, "what a board wrote")
    name = data.pop("far", None)
    if not isinstance(name, str) or name not in MESSAGES:
        raise EdgeError(f"a board says {name!r:.60}; allowed: {', '.join(MESSAGES)}")
    if name == "ended" and isinstance(data.get("stderr"), str):
        data["stderr"] = strict.printable(last_line(data["stderr"]))
    return strict.read(MESSAGES[name], data, f"a board's message {name}")
