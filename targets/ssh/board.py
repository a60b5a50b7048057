"""A board over the user's own OpenSSH: one connection, with remote.py at its far end.

The board needs Python 3.11 or newer with numpy and the runtime, best in an environment at ~/pipnet. The device half of
this package is pushed. Pushed files lie below ~/.cache/pipnet-edge (or $XDG_CACHE_HOME) and are removed at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipnet_edge import bundle as bundles
from pipnet_edge import runtimes
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import file_sha256
from pipnet_edge.targets.ssh import advice, far, wire
from pipnet_edge.targets.ssh.far import Hello
from pipnet_edge.targets.ssh.wire import Wire
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import device_half, limits, protocol
from pipnet_edge.worker.call import Listen, Lost, ignore
from pipnet_edge.worker.protocol import Answer, Chain, Count, Infer, Job, Probe, Time

Kind = TypeVar("Kind")

OPTIONS = "PIPNET_EDGE_SSH_OPTIONS"  # an environment variable: more options for ssh, split as by a shell
PYTHONS = ("~/pipnet/bin/python", "python3")
# A host as ssh takes it. It cannot be an option, and the shell of a ProxyCommand cannot take it for more than a name.
HOST = re.compile(r"(ssh://)?([\w.+~][\w.+~-]*@)?(\w[\w.:%-]*|\[[\w.:%]+\])(:\d{1,5})?/?")
# `options` of `connect` come before these and win. All other settings come from ~/.ssh/config.
SETTINGS = (
    *("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3", "LogLevel=INFO"),
    *("ControlMaster=no", "ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no"),
    *("RequestTTY=no", "RemoteCommand=none"),
)


class Board:
    """A connected board; `call` is a Call. Calls from several threads wait for each other."""

    def __init__(self, host: str, line: Wire, has: Hello) -> None:
        self.host, self.has = host, has
        self._wire, self._pushed, self._busy = line, set[str](), threading.Lock()

    def call(self, job: Job[Answer], listen: Listen = ignore) -> Answer:
        """A Call to a worker on the board. It can be used again after any error but a lost connection."""
        with self._busy:
            there, files = self._there(job)
            try:
                self._push(files)
                self._wire.send({"ask": "run", "job": protocol.write_job(there)})
                answer = self._follow(job, listen)
                if isinstance(job, Infer | Chain) and isinstance(there, Infer | Chain):
                    self._wire.send({"ask": "take", "path": Path(there.out).name})
                    Path(job.out).write_bytes(self._receive(far.Taken)[1])
            except Lost as lost:
                message = f"the connection to {self.host} was lost while {str(job)!r} ran there ({lost})"
                raise Lost(f"{message}; the board cleans up by itself") from None
            except EdgeError as e:
                raise type(e)(f"{self.host}: {e}", e.code) from None
            return answer

    def _there(self, job: Job[Any]) -> tuple[Job[Any], dict[str, Path]]:
        """The job with the board's paths, and the files that it needs, by their path in the session's folder."""
        folder = self.has.folder
        files = {f"code/{name}": path for name, path in device_half.files()}
        if isinstance(job, Probe) and job.runtime in runtimes.RUNTIMES:
            self._need(job.runtime)
        if not isinstance(job, Infer | Time | Count | Chain):
            return job, files

        def bundle(given: str, variant: str) -> str:
            name, listed = self._bundle(Path(given), variant, needs_golden=not isinstance(job, Chain))
            files.update(listed)
            return f"{folder}/{name}"

        def file(kind: str, given: str) -> str:
            name = f"{kind}-{file_sha256(Path(given))[:16]}{Path(given).suffix}"
            files[name] = Path(given)
            return f"{folder}/{name}"

        there: Job[Any] = replace(job, bundle=bundle(job.bundle, job.variant))
        if isinstance(there, Chain):
            detector = bundle(there.detector, there.detector_variant)
            there = replace(there, detector=detector, clip=file("clip", there.clip))
        elif isinstance(there, Infer | Time | Count) and there.crops:
            there = replace(there, crops=file("crops", there.crops))
        if isinstance(there, Infer | Chain):
            there = replace(there, out=f"{folder}/out{Path(there.out).suffix}")
        return there, files

    def _bundle(self, folder: Path, name: str, needs_golden: bool) -> tuple[str, dict[str, Path]]:
        """What a bundle is called on the board, and the files that a variant needs there."""
        bundle = bundles.read_any(folder)
        variant = bundle.variant(name)
        self._need(variant.runtime)
        needed = (bundle.golden, *variant.files) if needs_golden else variant.files
        called = f"bundle-{file_sha256(folder / bundles.MANIFEST)[:16]}"
        files = {f"{called}/{bundles.MANIFEST}": folder / bundles.MANIFEST}
        files |= {f"{called}/{file.path}": file.verified(folder) for file in needed}
        return called, files

    def _need(self, runtime: str) -> None:
        if not set(runtimes.RUNTIMES[runtime].modules).intersection(self.has.packages):
            raise EdgeError(f"{self.host}: {advice.runtime(runtime, vars(self.has))}")

    def _push(self, files: Mapping[str, Path]) -> None:
        """Sends the files that are not there yet. If there is no space, raises EdgeError before anything is sent."""
        new = {there: path.read_bytes() for there, path in files.items() if there not in self._pushed}
        if not new:
            return
        listed = [(there, hashlib.sha256(content).hexdigest(), len(content)) for there, content in new.items()]
        self._wire.send({"ask": "place", "files": listed})
        placed, _ = self._receive(far.Placed)
        # The board only chooses among the listed files: it can ask for no other file.
        lacking = [entry for entry in listed if entry in placed.lacking]
        if lacking:
            need = sum(size for _, _, size in lacking)
            if need > placed.free:
                raise EdgeError(advice.space(self.has.folder, placed.free, need))
            self._wire.send({"ask": "put", "files": lacking}, [new[there] for there, _, _ in lacking])
            self._receive(far.Put)
        self._pushed.update(new)

    def _follow(self, job: Job[Answer], listen: Listen) -> Answer:
        allowed = limits.of(job)
        try:
            answer = calls.follow(self._lines(job, allowed), job, listen, allowed)
        except Lost:
            raise
        except BaseException:
            with contextlib.suppress(EdgeError):
                self._wire.send({"ask": "stop"})
                end = time.monotonic() + wire.CLOSING
                while (told := self._wire.next(end)) and not isinstance(told[0], far.Ended):
                    pass
            raise
        if self._ended.status or answer is None:
            raise calls.Died(calls.how_it_died(self._ended.status, self._ended.stderr))
        return answer

    def _lines(self, job: Job[Any], allowed: limits.Limits) -> Iterator[str]:
        """The worker's lines until it ends. Raises EdgeError if it takes too long."""
        end = time.monotonic() + allowed.seconds
        while told := self._wire.next(end):
            if not isinstance(told[0], str):
                self._ended = self._as(far.Ended, told[0])
                return
            yield told[0]
        raise EdgeError(calls.too_late(job, allowed))

    def _receive(self, kind: type[Kind]) -> tuple[Kind, bytes]:
        """The next message, which must be of this kind, and the bytes after it."""
        message, content = self._wire.reply()
        return self._as(kind, message), content

    def _as(self, kind: type[Kind], message: far.Message | str) -> Kind:
        if isinstance(message, far.Failed):
            raise EdgeError(advice.unwritable(vars(message)))
        if not isinstance(message, kind):
            raise EdgeError(f"the board says {str(message)!r:.100}, {kind.__name__} is needed")
        return message


@contextlib.contextmanager
def connect(
    host: str, *, keep: bool = False, python: str | None = None, options: Sequence[str] | None = None
) -> Iterator[Board]:
    """Connects to a host by any name that `ssh` takes. After the block nothing runs there and no file is left.

    keep: the pushed files stay there, for a quick start the next time. python: the board's Python (a command or a path,
    which may begin with ~/), by default the first of PYTHONS that is new enough. options: options for ssh, by default
    those of the environment variable PIPNET_EDGE_SSH_OPTIONS. Raises EdgeError that says what to do.
    """
    if not HOST.fullmatch(host):
        raise EdgeError(f"{host!r:.100} is no host; allowed: name, user@name or ssh://user@name:port")
    if python is not None and not (python and python.isprintable()):
        raise EdgeError(f"{python!r:.100} is no path of a Python; allowed: a command or a path on the board")
    pythons = (python,) if python else PYTHONS
    more = shlex.split(os.environ.get(OPTIONS, "")) if options is None else options
    program = (Path(__file__).parent / "remote.py").read_bytes()
    start = f"exec sh -c {shlex.quote(_start(pythons, len(program)))}"
    settings = [part for setting in SETTINGS for part in ("-o", setting)]
    agreed = {"keep": keep, "beat": wire.BEAT, "patience": wire.PATIENCE, "packages": _modules()}
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        line = Wire(["ssh", *more, *settings, "--", host, start], stderr)
        try:
            yield Board(host, line, _greet(host, line, pythons, program + json.dumps(agreed).encode() + b"\n"))
            lost = line.ended
            status = line.close()
            if status and not lost:
                reason = calls.last_line(line.said())
                raise EdgeError(f"{host}: did not clean up ({reason}); ~/.cache/pipnet-edge may still lie there")
        except KeyboardInterrupt:
            line.close(wire.HURRIED)
            raise
        finally:
            line.close()


def _greet(host: str, line: Wire, pythons: Sequence[str], program: bytes) -> Hello:
    """Starts the far end and returns its facts of the board. Raises EdgeError if the board cannot be used."""
    try:
        line.send(program)
        has, _ = line.reply()
    except Lost as lost:
        if line.ended:
            raise Lost(advice.no_connection(host, line.said())) from None
        raise Lost(f"{host}: connected, but there is {lost}; is it very busy?") from None
    if isinstance(has, far.Python):
        raise EdgeError(f"{host}: {advice.python(pythons, has.found.split())}")
    if isinstance(has, far.Failed):
        raise EdgeError(f"{host}: {advice.unwritable(vars(has))}")
    if not isinstance(has, Hello):
        raise EdgeError(f"{host}: the board says {str(has)!r:.100} in place of a greeting")
    if "numpy" not in has.packages:
        raise EdgeError(f"{host}: {advice.numpy(vars(has))}")
    return has


def _start(pythons: Sequence[str], size: int) -> str:
    """One line of sh that runs `size` bytes of stdin in the first Python that is new enough, or says what it found.

    It has no "!" and no line break, because login shells that are not like sh would change them.
    """
    candidates = " ".join(
        '"$HOME"/' + shlex.quote(python[2:]) if python.startswith("~/") else shlex.quote(python) for python in pythons
    )
    version = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    run = f"import sys; exec(sys.stdin.buffer.read({size}))"
    return (
        f'found=; for python in {candidates}; do version=$("$python" -c "{version}" </dev/null 2>/dev/null); '
        f'case $version in 3.1[1-9].*|3.[2-9][0-9].*|[4-9].*) exec "$python" -P -c "{run}";; esac; '
        'found="$found ${version:-none}"; done; '
        'printf \'{"far": "python", "found": "%s"}\\n\' "$found"'
    )


def _modules() -> list[str]:
    return sorted({"numpy", *(module for row in runtimes.RUNTIMES.values() for module in row.modules)})
