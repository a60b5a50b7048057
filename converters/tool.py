"""Converters that print, crash or keep gigabytes run as child processes, with a limit of memory and of time."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pipnet_edge import confined
from pipnet_edge.errors import EdgeError
from pipnet_edge.words import counted

PYTHON = (sys.executable, "-P")
# What a converter may take for any network that it is given here. The largest, ResNet101, takes a third of it.
MEMORY, SECONDS = 12 << 30, 1800.0


def run(
    tool: str,
    command: Sequence[str],
    folder: Path,
    makes: Sequence[Path],
    memory: int = MEMORY,
    seconds: float = SECONDS,
) -> None:
    """Runs a converter in `folder`. memory: bytes. Raises EdgeError with its last line when it fails or makes no file,
    and when it takes too long.
    """
    log = folder / f"{tool}.log"
    with log.open("wb") as output:
        status = confined.run(command, folder, output, memory, seconds)
    if status is None:
        raise EdgeError(f"{tool} did not end within {counted(round(seconds), 'second')}")
    if status or not all(path.is_file() and path.stat().st_size for path in makes):
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise EdgeError(f"{tool} failed ({how}): {lines[-1].strip()[:300]}")
