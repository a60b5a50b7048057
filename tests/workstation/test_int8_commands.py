"""Commands that make int8 or speak of it: the same twice, what they tell, and interrupted or with no place to cache."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import drift, labels
from pipnet_edge.converters import demo

pytestmark = pytest.mark.usefixtures("cache")

LABELS = demo.FACES / "labels.txt"
NET = (demo.CHECKPOINT, "--data", "300w")
QUICK = ("--calibrate-count", 16, "--rounding", "nearest", "--ranges", "minmax")
CHEAP = ("--input-size", 128, "--max-drift", "none")
HEADS = {f"heads.{name}": "heads" for name in ("score", "offset_x", "offset_y", "neighbor_x", "neighbor_y")}


def test_the_same_seed_gives_the_same_files(tmp_path, cli, monkeypatch):
    """Also without the cache of the first time; another seed gives other faces. Small crops are quicker."""
    words = ("convert", *NET, "--calibrate", demo.CALIBRATION, *QUICK, *CHEAP, "--precision", "int8")
    for name, grids, options in (
        ("one", 2, ("--to", "onnx,ncnn")),
        ("two", 2, ("--to", "ncnn,onnx")),
        ("other", 1, ("--to", "onnx", "--seed", 1)),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{name}"))
        done = cli(*words, *options, "-o", tmp_path / name, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ok"]
        assert re.search(r"\] calibrate \(pass 1 of 1\): \d+ of 16 faces\n", done.stderr)
        assert len(list((tmp_path / f"cache-{name}").rglob("*.pt"))) == grids
    one, two, other = (bundles.read(tmp_path / name) for name in ("one", "two", "other"))
    assert one.calibration == two.calibration
    for name in ("onnx-int8", "ncnn-int8"):
        assert one.variant(name).files == two.variant(name).files
    assert one.calibration
    assert other.calibration
    assert one.calibration.sha256 != other.calibration.sha256
    assert one.variant("onnx-int8").files != other.variant("onnx-int8").files


def test_drift_tells_that_faces_were_calibrated_with(tmp_path, demo_bundle, say, faces):
    folder = faces(tmp_path / "faces", 4)
    shutil.copy(sorted(demo.FACES.glob("*.jpg"))[0], folder)
    words = ("drift", demo_bundle, "--images", folder, "--variant", "onnx-int8", "-o", tmp_path / "out")
    note = "4 of these images were used to calibrate, so quantized variants look better than they are: 001_03.jpg, "
    code, out, error = say(*words)
    assert (code, error) == (0, "")
    assert note in out
    code, out, _ = say(*words, "--json")
    assert [text[: len(note)] for text in json.loads(out)["result"]["notes"]] == [note]
    code, out, _ = say("drift", demo_bundle, "--images", demo.FACES, *words[4:], "--json")
    assert json.loads(out)["result"]["notes"] == []


def test_sensitivity(tmp_path, say, faces):
    output = tmp_path / "s.png"
    words = ("sensitivity", *NET, "--calibrate", faces(tmp_path / "faces", 80), *QUICK, "--faces", 1, "-o", output)
    code, table, error = say(*words)
    assert (code, error) == (0, "")
    picture = cv2.imread(str(output))
    assert picture.shape[0] > 52 * 20
    assert picture.std() > 10
    code, out, _ = say(*words, "--json")
    rows = json.loads(out)["result"]["layers"]
    assert len(rows) == 52
    assert not {row["layer"] for row in rows} & HEADS.keys()
    # The rest is the heads'.
    assert sum(row["params"] for row in rows) == pytest.approx(0.5224, abs=1e-4)
    for row in rows:
        assert f"{row['layer'].removeprefix('backbone.')} " in table
        assert row["px_alone"] >= 0
    # On other faces, and then none of those to calibrate with are held out: 25 are enough.
    few = ("sensitivity", *NET, "--calibrate", demo.FACES, *QUICK, "--faces", 1, "-o", output, "--json")
    others = faces(tmp_path / "others", 2)
    code, out, error = say(*few, "--images", others)
    assert code == 0, error
    other = json.loads(out)["result"]["layers"]
    assert [row["layer"] for row in other] == [row["layer"] for row in rows]
    assert all(0 <= row["clipped"] < 0.5 for row in other)
    # Without clipping, nothing of calibration lies beyond the ranges but by rounding.
    assert all(row["clipped_calibration"] < 1e-3 for row in other)
    assert sum(row["clipped"] for row in other) > sum(row["clipped_calibration"] for row in other)


def test_what_labels_leave_out_is_said(tmp_path, say, faces):
    folder = faces(tmp_path / "faces", 25, demo.FACES)
    shutil.copy(next(demo.CALIBRATION.glob("001*.jpg")), folder)
    options = (*QUICK, "--input-size", 128, "--to", "onnx", "--precision", "int8", "-o", tmp_path / "b")
    code, out, error = say("convert", *NET, "--calibrate", folder, "--calibrate-labels", LABELS, *options)
    assert code == 0, error
    assert "1 image without a label: 001_03.jpg" in out
    known = bundles.read(tmp_path / "b").calibration
    assert known
    assert drift.overlap(labels.image_folder(folder).images, frozenset(known.images))
    assert drift.overlap([folder / "001_03.jpg"], frozenset(known.images)) == []


# --- Interrupted, and nowhere to write.


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_rounding(tmp_path, cache, sent):
    words = ["convert", *map(str, NET), "--calibrate", str(demo.CALIBRATION), "--to", "onnx", "--precision", "int8"]
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *words, "--calibrate-count", "16", "--ranges", "minmax"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stderr
    for line in run.stderr:
        if "round backbone.features.2." in line:
            break
    time.sleep(0.2)
    # A terminal's Ctrl-C reaches the whole group, a `kill` the command alone.
    os.killpg(run.pid, sent) if sent == signal.SIGINT else os.kill(run.pid, sent)
    stderr = run.stderr.read()
    assert run.wait(timeout=20) == 130
    lines = [line for line in stderr.splitlines() if line[:1] != "["]
    assert lines == ["pipnet-edge convert: interrupted; nothing half-written was left"]
    assert list(tmp_path.iterdir()) == []
    assert [path for path in (cache / "pipnet-edge").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("options", ["ro,size=1m", "size=1m"])
def test_a_cache_that_cannot_be_written(tmp_path, isolated, options):
    """Costs the next run some time, and this one nothing."""
    (tmp_path / "disk").mkdir()
    words = [*map(str, NET), "--calibrate", str(demo.CALIBRATION), *map(str, (*QUICK, *CHEAP))]
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "convert", *words, "--to", "onnx", "--precision", "int8"]
    mount = f"mount -t tmpfs -o {options} tmpfs disk"
    script = f'{mount} && XDG_CACHE_HOME=$PWD/disk "$@"; code=$?; find disk/pipnet-edge -type f; exit $code'
    run = [*isolated, "sh", "-c", script, "sh", *command, "--json"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"]
    assert len(bundles.read(tmp_path / "bundle").variants) == 1
