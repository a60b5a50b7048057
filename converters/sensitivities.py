"""What int8 costs in each layer of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipnet_edge.converters.plan import Quantize, Step
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.errors import EdgeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipnet_edge.converters.checkpoint.read import Options
    from pipnet_edge.converters.quantize.calibration import Face
    from pipnet_edge.converters.quantize.sensitivity import LayerSensitivity


def sensitivities(
    source: Path,
    options: Options,
    quantize: Quantize,
    precision: str,
    count: int,
    step: Step = lambda *_: None,
    others: Sequence[Face] = (),
) -> tuple[LayerSensitivity, ...]:
    """What int8 costs in each layer of a checkpoint, on `count` faces that it is not calibrated with.

    others: draw these faces from here; without it, a fifth of the calibration faces is held out. Raises EdgeError
    as convert does, for a precision without int8 activations, and for more faces than there are to draw from.
    """
    # Only int8 activations are simulated, so nothing can be said about other precisions.
    allowed = [name for name, recipe in recipes().items() if recipe.activations == 8]
    if precision not in allowed:
        raise EdgeError(f"--precision {precision}; allowed: {', '.join(allowed)}")
    # These need torch.
    from pipnet_edge.converters import variants
    from pipnet_edge.converters.checkpoint import read as checkpoints
    from pipnet_edge.converters.quantize import calibration, prepare, scheme, sensitivity

    methods = prepare.Options(quantize.ranges, quantize.rounding)
    faces, held = list(quantize.faces), list(others)
    if not others:
        faces, held = calibration.split(faces, quantize.count, quantize.seed)
    if count > len(held):
        where = f"--images has {len(held)}"
        if not others:
            where = f"{len(held)} of the {len(quantize.faces)} faces are held out for it"
        raise EdgeError(f"{count} faces to measure on; {where}")
    network = checkpoints.load(source, options)
    side = network.spec.input_size
    crops, _ = calibration.draw(held, side, count, 0)
    chosen = calibration.choose(faces, side, quantize.count, quantize.seed)
    methods = replace(methods, heads=variants.rounds_heads(network.net, [precision]))
    prepared = prepare.prepare(network, chosen, methods, [scheme.FULL], step)[scheme.FULL]
    given = prepared.keeping(prepared.kinds(recipes()[precision].keep))
    return sensitivity.measure(prepared.float_, given, crops, step, chosen.crops[:count])
