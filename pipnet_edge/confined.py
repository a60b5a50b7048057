"""A process that reads foreign bytes in C: it may take so much memory and time, and it ends with its parent.

A program of any language is started through this file, `python -I -S confined.py PARENT BYTES PROGRAM …`: it limits
itself and then becomes the program. It imports nothing but the standard library, so that it starts in 20 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


def command(program: Sequence[str], memory: int) -> list[str]:
    """The command line that starts `program` so that it may take `memory` bytes and ends when this process does."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid()), str(memory), *program]


def run(program: Sequence[str], folder: Path, output: IO[bytes], memory: int, seconds: float) -> int | None:
    """Runs a program in `folder` and returns its status, negative for a signal; None if it took more than `seconds`.

    memory: bytes; what it wants beyond that is refused by the system. What it prints goes to `output`. It is killed,
    with all that it started, when this function is left in any way.
    """
    process = subprocess.Popen(
        command(program, memory),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def limit_memory(memory: int, for_good: bool = True) -> None:
    """From now on this process may take `memory` bytes of its own, memory of the C library included.

    for_good: it cannot be given more later.
    """
    import resource

    # Not RLIMIT_AS: runtimes reserve gigabytes of addresses and use none of them.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        memory = min(memory, most)
    with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory if for_good else most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with(parent: int) -> None:
    """From now on this process is killed when its parent ends, in whatever way. (Linux; elsewhere it does nothing.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parent, memory, *program = sys.argv[1:]
    end_with(int(parent))
    limit_memory(int(memory))
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
