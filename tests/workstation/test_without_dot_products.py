"""onnx-int8 on an x86 CPU without int8 dot products: valgrind is one, with AVX2, wherever this CPU has them."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipnet_edge import host
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.core import export
from pipnet_edge.converters.onnx.destination import HERE
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.prepare import Options, prepare
from pipnet_edge.converters.quantize.scheme import FULL
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Array = np.ndarray[Any, Any]

# Writes the outputs of each model, (2, values), next to it: as anyone loads it, then with the option for sums that
# cannot saturate.
LOADED_TWICE = """
import sys
import numpy as np
import onnxruntime
crops = np.load(sys.argv[1])
for model in sys.argv[2:]:
    found = []
    for exact in "01":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", exact)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        maps = [map_ for crop in crops for map_ in session.run(None, {"crop": crop[None]})]
        found.append(np.concatenate([map_.ravel() for map_ in maps]))
    np.save(model + ".npy", found)
"""


@pytest.fixture(scope="module")
def without_dot_products() -> list[str]:
    """What to put before a command so that it runs on such a CPU."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("only x86 sums products in 16 bits")
    if not {"avx512_vnni", "avx_vnni"} & set(host.features()):
        return []
    valgrind = shutil.which("valgrind")
    if not valgrind:
        pytest.skip("this CPU has int8 dot products, and valgrind, which has none, is not installed")
    return [valgrind, "--tool=none", "--quiet"]


def test_landmarks_do_not_depend_on_dot_products_or_options(
    tiny_net: Callable[[], torch.nn.Module],
    tiny_spec: ModelSpec,
    tiny_calibration: Calibration,
    tiny_faces: Array,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_dot_products: list[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, options = Network(tiny_spec, tiny_net(), 0), Options("minmax", "nearest")
    ready = prepare(network, tiny_calibration, options, [HERE.levels, FULL])
    np.save(tmp_path / "crops.npy", tiny_faces[:2])

    def made(name: str, levels: int) -> Path:
        given, folder = ready[levels].keeping(frozenset()), tmp_path / name
        folder.mkdir()
        HERE.int8(export(given.graph, given.spec, tmp_path), given, 8, folder)
        return folder / "model.onnx"

    models = [made("narrow", HERE.levels), made("wide", FULL)]

    def run(before: list[str]) -> list[Array]:
        command = [*before, sys.executable, "-c", LOADED_TWICE, str(tmp_path / "crops.npy"), *map(str, models)]
        subprocess.run(command, check=True, timeout=300)
        return [np.load(f"{model}.npy") for model in models]

    (plain, exact), (saturated, wide) = run(without_dot_products)
    np.testing.assert_array_equal(plain, exact)
    # Those kernels ran, and they do saturate.
    assert np.abs(saturated - wide).max() > 0
    here, wide_here = run([])
    np.testing.assert_array_equal(plain, here[0])
    np.testing.assert_array_equal(wide, wide_here[1])
