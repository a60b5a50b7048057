"""Variants that do not make it into a bundle cost it only themselves: each is told with its reason."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pipnet_edge.bundle import Bundle, DetectorBundle, File, Variant
from pipnet_edge.converters.plan import Lost, Plan
from pipnet_edge.errors import CHECK_FAILED, EdgeError

Kind = TypeVar("Kind", Bundle, DetectorBundle)


def is_full(folder: Path) -> bool:
    """Whether this folder's disk is full."""
    return shutil.disk_usage(folder).free < 1 << 20


@dataclass(frozen=True)
class Losses:
    """What the bundle that is made at `folder` goes without; `lost` is told."""

    plan: Plan
    folder: Path
    lost: Lost

    @contextlib.contextmanager
    def told(self, name: str) -> Iterator[None]:
        """An EdgeError in the block costs this variant, unless the disk is full, which would cost all others too."""
        try:
            yield
        except EdgeError as e:
            if is_full(self.folder):
                raise
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self.lost(name, e)

    def check(self, left: Sequence[Variant]) -> None:
        """Raises EdgeError (code 3) for no variants, or for none in fp32 if those were asked for: all are in doubt."""
        if not left:
            raise EdgeError("no variant passed, so nothing is written", CHECK_FAILED)
        if "fp32" in self.plan.precisions and not any(variant.precision == "fp32" for variant in left):
            raise EdgeError("no fp32 variant passed, so nothing is written", CHECK_FAILED)


def verified(
    bundle: Kind, verify: Callable[[Kind], Mapping[str, Any]], arbitrate: Callable[[], File], losses: Losses
) -> Kind:
    """A bundle on disk with the variants that pass, and their parity in its manifest.

    arbitrate() writes golden cases of higher precision. It is asked if an fp32 variant fails, since two float32 engines
    may differ without either being wrong.
    """
    bundle.write_manifest()
    measured = verify(bundle)
    if any(isinstance(measured[v.name], EdgeError) for v in bundle.variants if v.precision == "fp32"):
        bundle = replace(bundle, golden=arbitrate())
        bundle.write_manifest()
        measured = verify(bundle)
    passed = []
    for variant in bundle.variants:
        with losses.told(variant.name):
            found = measured[variant.name]
            if isinstance(found, EdgeError):
                raise found
            passed.append(replace(variant, parity=found))
    losses.check(passed)
    faces = bundle.calibration if any(variant.quantization for variant in passed) else None
    bundle = replace(bundle, variants=tuple(passed), calibration=faces)
    bundle.write_manifest()
    return bundle
