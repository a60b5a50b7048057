"""Makes quantized variants of a network rounded to nearest, to see what fails before the rounding that takes minutes.

What shows is whatever a runtime's converter cannot take, and layers that are not found in its file. Drift does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipnet_edge.converters import cores, variants
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.plan import Plan
from pipnet_edge.converters.quantize import prepare
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.recipe import recipes

FACES = 8  # to take ranges from: any do that are not all zero


def rehearse(
    network: Network,
    faces: Calibration,
    methods: prepare.Options,
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
    few = Calibration(faces.crops[:FACES], faces.faces[:FACES], faces.images[:FACES], 0)
    quick = replace(methods, ranges="minmax", rounding="nearest")
    networks = cores.Cores(prepare.prepare(network, few, quick), folder, simplify, plan.is_sparse)
    for destination, precision in plan.variants:
        if precision in recipes():
            progress(f"{destination}-{precision}")
            variants.quantized(networks, quick, destination, precision, folder)
    shutil.rmtree(folder)
