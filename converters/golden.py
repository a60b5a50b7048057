"""What the float network gives, for comparison with what variants give: golden.npz.

It holds crops of real faces and the torch network's maps for them, which every variant has to reproduce, and what its
features were over the calibration faces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipnet_edge.converters import sparse
from pipnet_edge.converters.checkpoint.network import Network, maps_of, normalise
from pipnet_edge.converters.demo import FACES
from pipnet_edge.decode import map_names
from pipnet_edge.domain import LEAST, Domain, means
from pipnet_edge.preprocess import Rect, cut, read_picture

COUNT = 4
# Ranges over more faces tell other domains hardly better, and large networks take long.
MOST = 128


def faces(side: int) -> NDArray[np.uint8]:
    """The crops (n, side, side, 3) uint8 RGB."""
    pictures = [read_picture(face) for face in sorted(FACES.glob("*.jpg"))[:COUNT]]
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


def domain_of(network: Network, crops: NDArray[np.uint8]) -> Domain:
    """What the float network's features are over crops (n, S, S, 3) uint8 RGB. Raises EdgeError as split does."""
    graph, _ = sparse.split(network.net, network.spec.num_lms)
    with torch.no_grad():
        return Domain.of(
            np.concatenate([means(graph(normalise(crop[None], network.spec))[1].numpy()) for crop in crops])
        )
