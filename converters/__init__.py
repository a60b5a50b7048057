"""The workstation half: checkpoints to bundles. Needs torch and the converters, though not to be imported."""

from __future__ import annotations

from pipnet_edge.converters.convert import convert
from pipnet_edge.converters.plan import HEADS, Judge, Plan, Quantize, Step, Verify
from pipnet_edge.converters.sensitivities import sensitivities

__all__ = ["HEADS", "Judge", "Plan", "Quantize", "Step", "Verify", "convert", "sensitivities"]
