"""One frozen value that describes a PIPNet: everything that decode and the runtimes have to know about a network."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.words import joined

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NET_STRIDES = (16, 32, 64, 128)
CROPS = ("test", "demo")
MOST_LANDMARKS = 1000
# The side of a crop as a multiple of the longer side of its landmarks' box: usual, least and most.
MARGIN, MARGINS = 1.2, (1.0, 4.0)
LARGEST_INPUT = 4096  # pixels


@dataclass(frozen=True)
class MeanFace:
    """A dataset's mean face. It decides which landmarks are neighbours.

    points: L pairs (x, y), normalised to the crop. nme_pair: the two landmarks whose distance normalises the NME
    (outer eye corners or pupils), None where the reference divides by 1 (AFLW).
    """

    name: str
    points: tuple[tuple[float, float], ...]
    nme_pair: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.name.isprintable():
            raise EdgeError(f"mean face {self.name!r:.60} has a name that cannot be printed")
        if len(self.points) > MOST_LANDMARKS:
            raise EdgeError(f"mean face {self.name!r} has {len(self.points)} points; allowed: 2 to {MOST_LANDMARKS}")
        if len(self.points) < 2 or any(len(p) != 2 or not all(map(math.isfinite, p)) for p in self.points):
            raise EdgeError(f"mean face {self.name!r} needs at least two finite (x, y) points")
        if self.nme_pair and not all(0 <= i < len(self.points) for i in self.nme_pair):
            raise EdgeError(f"mean face {self.name!r} has {len(self.points)} points, its NME pair is {self.nme_pair}")


class Input(Protocol):
    """What a network takes: (height, width, 3) uint8 RGB pixels, over 255, minus a mean, over a std, per channel."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""

    @property
    def mean(self) -> tuple[float, float, float]: ...

    @property
    def std(self) -> tuple[float, float, float]: ...

    def renormalised(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Self:
        """The same with another mean and std."""


@dataclass(frozen=True)
class ModelSpec:
    """A trained PIPNet's shape and conventions. Contradictions are refused when it is built (EdgeError).

    num_lms L landmarks, num_nb N neighbours each, 0 for a network of three maps; input_size S pixels square, maps of
    S / net_stride cells square. mean and std are per RGB channel, in [0, 1] as the picture's values are. crop names the
    crop policy the network was trained for. clamp limits landmarks to the crop, which the reference does not do.
    presence: the mean winning score from which there is a face in a crop; None if nobody has measured it. margin: the
    side of the crop that suits the network, as a multiple of the longer side of the box about its landmarks.
    """

    backbone: str
    num_lms: int
    num_nb: int
    net_stride: int
    input_size: int
    mean_face: MeanFace
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: str = "test"
    clamp: bool = False
    presence: float | None = None
    margin: float = MARGIN

    def __post_init__(self) -> None:
        if self.num_lms != len(self.mean_face.points):
            raise EdgeError(
                f"the network predicts {self.num_lms} landmarks, mean face {self.mean_face.name!r} has "
                f"{len(self.mean_face.points)}"
            )
        check_sizes(self.num_lms, self.num_nb, self.net_stride, self.input_size)
        check_normalization("mean", self.mean)
        check_normalization("std", self.std)
        if self.crop not in CROPS:
            raise EdgeError(f"crop policy {self.crop!r}; allowed: {', '.join(CROPS)}")
        if self.presence is not None and not 0 < self.presence < math.inf:
            raise EdgeError(f"a presence threshold of {self.presence:g}; a number above 0 is needed")
        if not MARGINS[0] <= self.margin <= MARGINS[1]:
            raise EdgeError(f"a crop margin of {self.margin:g}; allowed: {MARGINS[0]:g} to {MARGINS[1]:g}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the crop."""
        return self.input_size, self.input_size

    def renormalised(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Self:
        return replace(self, mean=mean, std=std)

    @property
    def grid(self) -> int:
        """Cells along one side of every map."""
        return self.input_size // self.net_stride


def check_sizes(num_lms: int, num_nb: int, net_stride: int, input_size: int) -> None:
    """Raises EdgeError if no network has these sizes."""
    if not 2 <= num_lms <= MOST_LANDMARKS:
        raise EdgeError(f"{num_lms} landmarks; allowed: 2 to {MOST_LANDMARKS}")
    if not 0 <= num_nb < num_lms:
        raise EdgeError(f"{num_nb} neighbours of {num_lms} landmarks; allowed: 0 to {num_lms - 1}")
    if net_stride not in NET_STRIDES:
        raise EdgeError(f"net stride {net_stride}; allowed: {', '.join(map(str, NET_STRIDES))}")
    if not net_stride <= input_size <= LARGEST_INPUT or input_size % net_stride:
        raise EdgeError(
            f"input size {input_size} is not a multiple of the net stride {net_stride} up to {LARGEST_INPUT}"
        )


def check_normalization(name: str, values: Sequence[float]) -> None:
    """Raises EdgeError unless a mean or std is three numbers in [0, 1], std above 0. name: "mean", "std", "--mean" …"""
    given = f"{name} {joined(values)}"
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise EdgeError(f"{given}: three finite numbers are needed")
    if name.endswith("std") and min(values) <= 0:
        raise EdgeError(f"{given}: numbers above 0 and up to 1 are needed")
    if not all(0 <= value <= 1 for value in values):
        scaled = [value / 255 for value in values]
        advice = f"; given in pixels? that would be {name} {joined(scaled)}"
        is_in_pixels = 0 <= min(scaled) <= max(scaled) <= 1
        raise EdgeError(f"{given}: numbers from 0 to 1 are needed{advice if is_in_pixels else ''}")


@lru_cache(maxsize=1)
def mean_faces() -> dict[str, MeanFace]:
    """The reference's seven mean faces by name (data/*/meanface.txt of jhb86253817/PIPNet, MIT)."""
    data = json.loads((Path(__file__).parent / "meanfaces.json").read_text())
    return {
        name: MeanFace(name, tuple((x, y) for x, y in face["points"]), face["nme_pair"] and tuple(face["nme_pair"]))
        for name, face in data.items()
    }


def neighbour_table(mean_face: MeanFace, num_nb: int) -> NDArray[np.intp]:
    """The neighbour predictions about each landmark: (L, max_len) entries s * N + k.

    Entry s * N + k stands for "the k-th neighbour of landmark s". Landmark s's neighbours are the num_nb landmarks
    nearest to it on the mean face (squared distance, itself skipped). Rows shorter than the longest are repeated
    cyclically, as get_meanface in the reference's lib/functions.py does, so weights are uneven on purpose. A landmark
    that is nobody's neighbour has a row of -1 (the reference cannot build such a table).
    """
    points = np.asarray(mean_face.points, dtype=np.float64)
    distance = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    neighbours = np.argsort(distance, axis=1, kind="stable")[:, 1 : num_nb + 1]
    rows = [np.flatnonzero(neighbours.ravel() == landmark) for landmark in range(len(points))]
    longest = max(map(len, rows))
    return np.stack([np.resize(row, longest) if len(row) else np.full(longest, -1) for row in rows]).astype(np.intp)
