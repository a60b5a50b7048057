"""The emulator, set up once for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.emulated import emulator as emulators
from pipnet_edge.targets.emulated.emulator import Emulator


@dataclass(frozen=True)
class SetUp:
    """What was set up, the steps that were told of, and how many seconds it took."""

    emulator: Emulator
    steps: tuple[tuple[str, int, int], ...]
    seconds: float


@pytest.fixture(scope="session")
def done_set_up(_own_cache: None) -> Iterator[SetUp]:
    """A set-up from nothing; a machine that cannot have an emulator skips, CI must have one."""
    steps: list[tuple[str, int, int]] = []
    start = time.monotonic()
    try:
        emulator = emulators.set_up(lambda *step: steps.append(step))
    except EdgeError as e:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(e))
    yield SetUp(emulator, tuple(steps), time.monotonic() - start)
    shutil.rmtree(emulator.folder)  # pytest would keep it for three runs


@pytest.fixture(scope="session")
def emulator(done_set_up: SetUp) -> Emulator:
    return done_set_up.emulator
