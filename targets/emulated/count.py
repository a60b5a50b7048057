"""Counts the instructions of frames under emulation, with a plugin for qemu (icount.c) that is compiled each time."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.files import write_array
from pipnet_edge.targets.devices import Device
from pipnet_edge.targets.emulated.emulator import SLOWNESS, WORKER, Emulator
from pipnet_edge.targets.emulated.instructions import Count, Instructions
from pipnet_edge.targets.emulated.way import core, untimed
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol
from pipnet_edge.worker.call import Listen, ignore
from pipnet_edge.worker.protocol import STAGES

PLUGIN = Path(__file__).with_name("icount.c")
WARM_UP = 2


def count(
    device: Device,
    emulator: Emulator,
    bundle: Path,
    variant: str,
    crops: NDArray[np.uint8] | None = None,
    frames: int = 3,
    listen: Listen = ignore,
) -> Instructions:
    """Counts the instructions of a variant's frames over crops (n, S, S, 3) uint8 RGB, by default the golden ones.

    Raises EdgeError if there is no C compiler.
    """
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as scratch:
        folder, given = Path(scratch), None
        if crops is not None:
            given = folder / "crops.npy"
            write_array(given, crops)
        job = protocol.Count(str(bundle), variant, WARM_UP + frames, str(given) if given else None)
        plugin, log, cpu = compiled(folder), folder / "log", core(device)
        with emulator.environment() as environment:
            command = [*emulator.counted_python(cpu, root(emulator, cpu, folder / "root"), plugin, log), *WORKER]
            answer = calls.start(command, job, lambda event: listen(untimed(event)), environment, slowness=SLOWNESS)
        stages, spread = _read(log.read_text())
        return Instructions(cpu, answer.version, stages, frames, spread)


def compiled(folder: Path) -> Path:
    """Compiles the plugin into a folder; this takes a tenth of a second."""
    plugin = folder / "icount.so"
    compiler = shutil.which("cc")
    if not compiler:
        raise EdgeError("counting instructions needs a C compiler: install one that is called cc, for example gcc")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(plugin), str(PLUGIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeError(f"{compiler} cannot compile {PLUGIN.name}: {calls.last_line(done.stderr)}")
    return plugin


def root(emulator: Emulator, cpu: str, folder: Path) -> Path:
    """A second root for the guest, with the core's own /proc/cpuinfo. Raises EdgeError for a core unknown to qemu.

    The runtimes choose their kernels by this file. The qemu that counts would show the guest the file of this machine;
    the other qemu makes the file of the core.
    """
    command = [*emulator.python(cpu), "-c", "print(open('/proc/cpuinfo').read())"]
    shown = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise EdgeError(f"{cpu!r:.60} cannot be emulated: {calls.last_line(shown.stderr)}")
    (folder / "proc").mkdir(parents=True)
    for path in emulator.guest.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "proc" / "cpuinfo").write_text(shown.stdout)
    return folder


def _read(log: str) -> tuple[dict[str, Count], float]:
    """Stages and spread from the plugin's lines (a mark's number, then its counters), without the WARM_UP frames."""
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
