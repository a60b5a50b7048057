"""Makes quantized variants of a network rounded to nearest, to see what fails before the rounding that takes minutes.

What shows is whatever a runtime's converter cannot take, and layers that are not found in its file. Drift does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.converters import cores, variants
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.graph import trace, transposed
from pipnet_edge.converters.plan import Plan
from pipnet_edge.converters.quantize import equalise, ranges, rounding, scheme
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.prepare import Options, Prepared
from pipnet_edge.converters.recipe import recipes

FACES = 8  # to take ranges from: any do that are not all zero


def rehearse(
    network: Network,
    faces: Calibration,
    methods: Options,
    plan: Plan,
    folder: Path,
    simplify: bool,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Makes each quantized variant in the new folder `folder`, and removes this. `progress` gets its name before.

    Does nothing if the rounding takes no time. Raises EdgeError for what would fail later with any rounding.
    """
    if methods.rounding == "nearest":
        return
    folder.mkdir()
    networks = cores.Cores(_quickly_prepared(network, faces.crops[:FACES]), folder, simplify, plan.is_sparse)
    for destination, precision in plan.variants:
        if precision in recipes():
            progress(f"{destination}-{precision}")
            variants.quantized(networks, methods, destination, precision, folder)
    shutil.rmtree(folder)


def _quickly_prepared(network: Network, crops: NDArray[np.uint8]) -> Prepared:
    """As prepare.prepare, but in a few seconds, and not kept in the cache."""
    graph = trace(network.net)
    equalise.equalise(graph, network.spec, crops)
    spec = scheme.pixel_lattice(graph, network.spec)
    found = ranges.observe(graph, spec, crops, "minmax")
    scheme.fit_biases(graph, found)
    return Prepared(graph, rounding.nearest(graph, transposed(graph)), spec, found)
