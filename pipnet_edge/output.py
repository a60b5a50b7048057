"""What a command returns: data for --json, tables and lines for people. cli/render.py prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# 1: schema, command, ok, result; error where there is one.
SCHEMA = "pipnet-edge/1"


@dataclass(frozen=True)
class Table:
    """Columns with a leading ">" are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Output:
    """What a command found: `data` for --json, tables and lines for people, and the exit status.

    error is the one line to print on stderr when `code` is not 0.
    """

    data: dict[str, Any]
    parts: Sequence[Table | str] = field(default_factory=tuple)
    code: int = 0
    error: str | None = None


def envelope(command: str, output: Output) -> dict[str, Any]:
    """What --json prints."""
    found: dict[str, Any] = {"schema": SCHEMA, "command": command, "ok": output.code == 0, "result": output.data}
    if output.error:
        found["error"] = {"message": output.error, "code": output.code}
    return found
