"""What a destination offers. It is found by its name: `converters/<name>/destination.py` has it as HERE."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipnet_edge.converters.core import Core
from pipnet_edge.converters.quantize.scheme import Quantized
from pipnet_edge.decode import Heads
from pipnet_edge.spec import Input


@dataclass(frozen=True)
class Destination:
    """How a runtime's variants are made. Each gets a folder that exists and is empty.

    tools: the packages that do it; a variant names their versions. bits: how many bits a stored activation may have; 0
    leaves activations in float. levels: the largest weight that int8 layers may have, in steps. heads_inside: whether
    sparse heads are part of the model instead of another file. fp(core, precision, folder) writes a float model,
    int8(core, given, bits, folder) a quantized one, and add_heads(heads, precision, folder) adds the offset heads that
    the core lacked.
    """

    tools: tuple[str, ...]
    bits: tuple[int, ...]
    levels: int
    heads_inside: bool
    fp: Callable[[Core, str, Path], None]
    int8: Callable[[Core, Quantized[Input], int, Path], None]
    add_heads: Callable[[Heads, str, Path], None]


def find(name: str) -> Destination:
    """The destination of this name (runtimes.DESTINATIONS), imported when it is asked for."""
    found: Destination = importlib.import_module(f"{__package__}.{name}.destination").HERE
    return found


def grids(names: Iterable[str]) -> list[int]:
    """The levels of these destinations, each once, the fewest first."""
    return sorted({find(name).levels for name in names})
