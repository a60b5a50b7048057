"""Where variants are made: the network's cores, exported once each, and what quantized variants share."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipnet_edge import bundle
from pipnet_edge.bundle import GOLDEN, Bundle, File, Quantization, Source, Variant
from pipnet_edge.converters import core as export
from pipnet_edge.converters import golden, sparse
from pipnet_edge.converters.checkpoint import layers
from pipnet_edge.converters.checkpoint.read import Network
from pipnet_edge.converters.core import Core
from pipnet_edge.converters.quantize import budget, calibration, sensitivity
from pipnet_edge.converters.quantize import prepare as int8
from pipnet_edge.converters.quantize.calibration import Calibration, Face
from pipnet_edge.converters.quantize.scheme import Quantized
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.converters.tflite import heads as tflite_heads
from pipnet_edge.decode import FEATURE_NAMES, MAP_NAMES, Decoder, Heads, Landmarks
from pipnet_edge.errors import CHECK_FAILED, EdgeError

if TYPE_CHECKING:
    from pipnet_edge.converters import Quantize

Progress = Callable[[str, int, int], None]

# Faces that layers are ranked on: the order settles soon, the sweeps take their time.
RANKED_ON = 16


@dataclass(frozen=True)
class Jury:
    """What a budget is judged by: faces apart from the calibration's, the float network's landmarks, labels if any."""

    crops: NDArray[np.uint8]
    reference: Landmarks
    truth: NDArray[np.float64] | None


class Workshop:
    """Makes variants of one network, one at a time: into `folder`, with scratch files in `work`."""

    def __init__(
        self,
        network: Network,
        folder: Path,
        work: Path,
        quantize: Quantize | None,
        simplify: bool = True,
        heads: str = "sparse",
    ) -> None:
        self._network, self._folder, self._work = network, folder, work
        self._quantize, self._simplify = quantize, simplify
        self._faces: Calibration | None = None
        self._held: tuple[Calibration, NDArray[np.float64] | None] | None = None
        self._jury: Jury | None = None
        self._prepared: int8.Prepared | None = None
        self._cores: dict[tuple[frozenset[str], bool], tuple[Core, Quantized, Heads | None]] = {}
        self._orders: dict[str, tuple[str, ...]] = {}
        if quantize:
            # Before the export, so that whoever mistypes need not wait for it.
            self._options = int8.Options(quantize.ranges, quantize.rounding)
            self._gather(quantize)
        net: nn.Module = network.net
        self._heads: Heads | None = None
        if heads == "sparse":
            net, self._heads = sparse.split(net, network.spec.num_lms)
        self.core = export.export(net, network.spec, self._scratch("float"), simplify, _outputs(self._heads))
        self.layers = layers.of(network.net, network.spec.input_size)

    @property
    def calibration(self) -> bundle.Calibration | None:
        """What the manifest says of the calibration faces, if quantized variants were made."""
        return bundle.Calibration(self._faces.sha256, self._faces.images) if self._faces else None

    def prepare(self, progress: Progress) -> None:
        """Does what all quantized variants have in common."""
        assert self._faces
        if self._held:
            held, truth = self._held
            maps = golden.maps_of(self._network, held.crops)
            self._jury = Jury(held.crops, Decoder(self._network.spec)(maps), truth)
        self._prepared = int8.prepare(self._network, self._faces, self._options, progress)

    def variant(self, destination: str, precision: str, progress: Progress) -> Variant:
        """Makes one variant, within the budget if there is one. Raises EdgeError (code 3) where that cannot be."""
        if precision not in recipes():
            target = self._folder / f"{destination}-{precision}"
            target.mkdir()
            converter = importlib.import_module(f"pipnet_edge.converters.{destination}.fp")
            converter.convert(self.core, precision, target)
            if self._heads:
                _add_heads(destination, self._heads, precision, target)
            return _described(self._folder, destination, precision, converter.TOOLS, self._heads is not None)
        if self._jury:
            return self._within_budget(destination, precision, self._jury, progress)
        return self._quantized(destination, precision, self._folder)

    def _quantized(self, destination: str, precision: str, folder: Path, kept: tuple[str, ...] = ()) -> Variant:
        """Makes a quantized variant. kept: layers that stay in float beside the recipe's."""
        assert self._quantize
        assert self._prepared
        target = folder / f"{destination}-{precision}"
        target.mkdir(parents=True)
        recipe = recipes()[precision]
        reasons = dict.fromkeys(kept, "budget") | self._prepared.kinds(recipe.keep)
        is_sparse = self._heads is not None and "heads" in recipe.keep
        inside = self._prepared.kinds(("heads",)) if is_sparse and destination == "tflite" else {}
        # These have int8 weights, but no map is stored in 8 bits: that would be what costs accuracy.
        reasons = {name: reason for name, reason in reasons.items() if name not in inside}
        core, given, heads = self._core(frozenset(reasons), is_sparse)
        given = replace(given, keep=given.keep | inside.keys())
        converter = importlib.import_module(f"pipnet_edge.converters.{destination}.int8")
        converter.convert(core, given, recipe.activations, target)
        if heads:
            _add_heads(destination, heads, precision, target)
        methods, spec = self._quantize, given.spec
        how = Quantization(methods.ranges, methods.rounding, reasons, spec.mean, spec.std)
        made = _described(folder, destination, precision, converter.TOOLS, is_sparse)
        return replace(made, quantization=how)

    def _within_budget(self, destination: str, precision: str, jury: Jury, progress: Progress) -> Variant:
        assert self._quantize
        limit, judge = self._quantize.budget, self._quantize.judge
        assert limit
        assert judge
        order = self._order(precision, jury, progress)
        tried: dict[int, tuple[Bundle, float]] = {}

        def drift(kept: frozenset[str]) -> float:
            folder = self._scratch(f"{destination}-{precision}-{len(kept)}")
            shutil.copy(self._folder / GOLDEN, folder)
            made = self._quantized(destination, precision, folder, tuple(name for name in order if name in kept))
            golden_file = File.of(folder, folder / GOLDEN)
            source = Source("", "", 0, (0, 0), (0, 0))
            trial = Bundle(self._network.spec, source, golden_file, (made,), self.layers, folder=folder)
            trial.write_manifest()
            found = judge(trial, made.name, jury.crops, jury.reference, jury.truth)
            tried[len(kept)] = trial, found["ms"]
            return found[limit.metric]

        outcome = budget.search(order, drift, limit.limit, progress)
        if not outcome.satisfied:
            raise EdgeError(
                f"{destination}-{precision} cannot be kept within {limit}: with all {len(order)} layers in float it "
                f"still drifts {outcome.after:.3g}{limit.metric}",
                CHECK_FAILED,
            )
        (first, slow), (best, fast) = tried[0], tried[len(outcome.kept)]
        made = best.variants[0]
        shutil.move(best.folder / made.name, self._folder / made.name)
        assert made.quantization
        spent = bundle.Budget(
            limit=str(limit),
            layers=outcome.kept,
            images=len(jury.crops),
            drift=(outcome.before, outcome.after),
            milliseconds=(slow, fast),
            size=(first.variants[0].size, made.size),
        )
        return replace(made, quantization=replace(made.quantization, budget=spent))

    def _order(self, precision: str, jury: Jury, progress: Progress) -> tuple[str, ...]:
        """The recipe's int8 layers, the most sensitive first."""
        assert self._prepared
        if precision not in self._orders:
            given = self._prepared.keeping(self._prepared.kinds(recipes()[precision].keep))
            rows = sensitivity.measure(self._prepared.float_, given, jury.crops[:RANKED_ON], progress)
            self._orders[precision] = sensitivity.order(rows)
        return self._orders[precision]

    def _core(self, keep: frozenset[str], is_sparse: bool) -> tuple[Core, Quantized, Heads | None]:
        if (keep, is_sparse) not in self._cores:
            assert self._prepared
            given, heads = self._prepared.keeping(keep), None
            if is_sparse:
                graph, heads = sparse.split(given.graph, given.spec.num_lms)
                given = replace(given, graph=graph)
            folder = self._scratch(f"rounded-{len(self._cores)}")
            core = export.export(given.graph, given.spec, folder, self._simplify, _outputs(heads))
            self._cores[keep, is_sparse] = core, given, heads
        return self._cores[keep, is_sparse]

    def _gather(self, given: Quantize) -> None:
        """Reads the faces to calibrate with, and those to judge a budget by."""
        faces, side = list(given.faces), self._network.spec.input_size
        if given.budget:
            faces, apart = calibration.split(faces, given.count, given.seed)
            held = calibration.choose(apart, side, len(apart))
            self._held = held, self._truth(given, held.faces) if given.budget.metric == "nme" else None
        self._faces = calibration.choose(faces, side, given.count, given.seed)

    def _truth(self, given: Quantize, faces: Sequence[Face]) -> NDArray[np.float64]:
        """The labels (n, L, 2) of these faces. Raises EdgeError where there are none, or of another L."""
        labels = [points for face in faces if (points := given.faces[face]) is not None]
        if len(labels) != len(faces):
            raise EdgeError(f"a budget of {given.budget} needs labels: give --calibrate-labels")
        if len(labels[0]) != self._network.spec.num_lms:
            raise EdgeError(
                f"a budget of {given.budget} needs labels of {self._network.spec.num_lms} landmarks, as the checkpoint "
                f"has; --calibrate-labels has {len(labels[0])}"
            )
        return np.stack(labels)

    def _scratch(self, name: str) -> Path:
        folder = self._work / name
        folder.mkdir()
        return folder


def _outputs(heads: Heads | None) -> tuple[str, ...]:
    return FEATURE_NAMES if heads else MAP_NAMES


def _add_heads(destination: str, heads: Heads, precision: str, folder: Path) -> None:
    """Puts the offset heads into a variant's model, where its runtime can evaluate them sparsely, or beside it."""
    if destination == "tflite":
        tflite_heads.append(folder / "model.tflite", heads, precision)
    else:
        sparse.write(heads, precision != "fp32", folder)


def _described(folder: Path, destination: str, precision: str, tools: tuple[str, ...], is_sparse: bool) -> Variant:
    """What a variant's folder holds."""
    name = f"{destination}-{precision}"
    files = tuple(File.of(folder, path) for path in sorted((folder / name).iterdir()))
    versions = {tool: version(tool) for tool in tools}
    return Variant(name, destination, precision, files, versions, is_sparse=is_sparse)
