"""The MNN variants, made by MNN's converter from the ONNX core.

The converter is called through the C module: the `mnnconvert` command imports MNN.tools, which installs a logging
package and sends usage data (see docs/converting.md). It runs in a child process because it can abort.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from pipnet_edge.converters import tool
from pipnet_edge.converters.core import Core
from pipnet_edge.errors import EdgeError

TOOLS = ("MNN",)

CALL = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"


def convert(core: Core, precision: str, folder: Path) -> None:
    """Writes `model.mnn` into `folder`: input `image`, outputs named as in the core."""
    work = core.work(folder.name)
    model = folder / "model.mnn"
    source, half = core.path, []
    if precision == "fp16":
        source, half = _rounded_to_half(core.path, work), ["--fp16"]
    options = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(model), "--bizCode", "pipnet-edge"]
    tool.run("mnnconvert", [*tool.PYTHON, "-c", CALL, *options, *half], work, makes=(model,))


def _rounded_to_half(core: Path, work: Path) -> Path:
    # MNN cuts off the low bits. Rounding to nearest loses half as much, and MNN then cuts nothing off weights that are
    # fp16 already.
    model = onnx.load(core)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            if not np.isfinite(half).all():
                raise EdgeError(f"weights {tensor.name!r} exceed fp16; convert with --precision fp32")
            tensor.CopyFrom(numpy_helper.from_array(half.astype(np.float32), tensor.name))
    path = work / "half.onnx"
    onnx.save(model, path)
    return path
