"""The int8 TFLite files of a small network with everything that a PIPNet has, run and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation half needs torch")
from torch import nn  # noqa: E402

from pipnet_edge.converters import graph as graphs  # noqa: E402
from pipnet_edge.converters.checkpoint.nets import HEAD_KEYS, Pipnet, Residual, SqueezeExcite  # noqa: E402
from pipnet_edge.converters.checkpoint.network import normalise  # noqa: E402
from pipnet_edge.converters.core import Core  # noqa: E402
from pipnet_edge.converters.quantize import match  # noqa: E402
from pipnet_edge.converters.quantize import scheme as q  # noqa: E402
from pipnet_edge.converters.tflite import fp, int8  # noqa: E402
from pipnet_edge.converters.tflite.file import int8_weights, read, weights  # noqa: E402
from pipnet_edge.decode import MAP_NAMES  # noqa: E402
from pipnet_edge.errors import EdgeError  # noqa: E402
from pipnet_edge.runtimes import tflite as runtime  # noqa: E402
from pipnet_edge.spec import MeanFace, ModelSpec  # noqa: E402

SPEC = ModelSpec("small", 3, 1, 16, 64, MeanFace("three", ((0.1, 0.2), (0.5, 0.3), (0.7, 0.9))))


def network() -> nn.Module:
    """Every kind of operation that the backbones have, at stride 16; one channel of the first layer is dead."""
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1))
    backbone = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1), nn.Hardswish()),
        Residual(body, relu=True),
        nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), SqueezeExcite(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU()),
    )
    backbone[0][0].weight.data[2] = 0.0
    return Pipnet(backbone, {key: nn.Conv2d(16, 3, 1) for key in HEAD_KEYS}).eval()


@pytest.fixture(scope="module")
def quantized() -> q.Quantized:
    """The network on its grids, all of them, with the extremes of one face as ranges, of the maps too."""
    graph = graphs.trace(network())
    spec = q.pixel_lattice(graph, SPEC)
    for node in graphs.convolutions(graph).values():
        layer = graphs.module(graph, node)
        steps = q.weight_steps(layer.weight, q.FULL, isinstance(layer, nn.ConvTranspose2d))
        layer.weight.copy_(torch.round(layer.weight / steps) * steps)
    names = {*graphs.points(graph), *(graphs.convolutions(graph)[layer].name for layer in graphs.heads(graph))}
    ranges = {}

    def look(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        if node.name in names:
            ranges[node.name] = (value.min().item(), value.max().item())
        return value

    graphs.Run(graph, look).run(normalise(match.face(spec.size)[None], spec))
    return q.Quantized(
        graph, spec, ranges | {"image": (-116.0, 139.0)}, graphs.heads(graph) | graphs.gates(graph), q.FULL
    )


@pytest.fixture(scope="module")
def core(quantized: q.Quantized, tmp_path_factory: pytest.TempPathFactory) -> Core:
    return Core(quantized.graph, quantized.spec, tmp_path_factory.mktemp("core") / "core.onnx", (0, 0), (0, 0))


Convert = Callable[[int], Path]


@pytest.fixture(scope="module")
def convert(core: Core, quantized: q.Quantized, tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """The folder of the variant with so many bits; -8: 8 bits with nothing kept in float."""
    made: dict[int, Path] = {}

    def make(bits: int) -> Path:
        if bits not in made:
            made[bits] = tmp_path_factory.mktemp("variant")
            wanted = quantized if bits >= 0 else replace(quantized, keep=frozenset())
            int8.convert(core, wanted, abs(bits), made[bits])
        return made[bits]

    return make


def maps(folder: Path) -> list[np.ndarray]:
    found = runtime.Session(folder, SPEC, "int8", 1).run(match.face(SPEC.size))
    return [found[name].reshape(-1, SPEC.grid, SPEC.grid) for name in MAP_NAMES]


def torch_maps(quantized: q.Quantized, bits: int) -> list[np.ndarray]:
    """The maps with every stored activation on its grid of so many bits, none on a grid for 0."""
    stored = graphs.points(quantized.graph)

    def hook(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        if node.name not in stored or not bits:
            return value
        return q.stored(value, quantized.ranges[node.name], bits)

    image = normalise(match.face(SPEC.size)[None], quantized.spec)
    return [value[0].numpy() for value in graphs.Run(quantized.graph, hook).run(image)]


def difference(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The root mean square of the difference as a share of the deviation, of the worst map."""
    return max(float(np.sqrt(np.mean((a - b) ** 2)) / b.std()) for a, b in zip(found, wanted, strict=True))


def in_pairs(whole: torch.Tensor) -> torch.Tensor:
    """The first weight as 8-bit files have it: over two pixels as one, of which the first starts a pixel earlier."""
    wider = torch.cat([torch.zeros(len(whole), 3, 3, 1, dtype=torch.int8), whole], dim=3)
    return wider.reshape(-1, 3, 3, 2, 2).permute(0, 4, 1, 2, 3).reshape(-1, 6, 3, 2)


def grids(quantized: q.Quantized, keep: frozenset[str], paired: bool) -> list[bytes]:
    found = []
    for name, node in graphs.convolutions(quantized.graph).items():
        layer = graphs.module(quantized.graph, node)
        transposed = isinstance(layer, nn.ConvTranspose2d)
        whole = torch.round(layer.weight / q.weight_steps(layer.weight, q.FULL, transposed)).to(torch.int8)
        if paired and whole.shape[1:] == (3, 3, 3):
            whole = in_pairs(whole)
        if name not in keep:
            found.append((whole.transpose(0, 1) if transposed else whole).contiguous().numpy().tobytes())
    return sorted(found)


@pytest.mark.parametrize("bits", [8, 16, 0, -8])
def test_file_has_the_networks_int8_weights(convert: Convert, quantized: q.Quantized, bits: int) -> None:
    found = sorted(np.ascontiguousarray(w).tobytes() for w in int8_weights(convert(bits) / "model.tflite"))
    assert found == grids(quantized, quantized.keep if bits >= 0 else frozenset(), abs(bits) == 8)


def test_weights_alone_change_nothing_when_they_lie_on_their_grids(convert: Convert, quantized: q.Quantized) -> None:
    assert difference(maps(convert(0)), torch_maps(quantized, 0)) < 1e-4


def test_8_bits_are_those_of_the_simulation(convert: Convert, quantized: q.Quantized) -> None:
    to_simulation = difference(maps(convert(8)), torch_maps(quantized, 8))
    to_float = difference(maps(convert(8)), torch_maps(quantized, 0))
    # A single value between two steps may be rounded otherwise, and the noise is that of few.
    assert to_simulation < 0.2 * to_float


def test_16_bits_are_nearly_float(convert: Convert, quantized: q.Quantized) -> None:
    assert difference(maps(convert(16)), torch_maps(quantized, 0)) < 0.002


def test_maps_of_a_file_without_float_layers_are_float_outputs_near_the_networks(
    convert: Convert, quantized: q.Quantized
) -> None:
    assert 1e-4 < difference(maps(convert(-8)), torch_maps(quantized, 0)) < 0.15


def test_layers_kept_in_float_have_float_weights(convert: Convert, quantized: q.Quantized) -> None:
    kinds = [tensor.kind for _, tensor in weights(read(convert(8) / "model.tflite"))]
    assert kinds.count(np.dtype(np.float32)) == len(quantized.keep)
    assert kinds.count(np.dtype(np.int8)) == len(graphs.convolutions(quantized.graph)) - len(quantized.keep)


def test_image_is_stored_with_a_step_of_exactly_one(convert: Convert) -> None:
    first = next(o for o in read(convert(8) / "model.tflite") if o.output.kind == np.int8)
    assert (first.kind, first.output.scale.tolist(), first.output.zero.tolist()) == ("QUANTIZE", [1.0], [-12])


def test_nothing_but_a_subtraction_is_left_before_the_image_is_stored(convert: Convert) -> None:
    """In rows, which changes no value."""
    kinds = [operation.kind for operation in read(convert(8) / "model.tflite")]
    assert kinds[: kinds.index("CONV_2D")] == ["RESHAPE", "DEQUANTIZE", "SUB", "QUANTIZE", "RESHAPE", "PAD"]


def test_ranges_clip(core: Core, quantized: q.Quantized, tmp_path: Path) -> None:
    """A range is what the file stores, not what a tensor reaches."""
    name = next(n for n in graphs.points(quantized.graph) if n != "image")
    low, high = quantized.ranges[name]
    halved = replace(quantized, ranges={**quantized.ranges, name: (low, high / 2)})
    int8.convert(core, halved, 8, tmp_path)
    steps = {float(o.output.scale[0]) for o in read(tmp_path / "model.tflite") if o.output.kind == np.int8}
    assert np.float32(q.grid((low, high / 2))[0]) in np.array(sorted(steps), np.float32)


def test_graph_with_other_weights_than_the_file_is_refused(core: Core, quantized: q.Quantized, tmp_path: Path) -> None:
    """The float file has the network's weights, but they are not what the quantized graph has."""
    other = replace(quantized, graph=graphs.trace(quantized.graph))
    layer = other.graph.get_submodule(next(iter(graphs.convolutions(other.graph))))
    layer.weight += 0.001
    with pytest.raises(EdgeError, match="changed the weights"):
        int8.convert(core, other, 8, tmp_path)


def test_map_without_a_range_is_refused(core: Core, quantized: q.Quantized, tmp_path: Path) -> None:
    ranges = {name: value for name, value in quantized.ranges.items() if name in graphs.points(quantized.graph)}
    with pytest.raises(EdgeError, match="its map has no range"):
        int8.convert(core, replace(quantized, ranges=ranges, keep=frozenset()), 8, tmp_path)


def test_other_bits_are_refused(core: Core, quantized: q.Quantized, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="4 bits for TFLite activations; allowed: 0"):
        int8.convert(core, quantized, 4, tmp_path)


def test_traced_network_converts_to_float(core: Core, quantized: q.Quantized, tmp_path: Path) -> None:
    fp.convert(core, "fp32", tmp_path)
    assert difference(maps(tmp_path), torch_maps(quantized, 0)) < 1e-4
