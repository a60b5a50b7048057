"""Finds a variant that stays within a drift budget, with as few layers in float as possible.

Layers are ranked by what int8 costs in each. Then variants with more or fewer of the first layers in float are made and
judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.bundle import Bundle
from pipnet_edge.converters.quantize import budget, sensitivity
from pipnet_edge.converters.quantize.budget import Budget, Progress
from pipnet_edge.converters.quantize.prepare import Prepared
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.errors import CHECK_FAILED, EdgeError

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
    """A network's int8 layers, the most sensitive first. Ranking takes minutes, so it is done once per recipe."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._orders: dict[str, tuple[str, ...]] = {}

    def of(self, precision: str, crops: NDArray[np.uint8], progress: Progress) -> tuple[str, ...]:
        """The int8 layers of a recipe, the costliest first, measured on the first crops (n, S, S, 3) uint8 RGB."""
        if precision not in self._orders:
            given = self._prepared.keeping(self._prepared.kinds(recipes()[precision].keep))
            rows = sensitivity.measure(self._prepared.float_, given, crops[:RANKED_ON], progress)
            self._orders[precision] = sensitivity.order(rows)
        return self._orders[precision]


def within_budget(
    order: Sequence[str],
    make: Callable[[tuple[str, ...]], Bundle],
    judge: Callable[[Bundle], Mapping[str, float]],
    limit: Budget,
    progress: Progress = lambda *_: None,
) -> tuple[Trial, Trial]:
    """Keeps the first layers of `order` in float, as few as found. Returns (the trial with none, the trial within).

    `make` gets the layers to keep, in that order, and writes a bundle of one variant. `judge` returns its drift, under
    the name of the limit's metric, and its milliseconds as "ms". Raises EdgeError (code 3) if no number is enough.
    """
    trials: dict[int, Trial] = {}

    def drift(kept: frozenset[str]) -> float:
        layers = tuple(name for name in order if name in kept)
        bundle = make(layers)
        found = judge(bundle)
        trials[len(layers)] = Trial(layers, bundle, found[limit.metric], found["ms"])
        return found[limit.metric]

    outcome = budget.search(order, drift, limit.limit, progress)
    if not outcome.satisfied:
        (variant,) = trials[len(order)].bundle.variants
        raise EdgeError(
            f"{variant.name} cannot be kept within {limit}: with all {len(order)} layers in float it "
            f"still drifts {outcome.after:.3g}{limit.metric}",
            CHECK_FAILED,
        )
    return trials[0], trials[len(outcome.kept)]
