"""ONNX files that are made to crash or to fill the memory end in one line, soon, and leave nothing behind."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipnet_edge.converters.checkpoint import from_onnx
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MOST_LANDMARKS

pytestmark = pytest.mark.usefixtures("quiet")

Write = Callable[..., Path]
SECONDS = 60  # a busy machine; alone each takes two
MEMORY = 1 << 20  # KB over what this process has


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each file is refused soon, within a memory, and without leaving files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    assert list(scratch.glob("pipnet-edge-*")) == []


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        from_onnx.read(path, **options)
    assert str(caught.value).isprintable()


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


def test_a_stride_of_zero(tmp_path: Path, tiny_onnx: Write) -> None:
    """onnxsim divides by it."""
    nodes = "features = Conv <strides=[1,1]> (image, w)"
    path = tiny_onnx(tmp_path / "net.onnx", nodes, {"w": (4, 3, 1, 1)})
    model = onnx.load_model_from_string(path.read_bytes())
    model.graph.node[0].attribute[0].ints[:] = [0, 0]
    path.write_bytes(model.SerializeToString())
    refused(path, "must only contain positive values|failed")


def test_a_large_constant(tmp_path: Path, tiny_onnx: Write) -> None:
    nodes = "big = ConstantOfShape (s)\nsmall = ReduceMax <axes=[2,3]> (big)\nfeatures = Add (image, small)"
    path = tiny_onnx(tmp_path / "net.onnx", nodes, {"s": ints(1, 3, 30000, 30000)})
    refused(path, "its tensor 'big' has 1 x 3 x 30000 x 30000 numbers; allowed are 67108864")


def test_a_large_constant_of_unknown_shape(tmp_path: Path, tiny_onnx: Write) -> None:
    """No shape can be inferred before it is computed: the limit of memory is what ends it."""
    nodes = "e = Exp (f)\ns = Cast <to=7> (e)\nbig = ConstantOfShape (s)\nfeatures = Add (image, big)"
    path = tiny_onnx(tmp_path / "net.onnx", nodes, {"f": np.log([1.5, 3.5, 40000.5, 40000.5]).astype(np.float32)})
    refused(path, "ONNX Runtime cannot run it|it is damaged, or takes more memory or time than a network of its size")


def test_padding_that_no_shape_shows(tmp_path: Path, tiny_onnx: Write) -> None:
    pool = "MaxPool <kernel_shape=[30001,30001], pads=[15000,15000,15000,15001], strides=[30000,30000]> (image)"
    path = tiny_onnx(tmp_path / "net.onnx", f"features = {pool}")
    refused(path, r"gives \d+ numbers; allowed are 67108864|its maps are|ONNX Runtime cannot run it")


def test_a_child_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_onnx: Write) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGFPE)\n")
    monkeypatch.setattr(from_onnx.tool, "PYTHON", (*from_onnx.tool.PYTHON, str(crash)))
    message = r"it is damaged, or takes more memory or time than a network of its size: onnx failed \(SIGFPE\)"
    refused(tiny_onnx(tmp_path / "net.onnx"), message)


def test_a_child_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_onnx: Write) -> None:
    monkeypatch.setattr(from_onnx, "SECONDS", 0.01)
    refused(tiny_onnx(tmp_path / "net.onnx"), "than a network of its size: onnx did not end within")


@pytest.mark.parametrize("landmarks", [1001, 1000])
def test_many_landmarks(tmp_path: Path, landmarks: int, tiny_onnx: Write) -> None:
    path = tiny_onnx(tmp_path / "net.onnx", maps=(landmarks,) * 5)
    if landmarks == MOST_LANDMARKS:
        assert from_onnx.read(path).num_lms == landmarks
    else:
        refused(path, "L is at most 1000")


def test_names_that_cannot_be_printed(tmp_path: Path, tiny_onnx: Write) -> None:
    path = tiny_onnx(tmp_path / "net.onnx")
    model = onnx.load_model_from_string(path.read_bytes())
    model.graph.node[0].op_type = "Relu\x1b[2J"
    path.write_bytes(model.SerializeToString())
    refused(path, r"Relu\?\[2J")
    model.graph.node[0].op_type = "Relu"
    model.graph.input[0].name = model.graph.node[0].input[0] = "\x1b[2J"
    model.graph.input.append(model.graph.input[0])
    model.graph.input[1].name = "other"
    path.write_bytes(model.SerializeToString())
    refused(path, r"its inputs are \?\[2J, other; allowed: one image")
