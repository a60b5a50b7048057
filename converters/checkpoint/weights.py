"""Layers made of a state_dict's tensors, with BatchNorm folded in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipnet_edge.errors import EdgeError


class Weights:
    """A state_dict from which layers are taken; remembers what was used, so that leftovers can be refused."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._used: set[str] = set()
        self.keys: dict[nn.Module, str] = {}  # of the layers made of it

    def take(self, key: str) -> Tensor:
        """One tensor. Raises EdgeError naming the key when the checkpoint lacks it."""
        if key not in self._state:
            raise EdgeError(f"checkpoint has no {key!r}, which this backbone needs")
        self._used.add(key)
        return self._state[key]

    def has(self, key: str) -> bool:
        return key in self._state

    def leftover(self) -> list[str]:
        """Keys that no layer took, except BatchNorm's step counters."""
        return sorted(k for k in self._state if k not in self._used and not k.endswith("num_batches_tracked"))

    def conv(self, key: str, norm: str | None = None, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        """A convolution with "same" padding for odd kernels, with the BatchNorm at `norm` folded in (in float64)."""
        weight = self._kernel(f"{key}.weight")
        out, inner, kernel, _ = weight.shape
        bias = self._vector(f"{key}.bias", out) if self.has(f"{key}.bias") else weight.new_zeros(out)
        scale, shift = self._norm(norm, out)
        layer = nn.Conv2d(inner * groups, out, kernel, stride, kernel // 2, groups=groups)
        self.keys[layer] = f"{key}.weight"
        return _filled(layer, weight * scale[:, None, None, None], bias * scale + shift)

    def deconv(self, key: str, norm: str) -> nn.ConvTranspose2d:
        """The stride-16 head's 4x4 stride-2 transposed convolution, BatchNorm folded in."""
        weight = self._kernel(f"{key}.weight", 4)
        inner, out = weight.shape[:2]
        scale, shift = self._norm(norm, out)
        layer = nn.ConvTranspose2d(inner, out, 4, 2, 1)
        self.keys[layer] = f"{key}.weight"
        return _filled(layer, weight * scale[None, :, None, None], shift)

    def rows(self, key: str) -> int:
        """The first size of a kernel: output channels."""
        return self._kernel(key).shape[0]

    def _kernel(self, key: str, side: int | None = None) -> Tensor:
        """A kernel (out, in, K, K) in float64; (out, in) is one of 1x1. K is odd, or `side`."""
        weight = self.take(key).double()
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        if weight.ndim != 4 or not weight.numel() or weight.shape[2] != weight.shape[3]:
            raise _misshapen(key, weight, "(out, in, K, K) without zeros")
        if weight.shape[2] != side if side else weight.shape[2] % 2 == 0:
            raise _misshapen(key, weight, f"(out, in, {side or 'odd'}, {side or 'odd'})")
        return weight

    def _vector(self, key: str, size: int) -> Tensor:
        vector = self.take(key).double()
        if vector.shape != (size,):
            raise _misshapen(key, vector, f"({size},)")
        return vector

    def _norm(self, key: str | None, channels: int) -> tuple[Tensor, Tensor]:
        if key is None:
            return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
        gain, bias, mean, var = (
            self._vector(f"{key}.{part}", channels) for part in ("weight", "bias", "running_mean", "running_var")
        )
        var = var + nn.BatchNorm2d(1).eps
        if not (var > 0).all():
            raise EdgeError(f"checkpoint tensor {f'{key}.running_var'!r} holds negative variances")
        scale = gain / torch.sqrt(var)
        return scale, bias - mean * scale


def _misshapen(key: str, tensor: Tensor, needed: str) -> EdgeError:
    return EdgeError(f"checkpoint tensor {key!r} is {tuple(tensor.shape)}; {needed} is needed")


Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)


def _filled(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer
