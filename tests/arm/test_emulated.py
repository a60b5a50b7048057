"""Real runtimes on emulated boards: the landmarks stay, instructions are counted, and nothing tells a time."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge import runtimes
from pipnet_edge.benchmarks.accuracy import parity
from pipnet_edge.benchmarks.speed import chain as chains
from pipnet_edge.converters import demo
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.devices import device
from pipnet_edge.targets.emulated import count as counts
from pipnet_edge.targets.emulated import way
from pipnet_edge.targets.emulated.emulator import Emulator
from pipnet_edge.targets.emulated.instructions import Count, Instructions
from pipnet_edge.targets.emulated.way import Emulated
from pipnet_edge.targets.place import Place
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol
from pipnet_edge.worker.serve import MARK

BOARDS = ("rpi4", "rpi5")
VARIANTS = [f"{runtime}-{precision}" for runtime in runtimes.DESTINATIONS for precision in ("fp32", "int8")]
VARIANTS.append("ncnn-fp16")
# Runs a loop of four instructions, so many times, between two marks: ldr, fadd on a vector, subs, b.ne; then ret.
LOOP = f"""
import ctypes, mmap, struct, sys
code = mmap.mmap(-1, 4096, prot=7)
code.write(struct.pack("<5I", 0xF9400022, 0x4E20D400, 0xF1000400, 0x54FFFFA1, 0xD65F03C0))
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
loop = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)(address)
mark = ctypes.CDLL(None).getpriority
for times in (1, 1, 1000001):
    mark({MARK}, 0)
    loop(times, address)
    mark({MARK}, 1)
"""


# --- Parity.


@pytest.fixture(scope="module")
def checked(emulator: Emulator, demo_bundle: Path) -> dict[str, tuple[parity.Row, ...]]:
    """Rows by board; the boards side by side, because each keeps one core busy."""

    def check(board: str) -> tuple[parity.Row, ...]:
        return parity.check(bundles.read(demo_bundle), VARIANTS, call=Emulated(device(board), emulator), most=1)

    with ThreadPoolExecutor(len(BOARDS)) as pool:
        return dict(zip(BOARDS, pool.map(check, BOARDS), strict=True))


@pytest.mark.parametrize("board", BOARDS)
def test_the_landmarks_stay(checked: dict[str, tuple[parity.Row, ...]], board: str) -> None:
    rows = checked[board]
    assert parity.first_failure(rows) is None
    assert [row.variant for row in rows] == VARIANTS
    assert all(row.maps for row in rows)
    # Where the core has half-precision arithmetic ncnn takes it, unless the variant says fp32.
    share = {row.variant: max(largest for largest, _ in (row.maps or {}).values()) for row in rows}
    assert share["ncnn-fp32"] < 1e-4
    assert (share["ncnn-fp16"] > 1e-2) == (board == "rpi5")


def test_a_worker_s_refusal_comes_back(emulator: Emulator, demo_bundle: Path) -> None:
    crops, _ = bundles.read(demo_bundle).read_golden()
    call = Emulated(device("rpi4"), emulator)
    with pytest.raises(EdgeError, match="has no variant 'ncnn-int4'"):
        calls.infer(call, demo_bundle, "ncnn-int4", 1, crops)


# --- What is told of an emulated board.


@pytest.mark.parametrize("board", BOARDS)
def test_facts_are_the_board_s(emulator: Emulator, board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # None of this is meant for the guest.
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/lib/x86_64-linux-gnu")
    monkeypatch.setenv("QEMU_CPU", "cortex-a53")
    machine = Emulated(device(board), emulator)(protocol.Facts())
    facts: Any = machine.facts
    assert facts["machine"] == "aarch64"
    assert facts["cpu"] == device(board).qemu
    assert tuple(facts["features"]) == device(board).features
    assert set(machine.runtimes) >= set(runtimes.DESTINATIONS)
    assert not {"system", "cores", "memory_mb", "board", "governor"} & facts.keys()


def test_no_event_tells_a_time(emulator: Emulator, demo_bundle: Path) -> None:
    call = Emulated(device("rpi5"), emulator)
    with pytest.raises(EdgeError, match="an emulated rpi5 has no speed; count its instructions"):
        call(protocol.Time(str(demo_bundle), "ncnn-int8", 1, 1, 0.0, 1))
    crops, _ = bundles.read(demo_bundle).read_golden()
    events: list[protocol.Event] = []
    calls.infer(call, demo_bundle, "tflite-int8", 1, crops[:1], listen=events.append)
    loaded, progress = events
    assert isinstance(loaded, protocol.Loaded)
    assert loaded.version
    assert loaded.milliseconds is None
    assert progress == protocol.Progress(1, 1)


def test_devices_without_a_core_to_emulate(emulator: Emulator, demo_bundle: Path) -> None:
    x86 = device("x86_64")
    works = (
        lambda: way.connect(Place("x86_64", "emulated", x86)).__enter__(),
        functools.partial(Emulated(x86, emulator), protocol.Facts()),
        lambda: counts.count(x86, emulator, demo_bundle, "ncnn-int8"),
    )
    for work in works:
        with pytest.raises(EdgeError, match=r"target 'x86_64' cannot be emulated; allowed: .*rpi3, rpi4, rpi5"):
            work()


def test_cores_that_qemu_does_not_know(emulator: Emulator, demo_bundle: Path) -> None:
    unknown = replace(device("rpi5"), qemu="cortex-a1000")
    with pytest.raises(EdgeError, match="cortex-a1000"):
        Emulated(unknown, emulator)(protocol.Facts())
    with pytest.raises(EdgeError, match=r"'cortex-a1000' cannot be emulated: .*cortex-a1000"):
        counts.count(unknown, emulator, demo_bundle, "ncnn-int8")


# --- Instructions.


def test_instructions_of_a_known_loop(emulator: Emulator, tmp_path: Path) -> None:
    plugin, log = counts.compiled(tmp_path), tmp_path / "log"
    root = counts.root(emulator, "cortex-a72", tmp_path / "root")
    subprocess.run([*emulator.counted_python("cortex-a72", root, plugin, log), "-c", LOOP], check=True)
    marks = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert [mark for mark, *_ in marks] == [0, 1] * 3
    once, often = (
        Count(*marks[end][1:]) - Count(*marks[end - 1][1:]) for end in (3, 5)
    )  # the very first goes through code that is not yet linked
    more = often - once
    assert (more.total, more.simd, more.memory) == pytest.approx((4e6, 1e6, 1e6), abs=500)


@functools.cache
def counted(emulator: Emulator, bundle: Path, board: str, variant: str) -> Instructions:
    return counts.count(device(board), emulator, bundle, variant, frames=2)


def test_counts_are_those_of_one_frame(emulator: Emulator, demo_bundle: Path) -> None:
    found = counted(emulator, demo_bundle, "rpi5", "tflite-int8")
    assert (found.cpu, found.frames, list(found.stages)) == ("cortex-a76", 2, ["preprocess", "inference", "decode"])
    assert found.version.startswith("ai-edge-litert ")
    assert found.spread < 0.01
    for stage in found.stages.values():
        assert 0 < stage.simd < stage.simd + stage.memory < stage.total
    inference = found.stages["inference"]
    assert inference.simd > inference.total / 2
    assert 0.9 < inference.total / found.frame.total < 1


def test_counts_are_the_same_again(emulator: Emulator, demo_bundle: Path) -> None:
    crops, _ = bundles.read(demo_bundle).read_golden()
    first = counted(emulator, demo_bundle, "rpi5", "tflite-int8")
    again = counts.count(device("rpi5"), emulator, demo_bundle, "tflite-int8", crops[1:2], frames=1)
    assert again.frame.total == pytest.approx(first.frame.total, rel=1e-3)
    assert again.stages["inference"].simd == pytest.approx(first.stages["inference"].simd, rel=1e-4)


def test_int8_gains_from_dot_products(emulator: Emulator, demo_bundle: Path) -> None:
    without, given = (counted(emulator, demo_bundle, board, "tflite-int8") for board in BOARDS)
    assert given.frame.total < 0.7 * without.frame.total


def test_counting_needs_a_compiler(
    emulator: Emulator, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeError, match="needs a C compiler: install one that is called cc, for example gcc"):
        counts.count(device("rpi4"), emulator, demo_bundle, "ncnn-int8")
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'icount.c:1: fatal error: no stdint.h' >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    with pytest.raises(EdgeError, match=r"cannot compile icount.c: .*no stdint.h"):
        counts.count(device("rpi4"), emulator, demo_bundle, "ncnn-int8")
    assert shutil.which("cc") == os.path.join(tmp_path, "cc")


def test_the_chain_is_counted_by_stage(emulator: Emulator, chain: Any, tmp_path: Path) -> None:
    film = chains.film(tmp_path, bundles.read(chain.bundle), demo.FACES)
    board = device("rpi5")
    found = counts.count_chain(board, emulator, chain.bundle, "tflite-fp32", chain.detector, "tflite-fp32", film.path)
    assert (found.cpu, list(found.tracked)) == ("cortex-a76", [name for name in protocol.CHAIN if name != "detect"])
    assert found.version.startswith("ai-edge-litert ")
    for stage in (*found.tracked.values(), *found.detecting.values()):
        assert 0 < stage.simd + stage.memory < stage.total
    # The network's share is that of a single frame's inference; the tracker's own work is next to nothing.
    landmarks = found.tracked["landmarks"].total
    alone = counts.count(board, emulator, chain.bundle, "tflite-fp32", frames=1).stages
    assert landmarks == pytest.approx(alone["inference"].total + alone["decode"].total, rel=0.02)
    assert found.tracked["smooth"].total < 0.02 * landmarks
    assert found.detecting["detect"].total > found.tracked["source"].total
    job = protocol.Chain("b", "v", "d", "v", 1, "clip", 1, "out", 1, 0.0, 1)
    with pytest.raises(EdgeError, match="an emulated rpi5 has no speed"):
        Emulated(board, emulator)(job)
