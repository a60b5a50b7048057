"""ONNX Runtime on the CPU. The model takes the uint8 crop itself and holds the normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipnet_edge import host
from pipnet_edge.errors import EdgeError
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.spec import Input

FILES = ("model.onnx",)
CPU = "CPUExecutionProvider"
# The probe's model as the converters make it, packed as runtimes/probe.py says.
TINY = (
    "c-"
    "rG&7h<q#W#p3JV$IA=Oi$%vEazfO5@OCTEm2}|&d)0oVocW(=V0Vu0%Ar1MkmH{FAfHV273ku1_v!(h)|Lj3y^CcB@Z=3NQ_H_gH"
    "cF;3#bW*nP50cmJ4JsnlxOA6AKrE051SZkP;X",
)


def version() -> str:
    return f"onnxruntime {onnxruntime.__version__}"


class Session:
    """Input `crop` (1, H, W, 3) uint8 RGB; names are those of the outputs."""

    def __init__(self, folder: Path, spec: Input, precision: str, threads: int) -> None:
        options = _options(threads)
        if not {"avx512_vnni", "avx_vnni", "asimd"} & set(host.features()):
            # Older x86 CPUs add two products in 16 bits, where the sum can saturate. This option avoids that.
            options.add_session_config_entry("session.x64quantprecision", "1")
        if PRECISIONS[precision].widens:
            # Weights turn into float once, when the model is loaded, and not for every frame.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(str(folder / FILES[0]), options, providers=[CPU])
        if [i.name for i in self._session.get_inputs()] != ["crop"]:
            raise EdgeError(f"{folder / FILES[0]} has no input 'crop'")
        self.names = [output.name for output in self._session.get_outputs()]

    def run(self, crop: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(self.names, self._session.run(self.names, {"crop": crop[None]}), strict=True))

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
