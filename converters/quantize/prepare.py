"""From a float network and calibration faces to weights on their int8 grids and the ranges of activations.

This is done once for all runtimes whose weights have the same grid, and kept in a cache, by the hash of everything
that goes in.
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
from typing import Any, Generic, Protocol

import torch
from torch import fx

from pipnet_edge.converters.checkpoint.network import Pictures, Spec, Spec_co, Trained
from pipnet_edge.converters.graph import Storage, convolutions, gates, heads, scale_swishes, swished, trace, transposed
from pipnet_edge.converters.quantize import equalise, ranges, rounding, scheme
from pipnet_edge.converters.quantize.scheme import Quantized, Range
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import cache_folder, opened, write
from pipnet_edge.spec import Input

ROUNDINGS = ("sequential", "nearest")
# Part of the cache's key. It has to be raised when the same inputs would give other weights.
# 3: the first that was kept.
# 4: a sum before a ReLU is clipped by what the ReLU leaves.
# 5: sums in float32, solved by Cholesky, so that the same input gives the same bits again.
# 6: ranges before a hard swish begin at -3.
# 7: hard swishes have scaled channels, gates multiply scaled ones, and layers follow gates in float.
# 8: each grid has its own rounding, and biases fit on all.
# 9: a concatenation and its branches have one range.
METHOD = 9
# Bytes of the hash before a kept network, and of the largest file that is read: two float networks.
HASH, LARGEST = 32, 2 << 30

# Gets what is done now, and how many faces, or layers when they are rounded, are done of how many.
Progress = Callable[[str, int, int], None]


class Sample(Protocol):
    """What a network is quantized by. sha256: of all that its pictures are."""

    @property
    def pictures(self) -> Pictures: ...

    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Options:
    """How to quantize: ranges is one of ranges.METHODS, rounding one of ROUNDINGS. Raises EdgeError for other names.

    heads: whether heads are rounded too. Where they are not, they have to stay in float.
    """

    ranges: str = ranges.BEST
    rounding: str = ROUNDINGS[0]
    heads: bool = True

    def __post_init__(self) -> None:
        for name, given, allowed in (
            ("--ranges", self.ranges, ranges.METHODS),
            ("--rounding", self.rounding, ROUNDINGS),
        ):
            if given not in allowed:
                raise EdgeError(f"{name} {given}; allowed: {', '.join(allowed)}")


@dataclass(frozen=True, eq=False)
class Prepared(Generic[Spec_co]):
    """float_ and rounded: the same graph, equalised, for images of `spec`, before and after rounding of its layers.

    levels: the largest weight of each channel in `rounded`, in steps.
    """

    float_: fx.GraphModule
    rounded: fx.GraphModule
    spec: Spec_co
    ranges: Mapping[str, Range]
    levels: int

    def keeping(self, keep: Collection[str]) -> Quantized[Spec_co]:
        """The network to quantize with these layers in float, as they were before rounding."""
        graph = copy.deepcopy(self.rounded)
        for name in keep:
            graph.get_submodule(name).load_state_dict(self.float_.get_submodule(name).state_dict())
        return Quantized(graph, self.spec, self.ranges, frozenset(keep), self.levels)

    def kinds(self, names: Collection[str]) -> dict[str, str]:
        """Layer name -> kind, of the layers of these kinds: heads, gates, transposed, swished."""
        find = {"heads": heads, "gates": gates, "transposed": transposed, "swished": swished}
        return {layer: kind for kind in names for layer in sorted(find[kind](self.float_))}


def prepare(
    network: Trained[Spec],
    sample: Sample,
    options: Options,
    grids: Collection[int],
    progress: Progress = lambda *_: None,
) -> dict[int, Prepared[Spec]]:
    """Equalises, finds ranges and rounds for each of these levels; minutes, or a moment if the cache has the result."""
    paths = {levels: _path(network, sample, options, levels) for levels in grids}
    kept = {levels: _read(path) for levels, path in paths.items()}
    made = _made(network, sample.pictures, options, [levels for levels in grids if kept[levels] is None], progress)
    for levels, prepared in made.items():
        graphs = {"float": prepared.float_.state_dict(), "rounded": prepared.rounded.state_dict()}
        _write(paths[levels], {**graphs, "ranges": prepared.ranges})
    return made | {levels: _restored(network, found, levels) for levels, found in kept.items() if found is not None}


def takes_long(network: Trained[Input], sample: Sample, options: Options, grids: Collection[int]) -> bool:
    """Whether `prepare` would take minutes."""
    return options.rounding != "nearest" and any(
        _read(_path(network, sample, options, levels)) is None for levels in grids
    )


def roughly(network: Trained[Spec], pictures: Pictures, grids: Collection[int]) -> dict[int, Prepared[Spec]]:
    """As `prepare`, from a few pictures and in seconds: to try what can be made of the network."""
    return _made(network, pictures, Options("minmax", "nearest"), grids, lambda *_: None)


def _restored(network: Trained[Spec], kept: Mapping[str, Any], levels: int) -> Prepared[Spec]:
    graph = traced(network)
    spec = scheme.pixel_lattice(graph, network.spec)
    rounded = copy.deepcopy(graph)
    graph.load_state_dict(kept["float"])
    rounded.load_state_dict(kept["rounded"])
    return Prepared(graph, rounded, spec, kept["ranges"], levels)


def traced(network: Trained[Input]) -> fx.GraphModule:
    """The graph to quantize, before anything in it is scaled."""
    graph = trace(network.net)
    scale_swishes(graph)
    return graph


def _made(
    network: Trained[Spec], pictures: Pictures, options: Options, grids: Collection[int], progress: Progress
) -> dict[int, Prepared[Spec]]:
    if not grids:
        return {}
    graph, count = traced(network), len(pictures)

    def observed(done: int, total: int) -> None:
        which, within = divmod(done - 1, count)
        progress(f"calibrate (pass {which + 1} of {total // count})", within + 1, count)

    equalise.equalise(graph, network.spec, pictures, partial(progress, "equalise"))
    spec = scheme.pixel_lattice(graph, network.spec)
    found = ranges.observe(graph, spec, pictures, options.ranges, observed)
    scheme.fit_biases(graph, found)
    made, keep = {}, frozenset() if options.heads else heads(graph)
    for levels in grids:
        if options.rounding == "nearest":
            rounded = rounding.nearest(graph, keep | transposed(graph), levels)
        else:
            told = partial(_rounded, progress, levels)
            rounded = in_sequence(graph, spec, pictures, found, levels, told, keep)
        made[levels] = Prepared(graph, rounded, spec, found, levels)
    return made


def _rounded(progress: Progress, levels: int, layer: str, done: int, of: int) -> None:
    progress(f"round {layer} (±{levels})", done, of)


def in_sequence(
    graph: fx.GraphModule,
    spec: Input,
    pictures: Pictures,
    found: Mapping[str, Range],
    levels: int,
    progress: Progress = lambda *_: None,
    keep: Collection[str] = frozenset(),
) -> fx.GraphModule:
    """A copy of the float graph with all layers but `keep` rounded in sequence; `progress` gets their names."""
    # As in the int8 variants, in which these layers are in float, and what only they read or give is not stored.
    keep, aside = transposed(graph).union(keep), gates(graph) | swished(graph)
    names = Storage(graph).stored(convolutions(graph).keys() - keep - aside)
    used = {name: bounds for name, bounds in found.items() if name in names}
    return rounding.sequential(graph, spec, pictures, used, keep, levels, aside, progress)


def _path(network: Trained[Input], sample: Sample, options: Options, levels: int) -> Path:
    """Where the cache has what is made of these."""
    spec = network.spec
    digest = hashlib.sha256(json.dumps([METHOD, levels, asdict(options), sample.sha256, spec.mean, spec.std]).encode())
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
