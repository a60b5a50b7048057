"""Tuning a real bundle on the machine at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipnet_edge import Landmarker, host
from pipnet_edge import bundle as bundles


def test_real_variants_are_told_apart_and_the_fastest_is_what_runs(demo_bundle: Path, tmp_path: Path) -> None:
    """MNN's fp32 takes twice as long as TFLite's int8 wherever this has been seen."""
    folder = shutil.copytree(demo_bundle, tmp_path / "bundle")
    names = ("mnn-fp32", "tflite-int8")
    variants = [word for name in names for word in ("--variant", name)]
    words = ["bench", str(folder), "--tune", *variants, "--threads", "1", "--seconds", "0.5", "--json"]
    # One thread: two that wait for each other on a busy machine take many times as long.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pipnet_edge.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["result"]["tuned"]
    tried = {trial["variant"]: trial for trial in found["tried"]}
    assert set(tried) == set(names)
    fastest = min(names, key=lambda name: tried[name]["ms"])
    assert [name for name in names if tried[name]["chosen"]] == [fastest]
    (entry,) = bundles.read(folder).tuned.items()
    assert entry[0] == found["device"] == host.name(host.facts())
    assert entry[1].variant == fastest
    assert entry[1].runtime
    with Landmarker(folder) as landmarker:
        assert (landmarker.variant, landmarker.threads) == (fastest, 1)
