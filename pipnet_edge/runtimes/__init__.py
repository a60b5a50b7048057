"""One adapter a runtime, found by its name and imported only when asked for.

An adapter module has FILES (what a variant's folder holds), `version()`, `Session(folder, spec, precision, threads)`
and `tiny(folder, image)`, which runs the model of runtimes/probe.py.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.decode import Output
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec
from pipnet_edge.words import one_line

# Destination (as in `--to` and in variant names) to adapter module and the package that provides the runtime.
ADAPTERS = {
    "onnx": ("onnxruntime", "onnxruntime"),
    "ncnn": ("ncnn", "ncnn"),
    "mnn": ("mnn", "MNN"),
    "tflite": ("tflite", "ai-edge-litert"),
    "null": ("null", "numpy"),
}
# What a runtime's adapter imports; the first that is there serves.
PACKAGES = {
    "onnx": ("onnxruntime",),
    "ncnn": ("ncnn",),
    "mnn": ("MNN",),
    "tflite": ("ai_edge_litert", "tflite_runtime"),
    "null": ("numpy",),
}
DESTINATIONS = ("onnx", "ncnn", "mnn", "tflite")
# Float precisions; the quantized ones are in converters/recipes.toml.
PRECISIONS = {"onnx": ("fp32",), "ncnn": ("fp32", "fp16"), "mnn": ("fp32", "fp16"), "tflite": ("fp32", "fp16")}
# Those that compute in half precision where the CPU can; the others hold fp16 weights and compute in fp32.
HALF_ARITHMETIC = ("ncnn", "mnn")
ARM_HALF = "asimdhp"


class Session(Protocol):
    """A loaded network.

    `run` takes one (S, S, 3) uint8 RGB crop and returns its maps or features; `close` frees the runtime.
    """

    def run(self, crop: NDArray[np.uint8]) -> Output: ...

    def close(self) -> None: ...


def adapter(destination: str) -> ModuleType:
    """The adapter module of "onnx", "ncnn", "mnn", "tflite" or "null". Raises EdgeError when its package is missing."""
    if destination not in ADAPTERS:
        raise EdgeError(f"no runtime {destination!r}; allowed: {', '.join(DESTINATIONS)}")
    module, package = ADAPTERS[destination]
    try:
        return importlib.import_module(f"{__name__}.{module}")
    except ImportError as e:
        raise EdgeError(f"{destination} needs the package {package}: pip install {package} ({e})") from e


def load(destination: str, folder: Path, spec: ModelSpec, precision: str, threads: int) -> Session:
    """Opens a variant's folder in its runtime. Raises EdgeError with the runtime's own reason when it refuses."""
    runtime = adapter(destination)
    try:
        session: Session = runtime.Session(folder, spec, precision, threads)
    except EdgeError:
        raise
    except Exception as e:
        raise EdgeError(f"{destination} cannot load {folder}: {one_line(e)}") from e
    return session


def arithmetic(destination: str, precision: str, features: Sequence[str]) -> str:
    """What a variant's convolutions really compute in on a CPU with such features (host.ISA_FEATURES)."""
    if precision == "fp16" and not (destination in HALF_ARITHMETIC and ARM_HALF in features):
        return "fp32, fp16 weights"
    if precision == "w8":
        return "fp32, int8 weights"
    return "int8, depthwise fp32" if (destination, precision) == ("ncnn", "int8") else precision


def is_missing(destination: str) -> bool:
    """Whether the runtime's package is not installed at all (one that is broken counts as there)."""
    return not any(importlib.util.find_spec(module) for module in PACKAGES[destination])


def installed(destination: str) -> str | None:
    """The package that would run and its version, told without importing it. None where the runtime is missing.

    A package that no installer has recorded is told by its file, and by when that was written.
    """
    for module in PACKAGES[destination]:
        if found := importlib.util.find_spec(module):
            package = module.replace("_", "-")
            try:
                return f"{package} {importlib.metadata.version(package)}"
            except importlib.metadata.PackageNotFoundError:
                place = Path(found.origin or "")
                return f"{place} {place.stat().st_mtime_ns if place.is_file() else ''}"
    return None
