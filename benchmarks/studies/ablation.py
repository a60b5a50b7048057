"""What each part of the int8 scheme gives: `python -m pipnet_edge.benchmarks.studies.ablation CHECKPOINT FACES TEST`.

It prints the drift of the landmarks from those of the float network, over the folder TEST of crops, with the layers in
float that the recipe int8 keeps. Int8 is simulated in torch, so that no runtime adds its own rounding. FACES is a
folder of crops to calibrate with.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import fx

from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.network import Network, maps_of
from pipnet_edge.converters.graph import transposed
from pipnet_edge.converters.quantize import calibration, equalise, prepare, ranges, rounding, sensitivity
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.prepare import Prepared
from pipnet_edge.converters.quantize.scheme import FULL, Quantized, Range, fit_biases, pixel_lattice
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.decode import Decoder
from pipnet_edge.preprocess import Rect, cut, pictures_in, read_picture
from pipnet_edge.spec import ModelSpec

# Equalised, ranges, rounding. None: no int8 of activations or of weights.
SCHEMES: tuple[tuple[bool, str | None, str | None], ...] = (
    (False, "minmax", "nearest"),
    (False, "mse", "nearest"),
    (True, "mse", "nearest"),
    (True, "mse", "sequential"),
    (False, "mse", "sequential"),
    (True, "minmax", "sequential"),
    (True, "percentile", "sequential"),
    (True, "kl", "sequential"),
    (True, "mse", None),
    (True, None, "sequential"),
    (False, None, "nearest"),
)


def schemes(network: Network, faces: Calibration) -> Iterator[tuple[str, fx.GraphModule, Quantized[ModelSpec]]]:
    """Each scheme's name, float graph and quantized network."""
    found: dict[tuple[bool, str], dict[str, Range]] = {}
    for equalised, method, how in SCHEMES:
        graph = prepare.traced(network)
        if equalised:
            equalise.equalise(graph, network.spec, faces.crops)
        spec = pixel_lattice(graph, network.spec)
        key = equalised, method or "mse"
        if key not in found:
            found[key] = ranges.observe(graph, spec, faces.crops, key[1])
        fit_biases(graph, found[key])
        rounded = graph
        if how == "nearest":
            rounded = rounding.nearest(graph, transposed(graph), FULL)
        elif how == "sequential":
            rounded = prepare.in_sequence(graph, spec, faces.crops, found[key], FULL)
        prepared = Prepared(graph, rounded, spec, found[key] if method else {}, FULL)
        name = f"weights {how or 'float':<10}  activations {method or 'float':<10}  {'equalised' if equalised else ''}"
        yield name, graph, prepared.keeping(prepared.kinds(recipes()["int8"].keep))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--data")
    given = parser.parse_args()
    network = checkpoints.load(given.checkpoint, checkpoints.Options(data=given.data))
    side = network.spec.input_size
    faces = calibration.choose([(path, None) for path in pictures_in(given.calibration, below=True)], side)
    crops = np.stack([_whole(path, side) for path in pictures_in(given.test, below=True)])
    for name, graph, scheme in schemes(network, faces):
        truth = sensitivity.simulate(graph, scheme, crops, only=frozenset())
        if scheme.ranges:
            drifted = sensitivity.simulate(graph, scheme, crops)
        else:
            rounded = replace(network, spec=scheme.spec, net=scheme.graph)
            drifted = Decoder(scheme.spec)(maps_of(rounded, crops))
        px = np.linalg.norm(drifted.points - truth.points, axis=-1) * side
        flips = 100 * (drifted.cell != truth.cell).mean()
        print(f"{name:<60} px {px.mean():.3f}  p95 {np.percentile(px, 95):.3f}  flips {flips:.2f} %", flush=True)


def _whole(path: Path, side: int) -> NDArray[np.uint8]:
    picture = read_picture(path)
    return cut(picture, Rect.whole(picture), side)


if __name__ == "__main__":
    main()
