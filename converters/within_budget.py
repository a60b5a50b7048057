"""Finds a variant that stays within a drift budget, with as few layers in float as possible.

Layers are ranked by what int8 costs in each. Then variants with more or fewer of the first layers in float are made and
judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.bundle import Bundle
from pipnet_edge.converters.quantize import budget, sensitivity
from pipnet_edge.converters.quantize.budget import Budget, Progress
from pipnet_edge.converters.quantize.prepare import Prepared
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.spec import ModelSpec
from pipnet_edge.words import counted

# How many faces layers are ranked on. More faces hardly change the order, and the sweeps take long.
RANKED_ON = 16


@dataclass(frozen=True, eq=False)
class Trial:
    """A bundle of one variant with these layers in float, and what the judge says: drift is in the limit's unit."""

    kept: tuple[str, ...]
    bundle: Bundle
    drift: float
    milliseconds: float


class Ranking:
    """A network's int8 layers, the most sensitive first. Ranking takes minutes, so it is done once per recipe.

    Which grid the weights have hardly changes the order.
    """

    def __init__(self, prepared: Prepared[ModelSpec]) -> None:
        self._prepared = prepared
        self._orders: dict[str, tuple[str, ...]] = {}

    def of(self, precision: str, crops: NDArray[np.uint8], progress: Progress) -> tuple[str, ...]:
        """The int8 layers of a recipe that may go back to float, the costliest first; half of the MACs stay in int8.

        Measured on the first crops (n, S, S, 3) uint8 RGB.
        """
        if precision not in self._orders:
            given = self._prepared.keeping(self._prepared.kinds(recipes()[precision].keep))
            rows = sensitivity.measure(self._prepared.float_, given, crops[:RANKED_ON], progress)
            macs = {row.layer: row.macs for row in rows}
            self._orders[precision] = budget.affordable(sensitivity.order(rows), macs)
        return self._orders[precision]


def within_budget(
    order: Callable[[], Sequence[str]],
    make: Callable[[tuple[str, ...]], Bundle],
    judge: Callable[[Bundle], Mapping[str, float]],
    limit: Budget,
    progress: Progress = lambda *_: None,
) -> tuple[Trial, Trial]:
    """Keeps the first layers of `order` in float, as few as found. Returns (the trial with none, the trial within).

    `order` ranks the layers that may go back to float; it is asked if the variant without any is over the limit. `make`
    gets the layers to keep, in that order, and writes a bundle of one variant. `judge` returns its drift, under the
    name of the limit's metric, and its milliseconds as "ms". Raises EdgeError (code 3) if no number is enough.
    """
    trials: dict[frozenset[str], Trial] = {}

    def drift(kept: frozenset[str]) -> float:
        if kept not in trials:
            names = tuple(name for name in layers if name in kept)
            bundle = make(names)
            found = judge(bundle)
            trials[kept] = Trial(names, bundle, found[limit.metric], found["ms"])
        return trials[kept].drift

    none, layers = frozenset[str](), tuple[str, ...]()
    if drift(none) <= limit.limit:
        return trials[none], trials[none]
    progress(f"drifts {trials[none].drift:.3g}{limit.metric}, over {limit}: ranking layers to keep in float", 0, 0)
    layers = tuple(order())
    outcome = budget.search(layers, drift, limit.limit, progress)
    if not outcome.satisfied:
        best, unit = min(trials.values(), key=lambda trial: trial.drift), limit.metric
        with_layers = f"{best.drift:.3g}{unit} with {counted(len(best.kept), 'layer')} in float"
        raise EdgeError(
            f"drifts {trials[none].drift:.3g}{unit} (limit {limit}), at best {with_layers}; half of the multiply-adds "
            f"have to stay in int8. --max-drift {_rounded_up(best.drift)}{unit} or {budget.NONE} allows that",
            CHECK_FAILED,
        )
    return trials[none], trials[frozenset(outcome.kept)]


def _rounded_up(value: float) -> str:
    """Three digits of a number that is no less."""
    step = Decimal(1).scaleb(Decimal(value).adjusted() - 2) if value else Decimal(1)
    return f"{Decimal(value).quantize(step, ROUND_CEILING):f}"
