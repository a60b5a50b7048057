"""The workstation half: checkpoints to bundles. Needs torch and the converters."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import runtimes
from pipnet_edge.bundle import GOLDEN, Bundle, File, Parity, Source, replacing
from pipnet_edge.converters.quantize.budget import Budget
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.decode import Landmarks
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import file_sha256
from pipnet_edge.precisions import PRECISIONS

if TYPE_CHECKING:
    from pipnet_edge.converters.checkpoint.read import Options
    from pipnet_edge.converters.core import Core
    from pipnet_edge.converters.quantize.calibration import Face
    from pipnet_edge.converters.quantize.sensitivity import LayerSensitivity

Step = Callable[[str, int, int], None]
Verify = Callable[[Bundle], Mapping[str, Parity]]
# Gets a bundle, a variant's name, crops, the float network's landmarks for them, and labels (n, L, 2) or None; returns
# drift as "px" and, with labels, "nme" (see budget.Budget), and the milliseconds a crop takes as "ms".
Judge = Callable[[Bundle, str, NDArray[np.uint8], Landmarks, NDArray[np.float64] | None], Mapping[str, float]]

# sparse: offset heads are evaluated at winning cells alone, by decode or, in TFLite, inside the model.
HEADS = ("sparse", "dense")


@dataclass(frozen=True)
class Plan:
    """Which variants to make: destinations and precisions; combinations that a runtime does not have are left out.

    heads is one of HEADS. Raises EdgeError for unknown names and when no combination is left.
    """

    destinations: tuple[str, ...]
    precisions: tuple[str, ...]
    heads: str = "sparse"

    def __post_init__(self) -> None:
        for name, given, allowed in (
            ("--to", self.destinations, set(runtimes.DESTINATIONS)),
            ("--precision", self.precisions, set(PRECISIONS)),
        ):
            unknown = [word for word in given if word not in allowed]
            if unknown or not given:
                raise EdgeError(
                    f"{name} {', '.join(unknown) or 'names nothing'}; allowed: {', '.join(sorted(allowed))}"
                )
        if self.heads not in HEADS:
            raise EdgeError(f"--heads {self.heads}; allowed: {', '.join(HEADS)}")
        if not self.variants:
            raise EdgeError(f"{', '.join(self.destinations)} has no {', '.join(self.precisions)} variant")

    @property
    def variants(self) -> tuple[tuple[str, str], ...]:
        """(destination, precision) pairs, in the order given."""
        return tuple(
            (destination, precision)
            for destination in dict.fromkeys(self.destinations)
            for precision in dict.fromkeys(self.precisions)
            if precision in runtimes.RUNTIMES[destination].precisions
        )

    @property
    def quantizes(self) -> bool:
        """Whether one of the variants is quantized, which needs calibration faces."""
        return any(PRECISIONS[precision].is_quantized for _, precision in self.variants)


@dataclass(frozen=True)
class Quantize:
    """What quantized variants are made with.

    faces: the calibration faces, with their labels (L, 2), normalised to the crop, if they have any; count of them are
    drawn with the seed. ranges: how activations are clipped (ranges.METHODS); rounding: how weights are rounded
    (int8.ROUNDINGS). budget: the drift that no variant may exceed, in the opinion of the judge.
    """

    faces: Mapping[Face, NDArray[np.float64] | None]
    count: int = 256
    seed: int = 0
    ranges: str = "mse"
    rounding: str = "sequential"
    budget: Budget | None = None
    judge: Judge | None = None


def convert(
    source: Path,
    out: Path,
    plan: Plan,
    options: Options,
    verify: Verify,
    step: Step = lambda *_: None,
    simplify: bool = True,
    quantize: Quantize | None = None,
) -> Bundle:
    """Makes a bundle at `out` from a checkpoint or five-map ONNX file.

    `verify` gets the written bundle, returns each variant's parity for the manifest and raises when a variant fails;
    then, as after any other failure, nothing is left at `out` and an older bundle there stays. `step` is told what is
    done.
    """
    if plan.quantizes and not quantize:
        raise EdgeError("quantized variants need faces to calibrate with: give a folder of them with --calibrate")
    total = len(plan.variants) + 3 + plan.quantizes
    with replacing(out) as folder:
        work = Path(tempfile.mkdtemp(prefix="work-", dir=folder.parent))
        try:
            step("load", 0, total)
            from pipnet_edge.converters import golden
            from pipnet_edge.converters.checkpoint import read as checkpoints
            from pipnet_edge.converters.workshop import Workshop

            network = checkpoints.load(source, options)
            step("export", 1, total)
            workshop = Workshop(network, folder, work, quantize if plan.quantizes else None, simplify, plan.heads)
            golden.write(folder / GOLDEN, network)
            core = workshop.core
            if plan.quantizes:
                workshop.prepare(lambda text, *_: step(text, 2, total))
            variants = []
            for index, (destination, precision) in enumerate(plan.variants, 2 + plan.quantizes):
                step(f"{destination}-{precision}", index, total)
                say = functools.partial(_say, step, f"{destination}-{precision}", index, total)
                variants.append(workshop.variant(destination, precision, say))
            bundle = Bundle(
                folder=folder,
                spec=network.spec,
                golden=File.of(folder, folder / GOLDEN),
                variants=tuple(variants),
                layers=workshop.layers,
                source=_source(source, network.parameters, core),
                calibration=workshop.calibration,
            )
            bundle.write_manifest()
            step("parity", total - 1, total)
            measured = verify(bundle)
            bundle = replace(bundle, variants=tuple(replace(v, parity=measured[v.name]) for v in bundle.variants))
            bundle.write_manifest()
        except Exception as e:
            # Converters report a full disk in many ways, some by writing less than they should.
            free = shutil.disk_usage(folder).free
            if free < 1 << 20:
                raise EdgeError(f"no space left on the disk of {out.absolute().parent} ({free} bytes free)") from e
            raise
    return replace(bundle, folder=out)


def sensitivities(
    source: Path, options: Options, quantize: Quantize, precision: str, count: int, step: Step = lambda *_: None
) -> tuple[LayerSensitivity, ...]:
    """What int8 costs in each layer of a checkpoint, on so many faces apart from those it is calibrated with.

    Raises EdgeError as convert does, for a precision without int8 activations, and for more faces than are apart.
    """
    # What is simulated is int8 activations, so of other precisions nothing could be said.
    allowed = [name for name, recipe in recipes().items() if recipe.activations == 8]
    if precision not in allowed:
        raise EdgeError(f"--precision {precision}; allowed: {', '.join(allowed)}")
    from pipnet_edge.converters.checkpoint import read as checkpoints
    from pipnet_edge.converters.quantize import calibration, prepare, sensitivity

    methods = prepare.Options(quantize.ranges, quantize.rounding)
    faces, held = calibration.split(list(quantize.faces), quantize.count, quantize.seed)
    if count > len(held):
        raise EdgeError(
            f"{count} faces to measure on; {len(held)} of the {len(quantize.faces)} faces are held out for it"
        )
    network = checkpoints.load(source, options)
    side = network.spec.input_size
    crops = calibration.choose(held, side, len(held)).crops[:count]
    chosen = calibration.choose(faces, side, quantize.count, quantize.seed)
    prepared = prepare.prepare(network, chosen, methods, step)
    given = prepared.keeping(prepared.kinds(recipes()[precision].keep))
    return sensitivity.measure(prepared.float_, given, crops, step)


def _say(step: Step, variant: str, index: int, total: int, what: str, *_: int) -> None:
    step(f"{variant}: {what}", index, total)


def _source(path: Path, parameters: int, core: Core) -> Source:
    return Source(
        # A name that cannot be printed is kept as Python would write it.
        file=path.name if path.name.isprintable() else ascii(path.name),
        sha256=file_sha256(path),
        parameters=parameters,
        onnx_nodes=core.nodes,
        onnx_bytes=core.sizes,
    )
