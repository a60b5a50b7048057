"""The ncnn variants, made by pnnx from the ONNX core."""

from __future__ import annotations

import shutil
from pathlib import Path

import pnnx

from pipnet_edge.converters import tool
from pipnet_edge.converters.core import Core

TOOLS = ("pnnx",)


def convert(core: Core, precision: str, folder: Path) -> None:
    """Writes `model.param` and `model.bin` into `folder`: input blob `image`, output blobs named as in the core."""
    work = core.work(folder.name)
    shutil.copy(core.path, work / "core.onnx")
    param, weights = work / "core.ncnn.param", work / "core.ncnn.bin"
    command = [pnnx.EXEC_PATH, "core.onnx", f"fp16={int(precision == 'fp16')}"]
    tool.run("pnnx", command, work, makes=(param, weights))
    # pnnx numbers inputs and outputs in the core's order; parity then proves the names against the golden maps.
    names = {"in0": "image", **{f"out{index}": name for index, name in enumerate(core.outputs)}}
    (folder / "model.param").write_text(_rename_blobs(param.read_text(), names))
    shutil.copy(weights, folder / "model.bin")


def _rename_blobs(param: str, names: dict[str, str]) -> str:
    """A param file with blobs renamed. Its lines are: type, name, input count, output count, blobs, then key=value."""
    lines = param.splitlines()
    for number, line in enumerate(lines[2:], start=2):
        words = line.split()
        blobs = range(4, 4 + int(words[2]) + int(words[3]))
        lines[number] = " ".join(names.get(word, word) if index in blobs else word for index, word in enumerate(words))
    return "\n".join(lines) + "\n"
