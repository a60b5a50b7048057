"""From a checkpoint to a bundle: load, export, round once for all runtimes, make the variants, and check them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipnet_edge.bundle import GOLDEN, Budget, Bundle, Calibration, File, Variant
from pipnet_edge.converters import workplace
from pipnet_edge.converters.losses import Losses, verified
from pipnet_edge.converters.plan import Lost, Plan, Quantize, Step, Verify, raised
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.errors import EdgeError

if TYPE_CHECKING:
    from pipnet_edge.converters.checkpoint.network import Network
    from pipnet_edge.converters.checkpoint.read import Options
    from pipnet_edge.converters.faces import Faces, Jury
    from pipnet_edge.converters.quantize import prepare
    from pipnet_edge.converters.within_budget import Ranking


def convert(
    source: Path,
    out: Path,
    plan: Plan,
    options: Options,
    verify: Verify,
    step: Step = lambda *_: None,
    simplify: bool = True,
    quantize: Quantize | None = None,
    note: Callable[[str], None] = lambda _: None,
    lost: Lost = raised,
) -> Bundle:
    """Makes a bundle at `out` from a checkpoint or five-map ONNX file.

    `verify` gets the written bundle and returns each variant's parity for the manifest, or why it fails. `lost` is told
    of each variant that cannot be made, drifts over the budget or fails; if it does not raise that, as it does by
    default, the bundle holds the others. Raises EdgeError (code 3) if there are none, or no fp32 one among them though
    some were asked for. After any failure, nothing new is at `out`, and an older bundle there stays. `step` is told
    what is done, `note` what reading the source left aside or took for granted.
    """
    if plan.quantizes and not quantize:
        raise EdgeError("quantized variants need faces to calibrate with: give a folder of them with --calibrate")
    if not plan.quantizes:
        quantize = None
    total = len(plan.variants) + 3 + plan.quantizes
    with workplace.making(out) as (folder, work):
        step("load", 0, total)
        # These import torch, which takes long. A wrong command line is refused before that.
        import torch

        from pipnet_edge.converters import cores, faces, golden, presence, variants
        from pipnet_edge.converters.checkpoint import layers
        from pipnet_edge.converters.checkpoint import read as checkpoints
        from pipnet_edge.converters.quantize import prepare

        network = checkpoints.load(source, options)
        for line in network.notes:
            note(line)

        step("export", 1, total)
        plan = _with_heads(plan, network, note)
        heads = variants.rounds_heads(network.net, (precision for _, precision in plan.variants))
        methods = prepare.Options(quantize.ranges, quantize.rounding, heads) if quantize else prepare.Options()
        # Faces are read before the export, so that nobody has to wait for it to see a typing error.
        gathered = faces.gather(quantize, network) if quantize else None
        exported = cores.export(network.net, network.spec, work / "float", simplify, plan.is_sparse)
        seen = gathered.calibration.crops if gathered and plan.is_sparse else None
        golden.write(folder / GOLDEN, network, seen)
        spec = presence.measured(network, gathered.calibration.crops if gathered else None)
        if spec.presence is None:
            note("no presence threshold: the network's scores do not tell faces from other things")
        bundle_of = partial(
            Bundle,
            spec=spec,
            source=workplace.source(source, network.parameters, exported.core),
            golden=File.of(folder, folder / GOLDEN),
            layers=layers.of(network.net, network.spec.size),
            calibration=_calibration(gathered),
        )

        losses, rounded, wanted = Losses(plan, folder, lost), None, plan.variants
        if gathered:
            given = network, gathered, methods, work, simplify, losses
            wanted, rounded = _rounded(plan, *given, step, total)

        made = list[Variant]()
        for index, (destination, precision) in enumerate(wanted, 2 + plan.quantizes):
            name = f"{destination}-{precision}"
            step(name, index, total)
            with losses.told(name):
                if rounded and precision in recipes():
                    say = partial(_say, step, name, index, total)
                    made.append(_quantized(rounded, destination, precision, bundle_of, folder, work, say))
                else:
                    made.append(variants.of_float(exported, destination, precision, folder))
        losses.check(made)

        def arbitrate() -> File:
            step("parity with float64", total - 1, total)
            golden.write(folder / GOLDEN, network, seen, torch.float64)
            return File.of(folder, folder / GOLDEN)

        step("parity", total - 1, total)
        bundle = verified(bundle_of(folder=folder, variants=tuple(made)), verify, arbitrate, losses)
    return replace(bundle, folder=out)


def _with_heads(plan: Plan, network: Network, note: Callable[[str], None]) -> Plan:
    """The plan with heads that suit this network, if it leaves them open."""
    from pipnet_edge.converters import sparse

    if plan.heads is not None:
        return plan
    if sparse.can_split(network.net):
        return replace(plan, heads="sparse")
    note("heads are dense: sparse ones have to be 1x1 convolutions of the same features")
    return replace(plan, heads="dense")


@dataclass(frozen=True, eq=False)
class _Rounded:
    """What quantized variants share.

    make(destination, precision, folder, kept) makes one; jury and ranking are for a budget, if there is one.
    """

    make: Callable[[str, str, Path, tuple[str, ...]], Variant]
    jury: Jury | None
    ranking: Ranking


def _rounded(
    plan: Plan,
    network: Network,
    gathered: Faces,
    methods: prepare.Options,
    work: Path,
    simplify: bool,
    losses: Losses,
    step: Step,
    total: int,
) -> tuple[tuple[tuple[str, str], ...], _Rounded | None]:
    """The plan's variants without those that a rehearsal shows to fail; and what its quantized ones share, if any."""
    from pipnet_edge.converters import cores, rehearsal, variants
    from pipnet_edge.converters.destination import grids
    from pipnet_edge.converters.quantize import prepare
    from pipnet_edge.converters.within_budget import Ranking

    wanted = plan.variants
    quantized = [pair for pair in wanted if pair[1] in recipes()]
    calibration = gathered.calibration
    if prepare.takes_long(network, calibration, methods, grids(destination for destination, _ in quantized)):
        given = network, calibration, methods, work / "rehearsal", simplify, plan.is_sparse, losses
        passing = rehearsal.passing(quantized, *given, partial(_rehearsed, step, 2, total))
        wanted = tuple(pair for pair in wanted if pair not in quantized or pair in passing)
    levels = grids(destination for destination, precision in wanted if precision in recipes())
    if not levels:
        return wanted, None
    prepared = prepare.prepare(network, calibration, methods, levels, partial(_counted, step, 2, total))
    networks = cores.Cores(prepared, work, simplify, plan.is_sparse)
    make = partial(variants.quantized, networks, methods)
    return wanted, _Rounded(make, gathered.jury, Ranking(prepared[levels[0]]))


def _quantized(
    rounded: _Rounded,
    destination: str,
    precision: str,
    bundle_of: Callable[..., Bundle],
    folder: Path,
    work: Path,
    say: Callable[..., None],
) -> Variant:
    """Makes a quantized variant in the bundle at `folder`, within the budget if there is one.

    say(what, part) is told what is done and how far it is.
    """
    jury = rounded.jury
    if not jury:
        return rounded.make(destination, precision, folder, ())
    from pipnet_edge.converters.within_budget import within_budget

    def make(kept: tuple[str, ...]) -> Bundle:
        trial = work / f"{destination}-{precision}-{len(kept)}"
        trial.mkdir()
        shutil.copy(folder / GOLDEN, trial)
        bundle = bundle_of(folder=trial, variants=(rounded.make(destination, precision, trial, kept),))
        bundle.write_manifest()
        return bundle

    def measured(bundle: Bundle) -> Mapping[str, float]:
        return jury.verdict(bundle, lambda done, of: say("drift", f"{done} of {of} faces"))

    def order() -> Sequence[str]:
        return rounded.ranking.of(precision, jury.crops, lambda what, done, of: say(what, f"{done} of {of} runs"))

    first, best = within_budget(order, make, measured, jury.budget, lambda what, *_: say(what))
    (without,), (made,) = first.bundle.variants, best.bundle.variants
    shutil.move(best.bundle.folder / made.name, folder / made.name)
    spent = Budget(
        limit=str(jury.budget),
        layers=best.kept,
        images=len(jury.crops),
        drift=(first.drift, best.drift),
        milliseconds=(first.milliseconds, best.milliseconds),
        size=(without.size, made.size),
    )
    return replace(made, quantization=made.quantization and replace(made.quantization, budget=spent))


def _say(step: Step, variant: str, index: int, total: int, what: str, part: str = "") -> None:
    step(f"{variant}: {what}", index, total, part)


def _counted(step: Step, index: int, total: int, what: str, done: int, of: int) -> None:
    """What `prepare` does, and how far it is."""
    step(what, index, total, f"{done} of {of} {'layers' if what.startswith('round ') else 'faces'}")


def _rehearsed(step: Step, index: int, total: int, variant: str) -> None:
    step(f"{variant}: rehearse", index, total)


def _calibration(gathered: Faces | None) -> Calibration | None:
    """What the manifest says about the calibration faces."""
    return Calibration(gathered.calibration.sha256, gathered.calibration.images) if gathered else None
