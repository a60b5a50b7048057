"""Channels whose weights training left all zero, with next to no bias: every runtime takes them in int8."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipnet_edge.converters import cores
from pipnet_edge.converters.checkpoint.network import Network, normalise
from pipnet_edge.converters.graph import Run, points
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.prepare import Options, Prepared, prepare
from pipnet_edge.converters.quantize.scheme import FULL, SAFE, stored
from pipnet_edge.converters.tflite import int8 as tflite
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
Array = np.ndarray[Any, Any]
DEPTHWISE = "backbone.depthwise.0"
BIASES = {0: 0.0, 3: 1e-8, 4: 7.5e-6, 7: -7e-5, 9: 1e-30, 11: 0.3}


@pytest.fixture(scope="module")
def prepared(
    tiny_net: Make, tiny_spec: ModelSpec, tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Prepared]:
    net = tiny_net()
    layer: Any = net.get_submodule(DEPTHWISE)
    for channel, bias in BIASES.items():
        layer.weight[channel], layer.bias[channel] = 0.0, bias
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return prepare(Network(tiny_spec, net, 0), tiny_calibration, Options("minmax", "nearest"), [SAFE, FULL])


@pytest.mark.parametrize("runtime", ["onnx", "ncnn", "mnn", "tflite"])
def test_every_runtime_gives_what_the_simulation_gives(
    runtime: str,
    prepared: dict[int, Prepared],
    tiny_faces: Array,
    run_int8: Callable[..., list[Array]],
    distance: Callable[..., float],
    tmp_path: Path,
) -> None:
    here = import_module(f"pipnet_edge.converters.{runtime}.destination").HERE
    rounded = cores.Cores(prepared, tmp_path, True, False).keeping(here.levels, frozenset(), False)
    given, kept = rounded.given, points(rounded.given.graph)
    folder, crops = tmp_path / "int8", tiny_faces[:8]
    folder.mkdir()
    here.int8(rounded.core, given, 8, folder)

    def hook(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        return stored(value, given.ranges[node.name]) if node.name in kept else value

    simulated = [maps.numpy() for maps in Run(given.graph, hook).run(normalise(crops, given.spec))]
    assert distance(run_int8(runtime, folder, given.spec, crops), simulated) < 0.06


@pytest.mark.parametrize(("coarsest", "changes"), [(1e-3, True), (1e-9, False)])
def test_steps_are_as_coarse_as_the_quantizers_only_beside_coarser_ones(coarsest: float, changes: bool) -> None:
    """If a layer has nothing but tiny weights, they matter."""
    steps = np.array([1e-13, 1e-11, coarsest], np.float32)
    changed = np.maximum(steps, np.float32(tflite.FINEST))
    np.testing.assert_array_equal(tflite._steps_that_fit(steps), changed if changes else steps)
