"""How much drift is allowed, and a search for the fewest layers that have to stay in float for it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipnet_edge.errors import EdgeError

Progress = Callable[[str, int, int], None]

METRICS = ("px", "nme")
MEASUREMENTS = 10
NONE = "none"
# The least share of the multiply-adds that stays in int8. With less, a variant would be int8 by name only.
LEAST_INT8 = 0.5


@dataclass(frozen=True)
class Budget:
    """The most drift allowed: px, the mean drift in pixels of the crop, or nme, |change of the NME| in % points."""

    metric: str
    limit: float

    def __str__(self) -> str:
        return f"{self.limit:g}{self.metric}"


USUAL = Budget("px", 0.5)


def parse(text: str) -> Budget | None:
    """A Budget from a number and a metric, "0.5px" or "0.02nme", or None from "none". Raises EdgeError otherwise."""
    if text.strip().lower() == NONE:
        return None
    found = re.fullmatch(
        rf"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*({'|'.join(METRICS)})\s*", text, re.ASCII | re.IGNORECASE
    )
    limit = float(found[1]) if found else math.inf
    if not found or not math.isfinite(limit):
        raise EdgeError(
            f"--max-drift {text!r:.60}; allowed: a number and {' or '.join(METRICS)}, as in 0.5px or 0.02nme; or {NONE}"
        )
    return Budget(found[2].lower(), limit)


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    kept: the layers to keep in float, the most sensitive first; if not satisfied, all of them. before, after: drift
    with no layer kept and with these. steps: (layers kept, drift) in the order measured.
    """

    kept: tuple[str, ...]
    before: float
    after: float
    satisfied: bool
    steps: tuple[tuple[int, float], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def affordable(order: Sequence[str], macs: Mapping[str, float]) -> tuple[str, ...]:
    """The first of these layers, as many as leave LEAST_INT8 of all their multiply-adds in int8.

    macs: each layer's multiply-adds, in any unit.
    """
    left = total = sum(macs[name] for name in order)
    for index, name in enumerate(order):
        left -= macs[name]
        if left < LEAST_INT8 * total:
            return tuple(order[:index])
    return tuple(order)


def search(
    order: Sequence[str],
    drift: Callable[[frozenset[str]], float],
    limit: float,
    progress: Progress = lambda *_: None,
) -> Outcome:
    """Keeps the first layers of `order`, as few as found, in float, so that drift(kept) <= limit.

    Tries 0, 1, 2, 4, 8 … layers and all, then halves the gap between the last failure and the first success, with
    MEASUREMENTS calls of drift at most. Drift may rise with one more layer, so the returned drift is a measured one.
    """
    steps: dict[int, float] = {}

    def holds(count: int) -> bool:
        progress(f"{count} of {len(order)} layers in float", len(steps), MEASUREMENTS)
        steps[count] = drift(frozenset(order[:count]))
        return steps[count] <= limit

    fails, holding = -1, None
    for count in _counts(len(order)):
        if holds(count):
            holding = count
            break
        fails = count
    while holding is not None and holding - fails > 1 and len(steps) < MEASUREMENTS:
        middle = (fails + holding) // 2
        if holds(middle):
            holding = middle
        else:
            fails = middle
    count = len(order) if holding is None else holding
    return Outcome(tuple(order[:count]), steps[0], steps[count], holding is not None, tuple(steps.items()))


def _counts(total: int) -> list[int]:
    doubling = [0, *(2**power for power in range(MEASUREMENTS - 2))]
    return [count for count in doubling if count < total] + [total]
