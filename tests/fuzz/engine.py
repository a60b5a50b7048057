"""Runs inputs in processes that may die, a slice of one target's inputs in each, and keeps what went wrong.

This process has imported all libraries once. Every slice is a fork of it with a limit of memory. It writes which input
it is at into memory that both see, so a death or a hang is known by its input. An input is made from its number alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipnet_edge import confined
from pipnet_edge.errors import EdgeError
from tests.fuzz import findings
from tests.fuzz.findings import Finding
from tests.fuzz.target import Target, made

SLICE = 2.0  # seconds of one process
POLL = 0.01
MEMORY = 1 << 30  # bytes that an input may take above what the process has
HOUR = 3600.0
BUSY = 4  # times its patience, for a process that gets little of a busy machine
TRIES = 40  # processes to make a case smaller
MEMORY_DISK = "/dev/shm" if os.path.isdir("/dev/shm") else None  # files there cost microseconds
HARNESS = 70  # the status of a process in which the harness itself failed
# next input, inputs done, of these past the first check, accepted by the parser
COUNTS = struct.Struct("<4q")

# What a process does: it gets its folder, and the memory for its counts.
Work = Callable[[Path, mmap.mmap], None]


@dataclass
class Tally:
    """What was done for one target."""

    target: Target
    seeds: Sequence[bytes]
    next: int = 0
    done: int = 0
    past: int = 0
    accepted: int = 0
    seconds: float = 0.0
    contained: int = 0

    @property
    def share(self) -> float:
        """The share of inputs that got past the format's first check."""
        return self.past / self.done if self.done else 0.0


@dataclass
class Slice:
    """A running process. input: the bytes of an input by its number. at: the one last looked at, and since when."""

    tally: Tally
    input: Callable[[int], bytes]
    process: int
    shared: mmap.mmap
    dump: Path
    began: float
    at: tuple[int, float, float] = field(default=(-1, 0.0, 0.0))


class Engine:
    """Fuzzes targets with a seed. Findings are kept in `out`."""

    def __init__(self, targets: Sequence[Target], seed: int, out: Path) -> None:
        self.seed, self.out = seed, out
        self.scratch = tempfile.TemporaryDirectory(prefix="pipnet-fuzz-", dir=MEMORY_DISK)
        self.folder = Path(self.scratch.name)
        self.tallies = [Tally(target, target.seeds()) for target in targets]
        for tally in self.tallies:
            if tally.target.warm:
                tally.target.parse(tally.seeds[0], self.folder)

    def run(self, seconds: float, jobs: int) -> None:
        """Until the time is over, and each target has run."""
        start = time.monotonic()
        running: list[Slice] = []
        while True:
            gone = time.monotonic() - start
            while len(running) < jobs and (gone < seconds or any(not t.done for t in self.tallies)):
                busy = [each.tally for each in running]
                free = [tally for tally in self.tallies if tally not in busy]
                if not free or (gone >= seconds and all(t.done or t in busy for t in self.tallies)):
                    break
                running.append(self.started(self._next(free, gone), max(0.2, min(SLICE, seconds / 50))))
            if not running:
                return
            time.sleep(POLL)
            running = [each for each in running if not self.ended(each)]

    def _next(self, free: Sequence[Tally], gone: float) -> Tally:
        """A target behind the pace of its minimum an hour, else the one that has had the least time."""
        return min(free, key=lambda tally: (tally.done >= tally.target.needed * gone / HOUR, tally.seconds))

    def started(self, tally: Tally, seconds: float, only: bytes | None = None) -> Slice:
        """Starts a process that runs inputs for so long, or only the one that is given."""

        def work(folder: Path, shared: mmap.mmap) -> None:
            _inputs(self, tally, folder, shared, seconds, only)

        return self.forked(tally, work, lambda at: made(tally.target, tally.seeds, self.seed, at))

    def forked(self, tally: Tally, work: Work, data: Callable[[int], bytes]) -> Slice:
        """Starts a process with the limits of an input. data: the bytes of an input by its number."""
        shared = mmap.mmap(-1, COUNTS.size)
        shared[:] = COUNTS.pack(tally.next, 0, 0, 0)
        dump = self.folder / f"dump-{tally.target.name}"
        process = os.fork()
        if not process:
            try:
                _child(self, tally, shared, dump, work)
                os._exit(0)
            except BaseException:  # a fault of the harness itself
                dump.write_text(traceback.format_exc())
                os._exit(HARNESS)
        return Slice(tally, data, process, shared, dump, time.monotonic())

    def ended(self, running: Slice) -> bool:
        """Whether a process is over; its counts and its death are then noted."""
        hung = False
        process, status = os.waitpid(running.process, os.WNOHANG)
        if not process:
            at, now = COUNTS.unpack(running.shared[:])[0], time.monotonic()
            if at != running.at[0]:
                running.at = at, now, _cpu_seconds(running.process)
                return False
            patience, gone = running.tally.target.patience, now - running.at[1]
            worked = _cpu_seconds(running.process) - running.at[2]
            # On a busy machine most of the time may be others'.
            if gone < patience or (worked < patience / 2 and gone < BUSY * patience):
                return False
            hung = True
            os.kill(running.process, signal.SIGALRM)  # faulthandler writes where it is
            time.sleep(0.2)
            os.killpg(running.process, signal.SIGKILL)
            _, status = os.waitpid(running.process, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process, signal.SIGKILL)  # what it has started
        tally, (at, done, past, accepted) = running.tally, COUNTS.unpack(running.shared[:])
        died = hung or status != 0
        tally.next, tally.done = at + died, tally.done + done + died
        tally.past, tally.accepted = tally.past + past, tally.accepted + accepted
        tally.seconds += time.monotonic() - running.began
        if died:
            self._died(running, at, hung, status)
        return True

    def _died(self, running: Slice, at: int, hung: bool, status: int) -> None:
        if running.tally.target.contained:
            running.tally.contained += 1
            return
        finding = _death(running.tally.target, at, hung, status, running.dump)
        findings.keep(self.out, finding, running.input(at))

    def outcome(self, tally: Tally, data: bytes) -> Finding | None:
        """What one input does, in a process of its own."""
        kept, self.out = self.out, Path(tempfile.mkdtemp(dir=self.folder))
        counts = (tally.next, tally.done, tally.past, tally.accepted, tally.seconds, tally.contained)
        try:
            running = self.started(tally, 0.0, data)
            while not self.ended(running):
                time.sleep(POLL / 4)
            return next((finding for finding, _ in findings.read(self.out)), None)
        finally:
            self.out = kept
            tally.next, tally.done, tally.past, tally.accepted, tally.seconds, tally.contained = counts

    def replay(self, cases: Path) -> None:
        """Runs the cases in a folder, each by the target that its name begins with."""
        for tally in self.tallies:
            for path in sorted(cases.glob(f"{tally.target.name}-*.bin")):
                data = path.read_bytes()
                finding = self.outcome(tally, data)
                tally.done += 1
                if finding:
                    findings.keep(self.out, finding, data)

    def minimise(self, tries: int = TRIES) -> None:
        """Makes the kept cases smaller."""
        for finding, path in findings.read(self.out):
            tally = next(tally for tally in self.tallies if tally.target.name == finding.target)
            if finding.kind == "hang":
                continue  # each try would take all of the patience

            def same(data: bytes, tally: Tally = tally, key: str = finding.key) -> bool:
                found = self.outcome(tally, data)
                return found is not None and found.key == key

            path.write_bytes(findings.smaller(path.read_bytes(), same, tries))


def _cpu_seconds(process: int) -> float:
    """The CPU time of a process that has not been waited for."""
    _, _, fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")
    return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")


def _death(target: Target, at: int, hung: bool, status: int, dump: Path) -> Finding:
    told = dump.read_text(errors="replace") if dump.exists() else ""
    if hung:
        return findings.of_death(target.name, "hang", f"more than {target.patience:g} s", told, at)
    if os.WIFSIGNALED(status):
        what = signal.Signals(os.WTERMSIG(status)).name
    else:
        what = f"status {os.WEXITSTATUS(status)}"
        if os.WEXITSTATUS(status) == HARNESS:
            raise RuntimeError(f"the harness failed at {target.name} #{at}:\n{told}")
    return findings.of_death(target.name, "kill", what, told, at)


def _child(engine: Engine, tally: Tally, shared: mmap.mmap, dump: Path, work: Work) -> None:
    """Does the work in a folder of its own, with the limits."""
    os.setpgid(0, 0)
    confined.end_with(os.getppid())
    confined.limit_memory(_held() + MEMORY)
    _quiet()
    with dump.open("w") as file:
        faulthandler.enable(file, all_threads=False)
        faulthandler.register(signal.SIGALRM, file, all_threads=False)
        folder = engine.folder / f"{tally.target.name}-{os.getpid()}"
        folder.mkdir()
        os.chdir(folder)
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        work(folder, shared)
    import shutil

    os.chdir("/")
    shutil.rmtree(folder, ignore_errors=True)


def _inputs(engine: Engine, tally: Tally, folder: Path, shared: mmap.mmap, seconds: float, only: bytes | None) -> None:
    """The inputs of a slice, from tally.next on, until its time is over; or one input that is given."""
    target, index, done, past, accepted = tally.target, tally.next, 0, 0, 0
    until = time.monotonic() + seconds
    while True:
        shared[:] = COUNTS.pack(index, done, past, accepted)
        if done and (only is not None or time.monotonic() > until):
            break
        data = made(target, tally.seeds, engine.seed, index) if only is None else only
        accepted += tried(target, data, folder, index, engine.out)
        past += target.first(data)
        index, done = index + 1, done + 1


def tried(target: Target, data: bytes, folder: Path, index: int, out: Path) -> bool:
    """Whether the parser accepts the input."""
    try:
        target.parse(data, folder)
    except EdgeError:
        return False
    except BaseException as error:
        findings.keep(out, findings.of_exception(target.name, error, index), data)
        return False
    return True


def _held() -> int:
    """Bytes that count for the limit of memory and that this process has already."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _quiet() -> None:
    """Libraries print what they think of broken files."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
