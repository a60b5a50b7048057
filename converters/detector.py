"""From a face detector's checkpoint to its bundle: load, export for each size, make the variants, and check them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipnet_edge.bundle import GOLDEN, DetectorBundle, FacesParity, File, Variant
from pipnet_edge.converters import workplace
from pipnet_edge.converters.losses import Losses, verified
from pipnet_edge.converters.plan import Lost, Plan, Step, raised
from pipnet_edge.detect.spec import named
from pipnet_edge.errors import EdgeError
from pipnet_edge.runtimes import RUNTIMES

if TYPE_CHECKING:
    from pipnet_edge.converters.core import Core

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

    verify, step and lost, and what is raised: as in `convert`.
    """
    total = len(plan.variants) + 3
    with workplace.making(out) as (folder, work):
        step("load", 0, total)
        # These import torch, which takes long. A wrong command line is refused before that.
        import torch

        from pipnet_edge.converters import core, golden
        from pipnet_edge.converters.checkpoint import faceboxes, layers

        detector = faceboxes.read(source)
        step("export", 1, total)
        cores: dict[Size, Core] = {}
        for size in detector.spec.input_sizes:
            (work / named(size)).mkdir()
            cores[size] = core.export_detector(detector.net, detector.spec.at(size), work / named(size))
        golden.write_detector(folder / GOLDEN, detector)

        losses, made = Losses(plan, folder, lost), list[Variant]()
        for index, (destination, precision) in enumerate(plan.variants, 2):
            name = f"{destination}-{precision}"
            step(name, index, total)
            with losses.told(name):
                made.append(_of_float(cores, destination, precision, folder))
        losses.check(made)

        def arbitrate() -> File:
            step("parity with float64", total - 1, total)
            golden.write_detector(folder / GOLDEN, detector, torch.float64)
            return File.of(folder, folder / GOLDEN)

        step("parity", total - 1, total)
        usual = detector.spec.input_sizes[0]
        bundle = DetectorBundle(
            spec=detector.spec,
            source=workplace.source(source, detector.parameters, cores[usual]),
            golden=File.of(folder, folder / GOLDEN),
            variants=tuple(made),
            layers=layers.of(detector.net, usual, has_offsets=False),
            folder=folder,
        )
        bundle = verified(bundle, verify, arbitrate, losses)
    return replace(bundle, folder=out)


def _of_float(cores: Mapping[Size, Core], destination: str, precision: str, folder: Path) -> Variant:
    """Makes the float variant `<destination>-<precision>` in the bundle at `folder`."""
    from pipnet_edge.converters import destination as destinations
    from pipnet_edge.converters.variants import described

    to = destinations.find(destination)
    for size, own in _folders(destination, precision, folder, tuple(cores)):
        to.fp(cores[size], precision, own)
    return described(folder, destination, precision, to.tools)


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
