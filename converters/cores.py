"""The networks that variants are made of, each exported once. With sparse heads, they lack their offset heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from pipnet_edge.converters import core as exporter
from pipnet_edge.converters import sparse
from pipnet_edge.converters.core import Core
from pipnet_edge.converters.quantize.prepare import Prepared
from pipnet_edge.converters.quantize.scheme import Quantized
from pipnet_edge.decode import Heads
from pipnet_edge.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Exported:
    """heads: the offset heads that the core lacks; None for a core that gives all maps."""

    core: Core
    heads: Heads | None


@dataclass(frozen=True, eq=False)
class Rounded(Exported):
    """A core with rounded weights, and the same network in the form that quantizers take."""

    given: Quantized[ModelSpec]


def export(net: nn.Module, spec: ModelSpec, folder: Path, simplify: bool, is_sparse: bool) -> Exported:
    """Exports a network into a new folder. If it cannot be split but has to, raises EdgeError and makes no folder."""
    heads = None
    if is_sparse:
        net, heads = sparse.split(net, spec.num_lms)
    return Exported(_exported(net, spec, folder, simplify, heads), heads)


class Cores:
    """The rounded networks, from what was prepared for each of some levels.

    Each has its own folder in `folder`, and is exported when it is first asked for.
    """

    def __init__(
        self, prepared: Mapping[int, Prepared[ModelSpec]], folder: Path, simplify: bool, is_sparse: bool
    ) -> None:
        self.prepared, self.is_sparse = prepared, is_sparse
        self._folder, self._simplify = folder, simplify
        self._found: dict[tuple[int, frozenset[str], bool], Rounded] = {}

    def keeping(self, levels: int, keep: frozenset[str], is_sparse: bool) -> Rounded:
        """The network rounded to these levels, with these layers in float, without its offset heads if is_sparse."""
        if (levels, keep, is_sparse) not in self._found:
            given, heads = self.prepared[levels].keeping(keep), None
            if is_sparse:
                graph, heads = sparse.split(given.graph, given.spec.num_lms)
                given = replace(given, graph=graph)
            folder = self._folder / f"rounded-{len(self._found)}"
            core = _exported(given.graph, given.spec, folder, self._simplify, heads)
            self._found[levels, keep, is_sparse] = Rounded(core, heads, given)
        return self._found[levels, keep, is_sparse]


def _exported(net: nn.Module, spec: ModelSpec, folder: Path, simplify: bool, heads: Heads | None) -> Core:
    folder.mkdir()
    return exporter.export(net, spec, folder, simplify, heads)
