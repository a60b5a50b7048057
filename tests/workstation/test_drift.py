"""The drift command on real faces and real variants."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import chunks, drift, labels
from pipnet_edge.benchmarks.limits import Limit
from pipnet_edge.converters import demo
from pipnet_edge.errors import EdgeError

LABELS = demo.FACES / "labels.txt"


@pytest.fixture(scope="module")
def measured(demo_bundle, cli, tmp_path_factory):
    """(result, output folder) of one run with labels over the 25 embedded faces."""
    output = tmp_path_factory.mktemp("drift") / "out"
    done = cli("drift", demo_bundle, "--images", demo.FACES, "--labels", LABELS, "-o", output, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["result"], output


def test_every_variant_against_the_first_fp32(measured):
    result, _ = measured
    assert result["reference"] == "onnx-fp32"
    assert result["labels"]["nme"] == pytest.approx(1.98, abs=0.02)
    assert result["labels"]["fits"] is True
    assert result["notes"] == [f"the NME of onnx-fp32 itself is {result['labels']['nme']:.3f} %"]
    assert result["calibration"]["of"] == 25
    assert result["calibration"]["warning"] is False
    rows = {row["variant"]: row["summary"] for row in result["rows"]}
    floats = {f"{runtime}-{precision}" for runtime in ("ncnn", "mnn", "tflite") for precision in ("fp32", "fp16")}
    assert set(rows) == floats | {f"{runtime}-int8" for runtime in ("onnx", "ncnn", "mnn", "tflite")}
    for name, summary in rows.items():
        assert summary["images"] == 25
        # The demo checkpoint's NME on these faces is known from its training: 1.98 %.
        assert summary["variant"]["nme"]["value"] == pytest.approx(1.98, abs=0.02)
        most = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.3}[name.split("-")[1]]
        assert summary["drift"]["px_mean"]["value"] < most
        assert len(summary["landmarks"]) == 68


def test_pictures(measured):
    result, output = measured
    assert len(result["pictures"]) == 20
    for path in result["pictures"]:
        assert Path(path).parent == output
        assert cv2.imread(path).std() > 10


def test_a_second_run_takes_what_the_first_has_done(measured, demo_bundle, cli):
    result, output = measured
    before = {path: path.stat().st_mtime_ns for path in (output / "cache").iterdir()}
    assert len(before) == 11
    done = cli("drift", demo_bundle, "--images", demo.FACES, "--labels", LABELS, "-o", output, "--json")
    assert json.loads(done.stdout)["result"]["rows"] == result["rows"]
    assert {path: path.stat().st_mtime_ns for path in (output / "cache").iterdir()} == before


def test_limits(measured, demo_bundle, cli):
    _, output = measured
    words = ("drift", demo_bundle, "--images", demo.FACES, "-o", output, "--variant", "ncnn-fp16", "--limit")
    assert cli(*words, "px_mean<=0.05").returncode == 0
    done = cli(*words, "px_mean<=0.001")
    assert done.returncode == 3
    assert "ncnn-fp16: --limit px_mean<=0.001 is broken by 0.0" in done.stderr
    done = cli(*words, "nme<=0.1")
    assert done.returncode == 1
    assert "needs labels" in done.stderr


def test_a_variant_that_cannot_run_has_a_row(demo_bundle, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(demo_bundle, folder)
    (folder / "mnn-fp16" / "model.mnn").write_bytes(b"x")
    bundle = bundles.read(folder)
    faces = drift.Faces(labels.image_folder(demo.FACES), 256)
    chosen = drift.choose(bundle, ["mnn-fp16", "ncnn-fp16"], None)
    rows = drift.run(bundle, faces, chosen, tmp_path / "cache", chunks.processes(2)).rows
    assert "was changed after it was written" in rows[0].failure
    assert rows[1].summary
    verdicts = drift.judged(rows, [Limit("px_mean", 1)])
    assert [verdict.is_kept for verdict in verdicts] == [False, True]
    assert str(drift.broken_limits(rows, verdicts)) == f"mnn-fp16: {rows[0].failure}"
    with pytest.raises(EdgeError, match="was changed after it was written"):
        drift.run(
            bundle, faces, drift.choose(bundle, ["ncnn-fp16"], "mnn-fp16"), tmp_path / "cache", chunks.processes(2)
        )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["009_03.jpg 0.1 0.2"], "labels.txt"),
        (["nobody.jpg" + " 0.5" * 136], "nobody.jpg"),
        (["009_03.jpg" + " 0.5" * 135 + " x"], "line 1"),
    ],
)
def test_labels_that_do_not_fit(demo_bundle, cli, tmp_path, lines, message):
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    words = ("--labels", tmp_path / "labels.txt", "--label-format", "pipnet", "-o", tmp_path / "out")
    done = cli("drift", demo_bundle, "--images", demo.FACES, *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_no_images(demo_bundle, cli, tmp_path):
    done = cli("drift", demo_bundle, "--images", tmp_path, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "no image in" in done.stderr
