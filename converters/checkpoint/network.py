"""A trained network: what it takes, and what it gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipnet_edge.decode import MAP_NAMES, Maps, map_names
from pipnet_edge.spec import Input, ModelSpec

# (H, W, 3) uint8 RGB each.
Pictures = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
# What a network takes, and what else is known of its kind.
Spec = TypeVar("Spec", bound=Input)
Spec_co = TypeVar("Spec_co", bound=Input, covariant=True)


class Trained(Protocol[Spec_co]):
    """A network of whatever kind and its spec."""

    @property
    def spec(self) -> Spec_co: ...

    @property
    def net(self) -> nn.Module: ...


@dataclass(frozen=True)
class Network:
    """A network and its spec, which has the mean face and the normalization too. notes: what reading it left aside."""

    spec: ModelSpec
    net: nn.Module
    parameters: int
    notes: tuple[str, ...] = ()


def batches(pictures: Pictures, most: int) -> Iterator[NDArray[np.uint8]]:
    """At most so many pictures of one size at a time, (n, H, W, 3), in their order but for those of other sizes."""
    for start in range(0, len(pictures), most):
        by_size: dict[tuple[int, ...], list[NDArray[np.uint8]]] = {}
        for picture in pictures[start : start + most]:
            by_size.setdefault(picture.shape, []).append(picture)
        yield from map(np.stack, by_size.values())


def normalise(crops: NDArray[np.uint8], spec: Input) -> torch.Tensor:
    """(n, H, W, 3) uint8 RGB to (n, 3, H, W) float32 as the network was trained: / 255, minus mean, / std."""
    scaled = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (scaled - mean) / std


def maps_of(network: Network, crops: NDArray[np.uint8], kind: torch.dtype = torch.float32) -> Maps:
    """The torch network's maps for crops (n, S, S, 3) uint8 RGB, batch axis first; float32, computed in this kind.

    float64 takes seconds a crop, since torch has no fast depthwise convolution for it.
    """
    spec, each = network.spec, []
    net = network.net if kind == torch.float32 else copy.deepcopy(network.net).to(kind)
    with torch.no_grad():
        for image in normalise(crops, spec).to(kind):
            outputs = dict(zip(map_names(spec.num_nb), (m.numpy() for m in net(image[None])), strict=True))
            each.append(Maps.from_outputs(outputs, spec))
    return Maps(**{name: np.stack([getattr(maps, name) for maps in each]) for name in MAP_NAMES})
