"""The crops and maps that every variant has to reproduce: real faces through the torch network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipnet_edge.converters.checkpoint.nets import HEAD_KEYS
from pipnet_edge.converters.checkpoint.read import Network
from pipnet_edge.decode import Maps
from pipnet_edge.preprocess import Rect, cut, read_picture
from pipnet_edge.spec import ModelSpec

DEMO = Path(__file__).parent / "demo"
CHECKPOINT, FACES, CALIBRATION = DEMO / "demo_mbv2_68.pth", DEMO / "faces", DEMO / "calibration"
COUNT = 4


def normalise(crops: NDArray[np.uint8], spec: ModelSpec) -> torch.Tensor:
    """(n, S, S, 3) uint8 RGB to (n, 3, S, S) float32 as the network was trained: / 255, minus mean, / std."""
    scaled = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (scaled - mean) / std


def write(path: Path, network: Network) -> None:
    """Writes golden.npz: crops (n, S, S, 3) uint8 RGB and the torch network's maps, batch axis first."""
    spec = network.spec
    pictures = [read_picture(face) for face in sorted(FACES.glob("*.jpg"))[:COUNT]]
    crops = np.stack([cut(p, Rect.whole(p), spec.input_size) for p in pictures])
    maps = maps_of(network, crops)
    arrays: Any = {name: getattr(maps, name) for name in HEAD_KEYS}
    np.savez_compressed(path, crops=crops, **arrays)


def maps_of(network: Network, crops: NDArray[np.uint8]) -> Maps:
    """The torch network's maps for crops (n, S, S, 3) uint8 RGB, batch axis first."""
    spec, each = network.spec, []
    with torch.no_grad():
        for image in normalise(crops, spec):
            outputs = dict(zip(HEAD_KEYS, (m.numpy() for m in network.net(image[None])), strict=True))
            each.append(Maps.from_outputs(outputs, spec))
    return Maps(**{name: np.stack([getattr(maps, name) for maps in each]) for name in HEAD_KEYS})
