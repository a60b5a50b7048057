"""One source through one variant, tracked by a worker, which closes what it writes when this is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from types import FrameType

from pipnet_edge.errors import EdgeError
from pipnet_edge.worker import call
from pipnet_edge.worker.call import Listen
from pipnet_edge.worker.protocol import Counts, Track

# Seconds that a worker has to end by itself.
PATIENCE = 3.0
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130  # the exit code


def watch(job: Track, listen: Listen = call.ignore) -> Counts:
    """Does the job in a worker on this machine. Only the main thread may call it.

    Ctrl-C, SIGTERM and SIGHUP ask the worker to end, and the counts say so; it is killed if it does not within
    PATIENCE, or at the second Ctrl-C. Raises KeyboardInterrupt if it ended before there was a frame, EdgeError if it
    was killed, and as a Call does.
    """
    stop = _Stop()
    before = {number: signal.signal(number, stop.hear) for number in INTERRUPTS}
    descriptors = [number for number in (job.stdin, job.stdout) if number is not None]
    try:
        return call.start([sys.executable, *call.WORKER], job, listen, started=stop.have, descriptors=descriptors)
    except EdgeError:
        if stop.has_killed:
            what = "interrupted, and killed before all was closed; what was written may not be whole"
            raise EdgeError(what, INTERRUPTED) from None
        if stop.is_asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        stop.forget()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """Asks a worker to end, as soon as there is one and an interrupt is heard."""

    def __init__(self) -> None:
        self.is_asked = self.has_killed = False
        self._worker: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None

    def have(self, worker: subprocess.Popen[bytes]) -> None:
        self._worker = worker
        if self.is_asked:
            self._ask(worker)

    def hear(self, _: int, __: FrameType | None) -> None:
        again, self.is_asked = self.is_asked, True
        if self._worker and again:
            self._kill(self._worker)
        elif self._worker:
            self._ask(self._worker)

    def forget(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _kill(self, worker: subprocess.Popen[bytes]) -> None:
        self.has_killed = True
        call.kill(worker)

    def _ask(self, worker: subprocess.Popen[bytes]) -> None:
        self._timer = threading.Timer(PATIENCE, self._kill, [worker])
        self._timer.daemon = True
        self._timer.start()
        if worker.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
