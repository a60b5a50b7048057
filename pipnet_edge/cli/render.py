"""The one renderer: commands return an Output, this prints it as text or as the JSON envelope, and writes stdout."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipnet_edge.errors import USER_ERROR
from pipnet_edge.output import Output, Table, envelope
from pipnet_edge.strict import printable
from pipnet_edge.words import clean

INTERRUPTED = 130
CLOSED = 128 + signal.SIGPIPE  # what a shell gives for a program that wrote to a pipe nobody read
# Characters of a cell, of a line of text and of an error.
CELL, LINE, ERROR = 300, 4000, 1000


def emit(command: str, output: Output, as_json: bool) -> None:
    """Prints data on stdout and the error, if any, on stderr. Names of files, results and boards may be in both."""
    if output.error:
        output = replace(output, error=_cut(printable(output.error), ERROR))
    if as_json:
        print(json.dumps(envelope(command, output), allow_nan=False))
    else:
        for part in output.parts:
            lines = part.split("\n") if isinstance(part, str) else _lines(part)
            print("\n".join(_cut(clean(line), LINE) for line in lines))
    if output.error:
        print(f"pipnet-edge {command}: {output.error}", file=sys.stderr)


def _lines(table: Table) -> Iterator[str]:
    header = [column.removeprefix(">") for column in table.columns]
    rows = [[_cut(printable(cell), CELL) for cell in row] for row in table.rows]
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        cells = (
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in zip(table.columns, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printed(program: Callable[[], object]) -> int:
    """Runs a program, writes what it printed to stdout at its end, and returns its exit status.

    If stdout takes no more, because the disk is full, the reader is gone or the terminal lacks a character, that is
    one line on stderr at most.
    """
    text, status = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(text):
            program()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else USER_ERROR if e.code else 0
    if sys.stdout is None:  # closed by whoever started this
        return status
    try:
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _give_up(status or INTERRUPTED, None)
    except UnicodeEncodeError as e:
        lacking = f"{sys.stdout.encoding} has no {e.object[e.start : e.start + 1]!a}; PYTHONIOENCODING=utf-8 has"
        return _give_up(status or USER_ERROR, None if status else lacking)
    except OSError as e:
        if e.errno == errno.EPIPE:
            return _give_up(status or CLOSED, None)
        return _give_up(status or USER_ERROR, None if status else str(e.strerror))
    return status


def _give_up(status: int, reason: str | None) -> int:
    # What still waits to be written would fail again, loudly, when Python ends.
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    if reason:
        print(f"pipnet-edge cannot write to stdout: {reason}", file=sys.stderr)
    return status


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
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Bar(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("", total=None) if self._bar else None
        self._said, self._at = "", 0.0

    def step(self, what: str, done: int, total: int | None, part: str = "") -> None:
        """Shows the step that is done now, after `done` of `total` steps. part: how far it is, "9 of 99 faces".

        total: None if nobody knows.
        """
        what = _cut(printable(what), CELL)
        shown = f"{what}: {part}" if part else what
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=shown, completed=done, total=total)
        elif what != self._said or time.monotonic() - self._at > SILENCE:
            self._said, self._at = what, time.monotonic()
            print(
                f"[{done}] {shown}" if total is None else f"[{done + 1}/{total}] {shown}", file=sys.stderr, flush=True
            )

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        if self._bar:
            with self._bar:
                yield self
        else:
            yield self
