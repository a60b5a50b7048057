"""TFLite through ai-edge-litert, or through tflite-runtime where that is all there is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.decode import Output, outputs
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

if importlib.util.find_spec("ai_edge_litert"):
    from ai_edge_litert.interpreter import Interpreter

    PACKAGE = "ai-edge-litert"
else:
    from tflite_runtime.interpreter import Interpreter

    PACKAGE = "tflite-runtime"

FILES = ("model.tflite",)


def version() -> str:
    """Which of the two packages runs, and its version."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


class Session:
    """Signature with input `crop` (1, S, S, 3) uint8 RGB and outputs named as in decode."""

    def __init__(self, folder: Path, spec: ModelSpec, precision: str, threads: int) -> None:
        self._spec = spec
        self._interpreter = interpreter = Interpreter(str(folder / FILES[0]), num_threads=threads)
        signatures = interpreter.get_signature_list()
        key = next(iter(signatures), None)
        if key is None or signatures[key]["inputs"] != ["crop"]:
            raise EdgeError(f"{folder / FILES[0]} has no signature that takes 'crop'")
        self._kind = outputs(signatures[key]["outputs"])
        # Called by its tensors: the signature's runner would set their shapes anew for every crop, and while there is
        # one the interpreter allocates nothing.
        self._crop = _indexes(interpreter.get_signature_runner(key).get_input_details())["crop"]
        self._outputs = _indexes(interpreter.get_signature_runner(key).get_output_details())
        interpreter.allocate_tensors()

    def run(self, crop: NDArray[np.uint8]) -> Output:
        self._interpreter.set_tensor(self._crop, crop[None])
        self._interpreter.invoke()
        found = {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}
        return self._kind.from_outputs(found, self._spec)

    def close(self) -> None:
        del self._interpreter


def _indexes(details: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {name: tensor["index"] for name, tensor in details.items()}


def tiny(folder: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probe's model on a (1, C, H, W) image."""
    return np.asarray(Interpreter(str(folder / FILES[0]), num_threads=1).get_signature_runner()(crop=image)["out"])
