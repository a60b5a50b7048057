"""Jobs on an aarch64 board: a real arm64 sshd, shell and Python under qemu (see conftest.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipnet_edge import bundle as bundles
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol


def test_facts_and_a_runtime(arm_board: Any) -> None:
    with arm_board.connect() as board:
        assert (board.has.machine, board.has.python) == ("aarch64", "/usr/local/bin/python3")
        assert board.call(protocol.Facts()).facts["features"] == ["asimd"]  # a Cortex-A72 has no dot product
        assert board.call(protocol.Probe("ncnn")).version.startswith("ncnn")
    arm_board.wait_until_quiet()
    assert arm_board.files() == []


def test_landmarks_are_those_of_this_machine(arm_board: Any, demo_bundle: Path) -> None:
    crops, _ = bundles.read(demo_bundle).read_golden()
    with arm_board.connect() as board:
        there = calls.infer(board.call, demo_bundle, "ncnn-fp32", 1, crops[:1])
    here = calls.infer(calls.here, demo_bundle, "ncnn-fp32", 1, crops[:1])
    np.testing.assert_allclose(there.landmarks.points, here.landmarks.points, atol=1e-4)
