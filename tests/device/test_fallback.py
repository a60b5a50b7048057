"""Runtimes that are installed but broken: they are not called missing, and `run` takes the next one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipnet_edge import defaults, host, runtimes
from pipnet_edge.bundle import Bundle, Tuned
from pipnet_edge.defaults import Choice

Packages = Callable[[str, str], None]
# What a package does when it is imported, and what is said of it.
BROKEN = {
    "sigill": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n",
        "the runtime crashed with SIGILL: its package is built for another CPU",
    ),
    "glibcxx": (
        "raise ImportError('libstdc++.so.6: version GLIBCXX_3.4.32 not found')\n",
        "onnx is installed but cannot be imported: ImportError: libstdc++.so.6: version GLIBCXX_3.4.32 not found",
    ),
    "numpy": (
        "raise RuntimeError('module was compiled against another NumPy C-API version')\n",
        "onnx is installed but cannot be imported: RuntimeError: module was compiled against another NumPy C-API",
    ),
}


@pytest.fixture
def two(bundle: Bundle) -> Bundle:
    """A bundle for ONNX Runtime, which is not there in earnest, and for the null runtime."""
    first, second = bundle.variants
    made = replace(bundle, variants=(replace(first, name="onnx-fp32", runtime="onnx"), second))
    made.write_manifest()
    return made


@pytest.fixture
def image(bundle: Bundle, tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "face.png"), bundle.read_golden()[0][0][:, :, ::-1])
    return tmp_path / "face.png"


def run(bundle: Bundle, image: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", "pipnet_edge.cli", "run", bundle.folder, image, *words]
    line += ["--whole", "-o", image.with_name("out.png")]
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("kind", BROKEN)
def test_run_takes_the_next_runtime_and_says_so(two: Bundle, image: Path, packages: Packages, kind: str) -> None:
    text, said = BROKEN[kind]
    packages("onnxruntime", text)
    done = run(two, image)
    assert (done.returncode, done.stderr) == (0, "")
    assert "by null-fp16 (null" in done.stdout
    assert f"\nnot onnx-fp32: {said}" in done.stdout
    found = json.loads(run(two, image, "--threads", "1", "--json").stdout)["result"]
    assert (found["variant"], found["threads"]) == ("null-fp16", 1)
    assert found["note"].startswith(f"not onnx-fp32: {said}")


def test_a_variant_that_was_asked_for_is_not_replaced(two: Bundle, image: Path, packages: Packages) -> None:
    text, said = BROKEN["glibcxx"]
    packages("onnxruntime", text)
    done = run(two, image, "--variant", "onnx-fp32")
    assert (done.returncode, done.stderr) == (1, f"pipnet-edge run: onnx-fp32: {said}\n")


def test_also_when_it_was_tuned_to_the_broken_one(two: Bundle, image: Path, packages: Packages) -> None:
    machine = host.name(host.facts())
    if machine is None:
        pytest.skip("needs a machine that tells its board or CPU")
    tuned = Tuned("onnx-fp32", 1, (), 1.5, "onnxruntime 1", "2026-01-02T03:04:05+00:00")
    replace(two, tuned={machine: tuned}).write_manifest()
    packages("onnxruntime", BROKEN["numpy"][0])
    done = run(two, image)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"by null-fp16 (null (numpy {np.__version__})), " in done.stdout
    assert "\nnot onnx-fp32: onnx is installed but cannot be imported: RuntimeError: " in done.stdout


def test_none_that_starts(two: Bundle, image: Path, packages: Packages) -> None:
    packages("onnxruntime", BROKEN["glibcxx"][0])
    replace(two, variants=two.variants[:1]).write_manifest()
    done = run(two, image)
    assert (done.returncode, done.stderr) == (1, f"pipnet-edge run: onnx-fp32: {BROKEN['glibcxx'][1]}\n")


def test_a_file_that_was_changed_is_no_fault_of_the_runtime(bundle: Bundle, image: Path) -> None:
    first, second = bundle.variants
    made = replace(bundle, variants=(first, replace(second, name="onnx-fp16", runtime="onnx")))
    made.write_manifest()
    chosen = made.variant(defaults.choose(made, None, None, 1).variant)
    (bundle.folder / chosen.files[0].path).write_bytes(b"")
    done = run(bundle, image)
    assert done.returncode == 1
    assert "was changed after it was written" in done.stderr


def test_each_other_runtime_once(two: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two.variants
    names = ("onnx-fp32", "onnx-int8", "mnn-fp32", "ncnn-fp32", "ncnn-int8")
    rows = [replace(first, name=n, runtime=n.partition("-")[0], precision=n.partition("-")[2]) for n in names]
    many = replace(two, variants=(*rows, second))
    monkeypatch.setattr(runtimes, "is_missing", lambda name: name == "mnn")
    monkeypatch.setattr(host, "features", lambda: ("avx2",))
    found = list(defaults.others(many, Choice("onnx-fp32", 2), None, 3))
    assert [(choice.variant, choice.threads) for choice in found] == [("ncnn-fp32", 3), ("null-fp16", 3)]
    assert [(choice.note or "").partition(":")[0] for choice in found] == ["ncnn-fp32", "null-fp16"]
    first = next(defaults.others(many, Choice("ncnn-int8", 1), 1, 3))
    assert (first.variant, first.threads) == ("onnx-int8", 1)
