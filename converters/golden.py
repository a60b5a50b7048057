"""What the float network gives, for comparison with what variants give: golden.npz.

It holds crops of real faces and the torch network's maps for them, which every variant has to reproduce, and what its
features were over the calibration faces. For a detector it holds pictures with faces in them, of each size.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipnet_edge.converters import scenes, sparse
from pipnet_edge.converters.checkpoint.faceboxes import Detector
from pipnet_edge.converters.checkpoint.network import Network, maps_of, normalise
from pipnet_edge.converters.demo import FACES
from pipnet_edge.decode import map_names
from pipnet_edge.detect.spec import named
from pipnet_edge.domain import LEAST, Domain, means
from pipnet_edge.preprocess import Rect, cut, read_picture

COUNT = 4
SIDE = 256  # pixels of the crops that are put into scenes
# Ranges over more faces tell other domains hardly better, and large networks take long.
MOST = 128


def faces(side: int, count: int = COUNT) -> NDArray[np.uint8]:
    """The crops (n, side, side, 3) uint8 RGB: the first of the embedded faces."""
    pictures = [read_picture(face) for face in sorted(FACES.glob("*.jpg"))[:count]]
    return np.stack([cut(p, Rect.whole(p), side) for p in pictures])


def write(
    path: Path, network: Network, calibration: NDArray[np.uint8] | None = None, kind: torch.dtype = torch.float32
) -> None:
    """Writes golden.npz: crops (n, S, S, 3) uint8 RGB and the torch network's maps, five or three, batch axis first.

    calibration: crops of at least LEAST faces, for networks that give features: then their Domain is written too.
    kind: what torch computes in. Float64 is the arbiter where float32 engines differ.
    """
    crops = faces(network.spec.input_size)
    maps = maps_of(network, crops, kind)
    arrays: Any = {name: getattr(maps, name) for name in map_names(network.spec.num_nb)}
    if calibration is not None and len(calibration) >= LEAST:
        seen = domain_of(network, calibration[:MOST])
        arrays |= {"feature_low": seen.low, "feature_high": seen.high}
        arrays |= {"feature_limit": np.array([seen.limit], np.float32)}
    np.savez_compressed(path, crops=crops, **arrays)


def write_detector(path: Path, detector: Detector, kind: torch.dtype = torch.float32) -> None:
    """Writes a detector's golden.npz: for each size pictures (n, H, W, 3) uint8 RGB and the torch network's maps.

    The arrays are called 640x480_pictures, 640x480_box_32 and so on. kind: as in `write`.
    """
    arrays: Any = {}
    net = detector.net if kind == torch.float32 else copy.deepcopy(detector.net).to(kind)
    for size in detector.spec.input_sizes:
        pictures = scenes_of(size)
        with torch.no_grad():
            each = [net(image[None]) for image in normalise(pictures, detector.spec.at(size)).to(kind)]
        maps = {
            name: np.concatenate([found[i].float().numpy() for found in each])
            for i, name in enumerate(detector.spec.map_names)
        }
        arrays |= {f"{named(size)}_{name}": values for name, values in {"pictures": pictures, **maps}.items()}
    np.savez_compressed(path, **arrays)


def scenes_of(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pictures (n, H, W, 3) uint8 RGB of this (width, height), with large and small faces in them."""
    random, crops = np.random.default_rng(0), faces(SIDE)
    sides = [[round(share * min(size)) for share in shares] for shares in ((0.6, 0.35), (0.45, 0.45, 0.3))]
    return np.stack([scenes.scene(crops[: len(each)], each, size, random)[0] for each in sides])


def domain_of(network: Network, crops: NDArray[np.uint8]) -> Domain:
    """What the float network's features are over crops (n, S, S, 3) uint8 RGB. Raises EdgeError as split does."""
    graph, _ = sparse.split(network.net, network.spec.num_lms)
    with torch.no_grad():
        return Domain.of(
            np.concatenate([means(graph(normalise(crop[None], network.spec))[1].numpy()) for crop in crops])
        )
