"""What each operation of an MNN model gives for an image: `python -m pipnet_edge.converters.mnn.values NET IMAGE OUT`.

It is a process of its own because MNN may crash and prints on stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import MNN
import numpy as np

# MNN's number for the hint how much memory Winograd may take. More memory means more rounding; 0 is none.
WINOGRAD_HINT = 3


def save_values(model: Path, image: Path, out: Path) -> None:
    """Writes an .npz: operation name -> its first output in float; the image (1, C, H, W) comes from an .npy file."""
    values: dict[str, Any] = {}

    def after(written: Sequence[MNN.Tensor], operation: MNN.OpInfo) -> bool:
        shape = written[0].getShape()
        host = MNN.Tensor(shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), MNN.Tensor_DimensionType_Caffe)
        written[0].copyToHostTensor(host)
        values[operation.getName()] = np.array(host.getNumpyData())
        return True

    array = np.load(image, allow_pickle=False)
    interpreter = MNN.Interpreter(str(model))
    # Winograd's transforms cause errors of a thousandth of the largest value.
    interpreter.setSessionHint(WINOGRAD_HINT, 0)
    session = interpreter.createSession({"numThread": 1, "backend": "CPU", "precision": "high"})
    given = MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, MNN.Tensor_DimensionType_Caffe)
    interpreter.getSessionInput(session, "image").copyFrom(given)
    interpreter.runSessionWithCallBackInfo(session, lambda *_: True, after)
    np.savez(out, **values)


if __name__ == "__main__":
    save_values(*map(Path, sys.argv[1:]))
