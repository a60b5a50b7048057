"""Which layers int8 hurts: simulates in torch the int8 scheme that all runtimes share, with any of the layers in float.

A layer in int8 has the weights of `Quantized.graph`; a layer in float has those of the float network. An activation is
stored in 8 bits if an int8 layer makes it (after the activation function fused to it) or reads it, also through
pooling. A sum is stored too if all its inputs are stored; a product or a separate activation function is not.
Nothing is stored if no layer is in int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.graph import CONVOLUTIONS, Storage, convolutions, module
from pipnet_edge.converters.quantize import scheme
from pipnet_edge.converters.quantize.scheme import Quantized
from pipnet_edge.decode import Decoder, Landmarks, Maps, map_names, map_shapes
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

Crops = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]
Env = dict[fx.Node, Any]

CHUNK = 8  # images that run at a time; memory grows with it
MOST_DB = 200.0  # signal-to-noise of a layer without any noise


@dataclass(frozen=True)
class LayerSensitivity:
    """One int8 layer. Drift is against the float network's landmarks, the mean over images and landmarks.

    snr_db: signal-to-noise in dB of the layer's output (after the activation function fused to it) when all layers are
    in int8. params, macs: its share, 0 to 1, of the weights and of the multiply-adds of all convolutions. px is in
    pixels of the crop, flips in % of all winning cells. alone: this layer is the only one in int8. without: it is the
    only one in float. px_gain: how much px falls when this layer returns to float and all others stay in int8.
    clipped: the share, 0 to 1, of the layer's float outputs that lie outside the range in which they are stored, which
    may be meant: a hard swish needs nothing below -3. clipped_calibration: the same over calibration faces, if given.
    """

    layer: str
    snr_db: float
    params: float
    macs: float
    px_alone: float
    flips_alone: float
    px_without: float
    flips_without: float
    px_gain: float
    clipped: float
    clipped_calibration: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def simulate(
    float_graph: fx.GraphModule,
    quantized: Quantized[ModelSpec],
    crops: Crops,
    only: AbstractSet[str] | None = None,
    keep: AbstractSet[str] = frozenset(),
) -> Landmarks:
    """Landmarks of crops (n, S, S, 3) uint8 RGB with some layers in int8.

    float_graph: the network of quantized.graph, node by node, for images of the same spec, with float weights. `only`
    names the layers in int8 (by default all but quantized.keep), `keep` those of them that stay in float anyway.
    Raises EdgeError for names of no layer.
    """
    network = _Network(float_graph, quantized)
    int8 = network.known(network.int8 if only is None else only) - network.known(keep)
    return _join([network.landmarks(int8, image) for image in _images(crops, quantized.spec)])


def measure(
    float_graph: fx.GraphModule,
    quantized: Quantized[ModelSpec],
    crops: Crops,
    progress: Progress = lambda *_: None,
    calibration: Crops | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Every int8 layer's sensitivity on crops (n, S, S, 3) uint8 RGB, in the network's order. See also simulate.

    calibration: crops of the faces that ranges were made from, to compare what is clipped.
    """
    network = _Network(float_graph, quantized)
    layers, every, none = sorted(network.int8, key=list(network.layers).index), network.int8, frozenset[str]()
    sweeps = {
        "alone": (none, {layer: frozenset({layer}) for layer in layers}),
        "without": (every, {layer: every - {layer} for layer in layers}),
    }
    landmarks: dict[tuple[str, str], list[Landmarks]] = {}
    power = dict.fromkeys(layers, (0.0, 0.0))
    images = list(_images(crops, quantized.spec))
    done, total = 0, len(images) * len(sweeps) * len(layers)
    for image in images:
        for name, int8 in (("float", none), ("int8", every)):
            landmarks.setdefault((name, ""), []).append(network.landmarks(int8, image))
        for layer, signal, noise in network.powers(image):
            power[layer] = power[layer][0] + signal, power[layer][1] + noise
        for name, (base, changes) in sweeps.items():
            sweep = network.sweep(image, base, changes)
            for _ in layers:
                progress(f"one layer {'in int8' if name == 'alone' else 'in float'}", done, total)
                layer, found = next(sweep)
                landmarks.setdefault((name, layer), []).append(found)
                done += 1
    truth = _join(landmarks["float", ""])
    drift = {key: _drift(_join(parts), truth, quantized.spec) for key, parts in landmarks.items()}
    weights, products = network.costs(images[0][:1])
    clipped = network.clipped(images)
    before = {} if calibration is None else network.clipped(list(_images(calibration, quantized.spec)))
    return tuple(
        LayerSensitivity(
            layer=layer,
            snr_db=_decibel(*power[layer]),
            params=weights[layer] / sum(weights.values()),
            macs=products[layer] / sum(products.values()),
            px_alone=drift["alone", layer][0],
            flips_alone=drift["alone", layer][1],
            px_without=drift["without", layer][0],
            flips_without=drift["without", layer][1],
            px_gain=drift["int8", ""][0] - drift["without", layer][0],
            clipped=clipped[layer],
            clipped_calibration=before.get(layer),
        )
        for layer in layers
    )


def order(rows: Sequence[LayerSensitivity]) -> tuple[str, ...]:
    """Layer names. First is the one that costs most as the only int8 layer: its return to float should gain most.

    px_gain itself is a poor guide beyond the first few layers: the noise of all others decides which cells flip.
    """
    return tuple(row.layer for row in sorted(rows, key=lambda row: (-row.px_alone, -row.px_gain)))


class _Network:
    """A network with any set of its layers in int8, and what depends only on the graph."""

    def __init__(self, float_graph: fx.GraphModule, quantized: Quantized[ModelSpec]) -> None:
        self.graph, self.quantized = float_graph, quantized
        self.nodes = list(float_graph.graph.nodes)
        self.layers = convolutions(float_graph)
        self.int8 = frozenset(self.layers) - quantized.keep
        storage = Storage(float_graph)
        self.outputs, self.stored = storage.outputs, storage.stored
        # For every node: its inputs that no later node reads.
        last = {source: node for node in self.nodes for source in node.all_input_nodes}
        self.dying = {node: [s for s in node.all_input_nodes if last[s] is node] for node in self.nodes}
        self._decode = Decoder(quantized.spec)

    def known(self, names: AbstractSet[str]) -> frozenset[str]:
        unknown = sorted(names - set(self.layers))
        if unknown:
            raise EdgeError(f"no layer {', '.join(unknown)}; layers: {', '.join(self.layers)}")
        return frozenset(names)

    def landmarks(self, int8: AbstractSet[str], image: Tensor) -> Landmarks:
        return self.decode(_Mixed(self, int8, image).finish({}, 0))

    def decode(self, outputs: Sequence[Tensor]) -> Landmarks:
        spec = self.quantized.spec
        given = dict(zip(map_names(spec.num_nb), (out.numpy() for out in outputs), strict=True))
        lead, none = len(outputs[0]), np.zeros(0, np.float32)
        maps = {name: given.get(name, none).reshape(lead, *shape) for name, shape in map_shapes(spec).items()}
        return self._decode(Maps(**maps))

    def sweep(
        self, image: Tensor, base: AbstractSet[str], changes: Mapping[str, AbstractSet[str]]
    ) -> Iterator[tuple[str, Landmarks]]:
        """(key, landmarks) for each changed set of int8 layers.

        Each run begins at the first node that differs from `base` and reuses the outputs before it.
        """
        starts = {key: self.first_difference(base, int8) for key, int8 in changes.items()}
        unchanged, env, done = _Mixed(self, base, image), Env(), 0
        for key in sorted(starts, key=lambda k: starts[k]):
            unchanged.advance(env, done, starts[key])
            done = starts[key]
            yield key, self.decode(_Mixed(self, changes[key], image).finish(env.copy(), done))

    def first_difference(self, a: AbstractSet[str], b: AbstractSet[str]) -> int:
        """Index of the first node that gives something else when the layers of b are in int8 instead of those of a."""
        names = {self.layers[name].name for name in a ^ b} | (self.stored(a) ^ self.stored(b))
        return min(i for i, node in enumerate(self.nodes) if node.name in names)

    def powers(self, image: Tensor) -> Iterator[tuple[str, float, float]]:
        """(int8 layer, sum of its squared float outputs, sum of their squared differences with all layers in int8)."""
        layers = {self.outputs[name]: name for name in self.int8}
        pairs = zip(self.walk(frozenset(), image), self.walk(self.int8, image), strict=True)
        for (node, exact), (_, noisy) in pairs:
            if node in layers:
                true = exact.double()
                yield layers[node], float(true.square().sum()), float((noisy - true).square().sum())

    def clipped(self, images: Sequence[Tensor]) -> dict[str, float]:
        """The share of each int8 layer's float outputs that lie outside the range in which they are stored."""
        layers = {self.outputs[name]: name for name in self.int8}
        outside, total = dict.fromkeys(self.int8, 0), dict.fromkeys(self.int8, 0)
        for image in images:
            for node, value in self.walk(frozenset(), image):
                if node in layers and node.name in self.quantized.ranges:
                    low, high = self.quantized.ranges[node.name]
                    outside[layers[node]] += int(((value < min(low, 0.0)) | (value > max(high, 0.0))).sum())
                    total[layers[node]] += value.numel()
        return {name: outside[name] / max(total[name], 1) for name in self.int8}

    def costs(self, image: Tensor) -> tuple[dict[str, int], dict[str, int]]:
        """The number of weights of each layer, and of its multiply-adds for one image (1, 3, S, S)."""
        weights, products = {}, {}
        for node, value in self.walk(frozenset(), image):
            layer = module(self.graph, node)
            if isinstance(layer, CONVOLUTIONS):
                # A transposed convolution multiplies once for each pixel that it reads.
                step = math.prod(layer.stride) if layer.transposed else 1
                weights[str(node.target)] = layer.weight.numel()
                products[str(node.target)] = layer.weight.numel() * value.shape[2] * value.shape[3] // step
        return weights, products

    def walk(self, int8: AbstractSet[str], image: Tensor) -> Iterator[tuple[fx.Node, Any]]:
        """Every node and what it gives."""
        run, env = _Mixed(self, int8, image), Env()
        for index, node in enumerate(self.nodes):
            run.advance(env, index, index + 1)
            yield node, env[node]


class _Mixed(fx.Interpreter):
    """Runs parts of a network with these layers in int8 on images (n, 3, S, S), normalised."""

    def __init__(self, network: _Network, int8: AbstractSet[str], image: Tensor) -> None:
        super().__init__(network.graph)
        self._network, self._int8, self._image = network, int8, image
        self._stored = network.stored(int8)

    def advance(self, env: Env, start: int, stop: int) -> None:
        """Runs the nodes start to stop. Before and after, env holds every earlier output that is still needed."""
        self.env = env
        with torch.no_grad():
            for node in self._network.nodes[start:stop]:
                env[node] = self.run_node(node)
                for dead in self._network.dying[node]:
                    del env[dead]

    def finish(self, env: Env, start: int) -> tuple[Tensor, ...]:
        """Runs the nodes from `start` on and returns the maps. env holds the outputs that these nodes need."""
        nodes = self._network.nodes
        self.advance(env, start, len(nodes))
        maps: tuple[Tensor, ...] = env[nodes[-1]]
        return maps

    def run_node(self, n: fx.Node) -> Any:
        value = self._image if n.op == "placeholder" else super().run_node(n)
        return scheme.stored(value, self._network.quantized.ranges[n.name]) if n.name in self._stored else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        graph = self._network.quantized.graph if target in self._int8 else self._network.graph
        return graph.get_submodule(target)(*args, **kwargs)


def _images(crops: Crops, spec: ModelSpec) -> Iterator[Tensor]:
    for start in range(0, len(crops), CHUNK):
        yield normalise(crops[start : start + CHUNK], spec)


def _join(parts: Sequence[Landmarks]) -> Landmarks:
    return Landmarks(
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.cell for part in parts]),
    )


def _drift(landmarks: Landmarks, truth: Landmarks, spec: ModelSpec) -> tuple[float, float]:
    """(mean distance in px of the crop, % of winning cells that differ)."""
    px = np.linalg.norm(landmarks.points.astype(np.float64) - truth.points, axis=2) * spec.input_size
    return float(px.mean()), float((landmarks.cell != truth.cell).mean() * 100)


def _decibel(signal: float, noise: float) -> float:
    floor = max(signal, noise, 1e-300) * 10 ** (-MOST_DB / 10)
    return 10 * math.log10(max(signal, floor) / max(noise, floor))
