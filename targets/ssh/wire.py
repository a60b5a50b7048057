"""A running ssh and the messages over it."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from pipnet_edge import confined, strict
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.ssh import far
from pipnet_edge.worker.call import Lost, last_line, text_of
from pipnet_edge.worker.protocol import EVENT, LONGEST

BEAT, PATIENCE, CLOSING = 4.0, 30.0, 20.0  # seconds between signs of life, without one, and for the far end to go
HURRIED = 1.0  # seconds for the far end to go after Ctrl-C; it also cleans up by itself
REPLY = 300.0  # seconds for any reply but a worker's
MEMORY = 1 << 30  # bytes that ssh may have
WAITING = 64  # messages that are read ahead

Request = Mapping[str, Any]
# A message of the far end or a worker's line as it is, and the bytes after it.
Received = tuple[far.Message | str, bytes]


class Wire:
    """Lines to and from remote.py, some followed by bytes. The process writes its stderr to a file."""

    def __init__(self, command: Sequence[str], stderr: TextIO) -> None:
        self.stderr = stderr
        if not shutil.which(command[0]):
            raise EdgeError("there is no ssh in PATH; install OpenSSH's client")
        # A session of its own: Ctrl-C reaches only this process, and ssh has no terminal to ask questions on.
        self.ssh = subprocess.Popen(
            confined.command(command, MEMORY),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        self.received: queue.Queue[Received | EdgeError | None] = queue.Queue(WAITING)
        self.writing, self.closed = threading.Lock(), threading.Event()
        self.noise = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, message: Request | bytes, contents: Sequence[bytes] = ()) -> None:
        """Sends a line, and after it the contents that it announces. Raises Lost."""
        assert self.ssh.stdin is not None
        try:
            with self.writing:
                self.ssh.stdin.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
                for content in contents:
                    self.ssh.stdin.write(content)
                self.ssh.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def next(self, until: float | None = None) -> Received | None:
        """The next message that is not a sign of life, and the bytes after it; None if there is none until then.

        until: a reading of time.monotonic. Raises Lost, also after PATIENCE seconds of silence, and for a message that
        does not come within REPLY seconds where `until` is None. Raises EdgeError for a message that no far end sends;
        nothing more is read then.
        """
        end = time.monotonic() + REPLY if until is None else until
        while (left := end - time.monotonic()) > 0:
            try:
                received = self.received.get(timeout=min(PATIENCE, left))
            except queue.Empty:
                if left > PATIENCE:
                    raise Lost(f"no sign of life for {PATIENCE:g} s") from None
                continue
            if received is None or isinstance(received, EdgeError):
                self._put(received)
                raise received or self._gone()
            if not isinstance(received[0], far.Alive):
                return received
        if until is None:
            raise Lost(f"no reply within {REPLY:g} s")
        return None

    def reply(self) -> Received:
        """The next message. Raises as next does."""
        received = self.next()
        assert received is not None
        return received

    def _gone(self) -> Lost:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ssh.wait(CLOSING)
        return Lost(last_line(self.said() or f"ssh ended with status {self.ssh.returncode}"))

    def close(self, seconds: float | None = None) -> int:
        """Ends the far end, which cleans up when its stdin ends, and returns ssh's exit status.

        After so many seconds, by default CLOSING, ssh is killed.
        """
        assert self.ssh.stdin is not None
        assert self.ssh.stdout is not None
        self.closed.set()
        try:
            with contextlib.suppress(BrokenPipeError):
                self.ssh.stdin.close()
            return self.ssh.wait(CLOSING if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            self.ssh.kill()
            self.ssh.wait()
            self.reader.join()
            self.ssh.stdout.close()

    @property
    def ended(self) -> bool:
        """Whether ssh has ended."""
        return self.ssh.poll() is not None

    def said(self) -> str:
        """The stderr of ssh and the far end; if empty, the last line on stdout before the far end spoke."""
        with contextlib.suppress(ValueError):  # already closed: then nobody needs the answer
            self.stderr.seek(0)
            return self.stderr.read().strip() or self.noise
        return self.noise

    def _read(self) -> None:
        try:
            for received in self._messages():
                self._put(received)
        except EdgeError as e:
            self._put(e)
        else:
            self._put(None)

    def _messages(self) -> Iterator[Received]:
        """What comes until stdout ends. Raises EdgeError for what no far end sends."""
        stdout = self.ssh.stdout
        assert stdout is not None
        has_spoken = False
        while line := stdout.readline(LONGEST):
            is_whole = line.endswith(b"\n")
            if not line.startswith((far.FAR.encode(), EVENT.encode())) or not is_whole:
                if has_spoken and (is_whole or len(line) == LONGEST):
                    reason = "a line that is no message" if is_whole else f"a line of more than {LONGEST} bytes"
                    raise EdgeError(f"the board wrote {reason}: {strict.printable(line[:40].decode(errors='replace'))}")
                # A login shell's greeting comes before the far end's first line, and half a line before a cut.
                self.noise = line.decode(errors="replace").strip() or self.noise
                continue
            text, has_spoken = text_of(line, "the board"), True
            message = text if text.startswith(EVENT) else far.read(text)
            size = message.bytes if isinstance(message, far.Taken) else 0
            content = stdout.read(size)
            if len(content) == size:  # if not, the connection was cut
                yield message, content

    def _put(self, received: Received | EdgeError | None) -> None:
        """Waits for room; makes it when nobody reads any more."""
        while True:
            try:
                return self.received.put(received, timeout=0.1)
            except queue.Full:
                if self.closed.is_set():
                    with contextlib.suppress(queue.Empty):
                        self.received.get_nowait()

    def _beat(self) -> None:
        with contextlib.suppress(Lost, ValueError):  # ValueError: closed meanwhile
            while not self.closed.wait(BEAT):
                self.send(b"\n")
