"""Quantization recipes: what is stored in how many bits, as data in recipes.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from pipnet_edge import strict

FILE = Path(__file__).with_name("recipes.toml")


@dataclass(frozen=True)
class Recipe:
    """weights, activations: bits (0: float). keep: kinds of layers left in float."""

    summary: str
    weights: int
    activations: int
    keep: tuple[str, ...]


@lru_cache(maxsize=1)
def recipes() -> Mapping[str, Recipe]:
    """The recipes by name, which is also the precision in a variant's name."""
    with FILE.open("rb") as file:
        tables = tomllib.load(file)
    return MappingProxyType({name: strict.read(Recipe, table, FILE.name) for name, table in tables.items()})
