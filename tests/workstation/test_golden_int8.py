"""Networks of random weights in int8: they drift over every limit, and nothing else may stop a conversion."""

from __future__ import annotations

import json
import re

import pytest

from pipnet_edge.converters import demo

pytestmark = pytest.mark.usefixtures("cache")

EACH = {f"{runtime}-int8" for runtime in ("onnx", "ncnn", "mnn", "tflite")}
# What parity says of a variant that drifts: figures and limits.
DRIFTS = r"[\d.e+-]+ (px between landmarks on average|of the landmarks in another cell) \(limit [\d.]+\)"


@pytest.mark.parametrize(
    ("name", "side"),
    [("lapa_mobilenet_v3_s32", 128), ("wflw_resnet18_s16", 128), ("300w_resnet18_s128", 256)],
)
def test_a_network_converts_or_drifts(tmp_path, save_checkpoint, cases, cli, name, side):
    quick = ("--calibrate", demo.CALIBRATION, "--calibrate-count", 16, "--rounding", "nearest", "--max-drift", "none")
    options = ("--data", cases[name].data, "--precision", "int8", "--input-size", side, *quick)
    done = cli("convert", save_checkpoint(name), *options, "-o", tmp_path / "b", "--json")
    assert done.returncode in (0, 3), done.stderr
    found = json.loads(done.stdout)["result"]
    made, lost = {variant["name"] for variant in found.get("variants", ())}, found["lost"]
    assert made | set(lost) == EACH
    for why in lost.values():
        assert re.fullmatch(rf"{DRIFTS}(, {DRIFTS})*; worst map \w+, off by [\d.e+-]+", why)
