"""The manifest: the description in a bundle, as types, and how it is read and written.

A manifest is untrusted when read: a field that is missing, unknown, of another type or out of bounds is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from pipnet_edge import files, runtimes, strict
from pipnet_edge.detect.spec import DetectorSpec
from pipnet_edge.errors import EdgeError
from pipnet_edge.host import cpu_list
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.spec import ModelSpec
from pipnet_edge.words import counted

# 1: spec, source, golden cases, variants. 2: layers, from which times are predicted. 3: variants may be sparse; how a
# bundle was tuned. 4: kinds of bundles; presence and margin of the spec.
FORMAT, VERSION = "pipnet-edge-bundle", 4
# What a bundle's network gives.
LANDMARKS, DETECTOR = "landmarks", "detector"
MANIFEST, GOLDEN, HEADS = "manifest.json", "golden.npz", "heads.npz"
# Short plain names, which no file system, shell or operating system treats specially.
SAFE_PATH = re.compile(r"[A-Za-z0-9._-]{1,100}(/[A-Za-z0-9._-]{1,100}){0,3}")
# Layer.op of convolutions and transposed convolutions; and the largest number that a layer may have.
CONV, TRANSPOSED = "conv", "transposed"
LAYER_LIMIT = 1 << 20
# Bytes of a manifest, and of any other file of a bundle.
LARGEST, LARGEST_FILE = 4 << 20, 1 << 30
# No machine that runs this has more CPUs.
CPU_LIMIT = 4096
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
        if not 0 <= self.size <= LARGEST_FILE:
            raise EdgeError(f"manifest says {self.path} has {self.size} bytes; 0 to {LARGEST_FILE} are allowed")

    @classmethod
    def of(cls, folder: Path, path: Path) -> File:
        """Hashes a file that lies in the bundle at `folder`."""
        return cls(path.relative_to(folder).as_posix(), files.file_sha256(path), path.stat().st_size)

    def verified(self, folder: Path) -> Path:
        """The file's path in `folder`. Raises EdgeError when it is missing, leads outside or is not the one hashed."""
        path = folder / self.path
        if not path.exists() or path.is_dir():
            raise EdgeError(f"bundle {folder} lacks {self.path}")
        fault = self.fault(folder)
        if fault:
            raise EdgeError(f"{self.path} in bundle {folder} {fault}")
        return path

    def fault(self, folder: Path) -> str | None:
        """What is wrong with the file in `folder`, "is missing" for example; None if it is the one hashed.

        Only a regular file of the right size is read.
        """
        path = folder / self.path
        if not path.exists():
            return "is missing"
        if not path.resolve().is_relative_to(folder.resolve()):
            return "is a link that leaves the bundle"
        if not path.is_file():
            return "is no regular file"
        size = path.stat().st_size
        if size != self.size:
            return f"was changed after it was written ({size} bytes, not {self.size})"
        if files.file_sha256(path) != self.sha256:
            return "was changed after it was written (sha256 differs)"
        return None


@dataclass(frozen=True)
class Parity:
    """How far a variant was from the float network when the bundle was written (see benchmarks/accuracy/parity.py).

    A bundle of landmarks has these. px_mean, px_max: landmark differences in pixels of the crop, over `images` crops.
    flips: the number of landmarks in another cell.
    """

    reference: str
    images: int
    px_mean: float
    px_max: float
    flips: int


@dataclass(frozen=True)
class FacesParity:
    """How far a detector's variant was from the float network when the bundle was written.

    images: so many golden pictures of all sizes. faces: those that the float network found in them; lost of these the
    variant did not find, and it found so many new ones. iou_mean, iou_min: intersection over union of boxes of the same
    face, 1 if there is none. score_max: the largest difference of their scores. map_max: that of the maps' values.
    """

    reference: str
    images: int
    faces: int
    lost: int
    new: int
    iou_mean: float
    iou_min: float
    score_max: float
    map_max: float


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
    """A layer of the network: an operation with a pass over memory of its own. All variants share the layers.

    op: CONV, TRANSPOSED or the name of another operation, such as "add". inputs and output: shapes (channels, height,
    width). kernel and stride (height, width) and groups: 1 if this is no convolution. is_offset_head: sparse variants
    do not compute it in every cell.
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
        """Whether it has weights. It then has one input, inputs[0]."""
        return self.op in (CONV, TRANSPOSED)


@dataclass(frozen=True)
class Calibration:
    """The faces that quantized variants were calibrated with: one hash of all pixels, and one of every image file."""

    sha256: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """How far a variant drifts, and what it took to keep that within a limit such as "0.5px".

    layers: those put back to float, the most sensitive first; none if the limit was kept without. drift (in the
    limit's unit), milliseconds (crop to landmarks, one thread, on the machine that converted) and size in bytes: each
    without and with these layers in float. images: how many faces drift was measured on; none is a calibration face.
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
    1], replace the spec's: they turn the image into whole numbers.
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

    precision is one of PRECISIONS. tools: the versions of the tools that made it. parity: of the bundle's own kind.
    is_sparse: its offset heads are computed only at each landmark's winning cell, by the model, or by decode if there
    is a file of them.
    """

    name: str
    runtime: str
    precision: str
    files: tuple[File, ...]
    tools: Mapping[str, str] = field(default_factory=dict)
    parity: Parity | FacesParity | None = None
    quantization: Quantization | None = None
    is_sparse: bool = False

    def __post_init__(self) -> None:
        if self.runtime not in runtimes.RUNTIMES:
            raise EdgeError(f"variant {self.name!r} is for {self.runtime!r}; known: {', '.join(runtimes.DESTINATIONS)}")
        if self.precision not in PRECISIONS:
            raise EdgeError(f"variant {self.name!r} has precision {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        if self.name != f"{self.runtime}-{self.precision}":
            raise EdgeError(f"variant {self.name!r} should be named {self.runtime}-{self.precision}")
        if not self.files:
            raise EdgeError(f"variant {self.name!r} has no files")

    @property
    def heads(self) -> File | None:
        """The file of the offset heads if the model ends in decode.Features; None if the model has them inside."""
        return next((file for file in self.files if PurePosixPath(file.path).name == HEADS), None)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Tuned:
    """The fastest way that `bench --tune` found to run a bundle on one kind of machine.

    cpus: numbers of those to keep to; empty if all are as good. ms: median from picture to landmarks. runtime: name
    and version of what ran, and the load if other work ran beside it. created: when, ISO 8601.
    """

    variant: str
    threads: int
    cpus: tuple[int, ...]
    ms: float
    runtime: str
    created: str

    def __post_init__(self) -> None:
        what, cpus = f"tuning to {self.variant!r:.100}", self.cpus
        most = len(cpus) or CPU_LIMIT
        if list(cpus) != sorted(set(cpus)) or not all(0 <= cpu < CPU_LIMIT for cpu in cpus):
            raise EdgeError(f"{what} has CPUs {cpus!r:.100}; ascending numbers from 0 to {CPU_LIMIT - 1} are needed")
        if not 1 <= self.threads <= most:
            raise EdgeError(f"{what} has {self.threads} threads; 1 to {most} are allowed, at most one a CPU")
        if not self.ms > 0:
            raise EdgeError(f"{what} has frames of {self.ms} ms; more than 0 is needed")

    def __str__(self) -> str:
        where = f" on CPUs {cpu_list(self.cpus)}" if self.cpus else ""
        how = f"{self.variant}, {counted(self.threads, 'thread')}{where}"
        return f"{how}: {self.ms:.2f} ms ({self.runtime}, {self.created[:10]})"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What manifests of all kinds have. tuned: by the name that host.name gives a machine."""

    source: Source
    golden: File
    variants: tuple[Variant, ...]
    layers: tuple[Layer, ...]
    calibration: Calibration | None = None
    tuned: Mapping[str, Tuned] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest(Contents):
    """All fields of a manifest of a network that finds landmarks. A bundle is this and a folder."""

    spec: ModelSpec


@dataclass(frozen=True, kw_only=True)
class DetectorManifest(Contents):
    """All fields of a face detector's manifest. layers: for pictures of the usual size."""

    spec: DetectorSpec


KINDS: Mapping[str, type[Manifest | DetectorManifest]] = {LANDMARKS: Manifest, DETECTOR: DetectorManifest}


def read(folder: Path) -> Manifest | DetectorManifest:
    """Reads and checks the manifest in a folder. Raises EdgeError for anything that is not one of this version."""
    path = folder / MANIFEST
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise EdgeError(f"{path} is a link that leaves the bundle")
        with files.opened(path, LARGEST) as file:
            text = file.read()
    except FileNotFoundError:
        raise EdgeError(f"there is no bundle at {folder} (no {MANIFEST}); `pipnet-edge convert` makes one") from None
    except (OSError, RuntimeError) as e:  # until Python 3.13, a circle of links is a RuntimeError
        raise EdgeError(f"{path} is not readable: {getattr(e, 'strerror', None) or 'a circle of links'}") from None
    data = strict.json_value(text, str(path))
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise EdgeError(f"{path} is not a {FORMAT} manifest")
    version = data.get("version")
    if type(version) is not int or version != VERSION:
        how = ""
        if type(version) is int:
            how = "an older pipnet-edge; convert the checkpoint again" if version < VERSION else "a newer pipnet-edge"
            how = f": it was made by {how}"
        raise EdgeError(f"{path} has version {strict.shown(version)}, this program reads version {VERSION}{how}")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise EdgeError(f"{path} is of the kind {strict.shown(kind)}; allowed: {', '.join(KINDS)}")
    parts = {name: value for name, value in data.items() if name not in ("format", "version", "kind")}
    return strict.read(KINDS[kind], parts, str(path))


def to_json(manifest: Contents) -> dict[str, Any]:
    """The manifest as JSON, with its format, version and kind."""
    kind = next(name for name, each in KINDS.items() if isinstance(manifest, each))
    found = asdict(manifest)
    held = {name: found[name] for name in ("spec", *(field.name for field in fields(Contents)))}
    return {"format": FORMAT, "version": VERSION, "kind": kind, **held}


def write(folder: Path, manifest: Contents) -> None:
    """Writes a folder's manifest whole or not at all. Raises EdgeError with the system's reason."""
    text = json.dumps(to_json(manifest), indent=1)
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
    files.write(folder / MANIFEST, text.encode())
