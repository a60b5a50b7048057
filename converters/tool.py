"""Converters that print, crash or keep gigabytes run as child processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipnet_edge.errors import EdgeError

PYTHON = (sys.executable, "-P")


def run(tool: str, command: Sequence[str], folder: Path, makes: Sequence[Path]) -> None:
    """Runs a converter in `folder`. Raises EdgeError with its last line when it fails or makes no file."""
    log = folder / f"{tool}.log"
    with log.open("wb") as output:
        tool_run = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            status = tool_run.wait()
        finally:
            # After an interrupt, subprocess.run() waits a quarter of a second and then leaves the process running.
            tool_run.kill()
            tool_run.wait()
    if status or not all(path.is_file() and path.stat().st_size for path in makes):
        lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise EdgeError(f"{tool} failed (status {status}): {lines[-1].strip()[:300]}")
