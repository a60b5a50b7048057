"""A face detector, loaded: that of a bundle, or OpenCV's YuNet."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import runtimes
from pipnet_edge.bundle import MANIFEST
from pipnet_edge.defaults import choose
from pipnet_edge.detect.boxes import Faces, Found
from pipnet_edge.detect.fit import find
from pipnet_edge.detect.spec import Margins, check_threshold
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import cache_folder

ADVICE = "`pipnet-edge detector` makes one; or say where faces are with --box, or --whole for a picture of one face"


class Finder(Protocol):
    """What finds the faces in a picture (H, W, 3) uint8 RGB, the best score first.

    faces: with its own boxes; find: with those that their landmarks should fill, by margins. version: what runs it.
    """

    version: str

    @property
    def margins(self) -> Margins: ...

    def faces(self, picture: NDArray[np.uint8]) -> Faces: ...

    def find(self, picture: NDArray[np.uint8]) -> tuple[Found, ...]: ...

    def close(self) -> None: ...


class Detector:
    """One variant of a detector's bundle, loaded for pictures of one size; others are resized to fit into it.

    If variant or threads is not given, it is as for a Landmarker. size: (width, height), the usual one if not given; it
    decides how small faces may be and how long it takes. threshold: another than the spec's. Raises EdgeError for a
    bundle that is none of a detector, an unknown variant, a size that it is not for, and what is no threshold.
    """

    def __init__(
        self,
        bundle: str | Path,
        variant: str | None = None,
        threads: int | None = None,
        size: tuple[int, int] | None = None,
        threshold: float | None = None,
    ) -> None:
        opened = bundles.read_detector(Path(bundle))
        if threshold is not None:
            check_threshold(threshold)
        chosen = choose(opened, variant, threads, otherwise=1)
        self.spec, self.variant, self.threads = opened.spec, chosen.variant, chosen.threads
        runtime = runtimes.adapter(opened.variant(chosen.variant).runtime).version()
        self.version = f"{opened.spec.detector} {chosen.variant}, {runtime}"
        self._sized, self._threshold = opened.spec.at(size), threshold
        self._session = opened.open_session(chosen.variant, chosen.threads, size)

    @property
    def margins(self) -> Margins:
        return self.spec.margins

    def faces(self, picture: NDArray[np.uint8]) -> Faces:
        """The detector's own boxes in an (H, W, 3) uint8 RGB picture. Raises EdgeError for any other array."""
        return find(picture, self._session.run, self._sized, self._threshold)

    def find(self, picture: NDArray[np.uint8]) -> tuple[Found, ...]:
        """The faces in an (H, W, 3) uint8 RGB picture, with the boxes that their landmarks should fill."""
        return self.faces(picture).found(self.margins)

    def close(self) -> None:
        self._session.close()


def usual() -> Path:
    """Where `pipnet-edge detector` puts its bundle."""
    return cache_folder() / "detector"


def path_of(given: Path | None) -> Path:
    """A detector's path: that given, else the usual one. Raises EdgeError that says how to get one if there is none."""
    found = given or usual()
    if not found.is_file() and not (found / MANIFEST).exists():
        raise EdgeError(f"there is no face detector at {found}; {ADVICE}")
    return found


def size_of(path: Path) -> int:
    """Bytes of a detector's largest model."""
    if path.is_dir():
        return max(variant.size for variant in bundles.read_detector(path).variants)
    return path.stat().st_size


def load(path: Path, variant: str | None = None, threads: int | None = None, threshold: float | None = None) -> Finder:
    """Opens a detector's bundle, or a YuNet file (.onnx), which has no variants. Raises EdgeError as they do."""
    if path.is_file():
        from pipnet_edge.detect.yunet import Yunet

        if path.suffix != ".onnx":
            raise EdgeError(f"{path} is no face detector; a bundle's folder or a YuNet .onnx file is needed")
        if variant:
            raise EdgeError(f"{path} has no variant {variant!r}: it is a file, no bundle")
        return Yunet(path, threshold)
    return Detector(path, variant, threads, threshold=threshold)
