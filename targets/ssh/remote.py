"""The far end of board.py: sent to a board as text and run there by its Python, with the standard library only.

It reads requests from stdin, one JSON object per line, and writes its answers (far.py) as JSON lines to stdout. File
contents follow their line as raw bytes. The name of a request is its "ask". When stdin ends or is silent for longer
than agreed, the worker is killed and every file is removed: a process without a terminal has no other sign that its
connection is gone.

    first line   {packages, keep, beat, patience}: modules to look for; whether pushed files stay; seconds between signs
                 of life; seconds without one before it all ends  -> {"far": "hello", …}, or "failed"
    place        {files: [[path, sha256, size], …]}               -> {"far": "placed", "lacking": […], "free": bytes}
    put          {files: …}, then the bytes of all files          -> {"far": "put"} or "failed"
    run          {job}, a worker's line  -> the worker's lines, then {"far": "ended", "status", "stderr"}
    stop         kills the worker, which ends as above
    take         {path}: the file is sent and removed             -> {"far": "taken", "bytes": size}, its bytes

Paths are relative to the session's folder. With `keep`, pushed files also lie in a second folder, named by their hash,
and the next session finds them there. A session without `keep` removes that second folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

CHUNK = 1 << 16
FRESH, OLD = 60.0, 14 * 86400.0  # seconds: only older folders can be orphans; kept files unused for longer are removed


class FarEnd:
    """One session: its folder, its worker, and how both end."""

    def __init__(self, given: BinaryIO, lines: BinaryIO, agreed: dict[str, Any]) -> None:
        self.given, self.lines, self.agreed = given, lines, agreed
        self.heard = time.monotonic()
        self.worker: subprocess.Popen[bytes] | None = None
        self.writing, self.ending = threading.Lock(), threading.Lock()
        cache = os.environ.get("XDG_CACHE_HOME", "")
        self.root = Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"), "pipnet-edge")
        self.store = self.root / "files"
        self.folder = self.root  # until the session has its own

    def open(self) -> None:
        """Makes the session's folder. Removes those of sessions that could not do it, for example after a power cut."""
        while self.folder == self.root:
            self.root.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another session has just removed the root
                self.folder = Path(tempfile.mkdtemp(prefix="session-", dir=self.root))
        locked(self.folder)
        (self.folder / "tmp").mkdir()
        for path in self.root.glob("session-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > FRESH and locked(path):
                    shutil.rmtree(path)

    def hello(self) -> dict[str, Any]:
        return {
            "far": "hello",
            "folder": str(self.folder),
            "python": sys.executable,
            "version": platform.python_version(),
            "machine": platform.machine(),
            "bits": 64 if sys.maxsize > 2**32 else 32,
            "venv": sys.prefix != sys.base_prefix,
            "ensurepip": importlib.util.find_spec("ensurepip") is not None,
            "packages": [name for name in self.agreed["packages"] if importlib.util.find_spec(name)],
        }

    def say(self, message: dict[str, Any] | bytes, content: bytes = b"") -> None:
        line = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        # A broken pipe needs no action here: stdin ends too.
        with self.writing, contextlib.suppress(BrokenPipeError):
            self.lines.write(line + content)
            self.lines.flush()

    def failed(self, error: OSError) -> None:
        free = shutil.disk_usage(next(path for path in (self.root, *self.root.parents) if path.exists())).free
        reason = {
            "errno": errno.errorcode.get(error.errno or 0, ""),
            "reason": error.strerror,
            "path": str(error.filename or self.root),
        }
        self.say({"far": "failed", **reason, "free": free})

    # --- Requests.

    def place(self, files: list[tuple[str, str, int]]) -> None:
        """Puts files that an earlier session kept into this session's folder, and removes spoilt ones."""
        lacking = []
        for path, sha256, size in files:
            kept, target = self.store / sha256, self.folder / path
            self.heard = time.monotonic()
            try:
                if sha256_of(kept) != sha256:
                    raise FileNotFoundError(kept)
                os.utime(kept)
                link(kept, target)
            except FileNotFoundError:
                kept.unlink(missing_ok=True)
                lacking.append((path, sha256, size))
        self.say({"far": "placed", "lacking": lacking, "free": shutil.disk_usage(self.folder).free})

    def put(self, files: list[tuple[str, str, int]]) -> None:
        """Reads all announced bytes even if they cannot be written, so that the next request is found."""
        failure: OSError | None = None
        for path, sha256, size in files:
            try:
                self.receive(self.folder / path, size)
            except OSError as error:
                failure = failure or error
            else:
                if self.agreed["keep"]:
                    with contextlib.suppress(OSError):  # a file that is not kept is sent again
                        link(self.folder / path, self.store / sha256)
        if failure:
            self.failed(failure)
        else:
            self.say({"far": "put"})

    def receive(self, target: Path, size: int) -> None:
        left = size
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # it may be a second name of a kept file
            with target.open("wb") as file:
                while left:
                    chunk = self.given.read(min(left, CHUNK))
                    if not chunk:
                        self.end()
                    self.heard = time.monotonic()
                    left -= len(chunk)
                    file.write(chunk)
        finally:
            while left and (chunk := self.given.read(min(left, CHUNK))):
                self.heard = time.monotonic()
                left -= len(chunk)

    def run(self, job: str) -> None:
        """Starts a worker in a process group of its own; a thread passes its output on."""
        path = os.pathsep.join(filter(None, [str(self.folder / "code"), os.environ.get("PYTHONPATH")]))
        stderr = (self.folder / "stderr").open("w+b")
        self.worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipnet_edge.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.folder / "tmp")},
            start_new_session=True,
        )
        threading.Thread(target=self.forward, args=(self.worker, job, stderr), daemon=True).start()

    def forward(self, worker: subprocess.Popen[bytes], job: str, stderr: BinaryIO) -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once
            worker.stdin.write(job.encode())
            worker.stdin.flush()  # stdin stays open: its end would end the worker
        for line in worker.stdout:
            if line.endswith(b"\n"):  # if not, it died while it wrote
                self.say(line)
        status = worker.wait()
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
        with stderr:
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - CHUNK))
            text = stderr.read().decode(errors="replace")
        if not self.ending.locked():  # if locked, it did not end by itself
            self.say({"far": "ended", "status": status, "stderr": text})

    def stop(self) -> None:
        if self.worker and self.worker.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.worker.pid, signal.SIGKILL)

    def take(self, path: str) -> None:
        content = (self.folder / path).read_bytes()
        (self.folder / path).unlink()
        self.say({"far": "taken", "bytes": len(content)}, content)

    # --- The end.

    def end(self, status: int = 0) -> NoReturn:
        """Ends all: no process stays, and only kept files stay. The first thread that calls it does everything."""
        self.ending.acquire()
        try:
            self.stop()
            if self.worker:
                self.worker.wait()
            if self.folder != self.root:
                shutil.rmtree(self.folder)
            self.tidy()
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            os._exit(status)

    def tidy(self) -> None:
        """Removes kept files that were not used for long (without `keep`: all), and then an empty root."""
        if not self.agreed["keep"]:
            shutil.rmtree(self.store, ignore_errors=True)  # another session may do the same
        elif self.store.exists():
            for path in self.store.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > OLD:
                        path.unlink()
        with contextlib.suppress(OSError):  # not empty: it has kept files or another session's folder
            self.root.rmdir()

    def signalled(self, *_: object) -> None:
        if not self.ending.locked():
            self.end()

    def watch(self) -> None:
        while time.monotonic() - self.heard < self.agreed["patience"]:
            time.sleep(self.agreed["beat"])
        self.end()

    def beat(self) -> None:
        """Not in the thread of watch, because writing blocks when nobody reads any more."""
        while True:
            self.say({"far": "alive"})
            time.sleep(self.agreed["beat"])

    # --- All of it.

    def serve(self) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self.signalled)
        try:
            self.open()
        except OSError as error:
            self.failed(error)
            self.end()
        self.say(self.hello())
        for thread in (self.watch, self.beat):
            threading.Thread(target=thread, daemon=True).start()
        while line := self.given.readline():
            self.heard = time.monotonic()
            if request := line.strip():
                arguments = json.loads(request)
                try:
                    getattr(self, arguments.pop("ask"))(**arguments)
                except OSError as error:
                    self.failed(error)
        self.end()


def locked(folder: Path) -> bool:
    """Locks a folder until this process ends; False if another process has locked it."""
    try:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy if the file system has no second names (FAT, exFAT)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    # The prints of a library must not get between the lines.
    given, lines = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    far = FarEnd(given, lines, json.loads(given.readline()))
    try:
        far.serve()
    except Exception:
        traceback.print_exc()
        far.end(status=1)


if __name__ == "__main__":
    main()
