"""`bench --chain` on a board: both bundles and the clip are pushed, and what was found comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.pictures import clip
from pipnet_edge.benchmarks.speed import chain as chains
from pipnet_edge.benchmarks.speed.bench import Plan
from pipnet_edge.benchmarks.speed.chain import Chained
from pipnet_edge.benchmarks.speed.result import Settings
from pipnet_edge.converters.demo import FACES
from pipnet_edge.targets.place import Place
from pipnet_edge.targets.ssh import board

Clean = Any  # conftest.StandIn


@pytest.fixture
def opencv(clean: Clean) -> Iterator[None]:
    """The board has OpenCV, which it usually has not."""
    link = clean.home / "packages" / "cv2"
    link.symlink_to(Path(cv2.__file__).parent)
    yield
    link.unlink()


def bench(clean: Clean, chain: Any, monkeypatch: pytest.MonkeyPatch) -> Chained:
    """What the chain did on the board; nothing of it is left there."""
    monkeypatch.setenv(board.OPTIONS, f"-F {clean.work / 'ssh_config'}")
    plan = Plan(("tflite-fp32",), (1,), settings=Settings(seconds=0, count=1))
    bundle, detector = bundles.read(chain.bundle), bundles.read_detector(chain.detector)
    found, errors = chains.run(bundle, detector, FACES, plan, [Place("pi", "ssh", None, "board")])
    assert errors == {}
    clean.wait_until_quiet()
    assert clean.files() == []
    (run,) = found.measured
    assert run.target == "pi"
    return run


def test_a_board_follows_the_faces(clean: Clean, chain: Any, opencv: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench(clean, chain, monkeypatch)
    assert run.failure is None
    assert run.quality is not None
    assert (run.quality.lost, run.quality.ids) == (0, 3)
    assert len(run.frames) == clip.COUNT


def test_a_board_without_opencv(clean: Clean, chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench(clean, chain, monkeypatch)
    assert run.failure == ("board: the chain needs OpenCV, which is not installed: pip install opencv-python-headless")
