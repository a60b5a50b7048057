"""An emulated board: a worker on the target's instruction set, under qemu-user.

Landmarks and maps are those of the real runtimes. Time under emulation says nothing about any board, so there is none;
what a frame costs is told in instructions.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.devices import Device, devices
from pipnet_edge.targets.emulated.emulator import WORKER, Emulator, ready
from pipnet_edge.worker import call
from pipnet_edge.worker.serve import STAGES

PLUGIN = Path(__file__).with_name("icount.c")
WARM_UP = 2
# The other facts are of the machine below.
FACTS = ("event", "loaded", "machine", "features", "libc", "python", "runtimes")


@dataclass(frozen=True)
class Emulated:
    """A channel.Call to a worker on a device's kind of core. Raises EdgeError when asked for times."""

    device: Device
    emulator: Emulator

    def __call__(self, job: call.Job, listen: call.Listen = call.ignore) -> call.Event:
        if job["do"] == "time":
            raise EdgeError(f"an emulated {self.device.name} has no speed; count its instructions, or measure on one")
        cpu = core(self.device)
        with self.emulator.environment() as environment:
            command = [*self.emulator.python(cpu), *WORKER]
            done = call.converse(command, job, lambda event: listen(_untimed(event)), environment)
        if job["do"] == "facts":
            done = {"cpu": cpu} | {name: value for name, value in done.items() if name in FACTS}
        return {**done, "loaded": _untimed(done["loaded"])}


def calling(device: Device) -> call.Call:
    """A Call to a device under the emulator that is set up. Raises EdgeError where there is none."""
    core(device)
    return Emulated(device, ready())


@dataclass(frozen=True)
class Count:
    """Instructions: all, those of SIMD and floating-point arithmetic, and those that load or store."""

    total: int
    simd: int
    memory: int

    def __add__(self, other: Count) -> Count:
        return Count(self.total + other.total, self.simd + other.simd, self.memory + other.memory)

    def __sub__(self, other: Count) -> Count:
        return Count(self.total - other.total, self.simd - other.simd, self.memory - other.memory)


@dataclass(frozen=True)
class Instructions:
    """Instructions per frame on one thread: of each stage (worker.STAGES) the median over frames.

    cpu: qemu's name of the core. version: the runtime's name and version. spread: (largest - smallest) / median of all
    instructions of a frame.
    """

    cpu: str
    version: str
    stages: Mapping[str, Count]
    frames: int
    spread: float

    @property
    def frame(self) -> Count:
        """All stages together."""
        return sum(self.stages.values(), Count(0, 0, 0))


def core(device: Device) -> str:
    """The -cpu of qemu that stands in for a device. Raises EdgeError that lists the devices that have one."""
    if device.qemu is None:
        known = ", ".join(name for name, other in devices().items() if other.qemu)
        raise EdgeError(f"target {device.name!r:.60} cannot be emulated; allowed: {known}")
    return device.qemu


def count(
    device: Device,
    emulator: Emulator,
    bundle: Path,
    variant: str,
    crops: NDArray[np.uint8] | None = None,
    frames: int = 3,
    listen: call.Listen = call.ignore,
) -> Instructions:
    """Counts the instructions of a variant's frames over crops (n, S, S, 3) uint8 RGB, by default the golden ones.

    Raises EdgeError where there is no C compiler.
    """
    job = {"do": "count", "bundle": str(bundle), "variant": variant, "frames": WARM_UP + frames}
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as place:
        folder = Path(place)
        if crops is not None:
            np.save(folder / "crops.npy", crops)
            job["crops"] = str(folder / "crops.npy")
        plugin, log, cpu = compiled(folder), folder / "log", core(device)
        with emulator.environment() as environment:
            command = [*emulator.counted_python(cpu, root(emulator, cpu, folder / "root"), plugin, log), *WORKER]
            done = call.converse(command, job, lambda event: listen(_untimed(event)), environment)
        stages, spread = _read(log.read_text())
        return Instructions(cpu, done["loaded"]["version"], stages, frames, spread)


def _untimed(event: call.Event) -> call.Event:
    return {key: value for key, value in event.items() if key != "milliseconds"}


def compiled(folder: Path) -> Path:
    """Compiles the plugin, which takes a tenth of a second, into a folder."""
    plugin = folder / "icount.so"
    compiler = shutil.which("cc")
    if not compiler:
        raise EdgeError("counting instructions needs a C compiler: install one that is called cc, for example gcc")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(plugin), str(PLUGIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeError(f"{compiler} cannot compile {PLUGIN.name}: {call.last_line(done.stderr)}")
    return plugin


def root(emulator: Emulator, cpu: str, folder: Path) -> Path:
    """The guest's root once more, with the core's own /proc/cpuinfo. Raises EdgeError for a core unknown to qemu.

    The qemu that counts would show the guest this machine's. The other one makes up what the core would show, and the
    runtimes choose their kernels by it.
    """
    command = [*emulator.python(cpu), "-c", "print(open('/proc/cpuinfo').read())"]
    shown = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise EdgeError(f"{cpu!r:.60} cannot be emulated: {call.last_line(shown.stderr)}")
    (folder / "proc").mkdir(parents=True)
    for path in emulator.guest.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "proc" / "cpuinfo").write_text(shown.stdout)
    return folder


def _read(log: str) -> tuple[dict[str, Count], float]:
    """Stages and spread from the plugin's lines: a mark's number, then its counters; the first frames warm up."""
    marks = [tuple(map(int, line.split())) for line in log.splitlines()]
    found: dict[str, list[Count]] = {stage: [] for stage in STAGES}
    for (_, *before), (mark, *after) in itertools.pairwise(marks):
        if mark:
            found[STAGES[mark - 1]].append(Count(*after) - Count(*before))
    counted = {stage: counts[WARM_UP:] for stage, counts in found.items()}
    totals = [sum(count.total for count in frame) for frame in zip(*counted.values(), strict=True)]
    spread = (max(totals) - min(totals)) / statistics.median(totals)
    return {stage: _median(counts) for stage, counts in counted.items()}, spread


def _median(counts: list[Count]) -> Count:
    columns = zip(*((count.total, count.simd, count.memory) for count in counts), strict=True)
    return Count(*(statistics.median_low(column) for column in columns))
