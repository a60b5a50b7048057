"""For each runtime: one adapter, found by its name and imported only when asked for, and one row of what it can do.

An adapter module has FILES (the files in a variant's folder), `version()`, `Session(folder, spec, precision, threads)`,
a Model for whatever spec.Input says, and, for runtimes/probe.py, TINY (the probe's model, as the contents of FILES) and
`tiny(folder, image)`, which runs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.decode import Output, outputs
from pipnet_edge.detect.decode import BoxMaps
from pipnet_edge.detect.spec import Sized
from pipnet_edge.errors import EdgeError
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.preprocess import check_pixels
from pipnet_edge.spec import Input, ModelSpec
from pipnet_edge.words import one_line

ARM_HALF = "asimdhp"
BITS = 64 if sys.maxsize > 2**32 else 32


@dataclass(frozen=True)
class Runtime:
    """The abilities of one runtime, and how it is installed.

    name: the runtime, as in --to and in variant names.
    module: the adapter in this folder.
    package: the package that pip installs.
    modules: the adapter imports the first of these that is installed.
    precisions: those that its variants can have (pipnet_edge.precisions); empty if nothing is converted to it.
    half_arithmetic: whether it computes in half precision if the CPU can; else it turns fp16 weights into fp32.
    any_size: whether one model of a detector takes pictures of every size; else there is a model for each.
    float_depthwise: whether its int8 variants compute depthwise convolutions in fp32.
    published: its name in published timings; None if it is in none.
    lenders: the runtimes whose published timings are used if its own are too few; the first convolves as it does.
    winograd: whether it computes 3x3 convolutions by Winograd's algorithm; None if its own timings are too few to fit.
    on_32_bit: the package that has wheels for 32-bit Arm; None if there is none.
    on_32_bit_python: the only Python version that has such wheels, such as "3.11"; None if all have them.
    wheel: the version of the package that is tested (constraints.txt) and that the emulator installs.
    """

    name: str
    module: str
    package: str
    modules: tuple[str, ...]
    precisions: tuple[str, ...] = ()
    half_arithmetic: bool = False
    any_size: bool = False
    float_depthwise: bool = False
    published: str | None = None
    lenders: tuple[str, ...] = ()
    winograd: bool | None = None
    on_32_bit: str | None = None
    on_32_bit_python: str | None = None
    wheel: str | None = None


RUNTIMES: Mapping[str, Runtime] = {
    row.name: row
    for row in (
        Runtime(
            name="onnx",
            module="onnxruntime",
            package="onnxruntime",
            modules=("onnxruntime",),
            precisions=("fp32", "int8", "int8-full", "w8"),
            published="onnxruntime",
            lenders=("tflite", "ncnn"),
            wheel="1.32.0",
        ),
        Runtime(
            name="ncnn",
            module="ncnn",
            package="ncnn",
            modules=("ncnn",),
            precisions=("fp32", "fp16", "int8", "int8-full"),
            half_arithmetic=True,
            any_size=True,
            float_depthwise=True,
            published="ncnn",
            winograd=True,
            on_32_bit="ncnn",
            wheel="1.0.20261020",
        ),
        Runtime(
            name="mnn",
            module="mnn",
            package="MNN",
            modules=("MNN",),
            precisions=("fp32", "fp16", "int8", "int8-full", "w8"),
            half_arithmetic=True,
            published="mnn",
            lenders=("ncnn",),
            winograd=True,
            wheel="3.6.1",
        ),
        Runtime(
            name="tflite",
            module="tflite",
            package="ai-edge-litert",
            modules=("ai_edge_litert", "tflite_runtime"),
            precisions=("fp32", "fp16", "int8", "int8-full", "int16x8", "w8"),
            published="tflite",
            lenders=("ncnn",),
            winograd=False,  # it runs on XNNPACK, which does not
            on_32_bit="tflite-runtime",
            on_32_bit_python="3.11",
            wheel="2.3.0",
        ),
        Runtime(name="null", module="null", package="numpy", modules=("numpy",)),
    )
}
# The runtimes that a bundle can be converted to.
DESTINATIONS = tuple(row.name for row in RUNTIMES.values() if row.precisions)


class Session(Protocol):
    """A loaded network.

    `run` takes one (S, S, 3) uint8 RGB crop and returns the network's output; `close` frees the runtime.
    """

    def run(self, crop: NDArray[np.uint8]) -> Output: ...

    def close(self) -> None: ...


def adapter(runtime: str) -> ModuleType:
    """The adapter module of one of RUNTIMES.

    Raises EdgeError that says how to get its package when that is missing, and why it cannot be imported when it is
    installed.
    """
    if runtime not in RUNTIMES:
        raise EdgeError(f"no runtime {runtime!r}; allowed: {', '.join(DESTINATIONS)}")
    try:
        return importlib.import_module(f"{__name__}.{RUNTIMES[runtime].module}")
    except Exception as e:  # a broken package raises what it likes
        if not is_missing(runtime):
            raise EdgeError(f"{runtime} is installed but cannot be imported: {one_line(e)}") from e
        package = package_for(runtime)
        advice = f"needs the package {package}: pip install {package}" if package else "has no package for this Python"
        raise EdgeError(f"{runtime} {advice}") from e


def package_for(runtime: str, bits: int = BITS, python: str = platform.python_version()) -> str | None:
    """The package that gives a runtime to a Python of so many bits and this version. None if there is none."""
    row = RUNTIMES[runtime]
    if bits != 32:
        return row.package
    is_other = row.on_32_bit_python and not python.startswith(f"{row.on_32_bit_python}.")
    return None if is_other else row.on_32_bit


class Model(Protocol):
    """A network as its runtime has it.

    `run` takes (height, width, 3) uint8 RGB pixels and returns the named outputs; `close` frees the runtime.
    """

    names: Sequence[str]

    def run(self, crop: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]: ...

    def close(self) -> None: ...


Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Checked(Generic[Found]):
    """A session that sees pixels of one (width, height) only: the same EdgeError on every runtime for any other array.

    Without it some runtimes read past the end of a smaller array. understood: makes something of the model's outputs.
    """

    model: Model
    size: tuple[int, int]
    understood: Callable[[Mapping[str, NDArray[np.float32]]], Found]

    def run(self, crop: NDArray[np.uint8]) -> Found:
        check_pixels("crop", crop, self.size)
        return self.understood(self.model.run(crop))

    def close(self) -> None:
        self.model.close()


def load(runtime: str, folder: Path, spec: ModelSpec, precision: str, threads: int) -> Session:
    """Opens a variant's folder in its runtime. Raises EdgeError with the runtime's own reason when it refuses."""
    model = _open(runtime, folder, spec, precision, threads)
    kind = outputs(model.names, spec)
    return Checked[Output](model, spec.size, lambda found: kind.from_outputs(found, spec))


def load_detector(runtime: str, folder: Path, sized: Sized, precision: str, threads: int) -> Checked[BoxMaps]:
    """Opens a face detector as `load` does a network for landmarks."""
    model = _open(runtime, folder, sized, precision, threads)
    return Checked(model, sized.size, lambda found: BoxMaps.from_outputs(found, sized))


def _open(runtime: str, folder: Path, spec: Input, precision: str, threads: int) -> Model:
    module = adapter(runtime)
    try:
        model: Model = module.Session(folder, spec, precision, threads)
        return model
    except EdgeError:
        raise
    except Exception as e:
        raise EdgeError(f"{runtime} cannot load {folder}: {one_line(e)}") from e


def arithmetic(runtime: str, precision: str, features: Sequence[str]) -> str:
    """The type that a variant's convolutions really compute in, on a CPU with these of host.ISA_FEATURES."""
    row, asked = RUNTIMES[runtime], PRECISIONS[precision]
    if asked.widens or (asked.is_half and not (row.half_arithmetic and ARM_HALF in features)):
        return f"fp32, {asked.weights} weights"
    return "int8, depthwise fp32" if row.float_depthwise and precision == "int8" else precision


def is_missing(runtime: str) -> bool:
    """Whether the runtime's package is not installed at all (a broken one counts as installed)."""
    return not any(importlib.util.find_spec(module) for module in RUNTIMES[runtime].modules)


def installed(runtime: str) -> str | None:
    """The package that would run and its version, found without importing it. None if the runtime is missing.

    If no installer has recorded the package, it is the path of its file and the time when the file was written.
    """
    for module in RUNTIMES[runtime].modules:
        if found := importlib.util.find_spec(module):
            package = module.replace("_", "-")
            try:
                return f"{package} {importlib.metadata.version(package)}"
            except importlib.metadata.PackageNotFoundError:
                file = Path(found.origin or "")
                return f"{file} {file.stat().st_mtime_ns if file.is_file() else ''}"
    return None
