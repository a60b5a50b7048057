"""The one renderer: commands return an Output, this prints it as text or as the JSON envelope."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipnet_edge.output import Output, Table, envelope


def emit(command: str, output: Output, as_json: bool) -> None:
    """Prints data on stdout and the error, if any, on stderr."""
    if as_json:
        print(json.dumps(envelope(command, output), allow_nan=False))
    else:
        for part in output.parts:
            print(part if isinstance(part, str) else "\n".join(_lines(part)))
    if output.error:
        print(f"pipnet-edge {command}: {output.error}", file=sys.stderr)


def _lines(table: Table) -> Iterator[str]:
    header = [column.removeprefix(">") for column in table.columns]
    widths = [max(map(len, cells)) for cells in zip(header, *table.rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *table.rows):
        cells = (
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in zip(table.columns, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


SILENCE = 5.0  # seconds after which the same step is reported again


class Progress:
    """Shows steps on stderr: a live bar on a terminal, elsewhere a line for each new step, and every few seconds."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Bar(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("", total=None) if self._bar else None
        self._said, self._at = "", 0.0

    def step(self, what: str, done: int, total: int, part: str = "") -> None:
        """Shows the step that is done now, after `done` of `total` steps. part: how far it is, "9 of 99 faces"."""
        shown = f"{what}: {part}" if part else what
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=shown, completed=done, total=total)
        elif what != self._said or time.monotonic() - self._at > SILENCE:
            self._said, self._at = what, time.monotonic()
            print(f"[{done + 1}/{total}] {shown}", file=sys.stderr, flush=True)

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        if self._bar:
            with self._bar:
                yield self
        else:
            yield self
