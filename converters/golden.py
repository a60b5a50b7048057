"""Crops of real faces and the torch network's maps for them, which every variant has to reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipnet_edge.converters.checkpoint.network import Network, maps_of
from pipnet_edge.converters.demo import FACES
from pipnet_edge.decode import map_names
from pipnet_edge.preprocess import Rect, cut, read_picture

COUNT = 4


def faces(side: int) -> NDArray[np.uint8]:
    """The crops (n, side, side, 3) uint8 RGB."""
    pictures = [read_picture(face) for face in sorted(FACES.glob("*.jpg"))[:COUNT]]
    return np.stack([cut(p, Rect.whole(p), side) for p in pictures])


def write(path: Path, network: Network, kind: torch.dtype = torch.float32) -> None:
    """Writes golden.npz: crops (n, S, S, 3) uint8 RGB and the torch network's maps, five or three, batch axis first.

    kind: what torch computes in. Float64 is the arbiter where float32 engines differ.
    """
    crops = faces(network.spec.input_size)
    maps = maps_of(network, crops, kind)
    arrays: Any = {name: getattr(maps, name) for name in map_names(network.spec.num_nb)}
    np.savez_compressed(path, crops=crops, **arrays)
