"""Weights of one layer on their int8 grids: rounded one after the other, as well as can be for its inputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipnet_edge.converters.quantize import rounding
from pipnet_edge.converters.quantize.scheme import FULL, weight_steps

pytestmark = pytest.mark.usefixtures("one_thread")


def covariance(random: np.random.Generator, groups: int, depth: int) -> Tensor:
    inputs = random.standard_normal((groups, 4 * depth, depth)) @ random.standard_normal((groups, depth, depth))
    return torch.from_numpy(np.swapaxes(inputs, 1, 2) @ inputs / (4 * depth)).float()


def damped(xx: Tensor) -> Tensor:
    return xx + rounding.DAMPING * xx.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(xx.shape[1])


def cost(error: Tensor, xx: Tensor) -> Tensor:
    """(groups, rows): the mean squared change of each row's output for inputs with this covariance."""
    return torch.einsum("grd,gde,gre->gr", error.double(), xx.double(), error.double())


seeds = st.integers(0, 2**31)


@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 150))
@settings(max_examples=25, deadline=None)
def test_rounded_weights_lie_on_their_grids(seed: int, groups: int, rows: int, depth: int) -> None:
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(random.standard_normal((groups, rows, depth)) ** 3).float()
    weight[0, 0] = 0
    found = rounding.gptq(weight, covariance(random, groups, depth), FULL)
    largest = weight.abs().amax(2)
    assert torch.allclose(found.abs().amax(2), largest, rtol=1e-5, atol=0)
    whole = found / torch.where(largest > 0, largest / FULL, 1.0)[:, :, None]
    assert (whole - whole.round()).abs().max() < 1e-4
    assert whole.abs().max() <= FULL + 0.001
    at = weight.abs().argmax(2, keepdim=True)
    assert torch.equal(found.gather(2, at).sign(), weight.gather(2, at).sign())
    # The step that every quantizer computes is the one that was rounded to.
    flat = found.reshape(-1, depth, 1, 1)
    again = flat / weight_steps(flat, FULL)
    assert (again - again.round()).abs().max() < 1e-4
    kept = flat.abs().amax((1, 2, 3)) > 0
    assert (again.round().abs().amax((1, 2, 3))[kept] == FULL).all()


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_two_weights_are_rounded_as_well_as_can_be(seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(random.uniform(-1, 1, (1, 1, 2))).float()
    xx = covariance(random, 1, 2)
    step = weight.abs().max() / FULL
    free = int(weight.abs().argmin())
    best = None
    for whole in range(-FULL, FULL + 1):
        candidate = weight.clone()
        candidate[0, 0, free] = whole * step
        if best is None or cost(candidate - weight, xx) < cost(best - weight, xx):
            best = candidate
    assert best is not None
    assert torch.allclose(rounding.gptq(weight, xx, FULL), best, atol=1e-6)


@given(seeds, st.floats(0, 0.95))
@settings(max_examples=40, deadline=None)
def test_of_three_weights_the_last_makes_up_for_the_first(seed: int, correlation: float) -> None:
    """The largest weight stays, then the one with the larger inputs is rounded, then the other, best of all ways."""
    random = np.random.default_rng(seed)
    weight = torch.tensor([[[1.0, *random.uniform(-0.8, 0.8, 2)]]]).float()
    xx = torch.tensor([[[9.0, 0.5, 0.2], [0.5, 2, correlation * 2**0.5], [0.2, correlation * 2**0.5, 1]]])
    found, step = rounding.gptq(weight, xx, FULL), weight.abs().max() / FULL
    first = (weight / step).round() * step
    ways = [torch.tensor([[[1.0, first[0, 0, 1], whole * step]]]) for whole in range(-FULL, FULL + 1)]
    best = min(ways, key=lambda way: cost(way - weight, damped(xx)).item())
    assert cost(found - weight, damped(xx)) <= cost(best - weight, damped(xx)) * 1.001 + 1e-12
    assert cost(found - weight, damped(xx)) <= cost(first - weight, damped(xx)) * 1.001 + 1e-12


def test_many_weights_cost_far_less_than_the_nearest() -> None:
    random = np.random.default_rng(0)
    for groups, rows, depth in ((1, 32, 200), (16, 1, 9), (1, 8, 20)):
        weight = torch.from_numpy(random.standard_normal((groups, rows, depth))).float()
        xx = covariance(random, groups, depth)
        step = weight.abs().amax(2, keepdim=True) / FULL
        least, naive = (
            cost(rounded - weight, xx).sum()
            for rounded in (rounding.gptq(weight, xx, FULL), (weight / step).round() * step)
        )
        assert least < 0.75 * naive


def test_groups_and_rows_do_not_mix() -> None:
    random = np.random.default_rng(0)
    weight, xx = torch.from_numpy(random.standard_normal((4, 3, 9))).float(), covariance(random, 4, 9)
    whole = rounding.gptq(weight, xx, FULL)
    for group, row in itertools.product(range(4), range(3)):
        alone = rounding.gptq(weight[group, row][None, None], xx[group : group + 1], FULL)
        assert torch.allclose(alone[0, 0], whole[group, row], atol=1e-6)


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(sizes, sizes, sizes, st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from([1, 2, 4]))
@settings(max_examples=40, deadline=None)
def test_patches_are_what_the_kernel_sees(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int], groups: int
) -> None:
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias=False).requires_grad_(False)
    source = torch.randn(2, 4, 9, 8)
    wanted = layer(source)
    image, row, column = (
        axis.flatten() for axis in torch.meshgrid(*map(torch.arange, wanted[:, 0].shape), indexing="ij")
    )
    seen = rounding._patches(layer, source, image, row, column).reshape(len(image), groups, -1)
    got = torch.einsum("pgd,grd->pgr", seen, layer.weight.reshape(groups, 8 // groups, -1)).reshape(-1, 8)
    assert torch.allclose(got, wanted.permute(0, 2, 3, 1).reshape(-1, 8), atol=1e-5)
