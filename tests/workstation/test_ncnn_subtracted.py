"""int8 for ncnn behind layers that cannot subtract a constant, as hard swishes: a layer of its own does it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.converters.ncnn.int8_layers import heads, observe, quantize
from pipnet_edge.converters.ncnn.model import Layer, Model, run

pytest.importorskip("ncnn")

CHANNELS = 16
SWISH = {0: "1.6666667e-01", 1: "5.0e-01"}

Array = NDArray[np.float32]


def conv(name: str, read: str, written: str, outputs: int, inputs: int, kernel: int) -> Layer:
    random = np.random.default_rng(len(name) + outputs)
    weight = 1.5 * random.standard_normal((outputs, inputs, kernel, kernel)) * math.sqrt(2 / (inputs * kernel**2))
    keys = {0: outputs, 1: kernel, 3: 1, 4: kernel // 2, 5: 1, 6: weight.size}
    arrays: dict[str, NDArray[Any]] = {"weight": weight.astype(np.float32).ravel()}
    arrays["bias"] = random.standard_normal(outputs).astype(np.float32)
    return Layer("Convolution", name, (read,), (written,), {key: str(n) for key, n in keys.items()}, arrays)


def swished(*, shared: bool = False) -> Model:
    """Convolution, hard swish, and a padded convolution. If shared, a sum reads the hard swish too."""
    copies = ("swished", "copy") if shared else ("swished",)
    return Model(
        (
            Layer("Input", "image", (), ("image",)),
            conv("first", "image", "raw", CHANNELS, 3, 1),
            Layer("HardSwish", "swish", ("raw",), ("whole",) if shared else copies, SWISH),
            *((Layer("Split", "split", ("whole",), copies),) if shared else ()),
            conv("second", "swished", "mixed", CHANNELS, CHANNELS, 3),
            *((Layer("BinaryOp", "sum", ("mixed", "copy"), ("summed",), {0: "0"}),) if shared else ()),
            conv("head", "summed" if shared else "mixed", "out", 5, CHANNELS, 1),
        )
    )


def images() -> list[Array]:
    random = np.random.default_rng(7)
    return [random.standard_normal((3, 20, 20)).astype(np.float32) for _ in range(4)]


def noise(model: Model, reference: Model) -> Array:
    """Root mean square difference of the output at each cell, (H, W)."""
    pairs = zip(run(model, images(), ["out"]), run(reference, images(), ["out"]), strict=True)
    return np.asarray(np.sqrt(np.mean([np.square(a["out"] - b["out"]).mean(0) for a, b in pairs], axis=0)))


def added(model: Model) -> list[str]:
    return [layer.name for layer in model.layers if layer.kind == "BinaryOp" and layer.integer(1)]


def test_a_hard_swish_uses_the_whole_grid() -> None:
    model = swished()
    ranges, keep = observe(model, images()), heads(model) | {"first"}
    (low, high) = ranges["swished"]
    centred, symmetric = (quantize(model, ranges, keep, centre=c, winograd=False) for c in (True, False))
    assert centred["second"].arrays["input_scale"][0] == pytest.approx(254 / (high - low))
    assert symmetric["second"].arrays["input_scale"][0] == pytest.approx(127 / high)
    assert (added(centred), added(symmetric)) == (["swish_shift"], [])
    found = noise(centred, model)
    assert 0 < found.mean() < 0.65 * noise(symmetric, model).mean()
    # What is padded with is shifted too.
    border = np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]])
    assert border.mean() < 1.3 * found[1:-1, 1:-1].mean()


def test_nothing_is_subtracted_from_what_others_read() -> None:
    model = swished(shared=True)
    int8 = quantize(model, observe(model, images()), heads(model), winograd=False)
    assert added(int8) == []
    assert noise(int8, model).mean() > 0


def test_nothing_is_subtracted_for_little() -> None:
    model = swished()
    ranges = {**observe(model, images()), "swished": (-3.0, 4.0)}
    int8 = quantize(model, ranges, heads(model), winograd=False)
    assert added(int8) == []
    assert int8["second"].arrays["input_scale"][0] == pytest.approx(127 / 4)
