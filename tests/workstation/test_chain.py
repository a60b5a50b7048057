"""`bench --chain` on this machine with real networks: a clip is followed, judged and timed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.pictures import clip
from pipnet_edge.benchmarks.speed import chain as chains
from pipnet_edge.converters import demo
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR
from pipnet_edge.worker.protocol import CHAIN

QUICK = ("--chain", "--threads", 1, "--seconds", 0, "--count", 1)


def bench(cache: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "bench", *map(str, words)]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def measured(chain: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a run of float and int8."""
    output = tmp_path_factory.mktemp("bench") / "chain.json"
    done = bench(
        chain.cache, chain.bundle, *QUICK, "--variant", "tflite-fp32", "--variant", "tflite-int8", "-o", output
    )
    assert done.returncode == 0, done.stderr
    assert "LOSES" not in done.stdout
    found: dict[str, Any] = json.loads(output.read_text())["result"]
    return found


def test_the_faces_are_followed(measured: dict[str, Any]) -> None:
    assert [run["variant"] for run in measured["measured"]] == ["tflite-fp32", "tflite-int8"]
    for run in measured["measured"]:
        quality = run["quality"]
        assert (quality["lost"], quality["extra"], quality["ids"], quality["appearances"]) == (0, 0, 3, 3)
        assert quality["nme"] < 3
        assert quality["jitter"] < 0.25
        assert run["detector"] == "tflite-fp32"
    assert measured["clip"]["truth"] == "labels"


def test_every_frame_is_timed(measured: dict[str, Any]) -> None:
    for run, told in zip(measured["measured"], measured["summary"]["measured"], strict=True):
        samples = {name: np.array(values) for name, values in run["samples"].items()}
        assert list(samples) == list(CHAIN)
        assert {len(values) for values in samples.values()} == {clip.COUNT}
        assert min(samples["source"].min(), samples["smooth"].min(), samples["draw"].min()) > 0
        # At the start, after the cut, every 15 frames, more often while nobody is there.
        detecting = samples["detect"] > 0
        assert detecting[0]
        assert detecting[clip.CUT]
        assert 12 <= detecting.sum() <= 40
        assert told["detections"] == pytest.approx(detecting.mean())
        assert told["tracked"] < told["detecting"]
        assert told["p90"] <= told["p99"]
        assert run["fps"] > 0


def test_a_tracker_that_loses_faces_fails(chain: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(chain.bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["spec"]["presence"] = 9.0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = bench(chain.cache, folder, *QUICK, "--variant", "tflite-fp32")
    assert done.returncode == CHECK_FAILED
    assert "LOSES FACES" in done.stdout
    assert "tflite-fp32 on local loses the face in 144 of 159 frames" in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--tune",), "--chain with --tune; --chain only measures, or counts with --emulate"),
        (("--limit", "p50<=20"), "--chain with --limit"),
        (("--target", "rpi5", "--predict"), "--chain with --predict"),
    ],
)
def test_what_does_not_go_together(chain: Any, words: tuple[str, ...], why: str) -> None:
    done = bench(chain.cache, chain.bundle, "--chain", *words)
    assert (done.returncode, done.stdout) == (USER_ERROR, "")
    assert why in done.stderr


def test_what_it_needs(chain: Any, tmp_path: Path) -> None:
    done = bench(tmp_path, chain.bundle, "--chain")
    assert done.returncode == USER_ERROR
    assert "--chain needs a face detector; `pipnet-edge detector` makes it" in done.stderr
    done = bench(chain.cache, chain.detector, "--chain")
    assert done.returncode == USER_ERROR
    assert "a face detector's bundle; one of landmarks is needed" in done.stderr
    done = bench(chain.cache, chain.bundle, *QUICK, "--variant", "onnx-fp32")
    assert done.returncode == CHECK_FAILED
    assert "has no variant for onnx; make the detector again for it" in done.stderr


def test_truth_without_labels_is_what_the_float_network_finds(chain: Any, tmp_path: Path) -> None:
    bundle = bundles.read(chain.bundle)
    faces = tmp_path / "faces"
    shutil.copytree(demo.FACES, faces)
    lines = (faces / "labels.txt").read_text().splitlines()
    by_labels = chains.film(tmp_path, bundle, demo.FACES)
    # As if the network had other landmarks than the labels.
    (faces / "labels.txt").write_text("".join(f"{' '.join(line.split()[:-2])}\n" for line in lines))
    found = chains.film(tmp_path, bundle, faces)
    assert by_labels.of == "labels"
    assert found.of in {variant.name for variant in bundle.variants if variant.precision == "fp32"}
    away = np.linalg.norm(found.truth.points - by_labels.truth.points, axis=2)
    assert 0 < away.mean() < 6
    assert np.median(away[: clip.CUT]) < 5


def test_a_result_is_not_taken_for_one_of_single_frames(chain: Any, measured: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "chain.json"
    path.write_text(json.dumps({"schema": "pipnet-edge/1", "command": "bench", "ok": True, "result": measured}))
    done = bench(chain.cache, chain.bundle, "--compare", path)
    assert done.returncode == USER_ERROR
    assert f"{path} is a result of bench --chain; one of bench without it is needed" in done.stderr
