"""What is said of boards that are not here."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipnet_edge import runtimes
from pipnet_edge.targets.ssh import advice

PI = {"python": "/usr/bin/python3", "version": "3.11.2", "machine": "armv7l", "bits": 32, "venv": False}


@pytest.mark.parametrize(
    ("destination", "has", "message"),
    [
        ("onnx", {}, "onnxruntime does not exist for 32 bit, .* ncnn and tflite do, or put a 64-bit system"),
        ("mnn", {}, "MNN does not exist for 32 bit"),
        ("tflite", {"ensurepip": True}, "python3 -m venv ~/pipnet && ~/pipnet/bin/pip install numpy tflite-runtime"),
        ("tflite", {"version": "3.13.5"}, "tflite-runtime exists for 32 bit and Python 3.11 alone, .* is 3.13.5"),
        ("ncnn", {"bits": 64, "ensurepip": False}, "sudo apt install -y python3-venv && python3 -m venv ~/pipnet"),
        ("mnn", {"bits": 64, "venv": True, "python": "/home/pi/pipnet/bin/python"}, "/python -m pip install MNN$"),
    ],
)
def test_runtimes_to_install(destination: str, has: dict[str, Any], message: str) -> None:
    assert re.search(message, advice.runtime(destination, PI | has))


def test_packages_that_exist() -> None:
    for name in ("onnx", "mnn", "ncnn", "tflite"):
        assert runtimes.package_for(name, 64, "3.13.5") == runtimes.RUNTIMES[name].package
    assert [runtimes.package_for(name, 32, "3.13.5") for name in ("onnx", "mnn", "ncnn", "tflite")] == [
        *(None, None, "ncnn", None)
    ]
    assert runtimes.package_for("tflite", 32, "3.11.2") == "tflite-runtime"


def test_numpy_to_install() -> None:
    assert "sudo apt install -y python3-numpy python3-venv && python3 -m venv --system" in advice.numpy(PI)
    assert advice.numpy(PI | {"bits": 64, "ensurepip": True}).endswith("~/pipnet/bin/pip install numpy")
