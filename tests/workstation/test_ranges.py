"""Ranges of activations: on distributions whose best range is known, on tiny networks, and on the embedded one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipnet_edge.converters import demo
from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.quantize import ranges, scheme
from pipnet_edge.converters.quantize.ranges import BINS, Histogram
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import read_picture
from pipnet_edge.spec import ModelSpec, mean_faces

SPEC = ModelSpec("resnet18", 68, 10, 32, 64, mean_faces()["300w"])
WHOLE = replace(SPEC, mean=(124 / 255, 116 / 255, 104 / 255), std=(1 / 255,) * 3)


class Tiny(nn.Module):
    """Two convolutions with a ReLU between, a sum, an activation that is always 0, and one map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.dead = nn.ReLU(), nn.ReLU()
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, image):
        first = self.relu(self.first(image))
        return self.head(first + self.second(first) + self.dead(first - 1e9))


@pytest.fixture
def crops():
    return np.random.default_rng(2).integers(0, 256, (10, 64, 64, 3), np.uint8)


@pytest.fixture
def graph():
    return graphs.trace(Tiny())


def values_of(graph, spec, crops):
    """Node name -> all its values."""
    kept = {}

    def hook(node, value):
        kept[node.name] = value.clone()
        return value

    with torch.no_grad():
        graphs.Run(graph, hook).run(normalise(crops, spec))
    return {name: kept[name] for name in [*graphs.points(graph), *graphs.maps(graph)]}


def histogram(values):
    low, high = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
    return Histogram(torch.histc(values[values != 0], BINS, low, high).double().numpy(), low, high)


def error(values, bounds, bits=8):
    return (scheme.stored(values, bounds, bits) - values).square().mean().item()


def gaussian(count=200_000):
    return torch.randn(count, generator=torch.Generator().manual_seed(1))


def laplace(count=200_000):
    """Exponential tails to both sides, standard deviation 1.4."""
    exponential = torch.empty(count).exponential_(generator=torch.Generator().manual_seed(3))
    return exponential * gaussian(count).sign()


# --- Over a network.


@pytest.mark.parametrize("spec", [SPEC, WHOLE])
def test_minmax_is_that_of_every_value(graph, crops, spec):
    found = ranges.observe(graph, spec, crops, "minmax")
    expected = values_of(graph, spec, crops)
    assert list(found) == list(expected)
    for name, values in expected.items():
        if (name, spec) != ("image", WHOLE):
            wanted = (min(values.min().item(), 0), max(values.max().item(), 0))
            assert found[name] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert found["relu"][0] == 0
    assert found["dead"] == (0, 0)


@pytest.mark.parametrize("method", ranges.METHODS)
def test_ranges_contain_zero_and_lie_between_the_extremes(graph, crops, method):
    extremes = ranges.observe(graph, SPEC, crops, "minmax")
    found = ranges.observe(graph, SPEC, crops, method)
    assert list(found) == list(extremes)
    for name, (low, high) in found.items():
        assert extremes[name][0] - 1e-6 <= low <= 0 <= high <= extremes[name][1] + 1e-6
        assert isinstance(low, float)
        assert isinstance(high, float)
        assert high > low or name == "dead"
    assert ranges.observe(graph, SPEC, crops, method) == found


def test_a_pixel_image_is_stored_exactly(graph, crops):
    assert ranges.image_range(WHOLE) == (-116, 139)
    for method in ranges.METHODS:
        assert ranges.observe(graph, WHOLE, crops, method)["image"] == (-116, 139)
    assert scheme.grid((-116, 139)) == (1, 116)
    image = normalise(crops, WHOLE)
    kept = scheme.stored(image, ranges.image_range(WHOLE))
    inside = (image > -116.5) & (image < 139.5)
    assert inside.float().mean() > 0.97
    assert (kept - image).abs()[inside].max() < 1e-3
    # Any other step or mean is observed.
    for spec in (SPEC, replace(WHOLE, mean=SPEC.mean), replace(WHOLE, std=(1 / 255, 1 / 255, 1 / 127))):
        low, high = ranges.observe(graph, spec, crops, "minmax")["image"]
        assert (low, high) == pytest.approx([f(values_of(graph, spec, crops)["image"]).item() for f in MIN_MAX])


MIN_MAX = (torch.min, torch.max)


def test_progress_counts_images_over_the_passes(graph, crops):
    for method, total in (("minmax", 10), ("mse", 20)):
        told = []
        ranges.observe(graph, SPEC, crops, method, lambda *args, told=told: told.append(args))
        done = [n for n, _ in told]
        assert done == sorted(set(done))
        assert told[-1] == (total, total)


def test_unknown_method(graph, crops):
    with pytest.raises(EdgeError, match="calibration method 'entropy'; allowed: minmax, percentile, kl, mse"):
        ranges.observe(graph, SPEC, crops, "entropy")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_node_that_is_not_finite_is_named(graph, crops, value):
    graph.get_submodule("second").bias[3] = value
    with pytest.raises(EdgeError, match="not finite at second on"):
        ranges.observe(graph, SPEC, crops)


def test_the_last_image_counts(graph, crops):
    crops[:9] //= 8
    low, high = ranges.observe(graph, SPEC, crops, "minmax")["image"]
    assert high > 2
    assert low < -2


def test_an_extreme_that_is_not_drawn_is_not_free_to_clip(graph, crops, monkeypatch):
    """At 16 bits rounding costs next to nothing, so the one bright pixel has to stay; 8 values are drawn a batch."""
    monkeypatch.setattr(ranges, "DRAWN", 8)
    crops //= 8
    crops[4, 30, 30] = 255
    wanted = ranges.observe(graph, SPEC, crops, "minmax")["image"]
    assert ranges.observe(graph, SPEC, crops, "mse", bits=16)["image"] == wanted
    assert ranges.observe(graph, SPEC, crops, "percentile")["image"][1] < wanted[1]


# --- Methods, on distributions.


def test_percentile_of_a_gaussian():
    low, high = ranges.clip(histogram(gaussian(2_000_000)), "percentile")
    assert (low, high) == pytest.approx((-3.72, 3.72), abs=0.06)


def test_percentile_ignores_an_outlier():
    values = torch.cat([torch.rand(99_999), torch.tensor([20.0])])
    assert ranges.clip(histogram(values), "percentile") == pytest.approx((0, 1), abs=0.011)


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.15), (8, 0.95)])
@pytest.mark.parametrize("shape", ["two-sided", "one-sided", "skewed"])
def test_mse_is_the_least_that_rounding_and_clipping_can_make(shape, bits, gain):
    """Exponential tails and a few outliers, stored for real in all the ranges of a grid."""
    values = torch.cat([laplace(), torch.tensor([-17.5, 25.0])])
    if shape == "one-sided":
        values = values.relu()
    elif shape == "skewed":
        values = torch.where(values < 0, values.tanh(), values)
    bounds = histogram(values)
    best = error(values, ranges.clip(bounds, "mse", bits), bits)
    factors = np.geomspace(1, 0.1, 20)
    least = min(error(values, (bounds.low * a, bounds.high * b), bits) for a in factors for b in factors)
    assert best < 1.05 * least
    assert best < gain * error(values, (bounds.low, bounds.high), bits)


def test_mse_clips_more_with_fewer_bits():
    bounds = histogram(laplace())
    highs = [ranges.clip(bounds, "mse", bits)[1] for bits in (4, 6, 8, 10)]
    assert highs == sorted(set(highs))


def test_mse_clips_each_end_by_its_own_factor():
    """A dense low end and one far value on the high one."""
    values = torch.cat([-torch.rand(1_000_000), torch.rand(1_000_000), torch.tensor([10.0])])
    low, high = ranges.clip(histogram(values), "mse")
    assert low == pytest.approx(-1, abs=0.06)
    assert high < 5


def test_zeros_do_not_count():
    values = gaussian()
    sparse = torch.cat([values, torch.zeros(10 * len(values))])
    for method in ranges.METHODS[1:]:
        assert ranges.clip(histogram(sparse), method) == ranges.clip(histogram(values), method)


def test_kl_keeps_what_is_dense_and_cuts_what_is_far():
    assert ranges.clip(histogram(torch.rand(500_000)), "kl") == pytest.approx((0, 1), rel=0.05)
    low, high = ranges.clip(histogram(torch.cat([gaussian().relu(), torch.tensor([20.0])])), "kl")
    assert low == 0
    assert 3.5 < high < 6


def test_kl_shrinks_both_ends_by_one_factor():
    values = torch.cat([torch.rand(500_000) * 3 - 1, torch.tensor([-4.0, 12.0])])
    low, high = ranges.clip(histogram(values), "kl")
    assert high == pytest.approx(-3 * low)
    assert 1.9 < high < 3.3


@pytest.mark.parametrize("method", ["kl", "mse"])
def test_sixteen_bits_clip_nothing(method):
    bounds = histogram(gaussian())
    assert ranges.clip(bounds, method, 16) == (bounds.low, bounds.high)


# --- The embedded network.


def test_the_best_method_keeps_the_maps_of_a_trained_network():
    network = checkpoints.load(demo.CHECKPOINT, checkpoints.Options(data="300w"))
    graph = graphs.trace(network.net)
    spec = scheme.pixel_lattice(graph, network.spec)
    crops = np.stack([read_picture(path) for path in sorted(demo.FACES.glob("*.jpg"))])
    found = ranges.observe(graph, spec, crops[8:])

    def maps(hook):
        with torch.no_grad():
            return graphs.Run(graph, hook).run(normalise(crops[:8], spec))[0]

    exact = maps(lambda node, value: value)
    worse = {name: (4 * low, 4 * high) for name, (low, high) in found.items()}
    errors = []
    for bounds in (found, worse):
        got = maps(lambda node, value, b=bounds: scheme.stored(value, b[node.name]) if node.name in b else value)
        errors.append(((got - exact).norm() / exact.norm()).item())
    assert errors[0] < 0.06
    assert errors[1] > 2 * errors[0]


def test_what_a_relu_cuts_off_behind_a_sum_does_not_count():
    """Raising a summand to where the sum reaches 0 changes nothing behind the ReLU; the largest such rise is taken."""
    random = torch.Generator().manual_seed(0)
    summand, other = (torch.randn(1, 4, 9, 9, generator=random) * scale for scale in (3.0, 1.0))
    found = ranges._that_matters(summand, summand + other)
    assert torch.allclose((found + other).relu(), (summand + other).relu(), atol=1e-6)
    assert torch.equal(found[summand >= 0], summand[summand >= 0])
    assert found.min() >= -other.max() - 1e-6
    assert summand.min() < found.min() < 0


class Swish(nn.Module):
    """A convolution that only a hard swish reads, one that a sum reads too, one that never falls to -3, and a map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.shared, self.narrow = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(3))
        self.swish, self.head = nn.Hardswish(), nn.Conv2d(8, 1, 1)
        for layer, gain in ((self.wide, 30.0), (self.shared, 30.0), (self.narrow, 0.1)):
            layer.weight.data *= gain

    def forward(self, image):
        shared = self.shared(image)
        return self.head(self.swish(self.wide(image)) + self.swish(shared) + shared + self.swish(self.narrow(image)))


@pytest.mark.parametrize("method", ranges.METHODS)
def test_what_hard_swishes_read_is_stored_from_where_they_begin(crops, method):
    graph = graphs.trace(Swish())
    values, found = values_of(graph, SPEC, crops), ranges.observe(graph, SPEC, crops, method)
    assert min(values[name].min() for name in ("wide", "shared")) < -10
    step, _ = scheme.grid(found["wide"])
    assert ranges.SWISH_STARTS - step < found["wide"][0] <= ranges.SWISH_STARTS
    assert found["shared"][0] < -4
    assert ranges.SWISH_STARTS < values["narrow"].min() <= found["narrow"][0] < 0
    least = torch.tensor([-1e9, values["wide"].min()])
    assert (nn.Hardswish()(scheme.stored(least, found["wide"])) == 0).all()


@pytest.mark.parametrize("high", [0.0, 1e-3, 5.3, 147.0, 1e4])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_range_that_begins_with_a_hard_swish_holds_both_ends(high, bits):
    low, top = ranges._to_swish(high, bits)
    step, zero = scheme.grid((low, top), bits)
    assert -zero * step == pytest.approx(low, rel=1e-6)
    assert ranges.SWISH_STARTS - step <= low <= ranges.SWISH_STARTS
    assert high <= top + 1e-6 * step
    assert top - low <= (high - ranges.SWISH_STARTS) * (1 + 2 / 2**bits) + 1e-9
