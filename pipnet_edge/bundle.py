"""The bundle: a folder that holds a network for every runtime, its description, and the maps it has to reproduce.

    manifest.json    version, kind, spec, source, the network's layers, the files of each variant with sha256 and size,
                     and the fastest way to run the bundle on each machine that it was tuned for
    golden.npz       crops (n, S, S, 3) uint8 RGB and the float network's maps for them, and its features' domain; or a
                     detector's pictures of each size, and its maps
    <variant>/       the runtime's files, for example ncnn-fp32/model.param; and heads.npz if the model has no heads
    <variant>/640x480/    a detector's files for pictures of this size

A bundle is untrusted when read: paths that leave the folder, unknown versions and changed files are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import folders, npz, runtimes
from pipnet_edge import manifest as manifests
from pipnet_edge.decode import Decoder, Heads, Maps, map_names, map_shapes
from pipnet_edge.detect.decode import BoxMaps
from pipnet_edge.detect.spec import DetectorSpec, Sized, named
from pipnet_edge.domain import Domain
from pipnet_edge.errors import EdgeError
from pipnet_edge.manifest import (
    CONV,
    GOLDEN,
    HEADS,
    MANIFEST,
    TRANSPOSED,
    VERSION,
    Budget,
    Calibration,
    Contents,
    DetectorManifest,
    FacesParity,
    File,
    Layer,
    Manifest,
    Parity,
    Quantization,
    Source,
    Tuned,
    Variant,
)
from pipnet_edge.npz import Form
from pipnet_edge.spec import ModelSpec

__all__ = [
    "CONV",
    "GOLDEN",
    "HEADS",
    "MANIFEST",
    "TRANSPOSED",
    "VERSION",
    "AnyBundle",
    "Budget",
    "Bundle",
    "Calibration",
    "Contents",
    "DetectorBundle",
    "DetectorManifest",
    "FacesParity",
    "File",
    "Held",
    "Layer",
    "Manifest",
    "Parity",
    "Quantization",
    "Source",
    "Tuned",
    "Variant",
    "read",
    "read_any",
    "read_detector",
    "replacing",
]


@dataclass(frozen=True, kw_only=True)
class Held(Contents):
    """What bundles of all kinds can do. folder: where the manifest and the files lie."""

    folder: Path

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise EdgeError(f"bundle {self.folder} has no variants, or one twice: {', '.join(names)}")
        if not self.layers:
            raise EdgeError(f"bundle {self.folder} has no layers")
        for machine, tuned in self.tuned.items():
            if tuned.variant not in names:
                raise EdgeError(f"bundle {self.folder} has no variant {tuned.variant!r:.100}, tuned for {machine:.100}")

    def variant(self, name: str) -> Variant:
        """A variant by name. Raises EdgeError that lists the variants if there is no such one."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise EdgeError(
            f"bundle {self.folder} has no variant {name!r}, only {', '.join(v.name for v in self.variants)}"
        )

    def _verified(self, variant: Variant, files: Sequence[File]) -> Path:
        """The folder of these files of a variant, after their hashes are checked: what its runtime loads."""
        folders = {file.verified(self.folder).parent for file in files}
        if len(folders) != 1:
            raise EdgeError(f"variant {variant.name!r} has files in more than one folder")
        lacking = set(runtimes.adapter(variant.runtime).FILES) - {Path(file.path).name for file in files}
        if lacking:
            # Otherwise the runtime would load a file that nobody hashed.
            raise EdgeError(f"variant {variant.name!r} does not list its {min(lacking)}")
        return folders.pop()

    def damaged(self) -> dict[str, list[str]]:
        """Variant name -> what is wrong with its files; no entry for a whole one. The golden cases are "golden"."""
        parts = {"golden": (self.golden,), **{variant.name: variant.files for variant in self.variants}}
        found = {
            name: [f"{file.path} {fault}" for file in listed if (fault := file.fault(self.folder))]
            for name, listed in parts.items()
        }
        return {name: faults for name, faults in found.items() if faults}

    @property
    def sha256(self) -> str:
        """One hash of all that the bundle holds, from the manifest without tuning, which changes only how it is run."""
        held = replace(self, tuned={}).to_json()
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return manifests.to_json(self)

    def write_manifest(self) -> None:
        """Writes the manifest whole or not at all. Raises EdgeError with the system's reason."""
        manifests.write(self.folder, self)


@dataclass(frozen=True, kw_only=True)
class Bundle(Held, Manifest):
    """A network that finds landmarks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_parity(self, Parity)

    @property
    def network(self) -> str:
        """The backbone."""
        return self.spec.backbone

    @property
    def title(self) -> str:
        """The network in a few words."""
        return f"{self.spec.backbone}, {self.spec.num_lms} landmarks, {self.spec.input_size} px"

    def open_session(self, name: str, threads: int) -> runtimes.Session:
        """Loads a variant into its runtime after checking its files' hashes."""
        _check_threads(threads)
        variant = self.variant(name)
        folder = self._verified(variant, variant.files)
        return runtimes.load(variant.runtime, folder, _quantized(self.spec, variant), variant.precision, threads)

    def decoder(self, name: str) -> Decoder:
        """The decoder of a variant's output, with its offset heads if decode has to compute them."""
        return Decoder(self.spec, self.read_heads(name))

    def read_heads(self, name: str) -> Heads | None:
        """A variant's heads.npz, if it has one: weight (L, 2, 1 + N, C) float32 or float16, bias (L, 2, 1 + N)."""
        file = self.variant(name).heads
        if file is None:
            return None
        shape = (self.spec.num_lms, 2, 1 + self.spec.num_nb)
        forms = {"weight": Form((*shape, "C"), (np.float32, np.float16)), "bias": Form(shape)}
        arrays = npz.read(file.verified(self.folder), forms)
        return Heads(arrays["weight"].astype(np.float32), arrays["bias"])

    def read_golden(self) -> tuple[NDArray[np.uint8], Maps]:
        """The golden crops (n, S, S, 3) uint8 RGB and the float network's maps, batch axis first."""
        side, shapes = self.spec.input_size, map_shapes(self.spec)
        forms = {"crops": Form(("n", side, side, 3), (np.uint8,))}
        forms |= {name: Form(("n", *shapes[name])) for name in map_names(self.spec.num_nb)}
        arrays = npz.read(self.golden.verified(self.folder), forms)
        crops = arrays.pop("crops")
        # Maps of neighbours, where there are none, are not in the file.
        empty = {name: np.zeros((len(crops), *shape), np.float32) for name, shape in shapes.items() if 0 in shape}
        return crops, Maps(**empty, **arrays)

    def read_domain(self) -> Domain | None:
        """What calibration saw, from golden.npz; None if there was no calibration, or the network gives no features."""
        path, ranges = self.golden.verified(self.folder), Form(("C",))
        if "feature_limit" not in npz.names(path):
            return None
        arrays = npz.read(path, {"feature_low": ranges, "feature_high": ranges, "feature_limit": Form((1,))})
        return Domain(arrays["feature_low"], arrays["feature_high"], float(arrays["feature_limit"][0]))


@dataclass(frozen=True, kw_only=True)
class DetectorBundle(Held, DetectorManifest):
    """A face detector. Its variants have files for pictures of some sizes, or for all sizes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_parity(self, FacesParity)

    @property
    def network(self) -> str:
        """The detector's name."""
        return self.spec.detector

    @property
    def title(self) -> str:
        """The network in a few words."""
        return f"{self.spec.detector}, {named(self.spec.input_sizes[0])} px"

    def sizes(self, name: str) -> tuple[tuple[int, int], ...]:
        """The sizes (width, height) of pictures that a variant has files for, of those in the spec."""
        return tuple(size for size in self.spec.input_sizes if self._files(self.variant(name), size))

    def open_session(self, name: str, threads: int, size: tuple[int, int] | None = None) -> runtimes.Checked[BoxMaps]:
        """Loads a variant for pictures of this (width, height), else of the usual size, after checking its hashes."""
        _check_threads(threads)
        variant, sized = self.variant(name), self.spec.at(size)
        files = self._files(variant, sized.size)
        if not files:
            allowed = ", ".join(map(named, self.sizes(name))) or "none"
            raise EdgeError(f"variant {name!r} is not for pictures of {named(sized.size)}; allowed: {allowed}")
        folder = self._verified(variant, files)
        spec = Sized(_quantized(self.spec, variant), sized.size)
        return runtimes.load_detector(variant.runtime, folder, spec, variant.precision, threads)

    def _files(self, variant: Variant, size: tuple[int, int]) -> tuple[File, ...]:
        """A variant's files for pictures of a size: those in its folder for it, else those that are for all sizes."""
        by_folder = dict[str, tuple[File, ...]]()
        for file in variant.files:
            folder = str(PurePosixPath(file.path).parent)
            by_folder[folder] = (*by_folder.get(folder, ()), file)
        return by_folder.get(f"{variant.name}/{named(size)}") or by_folder.get(variant.name, ())

    def read_golden(self, size: tuple[int, int]) -> tuple[NDArray[np.uint8], list[BoxMaps]]:
        """The golden pictures (n, height, width, 3) uint8 RGB of one (width, height), and the float network's maps."""
        sized, what = self.spec.at(size), named(size)
        forms = {f"{what}_pictures": Form(("n", size[1], size[0], 3), (np.uint8,))}
        forms |= {f"{what}_{name}": Form(("n", *shape)) for name, shape in sized.map_shapes.items()}
        arrays = npz.read(self.golden.verified(self.folder), forms)
        pictures = arrays.pop(f"{what}_pictures")
        each = ({name: arrays[f"{what}_{name}"][i] for name in sized.map_shapes} for i in range(len(pictures)))
        return pictures, [BoxMaps.from_outputs(maps, sized) for maps in each]


AnyBundle = Bundle | DetectorBundle


def _check_parity(bundle: Held, kind: type) -> None:
    """Raises EdgeError if a variant has the parity of another kind of bundle."""
    for variant in bundle.variants:
        if not isinstance(variant.parity, kind | None):
            raise EdgeError(
                f"variant {variant.name} of bundle {bundle.folder} has the parity of another kind of bundle"
            )


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise EdgeError(f"{threads} threads; at least 1 is needed")


Spec = TypeVar("Spec", ModelSpec, DetectorSpec)


def _quantized(spec: Spec, variant: Variant) -> Spec:
    """The spec with how a variant's own input is normalised."""
    how = variant.quantization
    return replace(spec, mean=how.mean, std=how.std) if how else spec


def read_any(folder: Path) -> AnyBundle:
    """Reads and checks a bundle's manifest. Raises EdgeError for anything that is not a bundle of this version.

    Files are hashed when they are opened, not here. An older bundle that a killed program had just moved away from
    this path is put back first.
    """
    if not os.path.lexists(folder) and folder.absolute().parent.is_dir():
        with contextlib.suppress(OSError):
            folders.sweep(folder.absolute())
    found = manifests.read(folder)
    kind = Bundle if isinstance(found, Manifest) else DetectorBundle
    return kind(**vars(found), folder=folder)


def read(folder: Path) -> Bundle:
    """Reads a bundle of landmarks as `read_any` does. Raises EdgeError for a detector's."""
    found = read_any(folder)
    if not isinstance(found, Bundle):
        raise EdgeError(f"{folder} is a face detector's bundle; one of landmarks is needed, as `convert` makes it")
    return found


def read_detector(folder: Path) -> DetectorBundle:
    """Reads a detector's bundle as `read_any` does. Raises EdgeError for one of landmarks."""
    found = read_any(folder)
    if not isinstance(found, DetectorBundle):
        raise EdgeError(f"{folder} is a bundle of landmarks; a face detector's is needed, as `detector` makes it")
    return found


def replacing(folder: Path, kind: type[Contents] = Manifest) -> contextlib.AbstractContextManager[Path]:
    """A new empty folder. It replaces `folder` if the block ends well, and is removed if it does not.

    An existing bundle of the same kind is replaced; anything else at that path is refused before any work is done.
    However the program ends, the older bundle or the new one is whole at that path.
    """

    def check(final: Path) -> None:
        is_empty = final.is_dir() and not os.listdir(final)
        if os.path.lexists(final) and not (final / MANIFEST).is_file() and not is_empty:
            raise EdgeError(f"{folder} exists and is not a bundle; give another place with -o or remove it")
        found = None
        with contextlib.suppress(EdgeError):  # one of an older version, or a broken one
            found = manifests.read(final)
        if found and not isinstance(found, kind):
            what = "a bundle of landmarks" if isinstance(found, Manifest) else "a face detector's bundle"
            raise EdgeError(f"{folder} is {what}; give another place with -o or remove it")

    return folders.replacing(folder, check)
