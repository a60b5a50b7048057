"""From a face detector's checkpoint to its bundle: load, export, round once, make the variants, and check them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipnet_edge.bundle import (
    GOLDEN,
    Calibration,
    DetectorBundle,
    DetectorManifest,
    FacesParity,
    File,
    Quantization,
    Variant,
)
from pipnet_edge.converters import workplace
from pipnet_edge.converters.losses import Losses, verified
from pipnet_edge.converters.plan import Lost, Plan, Step, raised
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.detect.spec import Sized, named
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import pictures_in
from pipnet_edge.runtimes import RUNTIMES

if TYPE_CHECKING:
    from torch import nn

    from pipnet_edge.converters.checkpoint.faceboxes import Detector
    from pipnet_edge.converters.core import Core
    from pipnet_edge.converters.quantize.prepare import Options, Prepared
    from pipnet_edge.converters.scenes import Scenes

Size = tuple[int, int]
Verify = Callable[[DetectorBundle], Mapping[str, FacesParity | EdgeError]]


def convert(
    source: Path,
    out: Path,
    plan: Plan,
    verify: Verify,
    step: Step = lambda *_: None,
    lost: Lost = raised,
) -> DetectorBundle:
    """Makes a detector's bundle at `out` from FaceBoxesV2.pth, for all input sizes of its spec.

    Quantized variants are calibrated with scenes of the demo's faces. verify, step and lost, and what is raised: as in
    `convert`.
    """
    total = len(plan.variants) + 3 + plan.quantizes
    with workplace.making(out, DetectorManifest) as (folder, work):
        step("load", 0, total)
        # These import torch, which takes long. A wrong command line is refused before that.
        import torch

        from pipnet_edge.converters import golden
        from pipnet_edge.converters.checkpoint import faceboxes, layers

        detector = faceboxes.read(source)
        step("export", 1, total)
        cores = _Cores(work)
        usual = detector.spec.input_sizes[0]
        onnx = cores.of("float", detector.net, detector.spec.at(usual))
        golden.write_detector(folder / GOLDEN, detector)
        rounded = _rounded(detector, plan, partial(_counted, step, 2, total)) if plan.quantizes else None

        losses, made = Losses(plan, folder, lost), list[Variant]()
        for index, (destination, precision) in enumerate(plan.variants, 2 + plan.quantizes):
            name = f"{destination}-{precision}"
            step(name, index, total)
            with losses.told(name):
                if rounded and precision in recipes():
                    made.append(_of_integers(rounded, cores, destination, precision, folder))
                else:
                    made.append(_of_float(detector, cores, destination, precision, folder))
        losses.check(made)

        def arbitrate() -> File:
            step("parity with float64", total - 1, total)
            golden.write_detector(folder / GOLDEN, detector, torch.float64)
            return File.of(folder, folder / GOLDEN)

        step("parity", total - 1, total)
        bundle = DetectorBundle(
            spec=detector.spec,
            source=workplace.source(source, detector.parameters, onnx),
            golden=File.of(folder, folder / GOLDEN),
            variants=tuple(made),
            layers=layers.of(detector.net, usual, has_offsets=False),
            calibration=Calibration(rounded.faces.sha256, rounded.faces.images) if rounded else None,
            folder=folder,
        )
        bundle = verified(bundle, verify, arbitrate, losses)
    return replace(bundle, folder=out)


class _Cores:
    """The networks that variants are made of, each exported once for each size, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[tuple[str, Size], Core] = {}

    def of(self, name: str, net: nn.Module, sized: Sized) -> Core:
        """The core of a network; name: what it is called, alike for all its sizes."""
        from pipnet_edge.converters.core import export_detector

        if (name, sized.size) not in self._found:
            folder = self._folder / f"{name}-{named(sized.size)}"
            folder.mkdir()
            self._found[name, sized.size] = export_detector(net, sized, folder)
        return self._found[name, sized.size]


@dataclass(frozen=True, eq=False)
class _Rounded:
    """What quantized variants share: the networks by their weights' levels, how and with what they were rounded."""

    prepared: Mapping[int, Prepared[Sized]]
    methods: Options
    faces: Scenes


def _rounded(detector: Detector, plan: Plan, progress: Callable[[str, int, int], None]) -> _Rounded:
    """Rounds the network once, for all sizes."""
    from pipnet_edge.converters import demo, scenes
    from pipnet_edge.converters.destination import grids
    from pipnet_edge.converters.quantize import prepare

    pictures = [(path, None) for path in pictures_in(demo.CALIBRATION)]
    faces = scenes.draw(pictures, detector.spec.input_sizes)
    levels = grids(destination for destination, precision in plan.variants if precision in recipes())
    methods = prepare.Options()
    return _Rounded(prepare.prepare(detector.at(), faces, methods, levels, progress), methods, faces)


def _of_float(detector: Detector, cores: _Cores, destination: str, precision: str, folder: Path) -> Variant:
    """Makes the float variant `<destination>-<precision>` in the bundle at `folder`."""
    from pipnet_edge.converters import destination as destinations
    from pipnet_edge.converters.variants import described

    to = destinations.find(destination)
    for size, own in _folders(destination, precision, folder, detector.spec.input_sizes):
        to.fp(cores.of("float", detector.net, detector.spec.at(size)), precision, own)
    return described(folder, destination, precision, to.tools)


def _of_integers(rounded: _Rounded, cores: _Cores, destination: str, precision: str, folder: Path) -> Variant:
    """Makes a quantized variant, by the recipe of its precision, in the bundle at `folder`."""
    from pipnet_edge.converters import destination as destinations
    from pipnet_edge.converters.variants import described

    to, recipe = destinations.find(destination), recipes()[precision]
    prepared = rounded.prepared[to.levels]
    kept = prepared.kinds(recipe.keep)
    given = prepared.keeping(kept)
    for size, own in _folders(destination, precision, folder, given.spec.spec.input_sizes):
        sized = given.spec.spec.at(size)
        core = cores.of(f"{to.levels}-{'-'.join(recipe.keep)}", given.graph, sized)
        to.int8(core, replace(given, spec=sized), recipe.activations, own)
    how = Quantization(rounded.methods.ranges, rounded.methods.rounding, kept, given.spec.mean, given.spec.std)
    return replace(described(folder, destination, precision, to.tools), quantization=how)


def _counted(step: Step, index: int, total: int, what: str, done: int, of: int) -> None:
    """What `prepare` does, and how far it is."""
    step(what, index, total, f"{done} of {of} {'layers' if what.startswith('round ') else 'pictures'}")


def _folders(destination: str, precision: str, folder: Path, sizes: Sequence[Size]) -> Iterator[tuple[Size, Path]]:
    """The new folders of a variant's models, and the size of pictures that each is for; or one for all sizes."""
    own = folder / f"{destination}-{precision}"
    own.mkdir()
    if RUNTIMES[destination].any_size:
        yield sizes[0], own
        return
    for size in sizes:
        (own / named(size)).mkdir()
        yield size, own / named(size)
