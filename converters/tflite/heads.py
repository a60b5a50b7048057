"""Offset heads inside a TFLite file, evaluated only at winning cells.

A file with the outputs of decode.Features becomes one with the outputs of decode.Winners. It finds the cell with each
landmark's highest score and gathers the features there. Then one grouped 1x1 convolution, with a group for every
landmark, gives the offsets. With int8 weights, XNNPACK does this in less time than it needs to read the same heads in
float.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipnet_edge.converters.quantize.scheme import weight_steps
from pipnet_edge.converters.tflite.editor import Editor
from pipnet_edge.converters.tflite.int8 import LEVELS
from pipnet_edge.decode import Heads


def add(heads: Heads, precision: str, folder: Path) -> None:
    """Gives the variant in `folder` its heads, as `append` does."""
    append(folder / "model.tflite", heads, precision)


def append(path: Path, heads: Heads, precision: str) -> None:
    """Gives the TFLite file at `path` the output `offsets` (L, 2, 1 + N) instead of `features`.

    In fp32 and fp16, all heads' weights have that precision. In other precisions they are int8, with a step for every
    row: rounded heads lie on these grids already. Features are then quantized on the way, and sums stay float.
    """
    file = Editor(path)
    num_lms, axes, count, channels = heads.weight.shape
    score, features = file.output("score"), file.output("features")
    # Channels last, and in int8 if they are quantized.
    features = file.before("DEQUANTIZE", features)
    cells = math.prod(file.shape(features)[:3])

    winner = file.arg_max(file.reshape(score, (num_lms, cells)), axis=1)
    seen = file.to_float(file.gather(file.reshape(features, (cells, channels)), winner))
    weight = heads.weight.reshape(-1, 1, 1, channels)
    if precision in ("fp32", "fp16"):
        matrix = file.to_float(file.constant(weight.astype(np.float32 if precision == "fp32" else np.float16)))
    else:
        matrix = _integers(file, weight)
        for layer in file.makers(file.before("TRANSPOSE", score), "CONV_2D"):
            image, read, bias = map(int, layer.inputs)
            file.reread(layer, (image, _integers(file, file.values(read)), bias))
    found = file.convolve(file.reshape(seen, (1, 1, 1, num_lms * channels)), matrix, file.constant(heads.bias.ravel()))
    file.replace_output("features", "offsets", file.reshape(found, (num_lms, axes, count)))
    file.save()


def _integers(file: Editor, weight: NDArray[np.float32]) -> int:
    """A constant of weights (out, 1, 1, in) as int8, with a step for every output."""
    steps = weight_steps(torch.from_numpy(weight.copy()), LEVELS).numpy()
    return file.constant(np.rint(weight / steps).astype(np.int8), steps.ravel())
