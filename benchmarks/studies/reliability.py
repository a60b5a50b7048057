"""What `convert` leaves when it is killed or the disk is full: `python -m pipnet_edge.benchmarks.studies.reliability`.

Every trial begins with a bundle at the place, and converts to the same place with another input size. It is killed at a
random moment, or has a disk of random size. Then the older or the newer bundle has to be there, whole; no process may
live on; and after the next convert nothing but the bundle may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipnet_edge import bundle as bundles
from pipnet_edge.cli import render
from pipnet_edge.converters import demo
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Output, Table

SIDES = (64, 96)  # of the bundles, in turn
EVERY = "onnx,ncnn,mnn,tflite"
MARK = "PIPNET_EDGE_RELIABILITY"  # in the environment of all that a trial starts
GRACE = 3.0  # seconds in which what a killed program has started must end
TIGHT, ROOM = 34 << 20, 80 << 20  # bytes that no conversion and that any has enough of, beside the bundle there is


@dataclass(frozen=True)
class Place:
    """Where trials convert to: the folder of the bundle, one for temporary files and one for caches."""

    folder: Path
    temporary: Path
    cache: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    def convert(self, side: int, to: str) -> subprocess.Popen[str]:
        words = ["convert", str(demo.CHECKPOINT), "--data", "300w", "--to", to, "--precision", "fp32"]
        command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *words, "--input-size", str(side), "-o", "bundle"]
        own = {"TMPDIR": str(self.temporary), "XDG_CACHE_HOME": str(self.cache), MARK: str(self.folder)}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, **own},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def living(self) -> list[int]:
        """Processes that a trial has started and that still run."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # A process that only waits to be reaped has no environment.
                if f"{MARK}={self.folder}\0".encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return found

    def left(self) -> list[str]:
        """What lies beside the bundle, and temporary files."""
        beside = [path.name for path in self.folder.iterdir() if path != self.bundle]
        return sorted(beside + [path.name for path in self.temporary.iterdir()])


@dataclass(frozen=True)
class Trial:
    """One row. found: the bundle that was there after it; faults: what must not be."""

    what: str
    ended: str
    found: str
    faults: tuple[str, ...]


def trial(place: Place, what: str, side: int, to: str, after: float | None) -> Trial:
    """Converts to a place where a bundle of another side is, and kills it after so many seconds if they are given."""
    program = place.convert(side, to)
    faults = []
    try:
        _, stderr = program.communicate(timeout=after)
        ended = f"exit {program.returncode}"
    except subprocess.TimeoutExpired:
        program.kill()
        _, stderr = program.communicate()
        ended = "killed"
    if program.returncode not in (0, 1, -signal.SIGKILL) or "Traceback" in stderr:
        faults.append(f"it ended with status {program.returncode}: {(stderr.strip().splitlines() or [''])[-1]}")
    deadline = time.monotonic() + GRACE
    while (living := place.living()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if living:
        faults.append(f"{len(living)} processes live on")
    if program.returncode == 1 and place.left():
        faults.append(f"left at once: {', '.join(place.left())}")
    return Trial(what, ended, *_found(place, side, faults))


def _found(place: Place, side: int, faults: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Whether the older or the newer bundle is there, and the faults with those of the bundle."""
    try:
        bundle = bundles.read(place.bundle)
    except EdgeError as e:
        return "none", (*faults, str(e))
    damaged = (fault for found in bundle.damaged().values() for fault in found)
    return "newer" if bundle.spec.input_size == side else "older", (*faults, *damaged)


def followed(place: Place, made: Trial, side: int, to: str) -> Trial:
    """A trial with what the next convert leaves: it has to work, and only the bundle may be there."""
    program = place.convert(side, to)
    _, stderr = program.communicate()
    faults = [*made.faults]
    if program.returncode:
        faults.append(f"the next convert fails: {(stderr.strip().splitlines() or [''])[-1]}")
    faults += [f"{name} is there after the next convert" for name in place.left()]
    return replace(made, faults=_found(place, side, faults)[1])


@contextlib.contextmanager
def place_in(folder: Path) -> Iterator[Place]:
    place = Place(folder / "place", folder / "tmp", folder / "cache")
    for part in (place.folder, place.temporary, place.cache):
        part.mkdir()
    try:
        yield place
    finally:
        for process in place.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes at a folder. It needs the right to mount."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def first(place: Place, to: str) -> float:
    """Makes the bundle that trials begin with, and returns the seconds that it took."""
    start = time.monotonic()
    program = place.convert(SIDES[0], to)
    _, stderr = program.communicate()
    if program.returncode:
        raise EdgeError(f"nothing can be converted here: {stderr.strip()}")
    return time.monotonic() - start


def killed(place: Place, count: int, to: str, chance: random.Random) -> Iterator[Trial]:
    """Trials that are killed at a random moment of the time that a conversion takes."""
    takes = first(place, to)
    for _ in range(count):
        after = chance.uniform(0, 1.05 * takes)
        made = trial(place, f"SIGKILL after {after:.1f} s, {to}", SIDES[1], to, after)
        yield followed(place, made, SIDES[0], to)


def full(place: Place, count: int, to: str, chance: random.Random) -> Iterator[Trial]:
    """Trials on disks of random size, beside a bundle that takes a part of them."""
    first(place, to)
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as kept:
        shutil.copytree(place.bundle, Path(kept, "bundle"))
        taken = sum(path.stat().st_size for path in place.bundle.rglob("*"))
        for _ in range(count):
            size = taken + chance.randrange(64 << 10, TIGHT)
            with disk(place.folder, size):
                shutil.copytree(Path(kept, "bundle"), place.bundle)
                made = trial(place, f"disk of {size / 1e6:.0f} MB, {to}", SIDES[1], to, None)
                options = f"remount,size={taken + 4 * ROOM}"
                subprocess.run(["mount", "-o", options, str(place.folder)], check=True)
                yield followed(place, made, SIDES[0], to)


def table(trials: Sequence[Trial]) -> Table:
    rows = [[made.what, made.ended, made.found, "; ".join(made.faults)] for made in trials]
    return Table(["trial", "convert", "bundle", "faults"], rows)


def counted(trials: Sequence[Trial]) -> str:
    ended = Counter(f"{made.ended}, {made.found} bundle" for made in trials)
    faulty = sum(bool(made.faults) for made in trials)
    ends = ", ".join(f"{number} {what}" for what, number in sorted(ended.items()))
    return f"{len(trials)} trials ({ends}): {faulty} with faults"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=160, help="SIGKILLs while only ONNX files are made")
    parser.add_argument("--all", type=int, default=40, help="SIGKILLs while files for all runtimes are made")
    parser.add_argument("--disks", type=int, default=40, help="full disks (needs the right to mount)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance, trials = random.Random(given.seed), list[Trial]()
    for trials_of, count, to in (
        (killed, given.kills, "onnx"),
        (killed, given.all, EVERY),
        (full, given.disks, "onnx"),
    ):
        if not count:
            continue
        with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder, place_in(Path(folder)) as place:
            for made in trials_of(place, count, to, chance):
                trials.append(made)
                print(f"[{len(trials)}] {made.what}: {made.ended}, {made.found} {'; '.join(made.faults)}", flush=True)
    faulty = [made for made in trials if made.faults]
    render.emit("reliability", Output({}, (*((table(faulty),) if faulty else ()), counted(trials))), as_json=False)
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
