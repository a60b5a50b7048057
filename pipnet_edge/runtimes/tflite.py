"""TFLite through ai-edge-litert, or through tflite-runtime where that is all there is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

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
    """Signature with input `crop` (1, S, S, 3) uint8 RGB and outputs named as in decode, features channels last."""

    def __init__(self, folder: Path, spec: ModelSpec, precision: str, threads: int) -> None:
        self._spec = spec
        interpreter = Interpreter(str(folder / FILES[0]), num_threads=threads)
        signatures = interpreter.get_signature_list()
        key = next(iter(signatures), None)
        if key is None or signatures[key]["inputs"] != ["crop"]:
            raise EdgeError(f"{folder / FILES[0]} has no signature that takes 'crop'")
        self._kind = outputs(signatures[key]["outputs"])
        self._run = interpreter.get_signature_runner(key)

    def run(self, crop: NDArray[np.uint8]) -> Output:
        found = self._run(crop=crop[None])
        if "features" in found:
            found["features"] = np.moveaxis(found["features"], 3, 1)
        return self._kind.from_outputs(found, self._spec)

    def close(self) -> None:
        del self._run


def tiny(folder: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probe's model on a (1, C, H, W) image."""
    return np.asarray(Interpreter(str(folder / FILES[0]), num_threads=1).get_signature_runner()(crop=image)["out"])
