"""Makes quantized variants of a network rounded to nearest, to see what fails before the rounding that takes minutes.

What shows is whatever a runtime's converter cannot take, and layers that are not found in its file. Drift does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pipnet_edge.converters import cores, variants
from pipnet_edge.converters import destination as destinations
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.losses import Losses
from pipnet_edge.converters.quantize import prepare
from pipnet_edge.converters.quantize.calibration import Calibration

FACES = 8  # to take ranges from: any do that are not all zero


def passing(
    wanted: Sequence[tuple[str, str]],
    network: Network,
    faces: Calibration,
    methods: prepare.Options,
    make_in: Path,
    simplify: bool,
    is_sparse: bool,
    losses: Losses,
    progress: Callable[[str], None] = lambda _: None,
) -> list[tuple[str, str]]:
    """Those of the wanted (destination, precision) that can be made; `losses` are told of the others.

    They are made in a new folder `make_in`, which is removed again. `progress` gets each one's name before.
    """
    make_in.mkdir()
    rough = prepare.roughly(network, faces.crops[:FACES], destinations.grids(to for to, _ in wanted))
    networks = cores.Cores(rough, make_in, simplify, is_sparse)
    found = []
    for destination, precision in wanted:
        name = f"{destination}-{precision}"
        progress(name)
        with losses.told(name):
            variants.quantized(networks, methods, destination, precision, make_in)
            found.append((destination, precision))
    shutil.rmtree(make_in)
    return found
