"""ONNX Runtime on the CPU. The artefact takes the uint8 crop itself and holds the normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipnet_edge.decode import MAP_NAMES, Maps
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

FILES = ("model.onnx",)
CPU = "CPUExecutionProvider"


def version() -> str:
    return f"onnxruntime {onnxruntime.__version__}"


class Session:
    """Input `crop` (1, S, S, 3) uint8 RGB, outputs named as the maps."""

    def __init__(self, folder: Path, spec: ModelSpec, precision: str, threads: int) -> None:
        self._spec = spec
        self._session = onnxruntime.InferenceSession(str(folder / FILES[0]), _options(threads), providers=[CPU])
        names = {output.name for output in self._session.get_outputs()}
        if [i.name for i in self._session.get_inputs()] != ["crop"] or not names.issuperset(MAP_NAMES):
            raise EdgeError(
                f"{folder / FILES[0]} has no input 'crop' or lacks one of the outputs {', '.join(MAP_NAMES)}"
            )

    def run(self, crop: NDArray[np.uint8]) -> Maps:
        outputs = self._session.run(MAP_NAMES, {"crop": crop[None]})
        return Maps.from_outputs(dict(zip(MAP_NAMES, outputs, strict=True)), self._spec)

    def close(self) -> None:
        del self._session


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def tiny(folder: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probe's model on a (1, C, H, W) image."""
    session = onnxruntime.InferenceSession(str(folder / FILES[0]), _options(1), providers=[CPU])
    (out,) = session.run(["out"], {"image": image})
    return np.asarray(out)
