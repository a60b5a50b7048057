"""The ncnn variants, made by pnnx from the ONNX core."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pnnx

from pipnet_edge.converters import tool
from pipnet_edge.converters.core import Core
from pipnet_edge.converters.ncnn import model as ncnn_model
from pipnet_edge.errors import EdgeError

TOOLS = ("pnnx",)


def convert(core: Core, precision: str, folder: Path) -> None:
    """Writes `model.param` and `model.bin` into `folder`: input blob `image`, output blobs named as in the core."""
    _write(core, folder, fp16=False)
    if precision == "fp16":
        try:
            _halve(folder / "model.param", folder / "model.bin")
        except EdgeError:  # some layers, such as BatchNorm, are only known to pnnx
            _write(core, folder, fp16=True)


def _write(core: Core, folder: Path, fp16: bool) -> None:
    work = core.work(folder.name)
    shutil.copy(core.path, work / "core.onnx")
    param, weights = work / "core.ncnn.param", work / "core.ncnn.bin"
    tool.run("pnnx", [pnnx.EXEC_PATH, "core.onnx", f"fp16={int(fp16)}"], work, makes=(param, weights))
    # pnnx numbers inputs and outputs in the core's order; parity then proves the names against the golden maps.
    names = {"in0": "image", **{f"out{index}": name for index, name in enumerate(core.outputs)}}
    (folder / "model.param").write_text(_rename_blobs(param.read_text(), names))
    shutil.copy(weights, folder / "model.bin")


def _halve(param: Path, weights: Path) -> None:
    """Stores weights in float16. pnnx itself would make zeros of those below 2**-14, float16's subnormals.

    Raises EdgeError for layers that the reader does not know.
    """
    model = ncnn_model.read_model(param, weights)
    with np.errstate(over="ignore"):  # parity refuses infinity
        layers = [
            replace(layer, arrays={n: a.astype(np.float16) if n == "weight" else a for n, a in layer.arrays.items()})
            for layer in model.layers
        ]
    ncnn_model.write_model(replace(model, layers=tuple(layers)), param, weights)


def _rename_blobs(param: str, names: dict[str, str]) -> str:
    """A param file with blobs renamed. Its lines are: type, name, input count, output count, blobs, then key=value."""
    lines = param.splitlines()
    for number, line in enumerate(lines[2:], start=2):
        words = line.split()
        blobs = range(4, 4 + int(words[2]) + int(words[3]))
        lines[number] = " ".join(names.get(word, word) if index in blobs else word for index, word in enumerate(words))
    return "\n".join(lines) + "\n"
