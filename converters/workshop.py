"""Where variants are made: the network's cores, exported once each, and what quantized variants share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipnet_edge import bundle
from pipnet_edge.bundle import File, Quantization, Variant
from pipnet_edge.converters import calibration, export, int8
from pipnet_edge.converters.calibration import Calibration
from pipnet_edge.converters.checkpoint import Network
from pipnet_edge.converters.export import Core
from pipnet_edge.converters.quantized import Quantized
from pipnet_edge.converters.recipe import recipes

if TYPE_CHECKING:
    from pipnet_edge.converters import Quantize


class Workshop:
    """Makes variants of one network, one at a time, in a scratch folder."""

    def __init__(self, network: Network, quantize: Quantize | None, work: Path, simplify: bool) -> None:
        self._quantize, self._work, self._simplify = quantize, work, simplify
        self._network = network
        self._prepared: int8.Prepared | None = None
        self._faces: Calibration | None = None
        self._cores: dict[frozenset[str], tuple[Core, Quantized]] = {}
        self.core = export.export(network.net, network.spec, self._folder("float"), simplify)

    @property
    def calibration(self) -> bundle.Calibration | None:
        """What the manifest says of the calibration faces, if quantized variants were made."""
        return bundle.Calibration(self._faces.sha256, self._faces.images) if self._faces else None

    def prepare(self, progress: Callable[[str, int, int], None]) -> None:
        """Does what all quantized variants have in common."""
        given = self._quantize
        assert given
        options = int8.Options(given.ranges, given.rounding)
        self._faces = calibration.choose(given.faces, self._network.spec.input_size, given.count, given.seed)
        self._prepared = int8.prepare(self._network, self._faces, options, progress)

    def variant(self, destination: str, precision: str, folder: Path, kept: tuple[str, ...] = ()) -> Variant:
        """Writes a variant into a folder of its name. kept: layers that stay in float beside the recipe's."""
        name = f"{destination}-{precision}"
        target = folder / name
        target.mkdir()
        quantization = None
        if precision in recipes():
            quantization, tools = self._quantized(destination, precision, target, kept)
        else:
            converter = importlib.import_module(f"pipnet_edge.converters.{destination}")
            converter.convert(self.core, precision, target)
            tools = converter.TOOLS
        files = tuple(File.of(folder, path) for path in sorted(target.iterdir()))
        versions = {tool: version(tool) for tool in tools}
        return Variant(name, destination, precision, files, tools=versions, quantization=quantization)

    def _quantized(
        self, destination: str, precision: str, target: Path, kept: tuple[str, ...]
    ) -> tuple[Quantization, tuple[str, ...]]:
        assert self._quantize
        assert self._prepared
        recipe = recipes()[precision]
        reasons = self._prepared.kinds(recipe.keep) | dict.fromkeys(kept, "budget")
        core, given = self._core(frozenset(reasons))
        converter = importlib.import_module(f"pipnet_edge.converters.{destination}_int8")
        converter.convert(core, given, recipe.activations, target)
        methods, spec = self._quantize, given.spec
        return Quantization(methods.ranges, methods.rounding, reasons, spec.mean, spec.std), converter.TOOLS

    def _core(self, keep: frozenset[str]) -> tuple[Core, Quantized]:
        if keep not in self._cores:
            assert self._prepared
            given = self._prepared.keeping(keep)
            folder = self._folder(f"rounded-{len(self._cores)}")
            self._cores[keep] = export.export(given.graph, given.spec, folder, self._simplify), given
        return self._cores[keep]

    def _folder(self, name: str) -> Path:
        folder = self._work / name
        folder.mkdir()
        return folder
