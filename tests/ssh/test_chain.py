"""`bench --chain` on a board: both bundles and the clip are pushed, and what was found comes back."""

from __future__ import annotations

from typing import Any

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.pictures import clip
from pipnet_edge.benchmarks.speed import chain as chains
from pipnet_edge.benchmarks.speed.bench import Plan
from pipnet_edge.benchmarks.speed.result import Settings
from pipnet_edge.converters.demo import FACES
from pipnet_edge.targets.place import Place
from pipnet_edge.targets.ssh import board

Clean = Any  # conftest.StandIn


def test_a_board_follows_the_faces(clean: Clean, chain: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(board.OPTIONS, f"-F {clean.work / 'ssh_config'}")
    plan = Plan(("tflite-fp32",), (1,), settings=Settings(seconds=0, count=1))
    detector = bundles.read_detector(chain.detector)
    found, errors = chains.run(bundles.read(chain.bundle), detector, FACES, plan, [Place("pi", "ssh", None, "board")])
    assert errors == {}
    (run,) = found.measured
    assert (run.target, run.failure) == ("pi", None)
    assert run.quality is not None
    assert (run.quality.lost, run.quality.ids) == (0, 3)
    assert len(run.frames) == clip.COUNT
    clean.wait_until_quiet()
    assert clean.files() == []
