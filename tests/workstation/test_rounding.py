"""From float weights to weights on int8 grids: equalised channels, rounding, and the cache that keeps the outcome."""

from __future__ import annotations

import itertools
import operator
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import Network, normalise
from pipnet_edge.converters.graph import Run, convolutions, heads, points, trace
from pipnet_edge.converters.quantize import prepare, ranges, rounding, scheme
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.equalise import equalise
from pipnet_edge.converters.quantize.prepare import Options, Prepared
from pipnet_edge.converters.quantize.scheme import stored, weight_steps
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
Array = np.ndarray[Any, Any]


def values_of(graph: fx.GraphModule, spec: ModelSpec, crops: Array) -> dict[str, Tensor]:
    """Node name -> its float output for these crops, (n, C, H, W)."""
    found = {}

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        found[node.name] = value
        return value

    with torch.no_grad():
        Run(graph, hook).run(normalise(crops, spec))
    return found


def maps_of(values: Mapping[str, Tensor]) -> list[Tensor]:
    return [values[f"heads_{name}"] for name in nets.HEAD_KEYS]


def weights(graph: fx.GraphModule, name: str) -> Tensor:
    return graph.get_submodule(name).get_parameter("weight")


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# --- Equalisation.


@pytest.fixture(scope="module")
def both(
    tiny_net: Make, tiny_spec: ModelSpec, tiny_faces: Array
) -> tuple[fx.GraphModule, dict[str, Tensor], dict[str, Tensor]]:
    """The equalised graph, and the values of all nodes before and after."""
    graph = trace(tiny_net())
    before = values_of(graph, tiny_spec, tiny_faces)
    equalise(graph, tiny_spec, tiny_faces)
    return graph, before, values_of(graph, tiny_spec, tiny_faces)


def test_equalised_maps_are_the_same(
    both: tuple[fx.GraphModule, dict[str, Tensor], dict[str, Tensor]], tiny_net: Make
) -> None:
    graph, before, after = both
    for one, other in zip(maps_of(before), maps_of(after), strict=True):
        assert (one - other).abs().max() < 1e-4 * one.abs().max()
    # All but the heads, whose outputs are the maps, had channels to scale.
    float_ = trace(tiny_net())
    same = {name for name in convolutions(graph) if torch.equal(weights(graph, name), weights(float_, name))}
    assert same == set()
    head = next(iter(heads(graph)))
    assert torch.equal(graph.get_parameter(f"{head}.bias"), float_.get_parameter(f"{head}.bias"))


def unevenness(value: Tensor, before: Tensor) -> float:
    """The standard deviation of the logarithm of what each channel reaches, dead ones apart."""
    reach = before.abs().amax((0, 2, 3))
    return value.abs().amax((0, 2, 3))[reach > 1e-3 * reach.max()].log().std().item()


def test_channels_share_their_tensors_range(both: tuple[fx.GraphModule, dict[str, Tensor], dict[str, Tensor]]) -> None:
    _, before, after = both
    # Alone in their groups, each channel of these gets all of the range.
    for name in ("backbone_stem_1", "backbone_plain_body_1", "backbone_down_body_1"):
        assert unevenness(before[name], before[name]) > 0.3
        assert unevenness(after[name], before[name]) < 0.01
    # Of several tensors that are scaled together, the neediest decides. What a summand has below zero matters as far as
    # the other can lift it above: a ReLU follows.
    summands = ("backbone_down_body_2", "backbone_down_shortcut")

    def needed(values: dict[str, Tensor]) -> Tensor:
        highs = torch.stack([values[name].amax((0, 2, 3)).clamp_min(0) for name in summands])
        lows = torch.stack([-values[name].amin((0, 2, 3)).clamp_max(0) for name in summands])
        sums = values["backbone_down_activation"].amax((0, 2, 3))
        return torch.stack([*torch.maximum(highs, torch.minimum(lows, highs.flip(0))), sums])

    largest = needed(before).amax(1, keepdim=True)
    assert (needed(before) / largest).amax(0).log().std() > 0.2
    assert (needed(after) / largest).amax(0).log().std() < 0.01


def test_nothing_reaches_six_that_did_not_before(
    both: tuple[fx.GraphModule, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    _, before, after = both
    grown = 0
    for name in ("backbone_expand", "backbone_depthwise", "backbone_mobilenet_body"):
        old, new = (values[f"{name}_1"] for values in (before, after))
        assert torch.equal(old >= 6, new >= 6)
        factors = new.amax((0, 2, 3)) / old.amax((0, 2, 3)).clamp_min(1e-9)
        assert factors.min() > 0.9999
        grown += int((factors > 1.01).sum())
        assert unevenness(new, old) < 0.7 * unevenness(old, old)
        assert new.amax((0, 2, 3))[factors > 1.01].max() < 6 * 0.86
    assert grown > 10


@pytest.mark.parametrize("case", ["lapa_mobilenet_v3_s32", "wflw_resnet18_s16"])
def test_gates_hard_swishes_and_transposed_layers_are_left_alone(cases: Mapping[str, Any], case: str) -> None:
    random = np.random.default_rng(0)
    graph = trace(nets.build(cases[case].state())[2])
    spec = ModelSpec("x", 5, 1, 32, 64, nets_face())
    crops = random.integers(0, 256, (2, 64, 64, 3), np.uint8)
    before, original = values_of(graph, spec, crops), trace(graph)
    equalise(graph, spec, crops)
    after = values_of(graph, spec, crops)
    for one, other in zip(maps_of(before), maps_of(after), strict=True):
        assert (one - other).abs().max() < 1e-4 * one.abs().max()
    for name, node in convolutions(graph).items():
        # A bias changes with what its layer gives.
        same = torch.equal(graph.get_parameter(f"{name}.bias"), original.get_parameter(f"{name}.bias"))
        after_it = [graphs.module(graph, user) or user.target for user in node.users]
        if any(isinstance(one, nn.Hardswish | nn.Hardsigmoid) or one is operator.mul for one in after_it):
            assert same
        if name in graphs.transposed(graph):
            assert same
            assert torch.equal(weights(graph, name), weights(original, name))
        if isinstance(after_it[0], nn.ReLU) and name not in graphs.transposed(graph):
            assert not same or not any(original.get_parameter(f"{name}.bias"))


def nets_face() -> Any:
    from pipnet_edge.spec import MeanFace

    return MeanFace("five", tuple((i / 5, i / 5) for i in range(5)))


# --- Rounding.


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
    found = rounding.gptq(weight, covariance(random, groups, depth))
    largest = weight.abs().amax(2)
    assert torch.allclose(found.abs().amax(2), largest, rtol=1e-5, atol=0)
    whole = found / torch.where(largest > 0, largest / 127, 1.0)[:, :, None]
    assert (whole - whole.round()).abs().max() < 1e-4
    assert whole.abs().max() <= 127.001
    at = weight.abs().argmax(2, keepdim=True)
    assert torch.equal(found.gather(2, at).sign(), weight.gather(2, at).sign())
    # The step that every quantizer computes is the one that was rounded to.
    flat = found.reshape(-1, depth, 1, 1)
    again = flat / weight_steps(flat)
    assert (again - again.round()).abs().max() < 1e-4
    kept = flat.abs().amax((1, 2, 3)) > 0
    assert (again.round().abs().amax((1, 2, 3))[kept] == 127).all()


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_two_weights_are_rounded_as_well_as_can_be(seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(random.uniform(-1, 1, (1, 1, 2))).float()
    xx = covariance(random, 1, 2)
    step = weight.abs().max() / 127
    free = int(weight.abs().argmin())
    best = None
    for whole in range(-127, 128):
        candidate = weight.clone()
        candidate[0, 0, free] = whole * step
        if best is None or cost(candidate - weight, xx) < cost(best - weight, xx):
            best = candidate
    assert best is not None
    assert torch.allclose(rounding.gptq(weight, xx), best, atol=1e-6)


@given(seeds, st.floats(0, 0.95))
@settings(max_examples=40, deadline=None)
def test_of_three_weights_the_last_makes_up_for_the_first(seed: int, correlation: float) -> None:
    """The largest weight stays, then the one with the larger inputs is rounded, then the other, best of all ways."""
    random = np.random.default_rng(seed)
    weight = torch.tensor([[[1.0, *random.uniform(-0.8, 0.8, 2)]]]).float()
    xx = torch.tensor([[[9.0, 0.5, 0.2], [0.5, 2, correlation * 2**0.5], [0.2, correlation * 2**0.5, 1]]])
    found, step = rounding.gptq(weight, xx), weight.abs().max() / 127
    first = (weight / step).round() * step
    ways = [torch.tensor([[[1.0, first[0, 0, 1], whole * step]]]) for whole in range(-127, 128)]
    best = min(ways, key=lambda way: cost(way - weight, damped(xx)).item())
    assert cost(found - weight, damped(xx)) <= cost(best - weight, damped(xx)) * 1.001 + 1e-12
    assert cost(found - weight, damped(xx)) <= cost(first - weight, damped(xx)) * 1.001 + 1e-12


def test_many_weights_cost_far_less_than_the_nearest() -> None:
    random = np.random.default_rng(0)
    for groups, rows, depth in ((1, 32, 200), (16, 1, 9), (1, 8, 20)):
        weight = torch.from_numpy(random.standard_normal((groups, rows, depth))).float()
        xx = covariance(random, groups, depth)
        step = weight.abs().amax(2, keepdim=True) / 127
        least, naive = (
            cost(rounded - weight, xx).sum() for rounded in (rounding.gptq(weight, xx), (weight / step).round() * step)
        )
        assert least < 0.75 * naive


def test_groups_and_rows_do_not_mix() -> None:
    random = np.random.default_rng(0)
    weight, xx = torch.from_numpy(random.standard_normal((4, 3, 9))).float(), covariance(random, 4, 9)
    whole = rounding.gptq(weight, xx)
    for group, row in itertools.product(range(4), range(3)):
        alone = rounding.gptq(weight[group, row][None, None], xx[group : group + 1])
        assert torch.allclose(alone[0, 0], whole[group, row], atol=1e-6)


def simulated(graph: fx.GraphModule, spec: ModelSpec, crops: Array, bounds: Mapping[str, Any]) -> dict[str, Tensor]:
    """Node name -> output, where activations are stored in 8 bits."""
    found = {}

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        found[node.name] = value
        return stored(value, bounds[node.name]) if node.name in bounds else value

    with torch.no_grad():
        Run(graph, hook).run(normalise(crops, spec))
    return found


@pytest.fixture(scope="module")
def start(tiny_net: Make, tiny_spec: ModelSpec, tiny_faces: Array) -> tuple[fx.GraphModule, ModelSpec, dict[str, Any]]:
    """A float graph, its spec, and its ranges."""
    graph = trace(tiny_net())
    equalise(graph, tiny_spec, tiny_faces)
    spec = scheme.pixel_lattice(graph, tiny_spec)
    found = ranges.observe(graph, spec, tiny_faces, "minmax")
    return graph, spec, {name: found[name] for name in points(graph)}


Start = tuple[fx.GraphModule, ModelSpec, dict[str, Any]]


@pytest.fixture(scope="module")
def rounded(start: Start, tiny_faces: Array) -> fx.GraphModule:
    graph, spec, bounds = start
    return rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph))


def on_grid(weight: Tensor, transposed: bool = False) -> bool:
    whole = weight / weight_steps(weight, transposed)
    inner = [d for d in range(4) if d != int(transposed)]
    return bool((whole - whole.round()).abs().max() < 1e-3) and bool((whole.round().abs().amax(inner) == 127).all())


def test_every_layer_lies_on_its_grid_but_those_to_keep(start: Start, rounded: fx.GraphModule) -> None:
    graph, _, _ = start
    before = trace(graph)
    for found in (rounded, rounding.nearest(graph, heads(graph))):
        for name in convolutions(graph):
            if name in heads(graph):
                for part in ("weight", "bias"):
                    assert torch.equal(graph.get_parameter(f"{name}.{part}"), found.get_parameter(f"{name}.{part}"))
                assert not on_grid(weights(found, name))
            else:
                assert on_grid(weights(found, name))
                assert not torch.equal(weights(found, name), weights(graph, name))
    assert equal(graph, before)


def test_nearest_is_nearest(start: Start) -> None:
    graph, _, _ = start
    found = rounding.nearest(graph, heads(graph))
    for name in set(convolutions(graph)) - heads(graph):
        error = (weights(found, name) - weights(graph, name)).abs() / weight_steps(weights(graph, name))
        assert error.max() <= 0.5001
        assert torch.equal(graph.get_parameter(f"{name}.bias"), found.get_parameter(f"{name}.bias"))


def test_rounding_in_sequence_beats_nearest(start: Start, rounded: fx.GraphModule, tiny_faces: Array) -> None:
    graph, spec, bounds = start
    exact = maps_of(values_of(graph, spec, tiny_faces))
    errors = []
    for candidate in (rounded, rounding.nearest(graph, heads(graph))):
        maps = maps_of(simulated(candidate, spec, tiny_faces, bounds))
        errors.append(sum((a - b).square().sum() / a.square().sum() for a, b in zip(exact, maps, strict=True)).item())
    assert errors[0] < 0.75 * errors[1]


def test_biases_make_the_mean_error_vanish(start: Start, rounded: fx.GraphModule, tiny_faces: Array) -> None:
    """Of every channel of every layer, over the calibration faces, as int8 computes it."""
    graph, spec, bounds = start
    exact, got = values_of(graph, spec, tiny_faces), simulated(rounded, spec, tiny_faces, bounds)
    naive = simulated(rounding.nearest(graph, heads(graph)), spec, tiny_faces, bounds)
    shrunk = []
    for name, node in convolutions(graph).items():
        if name not in heads(graph):
            mean, before = ((values[node.name] - exact[node.name]).mean((0, 2, 3)) for values in (got, naive))
            assert mean.abs().max() < 1e-5 * exact[node.name].abs().max()
            shrunk.append((mean.norm() / before.norm()).item())
    assert max(shrunk) < 0.05


def test_the_seed_decides(start: Start, rounded: fx.GraphModule, tiny_faces: Array, monkeypatch: Any) -> None:
    graph, spec, bounds = start
    assert equal(rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph)), rounded)
    # Few positions, so that they have to be drawn.
    monkeypatch.setattr(rounding, "COLUMNS", 200)
    few = [rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph), seed=seed) for seed in (0, 0, 1)]
    assert equal(few[0], few[1])
    assert not equal(few[0], few[2])


def test_more_faces_join_where_there_is_room(start: Start, tiny_faces: Array, monkeypatch: Any) -> None:
    """They go through the layers that are rounded already, and change only those that are not."""
    graph, spec, bounds = start
    names = [name for name in convolutions(graph) if name not in heads(graph)]
    monkeypatch.setattr(rounding, "FEW", 8)
    monkeypatch.setattr(rounding, "MANY", 24)
    alone = rounding.sequential(graph, spec, tiny_faces[:8], bounds, heads(graph))
    everywhere = rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph))
    monkeypatch.setattr(rounding, "ROOM", 24 * 2 * 4 * 10_000)
    later = rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph))
    assert torch.equal(weights(later, names[0]), weights(alone, names[0]))
    assert not torch.equal(weights(everywhere, names[0]), weights(alone, names[0]))
    assert not torch.equal(later.get_parameter(f"{names[-1]}.bias"), alone.get_parameter(f"{names[-1]}.bias"))
    last = convolutions(graph)[names[-1]].name
    mean = (simulated(later, spec, tiny_faces[:24], bounds)[last] - values_of(graph, spec, tiny_faces[:24])[last]).mean(
        (0, 2, 3)
    )
    assert mean.abs().max() < 1e-5 * values_of(graph, spec, tiny_faces[:24])[last].abs().max()
    monkeypatch.setattr(rounding, "ROOM", 0)
    assert equal(rounding.sequential(graph, spec, tiny_faces, bounds, heads(graph)), alone)


def test_nothing_to_round(start: Start, tiny_faces: Array) -> None:
    graph, spec, bounds = start
    assert equal(rounding.sequential(graph, spec, tiny_faces, bounds, convolutions(graph)), graph)


class Twice(nn.Module):
    """What the others lack: a transposed layer, a gate, a hard swish, padding and strides that differ by axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, (3, 5), (2, 4), (1, 2), dilation=(2, 1))
        self.gate = nets.SqueezeExcite(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1))
        self.swish, self.up = nn.Hardswish(), nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.relu = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        return self.grouped(self.relu(self.up(self.swish(self.gate(self.first(image))))))  # type: ignore[no-any-return]


def test_other_kinds_of_layers_pass(tiny_spec: ModelSpec, tiny_faces: Array) -> None:
    graph = trace(Twice().eval())
    spec = scheme.pixel_lattice(graph, tiny_spec)
    bounds = ranges.observe(graph, spec, tiny_faces, "minmax")
    told = []
    keep = graphs.transposed(graph)
    found = rounding.sequential(graph, spec, tiny_faces, bounds, keep, lambda *args: told.append(args))
    assert told == [(name, i, 4) for i, name in enumerate(("first", "gate.reduce", "gate.expand", "grouped"))]
    assert torch.equal(weights(found, "up"), weights(graph, "up"))
    assert all(on_grid(weights(found, name)) for name in convolutions(graph) if name != "up")
    # A copy of what the kernel sees that took the wrong positions would fit weights to the wrong inputs.
    exact = values_of(graph, spec, tiny_faces)
    for name in ("first", "grouped"):
        error = simulated(found, spec, tiny_faces, bounds)[name] - exact[name]
        naive = simulated(rounding.nearest(graph, keep), spec, tiny_faces, bounds)[name] - exact[name]
        assert error.square().mean() < naive.square().mean()


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


# --- The cache.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pipnet-edge" / "rounded"


@pytest.fixture
def network(tiny_net: Make, tiny_spec: ModelSpec) -> Network:
    return Network(tiny_spec, tiny_net(), 0)


NEAREST = Options("minmax", "nearest")


def steps_of(network: Network, faces: Calibration, options: Options = NEAREST) -> tuple[Prepared, set[str]]:
    """What is prepared, and the first words of what progress told."""
    told = set()
    made = prepare.prepare(network, faces, options, lambda text, *_: told.add(text.split()[0]))
    return made, told


def test_the_cache_gives_the_same_bits(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    options = Options()
    (made, told), (again, nothing) = (steps_of(network, tiny_calibration, options) for _ in range(2))
    assert told == {"equalise", "calibrate", "round"}
    assert nothing == set()
    assert equal(made.float_, again.float_)
    assert equal(made.rounded, again.rounded)
    assert not equal(made.rounded, made.float_)
    assert (made.spec, dict(made.ranges)) == (again.spec, dict(again.ranges))
    assert len(list(cache.iterdir())) == 1
    keep = heads(made.float_)
    assert equal(made.keeping(keep).graph, again.keeping(keep).graph)


def test_what_is_prepared_is_the_network_given(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    made, _ = steps_of(network, tiny_calibration)
    crops = tiny_calibration.crops
    exact = maps_of(values_of(trace(network.net), network.spec, crops))
    for one, other in zip(exact, maps_of(values_of(made.float_, made.spec, crops)), strict=True):
        assert (one - other).abs().max() < 0.01 * one.abs().max()
    assert all(on_grid(weights(made.rounded, name)) for name in convolutions(made.rounded))
    assert made.ranges.keys() == points(made.float_).keys() | graphs.maps(made.float_).keys()


def test_layers_to_keep_are_as_before_rounding(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    made, _ = steps_of(network, tiny_calibration)
    given = made.keeping({"backbone.project", "heads.score"})
    assert given.keep == {"backbone.project", "heads.score"}
    for name in convolutions(made.float_):
        source = made.float_ if name in given.keep else made.rounded
        for part in ("weight", "bias"):
            assert torch.equal(given.graph.get_parameter(f"{name}.{part}"), source.get_parameter(f"{name}.{part}"))
    assert scheme.integers(given).keys() == set(convolutions(made.float_)) - given.keep
    assert made.kinds(["heads", "gates", "transposed"]) == dict.fromkeys(heads(made.float_), "heads")
    with pytest.raises(KeyError):
        made.kinds(["tails"])


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_replaced(
    cache: Path, network: Network, tiny_calibration: Calibration, share: float
) -> None:
    made, _ = steps_of(network, tiny_calibration)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    again, told = steps_of(network, tiny_calibration)
    assert "equalise" in told
    assert equal(made.rounded, again.rounded)
    assert list(cache.iterdir()) == [path]
    assert steps_of(network, tiny_calibration)[1] == set()


def test_other_files_in_its_place_are_replaced(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    steps_of(network, tiny_calibration)
    (path,) = cache.iterdir()
    for content in (b"\n", b"PK\x03\x04 no archive", os.urandom(1000)):
        path.write_bytes(content)
        assert "equalise" in steps_of(network, tiny_calibration)[1]
        assert steps_of(network, tiny_calibration)[1] == set()


def test_whatever_goes_in_makes_another_key(cache: Path, tiny_net: Make, tiny_calibration: Calibration) -> None:
    from pipnet_edge.spec import MeanFace

    spec = ModelSpec("tiny", 5, 2, 16, 64, MeanFace("five", tuple((i / 5, i * i / 25) for i in range(5))))
    network = Network(spec, tiny_net(), 0)
    other_net = tiny_net()
    other_net.get_parameter("backbone.project.bias")[3] += 1e-6
    turned = replace(tiny_calibration, crops=np.ascontiguousarray(tiny_calibration.crops[::-1]))
    given = [
        (network, tiny_calibration, NEAREST),
        (Network(spec, other_net, 0), tiny_calibration, NEAREST),
        # Another seed draws other faces, or the same in another order.
        (network, turned, NEAREST),
        (network, tiny_calibration, Options("mse", "nearest")),
        (network, tiny_calibration, Options("minmax", "sequential")),
        (Network(replace(spec, mean=(0.5, 0.5, 0.5)), tiny_net(), 0), tiny_calibration, NEAREST),
        (Network(replace(spec, std=(0.5, 0.5, 0.5)), tiny_net(), 0), tiny_calibration, NEAREST),
    ]
    for count, arguments in enumerate(given, 1):
        assert "equalise" in steps_of(*arguments)[1]
        assert len(list(cache.iterdir())) == count
    for arguments in given:
        assert steps_of(*arguments)[1] == set()


def test_a_cache_that_cannot_be_written_is_no_error(
    cache: Path, network: Network, tiny_calibration: Calibration
) -> None:
    cache.parent.write_text("a file where a folder should be")
    made, told = steps_of(network, tiny_calibration)
    assert told == {"equalise", "calibrate"}
    assert set(convolutions(made.rounded)) == scheme.integers(made.keeping(())).keys()
    assert cache.parent.is_file()


FULL = """
import resource, sys
from pathlib import Path
from pipnet_edge.converters.quantize import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
path = Path(sys.argv[1]) / "folder" / "file.pt"
import torch
prepare._write(path, {"float": {"weight": torch.zeros(100_000)}})
print(path.parent.is_dir(), list(path.parent.iterdir()))
"""


def test_a_full_disk_is_no_error_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True []\n", "")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("entropy", "nearest"), f"--ranges entropy; allowed: {', '.join(ranges.METHODS)}"),
        (("mse", "adaround"), "--rounding adaround; allowed: sequential, nearest"),
    ],
)
def test_unknown_options(names: tuple[str, str], message: str) -> None:
    with pytest.raises(EdgeError, match=f"^{re.escape(message)}$"):
        Options(*names)
