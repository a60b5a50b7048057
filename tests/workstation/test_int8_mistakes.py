"""What a user gets wrong with int8 is said in one line, and leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipnet_edge.converters import demo

pytestmark = pytest.mark.usefixtures("cache")

LABELS = demo.FACES / "labels.txt"
NET = (demo.CHECKPOINT, "--data", "300w")
QUICK = ("--calibrate-count", 16, "--rounding", "nearest", "--ranges", "minmax")


def spoilt(folder: Path, kind: str) -> Path:
    for path in sorted(folder.iterdir()):
        if kind == "black":
            path.write_bytes(cv2.imencode(".jpg", np.zeros((256, 256, 3), np.uint8))[1].tobytes())
        else:
            path.write_bytes(path.read_bytes()[:9000])
    return folder


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, faces: Callable[..., Path]) -> Path:
    """A folder of everything that the next tests get wrong."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    faces(folder / "fifteen", 15)
    (folder / "fifteen" / "._face.jpg").write_bytes(b"what a Mac leaves on a stick")
    spoilt(faces(folder / "cut", 20), "cut")
    spoilt(faces(folder / "black", 20), "black")
    lines = LABELS.read_text().splitlines()
    (folder / "short.txt").write_text("\n".join([*lines[:2], lines[2].rpartition(" ")[0], *lines[3:]]))
    (folder / "strangers.txt").write_text("\n".join(f"no{line}" for line in lines))
    names = sorted(path.name for path in demo.CALIBRATION.glob("*.jpg"))
    (folder / "98.txt").write_text("\n".join(name + " 0.25 0.75" * 98 for name in names))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int8"), "go together; given: --precision int8 and no --calibrate"),
        (("--precision", "fp32", "--calibrate", "fifteen"), "given: --precision fp32 --calibrate fifteen"),
        (("--precision", "fp32", "--max-drift", "0.5px"), "--max-drift 0.5px says nothing without --calibrate FOLDER"),
        (("--precision", "fp32", "--calibrate-labels", "98.txt"), "--calibrate-labels 98.txt says nothing without"),
        (("--precision", "fp32", "--calibrate-count", 64), "--calibrate-count 64 says nothing without --calibrate"),
        (("--calibrate", "empty"), "no image in empty"),
        (("--calibrate", "nothing"), "there is no image folder nothing"),
        (("--calibrate", "98.txt"), "98.txt is a file; a folder of images is needed"),
        (("--calibrate", "fifteen"), "15 images to calibrate with; at least 16 are needed"),
        (("--calibrate", "cut"), ".jpg is not an image that OpenCV can read, or is cut off"),
        (("--calibrate", "black"), "shows nothing but one colour (as do 19 more of 20 calibration images)"),
        (("--calibrate", demo.FACES, "--calibrate-labels", "nothing"), "there is no label file nothing"),
        (
            ("--calibrate", demo.FACES, "--calibrate-labels", "short.txt"),
            "short.txt line 3: 135 coordinates; 136 are needed for 68 landmarks",
        ),
        (
            ("--calibrate", demo.FACES, "--calibrate-labels", "strangers.txt"),
            "strangers.txt: none of its 25 labels (no",
        ),
        (("--calibrate", demo.FACES, "--calibrate-count", 15), "--calibrate-count 15; at least 16 faces are needed"),
        (("--calibrate", demo.FACES, "--calibrate-count", -1), "--calibrate-count -1; at least 16 faces are needed"),
        (("--calibrate", demo.FACES, "--ranges", "best"), "--ranges best; allowed: minmax, percentile, kl, mse"),
        (("--calibrate", demo.FACES, "--rounding", "up"), "--rounding up; allowed: sequential, nearest"),
        (("--calibrate", demo.FACES, "--max-drift", "0.5"), "--max-drift '0.5'; allowed: a number and px or nme"),
        (("--calibrate", demo.FACES, "--max-drift", "-1px"), "--max-drift '-1px'; allowed: a number and px or nme"),
        (("--calibrate", demo.FACES, "--max-drift", ""), "--max-drift ''; allowed: a number and px or nme"),
        (("--calibrate", demo.FACES, "--max-drift", "1px"), "25 faces; a budget needs at least 80"),
        (("--calibrate", demo.CALIBRATION, "--max-drift", "0.02nme"), "a budget of 0.02nme needs labels"),
        (
            ("--calibrate", demo.CALIBRATION, "--calibrate-labels", "98.txt", "--max-drift", "1nme"),
            "needs labels of 68 landmarks, as the checkpoint has; --calibrate-labels has 98",
        ),
        (
            ("--calibrate", demo.FACES, "--to", "ncnn", "--precision", "int16x8"),
            "ncnn has no int16x8 variant",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(wrong, say, cache, monkeypatch, words, message):
    monkeypatch.chdir(wrong)
    before = sorted(wrong.rglob("*"))
    code, out, error = say("convert", *NET, "--to", "onnx", *words)
    assert code == 1
    assert message in error
    assert len(error.splitlines()) == 1
    assert out == ""
    assert sorted(wrong.rglob("*")) == before
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--calibrate", demo.FACES), "25 faces; a budget needs at least 80"),
        (("--calibrate", demo.CALIBRATION, "--faces", 24), "24 faces to measure on; 23 of the 117 faces are held"),
        (("--calibrate", demo.CALIBRATION, "--images", demo.FACES, "--faces", 26), "to measure on; --images has 25"),
        (("--calibrate", demo.CALIBRATION, "--images", "nowhere"), "there is no image folder nowhere"),
        (("--calibrate", demo.CALIBRATION, "--precision", "w8"), "--precision w8; allowed: int8, int8-full"),
        (("--calibrate", demo.CALIBRATION, "--ranges", "best"), "--ranges best; allowed: "),
        (
            ("--calibrate", demo.CALIBRATION, "--calibrate-count", 8),
            "--calibrate-count 8; at least 16 faces are needed",
        ),
        (("--calibrate", demo.CALIBRATION, "-o", "nowhere/s.png"), "there is no folder nowhere"),
        (("--calibrate", demo.CALIBRATION, "-o", "s.txt"), "cannot write a picture as s.txt; use .png or .jpg"),
    ],
)
def test_mistakes_with_sensitivity(tmp_path, say, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, error = say("sensitivity", *NET, *words)
    assert (code, out) == (1, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_cannot_be_met(tmp_path, say, monkeypatch, tiny_net):
    """The smallest network, as five maps in ONNX, because every number of layers is tried. Its offsets are so large
    that heads in half precision would drift by pixels.
    """
    monkeypatch.chdir(tmp_path)
    names = ["outputs_cls", "outputs_x", "outputs_y", "outputs_nb_x", "outputs_nb_y"]
    image = torch.zeros(1, 3, 64, 64)
    torch.onnx.export(tiny_net(), (image,), "tiny.onnx", input_names=["img"], output_names=names, dynamo=False)
    Path("five.txt").write_text("0.2 0.2 0.8 0.3 0.5 0.5 0.3 0.8 0.7 0.9\n")
    before = sorted(tmp_path.iterdir())
    options = ("--calibrate", demo.CALIBRATION, *QUICK, "--to", "onnx", "--heads", "dense", "--precision", "int8")
    code, out, error = say("convert", "tiny.onnx", "--meanface", "five.txt", *options, "--max-drift", "0px")
    assert code == 3
    assert error == "pipnet-edge convert: no variant passed, so nothing is written"
    said = (
        r"without onnx-int8: drifts [\d.]+px \(limit 0px\), at best [\d.]+px with (\d) layers in float; half of the mul"
    )
    found = re.match(said, out)
    assert found
    assert 1 < int(found[1]) < 11
    assert sorted(tmp_path.iterdir()) == before
