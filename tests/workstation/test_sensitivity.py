"""Which layers int8 hurts: the simulation against a plain one, sweeps against whole runs, and their picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from pipnet_edge.benchmarks import tables
from pipnet_edge.benchmarks.pictures import layers
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import Run, Storage, convolutions, heads, points, trace
from pipnet_edge.converters.quantize import sensitivity
from pipnet_edge.converters.quantize.scheme import FULL, Quantized, pixel_lattice, stored, weight_steps
from pipnet_edge.converters.quantize.sensitivity import CHUNK, LayerSensitivity, measure, order, simulate
from pipnet_edge.decode import MAP_NAMES, Decoder, Landmarks, Maps, map_shapes
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec

SPEC = ModelSpec("tiny", 5, 2, 16, 64, MeanFace("five", ((0.2, 0.2), (0.8, 0.3), (0.5, 0.5), (0.3, 0.8), (0.7, 0.9))))
CROPS: NDArray[np.uint8] = np.random.default_rng(3).integers(0, 256, (CHUNK, 64, 64, 3), np.uint8)


def tiny() -> nn.Module:
    """Everything that the real networks have: both residual blocks, pooling, a gate, a transposed convolution."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    body = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 1, 1))
    resnet = nets.Residual(body, nn.Conv2d(8, 12, 1, 2), relu=True)
    depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.ReLU6())
    gate = nets.SqueezeExcite(nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1))
    mobilenet = nets.Residual(nn.Sequential(depthwise, gate, nn.Hardswish(), nn.Conv2d(12, 12, 1)))
    down = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.Hardswish())
    twice = nn.Sequential(nn.Conv2d(16, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU())
    last = nets.Residual(nn.Conv2d(8, 8, 1), relu=True)
    parts = {"stem": stem, "resnet": resnet, "mobilenet": mobilenet, "down": down, "twice": twice, "last": last}
    rows = {"neighbor_x": 2, "neighbor_y": 2}
    maps = {name: nn.Conv2d(8, 5 * rows.get(name, 1), 1) for name in nets.HEAD_KEYS}
    backbone = nn.Sequential()
    for name, part in parts.items():
        backbone.add_module(name, part)
    return nets.Pipnet(backbone, maps).eval()


def prepared(keep_heads: bool = True) -> tuple[torch.fx.GraphModule, Quantized]:
    """The float graph, and the same with rounded weights and the ranges of CROPS."""
    net = tiny()
    exact, graph = trace(net), trace(net)
    spec = pixel_lattice(exact, SPEC)
    pixel_lattice(graph, SPEC)
    keep = heads(graph) if keep_heads else frozenset[str]()
    for name in set(convolutions(graph)) - keep:
        layer = graph.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        steps = weight_steps(layer.weight, FULL, isinstance(layer, nn.ConvTranspose2d))
        layer.weight.copy_(torch.round(layer.weight / steps) * steps)
    ranges = {}

    def hook(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        ranges[node.name] = (min(0.0, value.min().item()), max(0.0, value.max().item()))
        return value

    with torch.no_grad():
        Run(graph, hook).run(normalise(CROPS, spec))
    return exact, Quantized(graph, spec, {name: ranges[name] for name in points(graph)}, keep, FULL)


EXACT, QUANTIZED = prepared()
LAYERS = tuple(name for name in convolutions(EXACT) if name not in QUANTIZED.keep)
Rows = tuple[LayerSensitivity, ...]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers as small as these take ten times as long where threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(_one_thread: None) -> Rows:
    return measure(EXACT, QUANTIZED, CROPS)


def decoded(maps: tuple[torch.Tensor, ...]) -> Landmarks:
    shapes = map_shapes(SPEC)
    named = zip(MAP_NAMES, maps, strict=True)
    return Decoder(SPEC)(Maps(**{name: m.numpy().reshape(-1, *shapes[name]) for name, m in named}))


def equal(a: Landmarks, b: Landmarks) -> bool:
    return bool((a.points == b.points).all() and (a.score == b.score).all() and (a.cell == b.cell).all())


def drift(a: Landmarks, b: Landmarks) -> tuple[float, float]:
    px = np.hypot(*np.moveaxis(a.points.astype(np.float64) - b.points, 2, 0)) * SPEC.input_size
    return float(px.mean()), float((a.cell != b.cell).mean() * 100)


# --- The simulation.


def test_all_layers_in_int8_is_the_plain_simulation() -> None:
    stored_nodes = points(QUANTIZED.graph).keys() - {"mul"}  # which no layer reads

    def hook(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        return stored(value, QUANTIZED.ranges[node.name]) if node.name in stored_nodes else value

    with torch.no_grad():
        plain = decoded(Run(QUANTIZED.graph, hook).run(normalise(CROPS, QUANTIZED.spec)))
    assert equal(simulate(EXACT, QUANTIZED, CROPS), plain)
    assert equal(simulate(EXACT, QUANTIZED, CROPS, only=frozenset(LAYERS)), plain)
    assert drift(plain, simulate(EXACT, QUANTIZED, CROPS, only=frozenset()))[0] > 0.01


def test_no_layer_in_int8_is_the_float_network() -> None:
    with torch.no_grad():
        exact = decoded(EXACT(normalise(CROPS, QUANTIZED.spec)))
    assert equal(simulate(EXACT, QUANTIZED, CROPS, only=frozenset()), exact)
    assert equal(simulate(EXACT, QUANTIZED, CROPS, keep=frozenset(LAYERS)), exact)
    assert equal(simulate(EXACT, QUANTIZED, CROPS, only={LAYERS[2]}, keep={LAYERS[2]}), exact)


def test_images_do_not_depend_on_how_many_there_are() -> None:
    many = np.concatenate([CROPS, CROPS[:3, ::-1]])
    whole = simulate(EXACT, QUANTIZED, many)
    assert whole.points.shape == (CHUNK + 3, 5, 2)
    assert np.abs(whole.points[:CHUNK] - simulate(EXACT, QUANTIZED, CROPS).points).max() < 1e-5
    assert np.abs(whole.points[CHUNK:] - simulate(EXACT, QUANTIZED, many[CHUNK:]).points).max() < 1e-5


STEM, DEPTHWISE, GATE = "backbone_stem_1", "backbone_mobilenet_body_0_1", "backbone_mobilenet_body_1_expand"
BLOCK, LAST, LAST_IN = "backbone_resnet_activation", "backbone_last_activation", "backbone_twice_3"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({"backbone.stem.0"}, {"image", STEM}),
        # Through the pooling it reads what the stem gives, and its activation is fused to it.
        ({"backbone.resnet.body.0"}, {STEM, "backbone_resnet_body_1"}),
        ({"backbone.resnet.shortcut"}, {STEM, "backbone_resnet_shortcut"}),
        # A sum of two stored tensors is stored, and with it the activation behind it; of one and a float one it is not.
        ({"backbone.resnet.shortcut", "backbone.resnet.body.2"}, {STEM, "backbone_resnet_body_1", BLOCK}),
        ({"backbone.last.body"}, {LAST_IN, "backbone_last_body", LAST}),
        # Neither a product nor an activation that stands alone is stored, unless an int8 layer reads it.
        ({"backbone.mobilenet.body.1.expand"}, {"backbone_mobilenet_body_1_relu", GATE}),
        ({"backbone.mobilenet.body.0.0"}, {BLOCK, DEPTHWISE}),
        ({"backbone.mobilenet.body.3"}, {"backbone_mobilenet_body_2", "backbone_mobilenet_body_3"}),
        # What the gate's first layer reads is averaged from a stored tensor.
        ({"backbone.mobilenet.body.1.reduce"}, {DEPTHWISE, "backbone_mobilenet_body_1_relu"}),
        ({"backbone.down.0"}, {"add_1", "backbone_down_0"}),
        (set(), set()),
    ],
)
def test_which_activations_are_stored(layers: set[str], expected: set[str]) -> None:
    """A tensor is stored if it matters that its range is far too wide."""
    if "backbone.resnet.body.2" in layers:
        expected = expected | {"backbone_resnet_body_2", "backbone_resnet_shortcut"}
    right = simulate(EXACT, QUANTIZED, CROPS, only=layers)
    found = set()
    for name in points(EXACT):
        wide: Mapping[str, tuple[float, float]] = {**QUANTIZED.ranges, name: (-1e4, 1e4)}
        if not equal(simulate(EXACT, replace(QUANTIZED, ranges=wide), CROPS, only=layers), right):
            found.add(name)
    assert found == expected


def test_what_is_stored_with_the_layers_to_keep_in_float() -> None:
    int8, storage = convolutions(EXACT).keys() - QUANTIZED.keep, Storage(EXACT)
    assert storage.stored(int8) == points(EXACT).keys() - {"mul"}
    assert storage.stored(int8) - storage.stored(int8 - {"backbone.mobilenet.body.3"}) == {
        *("backbone_mobilenet_body_2", "backbone_mobilenet_body_3")
    }
    assert storage.stored(frozenset()) == frozenset()


def test_unknown_layers_are_named() -> None:
    with pytest.raises(EdgeError, match=r"no layer nose, tail; layers: backbone\.stem\.0, "):
        simulate(EXACT, QUANTIZED, CROPS, only={"tail", LAYERS[0], "nose"})
    with pytest.raises(EdgeError, match="no layer nose;"):
        simulate(EXACT, QUANTIZED, CROPS, keep={"nose"})


# --- Sweeps.


def test_rows_are_the_int8_layers_in_order(rows: Rows) -> None:
    assert tuple(row.layer for row in rows) == LAYERS
    assert len(LAYERS) == 12


@pytest.mark.parametrize("layer", LAYERS)
def test_a_sweep_gives_what_whole_runs_give(rows: Rows, layer: str) -> None:
    row = rows[LAYERS.index(layer)]
    exact = simulate(EXACT, QUANTIZED, CROPS, only=frozenset())
    alone = drift(simulate(EXACT, QUANTIZED, CROPS, only={row.layer}), exact)
    without = drift(simulate(EXACT, QUANTIZED, CROPS, keep={row.layer}), exact)
    everything = drift(simulate(EXACT, QUANTIZED, CROPS), exact)
    assert (row.px_alone, row.flips_alone) == pytest.approx(alone, rel=1e-12)
    assert (row.px_without, row.flips_without) == pytest.approx(without, rel=1e-12)
    assert row.px_gain == pytest.approx(everything[0] - without[0], rel=1e-9)
    assert row.px_alone > 0


def test_noise_of_a_layer_is_that_of_the_plain_simulation(rows: Rows) -> None:
    image = normalise(CROPS, QUANTIZED.spec)
    values: list[dict[str, torch.Tensor]] = []
    for graph, storing in ((EXACT, False), (QUANTIZED.graph, True)):
        seen: dict[str, torch.Tensor] = {}

        def hook(
            node: torch.fx.Node,
            value: torch.Tensor,
            seen: dict[str, torch.Tensor] = seen,
            storing: bool = storing,
        ) -> torch.Tensor:
            if storing and node.name in QUANTIZED.ranges and node.name != "mul":
                value = stored(value, QUANTIZED.ranges[node.name])
            seen[node.name] = value
            return value

        with torch.no_grad():
            Run(graph, hook).run(image)
        values.append(seen)
    outputs = {
        "backbone.stem.0": STEM,
        "backbone.resnet.body.2": "backbone_resnet_body_2",
        "backbone.down.0": "backbone_down_0",
    }
    for layer, node in outputs.items():
        exact, noisy = (seen[node].double() for seen in values)
        ratio = float((exact**2).sum() / ((noisy - exact) ** 2).sum())
        found = rows[LAYERS.index(layer)].snr_db
        assert found == pytest.approx(10 * math.log10(ratio), abs=1e-6)
        assert 15 < found < 60


def test_what_is_clipped_is_counted_on_both_kinds_of_faces() -> None:
    stem, most = EXACT.get_submodule(LAYERS[0]), QUANTIZED.ranges[STEM][1] / 4
    narrow = replace(QUANTIZED, ranges={**QUANTIZED.ranges, STEM: (0.0, most)})

    def clipped(crops: NDArray[np.uint8]) -> float:
        with torch.no_grad():
            return float((stem(normalise(crops, QUANTIZED.spec)) > most).double().mean())

    row = measure(EXACT, narrow, CROPS, calibration=CROPS[:3] // 2)[0]
    assert row.layer == LAYERS[0]
    assert row.clipped == pytest.approx(clipped(CROPS), abs=1e-5)
    assert row.clipped_calibration == pytest.approx(clipped(CROPS[:3] // 2), abs=1e-5)
    assert 0 < row.clipped < 1
    assert abs(row.clipped - row.clipped_calibration) > 0.01
    assert measure(EXACT, narrow, CROPS[:1])[0].clipped_calibration is None


def test_shares_of_weights_and_multiply_adds() -> None:
    everything = measure(*prepared(keep_heads=False), CROPS[:2])
    rows = {row.layer: row for row in everything}
    assert len(rows) == len(LAYERS) + 5
    assert sum(row.params for row in everything) == pytest.approx(1)
    assert sum(row.macs for row in everything) == pytest.approx(1)
    assert all(row.px_alone > 0 for row in everything if "score" not in row.layer)
    stem = rows["backbone.stem.0"]
    # weights: outputs * inputs of a group * kernel; multiply-adds: that times the places it is applied at.
    for layer, weights, places in (
        ("backbone.mobilenet.body.0.0", 12 * 9, 8 * 8),
        ("backbone.mobilenet.body.1.reduce", 4 * 12, 1),
        ("backbone.twice.2", 8 * 8 * 16, 2 * 2),
        ("heads.neighbor_x", 10 * 8, 4 * 4),
    ):
        assert rows[layer].params / stem.params == pytest.approx(weights / (8 * 27))
        assert rows[layer].macs / stem.macs == pytest.approx(weights * places / (8 * 27 * 32 * 32))


def test_several_chunks_count_every_image_once(rows: Rows) -> None:
    twice = measure(EXACT, QUANTIZED, np.concatenate([CROPS, CROPS]))
    for row, same in zip(rows, twice, strict=True):
        for name, value in row.to_json().items():
            is_number = isinstance(value, float)
            assert getattr(same, name) == (pytest.approx(value, rel=1e-6, abs=1e-9) if is_number else value), name


def test_progress_counts_to_the_end() -> None:
    said: list[tuple[str, int, int]] = []
    measure(EXACT, QUANTIZED, np.concatenate([CROPS, CROPS[:1]]), lambda *step: said.append(step))
    total = 2 * 2 * len(LAYERS)
    assert [(done, of) for _, done, of in said] == [(done, total) for done in range(total)]


def test_a_network_with_one_layer_in_int8() -> None:
    one = replace(QUANTIZED, keep=frozenset(convolutions(EXACT)) - {LAYERS[3]})
    (row,) = measure(EXACT, one, CROPS)
    assert row.px_without == 0
    assert row.px_gain == row.px_alone > 0


def test_order_puts_the_layer_that_costs_most_alone_first(rows: Rows) -> None:
    names = order(rows)
    cost = {row.layer: row.px_alone for row in rows}
    assert sorted(names) == sorted(LAYERS)
    assert [cost[name] for name in names] == sorted(cost.values(), reverse=True)
    tied = [replace(rows[0], layer=f"{gain}", px_gain=gain) for gain in (0.1, 0.3, 0.2)]
    assert order(tied) == ("0.3", "0.2", "0.1")


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_decibels_are_finite(signal: float, noise: float) -> None:
    found = sensitivity._decibel(signal, noise)
    assert -sensitivity.MOST_DB - 1e-9 <= found <= sensitivity.MOST_DB + 1e-9
    assert sensitivity._decibel(noise, signal) == pytest.approx(-found, abs=1e-6) or signal == noise == 0
    assert sensitivity._decibel(1.0, 0.0) == pytest.approx(sensitivity.MOST_DB)
    assert sensitivity._decibel(100.0, 1.0) == pytest.approx(20)


# --- The table and the picture.

# What LayerSensitivity.to_json gives.
ROW: dict[str, Any] = {
    **{"layer": "backbone.stem.0", "snr_db": 31.25, "params": 0.1, "macs": 0.25, "px_alone": 0.125, "flips_alone": 0.5},
    **{"px_without": 0.75, "flips_without": 1.5, "px_gain": 0.0625, "clipped": 0.0125, "clipped_calibration": None},
}


def test_rows_go_through_json(rows: Rows) -> None:
    assert json.loads(json.dumps([row.to_json() for row in rows], allow_nan=False)) == [row.to_json() for row in rows]
    assert rows[0].to_json().keys() == ROW.keys()


def test_the_table_has_a_line_for_every_layer(rows: Rows) -> None:
    table = tables.sensitivity([ROW, ROW | {"clipped_calibration": 0.005}, *(row.to_json() for row in rows)])
    assert len(table.rows) == 2 + len(rows)
    assert {len(row) for row in table.rows} == {len(table.columns)}
    first = ["stem.0", "31.2", "10.0", "25.0", "0.125", "0.50", "0.750", "1.50", "+0.062", "1.250"]
    assert table.rows[:2] == [[*first, ""], [*first, "0.500"]]


def made(alone: list[float], gain: list[float]) -> list[dict[str, Any]]:
    return [
        {**ROW, "layer": f"block.{i}", "px_alone": a, "px_gain": g, "px_without": 1 - g}
        for i, (a, g) in enumerate(zip(alone, gain, strict=True))
    ]


def lengths(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> list[int]:
    """The length in pixels of every row's bar of this colour, from the top."""
    rows = np.flatnonzero((image == colour).all(axis=2).any(axis=1))
    starts = [y for y in rows if y - 1 not in rows]
    return [int((image[y + 3] == colour).all(axis=1).sum()) for y in starts]


def test_bars_are_as_long_as_their_values() -> None:
    image = layers.picture(made([0.4, 0.2, 0.1], [0.3, -0.1, 0.15]), "a title")
    cost = lengths(image, layers.COST)
    assert cost == pytest.approx([cost[0], cost[0] / 2, cost[0] / 4], abs=3)
    assert cost[0] > 100
    assert lengths(image, layers.GAIN) == pytest.approx([cost[0] * 0.75, cost[0] * 0.375], abs=3)
    assert lengths(image, layers.LOSS) == pytest.approx([cost[0] / 4], abs=3)


@pytest.mark.parametrize("width", [650, 1300])
@pytest.mark.parametrize("rows", [[ROW], made([0.0], [0.0]), made([0.5] * 100, [-2.0] * 100)])
def test_any_rows_are_drawn_inside_the_picture(rows: list[dict[str, Any]], width: int) -> None:
    image = layers.picture(rows, "a title that is too long" * 20, width)
    assert image.shape[1:] == (width, 3)
    assert image.dtype == np.uint8
    margin = width // 60
    for edge in (image[:margin], image[-margin:], image[:, :margin], image[:, -margin:]):
        assert (edge == 255).all()


def test_no_rows_are_refused() -> None:
    with pytest.raises(EdgeError, match="no layer is in int8"):
        layers.picture([], "")
