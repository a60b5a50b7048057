"""The bundle: a folder that holds a network for every runtime, what it is, and the maps it has to reproduce.

    manifest.json    version, ModelSpec, source, the network's layers, and per variant its files with sha256 and size
    golden.npz       crops (n, S, S, 3) uint8 RGB and the float network's maps for them
    <variant>/       the runtime's files, for example ncnn-fp32/model.param; and heads.npz if the network lacks them

A bundle is untrusted when read: paths that leave the folder, unknown versions and changed files are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import runtimes, strict
from pipnet_edge.decode import MAP_NAMES, Decoder, Heads, Maps, map_shapes
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

FORMAT, VERSION = "pipnet-edge-bundle", 2
MANIFEST, GOLDEN, HEADS = "manifest.json", "golden.npz", "heads.npz"
PRECISIONS = ("fp32", "fp16", "int8", "int8-full", "int16x8", "w8")
# Short plain names: nothing that a file system, a shell or another system reads in a way of its own.
SAFE_PATH = re.compile(r"[A-Za-z0-9._-]{1,100}(/[A-Za-z0-9._-]{1,100}){0,3}")
# Convolutions and transposed convolutions, as layers call themselves; and the largest number a layer may have.
CONV, TRANSPOSED = "conv", "transposed"
LAYER_LIMIT = 1 << 20
# A list of numbers, one on each line. Strings in JSON have no line breaks.
NUMBERS = re.compile(r"\[\n([\d\s,.e+-]+)\]")


@dataclass(frozen=True)
class File:
    """A file of the bundle: path relative to the bundle's folder (with "/"), sha256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if path.is_absolute() or not path.parts or ".." in path.parts or not SAFE_PATH.fullmatch(self.path):
            raise EdgeError(f"manifest names the path {self.path!r:.100}, which leaves the bundle or is no plain path")

    @classmethod
    def of(cls, folder: Path, path: Path) -> File:
        """Hashes a file that lies in the bundle at `folder`."""
        return cls(path.relative_to(folder).as_posix(), file_sha256(path), path.stat().st_size)

    def verified(self, folder: Path) -> Path:
        """The file's path in `folder`. Raises EdgeError when it is missing, leads outside or is not the one hashed."""
        path = folder / self.path
        if not path.is_file():
            raise EdgeError(f"bundle {folder} lacks {self.path}")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise EdgeError(f"{self.path} in bundle {folder} is a link that leaves the bundle")
        if path.stat().st_size != self.size or file_sha256(path) != self.sha256:
            raise EdgeError(f"{self.path} in bundle {folder} was changed after it was written (sha256 differs)")
        return path


@dataclass(frozen=True)
class Parity:
    """What a variant differed from the float network by when the bundle was written (see benchmarks/parity.py).

    px_mean, px_max: landmark differences in pixels of the crop over so many images. flips: landmarks in another cell.
    """

    reference: str
    images: int
    px_mean: float
    px_max: float
    flips: int


@dataclass(frozen=True)
class Source:
    """What a bundle was made from: the file, its parameters, ONNX nodes and bytes (before, after) simplification."""

    file: str
    sha256: str
    parameters: int
    onnx_nodes: tuple[int, int]
    onnx_bytes: tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A layer of the network, which all variants share: what passes over memory of its own.

    op: CONV, TRANSPOSED or the name of what else it does, such as "add". inputs and output: shapes (channels, height,
    width). kernel and stride (height, width) and groups are those of convolutions, else 1. is_offset_head: left out of
    variants that have heads.npz.
    """

    name: str
    op: str
    inputs: tuple[tuple[int, int, int], ...]
    output: tuple[int, int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    is_offset_head: bool = False

    def __post_init__(self) -> None:
        numbers = (*(n for shape in (*self.inputs, self.output) for n in shape), *self.kernel, *self.stride)
        if not all(1 <= number <= LAYER_LIMIT for number in (*numbers, self.groups)):
            raise EdgeError(f"layer {self.name!r:.100} has a number that is not from 1 to {LAYER_LIMIT}")
        if self.is_convolution and (len(self.inputs) != 1 or self.inputs[0][0] % self.groups):
            raise EdgeError(f"layer {self.name!r:.100} has not one input whose channels {self.groups} groups divide")

    @property
    def is_convolution(self) -> bool:
        """Whether it has weights; its one input is inputs[0] then."""
        return self.op in (CONV, TRANSPOSED)


@dataclass(frozen=True)
class Calibration:
    """The faces that quantized variants were calibrated with: one hash of all pixels, and one of every image file."""

    sha256: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """What it took to keep a variant's drift within a limit such as "0.5px".

    layers: those put back to float, the most sensitive first. drift (in the limit's unit), milliseconds (crop to
    landmarks, one thread, on the machine that converted) and size in bytes: without and with them. images: so many
    faces were judged by, none of them a calibration face.
    """

    limit: str
    layers: tuple[str, ...]
    images: int
    drift: tuple[float, float]
    milliseconds: tuple[float, float]
    size: tuple[int, int]


@dataclass(frozen=True)
class Quantization:
    """How a variant was quantized.

    ranges and rounding name the methods. kept: layers that stayed in float, and why. mean and std, for values in [0,
    1], take the place of the spec's: with them the image is whole numbers.
    """

    ranges: str
    rounding: str
    kept: Mapping[str, str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    budget: Budget | None = None


@dataclass(frozen=True)
class Variant:
    """One runtime's form of the network.

    precision is one of PRECISIONS. tools are the versions that made it.
    """

    name: str
    runtime: str
    precision: str
    files: tuple[File, ...]
    tools: Mapping[str, str] = field(default_factory=dict)
    parity: Parity | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.runtime not in runtimes.ADAPTERS:
            raise EdgeError(f"variant {self.name!r} is for {self.runtime!r}; known: {', '.join(runtimes.DESTINATIONS)}")
        if self.precision not in PRECISIONS:
            raise EdgeError(f"variant {self.name!r} has precision {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        if self.name != f"{self.runtime}-{self.precision}":
            raise EdgeError(f"variant {self.name!r} should be named {self.runtime}-{self.precision}")
        if not self.files:
            raise EdgeError(f"variant {self.name!r} has no files")

    @property
    def heads(self) -> File | None:
        """The offset heads of a variant whose network ends in decode.Features, None where it gives all maps."""
        return next((file for file in self.files if PurePosixPath(file.path).name == HEADS), None)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Bundle:
    """A manifest and the folder that it describes."""

    folder: Path
    spec: ModelSpec
    source: Source
    golden: File
    variants: tuple[Variant, ...]
    layers: tuple[Layer, ...]
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise EdgeError(f"bundle {self.folder} has variants twice or none: {', '.join(names)}")
        if not self.layers:
            raise EdgeError(f"bundle {self.folder} has no layers")

    def variant(self, name: str) -> Variant:
        """A variant by name. Raises EdgeError that lists those there are."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise EdgeError(
            f"bundle {self.folder} has no variant {name!r}, only {', '.join(v.name for v in self.variants)}"
        )

    def open_session(self, name: str, threads: int) -> runtimes.Session:
        """Loads a variant into its runtime after checking its files' hashes."""
        if threads < 1:
            raise EdgeError(f"{threads} threads; at least 1 is needed")
        variant = self.variant(name)
        folders = {file.verified(self.folder).parent for file in variant.files}
        if len(folders) != 1:
            raise EdgeError(f"variant {name!r} has files in more than one folder")
        lacking = set(runtimes.adapter(variant.runtime).FILES) - {Path(file.path).name for file in variant.files}
        if lacking:
            # Otherwise the runtime would load a file that nobody hashed.
            raise EdgeError(f"variant {name!r} does not list its {min(lacking)}")
        spec, quantized = self.spec, variant.quantization
        if quantized:
            spec = replace(spec, mean=quantized.mean, std=quantized.std)
        return runtimes.load(variant.runtime, folders.pop(), spec, variant.precision, threads)

    def decoder(self, name: str) -> Decoder:
        """What decodes a variant's output, with its heads if decode has to evaluate them."""
        return Decoder(self.spec, self.read_heads(name))

    def read_heads(self, name: str) -> Heads | None:
        """A variant's heads.npz, if it has one: weight (L, 2, 1 + N, C) float32 or float16, bias (L, 2, 1 + N)."""
        file = self.variant(name).heads
        if file is None:
            return None
        path = file.verified(self.folder)
        with _arrays(path) as arrays:
            weight, bias = arrays["weight"], arrays["bias"]
        shape = (self.spec.num_lms, 2, 1 + self.spec.num_nb)
        kind = np.float16 if weight.dtype == np.float16 else np.float32
        _check_array(path, "weight", weight, kind, (*shape, weight.shape[-1] if weight.ndim else 0))
        _check_array(path, "bias", bias, np.float32, shape)
        return Heads(weight.astype(np.float32), bias)

    def read_golden(self) -> tuple[NDArray[np.uint8], Maps]:
        """The golden crops (n, S, S, 3) uint8 RGB and the float network's maps, batch axis first."""
        path = self.golden.verified(self.folder)
        with _arrays(path) as arrays:
            crops, maps = arrays["crops"], Maps(**{name: arrays[name] for name in MAP_NAMES})
        side = self.spec.input_size
        count = len(crops) if crops.ndim else 0
        _check_array(path, "crops", crops, np.uint8, (count, side, side, 3))
        for name, shape in map_shapes(self.spec).items():
            _check_array(path, name, getattr(maps, name), np.float32, (count, *shape))
        return crops, maps

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "spec": asdict(self.spec),
            "source": asdict(self.source),
            "golden": asdict(self.golden),
            "calibration": asdict(self.calibration) if self.calibration else None,
            "layers": [asdict(layer) for layer in self.layers],
            "variants": [asdict(variant) for variant in self.variants],
        }

    def write_manifest(self) -> None:
        text = json.dumps(self.to_json(), indent=1)
        (self.folder / MANIFEST).write_text(NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def read(folder: Path) -> Bundle:
    """Reads and checks a bundle's manifest. Raises EdgeError for anything that is not a bundle of this version.

    Files are hashed when they are opened, not here.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise EdgeError(f"there is no bundle at {folder} (no {MANIFEST}); `pipnet-edge convert` makes one") from None
    except (OSError, ValueError, RecursionError) as e:
        raise EdgeError(f"{path} is not readable: {runtimes.one_line(e)}") from e
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise EdgeError(f"{path} is not a {FORMAT} manifest")
    if type(data.get("version")) is not int or data["version"] != VERSION:
        raise EdgeError(f"{path} has version {data.get('version')!r}, this program reads version {VERSION}")
    manifest = strict.read(_Manifest, data, str(path))
    parts = {name: value for name, value in vars(manifest).items() if name not in ("format", "version")}
    return Bundle(folder, **parts)


@dataclass(frozen=True)
class _Manifest:
    format: str
    version: int
    spec: ModelSpec
    source: Source
    golden: File
    calibration: Calibration | None
    layers: tuple[Layer, ...]
    variants: tuple[Variant, ...]


@contextlib.contextmanager
def _arrays(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays of an .npz file. Raises EdgeError when it is none, or lacks one that the block asks for."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, TypeError, IndexError) as e:
        raise EdgeError(f"{path} is not readable: {runtimes.one_line(e)}") from e


def _check_array(path: Path, name: str, array: NDArray[Any], kind: type, shape: tuple[int, ...]) -> None:
    if array.dtype != kind or array.shape != shape or not array.size:
        found = f"{array.shape} of {array.dtype}"
        raise EdgeError(f"{path}: {name} has shape {found}, {shape} of {np.dtype(kind)} is needed")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of `folder` if the block ends well, and vanishes if it does not.

    An existing bundle is replaced; anything else at that place is refused before any work is done. The new folder lies
    beside the old one, so that the last step is a rename and a crash leaves nothing half-made.
    """
    target = folder.absolute()
    if os.path.lexists(target) and not (target / MANIFEST).is_file() and not _is_empty(target):
        raise EdgeError(f"{folder} exists and is not a bundle; give another place with -o or remove it")
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as e:
        raise EdgeError(f"cannot write into {target.parent}: {e.strerror}") from e
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not target.exists():
            # Deepest first; one that somebody else has put a file into by now stays.
            with contextlib.suppress(OSError):
                for parent in made:
                    parent.rmdir()


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not os.listdir(path)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
