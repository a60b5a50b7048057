"""A parser to fuzz, as one value."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Random = random.Random
# It changes `data`; `other` is another seed, to take parts from. It takes any bytes, those of earlier mutators too.
Mutator = Callable[[Random, bytes, bytes], bytes]
# Inputs that an hour has to reach.
MINIMUM, MINIMUM_FOREIGN = 20_000, 2_000
# How many mutators in a row change an input.
CHANGES = (1, 1, 1, 1, 2, 2, 3, 5)


@dataclass(frozen=True)
class Target:
    """parse reads bytes with the product's own parser; EdgeError is its right to refuse, anything else is a finding.

    parse gets a scratch folder that it may fill; the folder is kept between inputs. seeds: valid inputs. first: whether
    an input gets past the format's first check, by code of our own, for example "it is JSON of this format and
    version". modules: those whose line coverage is printed, whole or only some functions (see cover.lines_of).
    foreign: C code reads the bytes and may die. contained: the product runs this parser in a process of its own with
    a time limit, so that a death or a hang is an answer there; it is counted, no finding. minimum: the inputs that an
    hour has to reach. warm: the first seed is read once before all, because a library loads parts of it late, and each
    fork would do it again.
    """

    name: str
    parse: Callable[[bytes, Path], object]
    seeds: Callable[[], Sequence[bytes]]
    first: Callable[[bytes], bool]
    mutators: tuple[Mutator, ...]
    modules: tuple[str, ...] = ()
    foreign: bool = False
    contained: bool = False
    minimum: int = 0
    warm: bool = False

    @property
    def needed(self) -> int:
        return self.minimum or (MINIMUM_FOREIGN if self.foreign else MINIMUM)

    @property
    def patience(self) -> float:
        """Seconds after which an input hangs."""
        return 20.0 if self.foreign else 5.0


def made(target: Target, seeds: Sequence[bytes], seed: int, index: int) -> bytes:
    """Input number `index`. It depends on nothing else. The first ones are the seeds themselves."""
    if index < len(seeds):
        return seeds[index]
    chance = Random(f"{target.name} {seed} {index}")
    data = chance.choice(seeds)
    for _ in range(chance.choice(CHANGES)):
        data = chance.choice(target.mutators)(chance, data, chance.choice(seeds))
    return data
