"""Counts the instructions of frames under emulation, with a plugin for qemu (icount.c) that is compiled each time."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.files import write_array
from pipnet_edge.targets.devices import Device
from pipnet_edge.targets.emulated.emulator import SLOWNESS, WORKER, Emulator
from pipnet_edge.targets.emulated.instructions import ChainInstructions, Count, Instructions
from pipnet_edge.targets.emulated.way import core, untimed
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol
from pipnet_edge.worker.call import Listen, ignore
from pipnet_edge.worker.protocol import CHAIN, STAGES, Version

PLUGIN = Path(__file__).with_name("icount.c")
WARM_UP = 2
# Of a clip: one that faces are detected in, and tracked ones; as many come before, to warm up.
CHAIN_FRAMES = 3


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
        given = None
        if crops is not None:
            given = Path(scratch, "crops.npy")
            write_array(given, crops)
        job = protocol.Count(str(bundle), variant, WARM_UP + frames, str(given) if given else None)
        answer, log = _marked(device, emulator, job, Path(scratch), listen)
    stages, spread = _read(log)
    return Instructions(core(device), answer.version, stages, frames, spread)


def count_chain(
    device: Device, emulator: Emulator, bundle: Path, variant: str, detector: Path, detector_variant: str, clip: Path
) -> ChainInstructions:
    """Counts the instructions of a clip's first frames through the whole chain. Raises EdgeError as `count`."""
    job = protocol.CountChain(str(bundle), variant, str(detector), detector_variant, str(clip), CHAIN_FRAMES)
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as scratch:
        answer, log = _marked(device, emulator, job, Path(scratch), ignore)
    detecting, *tracked = _read_chain(log)
    return ChainInstructions(
        core(device),
        answer.version,
        {stage: _median([frame[stage] for frame in tracked]) for stage in CHAIN if stage != "detect"},
        detecting,
    )


def _marked(
    device: Device, emulator: Emulator, job: protocol.Job[Version], folder: Path, listen: Listen
) -> tuple[Version, str]:
    """A worker's answer, and the plugin's lines: a mark's number, then its counters. folder: for what this needs."""
    plugin, log, cpu = compiled(folder), folder / "log", core(device)
    with emulator.environment() as environment:
        command = [*emulator.counted_python(cpu, root(emulator, cpu, folder / "root"), plugin, log), *WORKER]
        answer = calls.start(command, job, lambda event: listen(untimed(event)), environment, slowness=SLOWNESS)
    return answer, log.read_text()


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


def _marks(log: str) -> Iterator[tuple[int, int, Count]]:
    """Between each mark and the next: the numbers of the two, and the instructions."""
    marks = [tuple(map(int, line.split())) for line in log.splitlines()]
    for (before, *since), (mark, *until) in itertools.pairwise(marks):
        yield before, mark, Count(*until) - Count(*since)


def _read(log: str) -> tuple[dict[str, Count], float]:
    """Stages and spread from the plugin's lines, without the WARM_UP frames."""
    found: dict[str, list[Count]] = {stage: [] for stage in STAGES}
    for _, mark, taken in _marks(log):
        if mark:
            found[STAGES[mark - 1]].append(taken)
    counted = {stage: counts[WARM_UP:] for stage, counts in found.items()}
    totals = [sum(count.total for count in frame) for frame in zip(*counted.values(), strict=True)]
    spread = (max(totals) - min(totals)) / statistics.median(totals)
    return {stage: _median(counts) for stage, counts in counted.items()}, spread


def _read_chain(log: str) -> list[dict[str, Count]]:
    """Stages of each frame from the plugin's lines, without the first half, which warms up."""
    frames = [dict.fromkeys(CHAIN, Count(0, 0, 0))]
    for stage, mark, taken in _marks(log):
        if stage < len(CHAIN):
            frames[-1][CHAIN[stage]] += taken
        if mark == len(CHAIN):
            frames.append(dict.fromkeys(CHAIN, Count(0, 0, 0)))
    return frames[CHAIN_FRAMES : 2 * CHAIN_FRAMES]


def _median(counts: list[Count]) -> Count:
    columns = zip(*((count.total, count.simd, count.memory) for count in counts), strict=True)
    return Count(*(statistics.median_low(column) for column in columns))
