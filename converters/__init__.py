"""The workstation half: checkpoints to bundles. It needs torch and the converters, but not when it is imported."""

from __future__ import annotations

from pipnet_edge.converters.convert import convert
from pipnet_edge.converters.detector import convert as convert_detector
from pipnet_edge.converters.plan import HEADS, Judge, Lost, Plan, Quantize, Step, Verify
from pipnet_edge.converters.sensitivities import sensitivities

__all__ = [
    "HEADS",
    "Judge",
    "Lost",
    "Plan",
    "Quantize",
    "Step",
    "Verify",
    "convert",
    "convert_detector",
    "sensitivities",
]
