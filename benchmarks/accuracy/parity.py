"""Does every variant give the float network's maps and landmarks? The reference is in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.agreement import settled
from pipnet_edge.bundle import Bundle, Held, Parity, Variant
from pipnet_edge.decode import MAP_NAMES, Decoder, Landmarks, Maps, Winners
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.precisions import PRECISIONS, Limit
from pipnet_edge.preprocess import PICTURE_SUFFIXES, Rect, cut, pictures_in, read_picture
from pipnet_edge.worker.call import Call, here, infer
from pipnet_edge.worker.protocol import Facts


@dataclass(frozen=True)
class Row:
    """One variant against the reference over n images of L landmarks each.

    maps: per map the largest and the mean |difference|, in the map's own units. flips: landmarks whose winning cell
    changed. px_mean, px_max: landmark differences in pixels of the crop. worst_map: the map with the largest difference
    as a share of its magnitude. failure: why there are no numbers, or which limit is broken; None when the variant
    passed. skipped: why it was not run at all.
    """

    variant: str
    reference: str
    images: int
    landmarks: int
    maps: dict[str, tuple[float, float]] | None = None
    flips: int | None = None
    px_mean: float | None = None
    px_max: float | None = None
    worst_map: str | None = None
    failure: str | None = None
    skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


Progress = Callable[[str, int, int], None]


def check(
    bundle: Bundle,
    names: Sequence[str] = (),
    threads: int = 1,
    images: Sequence[Path] = (),
    progress: Progress = lambda *_: None,
    call: Call = here,
    most: int | None = None,
) -> tuple[Row, ...]:
    """Compares variants (all by default) with the torch maps in golden.npz, or over pictures with the first fp32 one.

    Each picture is one crop, resized as a whole. call: where the variants run. most: at most this many crops. A variant
    that cannot run, crashes or gives NaN has a failed row. A variant that was not named has a skipped row if its
    runtime is not installed there. A winning cell that ties in the reference's own maps is no other.
    """
    installed = () if names and not images else call(Facts()).runtimes
    variants, missing = chosen(bundle, names, installed)
    if images:
        crops = crops_of(images[:most], bundle.spec.input_size)
        singles = [v for v in bundle.variants if v.precision == "fp32" and v.runtime in installed]
        if not singles:
            raise EdgeError("parity over pictures needs an fp32 variant as reference, and its runtime installed")
        reference = singles[0].name
        ran = infer(call, bundle.folder, reference, threads, crops, maps=True)
        landmarks, maps = ran.landmarks, ran.maps
    else:
        crops, maps = bundle.read_golden()
        crops, maps = crops[:most], Maps(**{name: getattr(maps, name)[:most] for name in MAP_NAMES})
        reference, landmarks = "torch", Decoder(bundle.spec)(maps)
    decoder, rows = Decoder(bundle.spec), []
    for index, variant in enumerate(variants):
        progress(variant.name, index, len(variants))
        row = Row(variant.name, reference, len(crops), bundle.spec.num_lms)
        if variant.name in missing:
            rows.append(replace(row, skipped=f"{variant.runtime} is not installed"))
            continue
        try:
            ran = infer(call, bundle.folder, variant.name, threads, crops, maps=True)
        except EdgeError as e:
            rows.append(replace(row, failure=str(e)))
            continue
        assert maps is not None
        assert ran.maps is not None
        # The winners of a sparse reference have only their own cells.
        wanted = settled(decoder, maps, landmarks, ran.landmarks.cell) if isinstance(maps, Maps) else landmarks
        rows.append(compare(variant, row, bundle.spec.input_size, (wanted, maps), (ran.landmarks, ran.maps)))
    return tuple(rows)


def chosen(bundle: Held, names: Sequence[str], installed: Sequence[str]) -> tuple[list[Variant], frozenset[str]]:
    """The variants to compare, all by default, and the names of those that a target has no runtime for.

    installed: the target's runtimes. Whoever names a variant hears why it does not run. Raises EdgeError if none can.
    """
    if names:
        return [bundle.variant(name) for name in names], frozenset()
    variants = list(bundle.variants)
    missing = frozenset(variant.name for variant in variants if variant.runtime not in installed)
    if len(missing) == len(variants):
        runtimes = dict.fromkeys(variant.runtime for variant in variants)
        raise EdgeError(f"none of this bundle's runtimes is installed: {', '.join(runtimes)}")
    return variants, missing


def compare(
    variant: Variant, row: Row, side: int, want: tuple[Landmarks, Maps | Winners], got: tuple[Landmarks, Maps | Winners]
) -> Row:
    """Fills a row from reference and variant, batch axis first. side: the crop's, in pixels. NaN fails."""
    if not np.isfinite(got[0].points).all():
        return replace(row, failure="landmarks are NaN or infinite")
    maps, shares = {}, {}
    for name, (reference, difference) in _differences(want, got).items():
        maps[name] = (float(difference.max()), float(difference.mean()))
        shares[name] = maps[name][0] / float(np.abs(reference).max() or 1)
    worst = max(shares, key=lambda name: np.inf if np.isnan(shares[name]) else shares[name])
    pixels = np.linalg.norm((got[0].points - want[0].points) * side, axis=-1)
    row = replace(
        row,
        maps=maps,
        flips=int((got[0].cell != want[0].cell).sum()),
        px_mean=float(pixels.mean()),
        px_max=float(pixels.max()),
        worst_map=worst,
    )
    return replace(row, failure=_broken_limit(row, PRECISIONS[variant.precision].limit))


Compared = tuple[NDArray[np.float64], NDArray[np.float64]]


def _differences(want: tuple[Landmarks, Maps | Winners], got: tuple[Landmarks, Maps | Winners]) -> dict[str, Compared]:
    """Map name -> (wanted values, their absolute differences), over the cells for which both have values."""
    (wanted, first), (found, second) = want, got
    if isinstance(first, Maps) and isinstance(second, Maps):
        pairs = {name: (getattr(first, name), getattr(second, name)) for name in MAP_NAMES}
    else:
        ours = Winners.at(first, found.cell) if isinstance(first, Maps) else first
        theirs = Winners.at(second, wanted.cell) if isinstance(second, Maps) else second
        # Winners only have their own cells. If both are winners, landmarks in different cells cannot be compared.
        there = np.ones_like(found.cell) if ours is not first or theirs is not second else wanted.cell == found.cell
        offsets = np.where(there[..., None, None], ours.offsets, theirs.offsets)
        others = theirs.by_map()
        pairs = {name: (value, others[name]) for name, value in Winners(ours.score, offsets).by_map().items()}
    # float64, because a difference of two maps can be out of float32's range. Without neighbours, two maps are empty.
    return {name: (a.astype(np.float64), np.abs(b.astype(np.float64) - a)) for name, (a, b) in pairs.items() if a.size}


def _broken_limit(row: Row, limit: Limit) -> str | None:
    assert row.maps
    assert row.worst_map
    assert row.px_mean is not None
    assert row.px_max is not None
    assert row.flips is not None
    broken = limit.broken(row.px_mean, row.px_max, row.flips / (row.images * row.landmarks))
    if not broken:
        return None
    return f"{', '.join(broken)}; worst map {row.worst_map}, off by {row.maps[row.worst_map][0]:.3g}"


def verify(bundle: Bundle) -> dict[str, Parity | EdgeError]:
    """Each variant's parity for the manifest of a bundle that is being made, or why it fails (exit code 3)."""
    measured: dict[str, Parity | EdgeError] = {}
    for row in check(bundle, [variant.name for variant in bundle.variants]):
        if row.failure:
            measured[row.variant] = EdgeError(row.failure, CHECK_FAILED)
            continue
        assert row.px_mean is not None
        assert row.px_max is not None
        assert row.flips is not None
        measured[row.variant] = Parity(row.reference, row.images, row.px_mean, row.px_max, row.flips)
    return measured


class Judged(Protocol):
    """What a failure is told of."""

    @property
    def variant(self) -> str: ...

    @property
    def failure(self) -> str | None: ...


def first_failure(rows: Sequence[Judged]) -> EdgeError | None:
    """The error (exit code 3) that names the first variant that failed and why."""
    failed = [row for row in rows if row.failure]
    if not failed:
        return None
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return EdgeError(f"{failed[0].variant}: {failed[0].failure}{more}", CHECK_FAILED)


def images_in(folder: Path) -> list[Path]:
    """The pictures in a folder, by name. Raises EdgeError when there are none."""
    found = pictures_in(folder)
    if not found:
        raise EdgeError(f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return found


def crops_of(images: Sequence[Path], side: int) -> NDArray[np.uint8]:
    """Pictures as (n, side, side, 3) uint8 RGB crops, each resized as a whole."""
    pictures = (read_picture(path) for path in images)
    return np.stack([cut(p, Rect.whole(p), side) for p in pictures])
