"""The limits that --limit sets, of drift and of bench: NAME<=NUMBER."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipnet_edge.errors import EdgeError


@dataclass(frozen=True)
class Limit:
    """The most that a metric may be, in the metric's own unit."""

    metric: str
    most: float

    def __str__(self) -> str:
        return f"{self.metric}<={self.most:g}"


def parse(text: str, units: Mapping[str, str]) -> Limit:
    """A Limit from `px_mean<=0.30`. units: the metrics allowed, with their units; an error names them."""
    allowed = ", ".join(f"{name} [{unit}]" if unit else name for name, unit in units.items())
    match = re.fullmatch(r"\s*(\w+)\s*<=\s*((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*", text, re.ASCII)
    if not match:
        raise EdgeError(f"--limit {text!r:.60} is not METRIC<=NUMBER; metrics: {allowed}")
    if match[1] not in units:
        raise EdgeError(f"--limit {text!r:.60}: no metric {match[1]!r:.60}; allowed: {allowed}")
    return Limit(match[1], float(match[2]))
