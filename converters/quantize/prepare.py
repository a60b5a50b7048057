"""From a float network and calibration faces to weights on their int8 grids and the ranges of activations.

This is done once for all runtimes and kept in a cache, by the hash of everything that goes in.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.graph import gates, heads, scale_swishes, swished, trace, transposed
from pipnet_edge.converters.quantize import equalise, ranges, rounding, scheme, sensitivity
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.scheme import Quantized, Range
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import cache_folder, opened, write
from pipnet_edge.spec import ModelSpec

ROUNDINGS = ("sequential", "nearest")
# Part of the cache's key. It has to be raised when the same inputs would give other weights.
# 3: the first that was kept.
# 4: a sum before a ReLU is clipped by what the ReLU leaves.
# 5: sums in float32, solved by Cholesky, so that the same input gives the same bits again.
# 6: ranges before a hard swish begin at -3.
# 7: hard swishes have scaled channels, gates multiply scaled ones, and layers follow gates in float.
METHOD = 7
# Bytes of the hash before a kept network, and of the largest file that is read: two float networks.
HASH, LARGEST = 32, 2 << 30

# Gets what is done now, and how many faces, or layers when they are rounded, are done of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """How to quantize: ranges is one of ranges.METHODS, rounding one of ROUNDINGS. Raises EdgeError for other names."""

    ranges: str = ranges.BEST
    rounding: str = ROUNDINGS[0]

    def __post_init__(self) -> None:
        for name, given, allowed in (
            ("--ranges", self.ranges, ranges.METHODS),
            ("--rounding", self.rounding, ROUNDINGS),
        ):
            if given not in allowed:
                raise EdgeError(f"{name} {given}; allowed: {', '.join(allowed)}")


@dataclass(frozen=True, eq=False)
class Prepared:
    """float_ and rounded: the same graph, equalised, for images of `spec`, before and after rounding of all layers."""

    float_: fx.GraphModule
    rounded: fx.GraphModule
    spec: ModelSpec
    ranges: Mapping[str, Range]

    def keeping(self, keep: Collection[str]) -> Quantized:
        """The network to quantize with these layers in float, as they were before rounding."""
        graph = copy.deepcopy(self.rounded)
        for name in keep:
            graph.get_submodule(name).load_state_dict(self.float_.get_submodule(name).state_dict())
        return Quantized(graph, self.spec, self.ranges, frozenset(keep))

    def kinds(self, names: Collection[str]) -> dict[str, str]:
        """Layer name -> kind, of the layers of these kinds: heads, gates, transposed, swished."""
        find = {"heads": heads, "gates": gates, "transposed": transposed, "swished": swished}
        return {layer: kind for kind in names for layer in sorted(find[kind](self.float_))}


def prepare(network: Network, faces: Calibration, options: Options, progress: Progress = lambda *_: None) -> Prepared:
    """Equalises, finds ranges and rounds; takes minutes, or a moment if the cache has the result."""
    path = _path(network, faces, options)
    kept = _read(path)
    if kept is None:
        prepared = _made(network, faces.crops, options, progress)
        graphs = {"float": prepared.float_.state_dict(), "rounded": prepared.rounded.state_dict()}
        _write(path, {**graphs, "ranges": prepared.ranges})
        return prepared
    graph = traced(network)
    spec = scheme.pixel_lattice(graph, network.spec)
    rounded = copy.deepcopy(graph)
    graph.load_state_dict(kept["float"])
    rounded.load_state_dict(kept["rounded"])
    return Prepared(graph, rounded, spec, kept["ranges"])


def takes_long(network: Network, faces: Calibration, options: Options) -> bool:
    """Whether `prepare` would take minutes."""
    return options.rounding != "nearest" and _read(_path(network, faces, options)) is None


def roughly(network: Network, crops: NDArray[np.uint8]) -> Prepared:
    """As `prepare`, from a few faces (n, S, S, 3) uint8 RGB and in seconds: to try what can be made of the network."""
    return _made(network, crops, Options("minmax", "nearest"), lambda *_: None)


def traced(network: Network) -> fx.GraphModule:
    """The graph to quantize, before anything in it is scaled."""
    graph = trace(network.net)
    scale_swishes(graph)
    return graph


def _made(network: Network, crops: NDArray[np.uint8], options: Options, progress: Progress) -> Prepared:
    graph, count = traced(network), len(crops)

    def observed(done: int, total: int) -> None:
        which, within = divmod(done - 1, count)
        progress(f"calibrate (pass {which + 1} of {total // count})", within + 1, count)

    equalise.equalise(graph, network.spec, crops, partial(progress, "equalise"))
    spec = scheme.pixel_lattice(graph, network.spec)
    found = ranges.observe(graph, spec, crops, options.ranges, observed)
    scheme.fit_biases(graph, found)
    if options.rounding == "nearest":
        rounded = rounding.nearest(graph, transposed(graph))
    else:
        rounded = in_sequence(graph, spec, crops, found, lambda *a: progress(f"round {a[0]}", *a[1:]))
    return Prepared(graph, rounded, spec, found)


def in_sequence(
    graph: fx.GraphModule,
    spec: ModelSpec,
    crops: NDArray[np.uint8],
    found: Mapping[str, Range],
    progress: Progress = lambda *_: None,
) -> fx.GraphModule:
    """A copy of the float graph with all layers rounded in sequence; `progress` gets their names."""
    # As in the int8 variants, in which these layers are in float, and what only they read or give is not stored.
    keep, aside = transposed(graph), gates(graph) | swished(graph)
    names = sensitivity.stored(graph, Quantized(graph, spec, found, keep | aside))
    used = {name: bounds for name, bounds in found.items() if name in names}
    return rounding.sequential(graph, spec, crops, used, keep, aside, progress)


def _path(network: Network, faces: Calibration, options: Options) -> Path:
    """Where the cache has what is made of these."""
    spec = network.spec
    digest = hashlib.sha256(
        json.dumps([METHOD, scheme.LEVELS, asdict(options), faces.sha256, spec.mean, spec.std]).encode()
    )
    # Two networks may have the same weights and differ in their activations, which this text names.
    digest.update(str(network.net).encode())
    for name, tensor in network.net.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return cache_folder() / "rounded" / f"{digest.hexdigest()}.pt"


def _read(path: Path) -> dict[str, Any] | None:
    """What is kept; None if there is no such file, or one that is not as `_write` wrote it."""
    with suppress(OSError, EdgeError), opened(path, LARGEST) as file:
        content = file.read()
        if content[:HASH] == _hash(path, content[HASH:]):
            kept: dict[str, Any] = torch.load(io.BytesIO(content[HASH:]), weights_only=True)
            return kept
    return None


def _write(path: Path, kept: Mapping[str, object]) -> None:
    content = io.BytesIO()
    torch.save(dict(kept), content)
    # If the cache cannot be written, only the next run takes longer.
    with suppress(OSError, EdgeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, _hash(path, content.getvalue()) + content.getvalue())


def _hash(path: Path, content: bytes) -> bytes:
    """What stands before the content in its file. The name is in it too: it says what the content was made from."""
    return hashlib.sha256(path.name.encode() + content).digest()
