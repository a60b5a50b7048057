"""Guided by coverage: inputs that reach new code of one target are kept and changed further, by atheris (libFuzzer).

It runs in a fork with the limits of all inputs, and only the choice of the inputs is libFuzzer's: its hang, its death
and its exceptions are noticed by the engine. A hang or a death ends the run.
"""

from __future__ import annotations

import gc
import importlib.util
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

from tests.fuzz.engine import COUNTS, POLL, Engine, Tally, tried
from tests.fuzz.target import Random, Target

MISSING = "--guided needs the package atheris: pip install -e '.[fuzz]' (Linux on x86-64, Python 3.11 to 3.13)"
LONGEST = 1 << 16  # bytes of an input, unless a seed is larger
KNOWING = 0.75  # the share of changes by the target's own mutators; plain bytes seldom pass a format's first check
LENGTH = struct.Struct("<q")
FLAGS = (
    # The fork has the harness's limits of time and memory, and faulthandler tells the line of a death.
    "-timeout=0",
    "-rss_limit_mb=0",
    "-malloc_limit_mb=0",
    *(f"-handle_{name}=0" for name in ("abrt", "bus", "fpe", "ill", "int", "segv", "term", "xfsz")),
    "-detect_leaks=0",
    "-len_control=0",  # long inputs from the start: the formats need them
    "-reload=0",
)


def installed() -> bool:
    return importlib.util.find_spec("atheris") is not None


def run(engine: Engine, seconds: float) -> None:
    """Fuzzes the engine's one target. Afterwards the tally's seeds are the inputs that were kept for their coverage."""
    (tally,) = engine.tallies
    corpus = engine.folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(tally.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    longest = max(LONGEST, *(2 * len(data) for data in tally.seeds))
    current = mmap.mmap(-1, LENGTH.size + longest)  # the input that runs, for when it ends the process

    def work(folder: Path, shared: mmap.mmap) -> None:
        flags = (*FLAGS, f"-seed={engine.seed + 1}", f"-max_len={longest}", f"-artifact_prefix={folder}/")
        one = _one(engine, tally, folder, shared, current, time.monotonic() + seconds)
        _fuzz(tally, one, (*flags, str(corpus)))

    running = engine.forked(tally, work, lambda _: _read(current))
    while not engine.ended(running):
        time.sleep(POLL)
    tally.seeds, tally.next = [path.read_bytes() for path in sorted(corpus.iterdir())], 0


def _one(
    engine: Engine, tally: Tally, folder: Path, shared: mmap.mmap, current: mmap.mmap, until: float
) -> Callable[[bytes], None]:
    """What libFuzzer calls with each input. It ends the process when the time is over."""
    done = past = accepted = 0

    def one(data: bytes) -> None:
        nonlocal done, past, accepted
        if done and time.monotonic() > until:
            os._exit(0)
        current[: LENGTH.size + len(data)] = LENGTH.pack(len(data)) + data
        accepted += tried(tally.target, data, folder, done, engine.out)
        past += tally.target.first(data)
        done += 1
        shared[:] = COUNTS.pack(done, done, past, accepted)

    return one


def _fuzz(tally: Tally, one: Callable[[bytes], None], words: tuple[str, ...]) -> None:
    """Does not return."""
    import atheris

    _instrument(tally.target)

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        """By a mutator that knows the format, from a seed where the data is past knowing; or by one of libFuzzer's."""
        chance = Random(seed)
        if chance.random() < KNOWING:
            known = data if tally.target.first(data) else chance.choice(tally.seeds)
            made = chance.choice(tally.target.mutators)(chance, known, chance.choice(tally.seeds))
            if len(made) <= longest:
                return made
        return bytes(atheris.Mutate(data, longest))

    atheris.Setup([sys.argv[0], *words], one, custom_mutator=mutated)
    atheris.Fuzz()


def _instrument(target: Target) -> None:
    """All functions of the target's modules, and its parser, count what runs in them."""
    import atheris

    modules = {name.partition(":")[0] for name in target.modules}
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and (found.__module__ in modules or found is target.parse):
            atheris.instrument_func(found)


def _read(current: mmap.mmap) -> bytes:
    (length,) = LENGTH.unpack(current[: LENGTH.size])
    return current[LENGTH.size : LENGTH.size + length]
