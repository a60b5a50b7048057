"""How well a tracker followed the one face of a clip, whose landmarks in each frame are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.video.level import Eyes
from pipnet_edge.video.track import NOBODY, SAME

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Where the face is. points: (frames, L, 2) in pixels, also of what lies outside of the picture.

    inside: (frames, L), which of them the picture has. face: (frames,), whose they are. rests: (frames,), whether it
    does not move.
    """

    points: Array
    inside: NDArray[np.bool_]
    face: NDArray[np.int_]
    rests: NDArray[np.bool_]

    def appearances(self) -> NDArray[np.int_]:
        """(frames,): 1 for all frames of the first stretch in which a face is whole in the picture, 2 …; 0 between."""
        whole = self.inside.all(axis=1)
        before = np.concatenate([[-1], np.where(whole, self.face, -1)[:-1]])
        return np.where(whole, np.cumsum(whole & (before != self.face)), 0)


@dataclass(frozen=True)
class Quality:
    """How well a tracker did.

    frames: those in which the face is whole in the picture. lost: of these, those in which it was not found; but it has
    NOBODY frames to be found when it appears. extra: faces where there is none. ids: that the face got; appearances:
    how many it should have got. nme: mean distance to the truth; jitter: mean second difference of that distance while
    the face rests; both in % of the inter-ocular distance (of the face's size, if its eyes are not known), None where
    it was not found.
    """

    frames: int
    lost: int
    extra: int
    ids: int
    appearances: int
    nme: float | None
    jitter: float | None

    @property
    def failure(self) -> str | None:
        """Why such a tracker is of no use, however fast it is."""
        if self.lost:
            return f"loses the face in {self.lost} of {self.frames} frames"
        return f"gives {self.ids} ids to {self.appearances} appearances" if self.ids != self.appearances else None


def judge(ids: NDArray[np.integer], points: NDArray[np.floating], truth: Truth, eyes: Eyes | None) -> Quality:
    """ids: (frames, K), 0 where there is no face. points: (frames, K, L, 2), in pixels. eyes: the outer corners."""
    appearances = truth.appearances()
    on_it = np.where(ids > 0, _overlaps(points.astype(np.float64), truth.points[:, None]), 0.0)
    found = on_it.max(axis=1) >= SAME
    which = on_it.argmax(axis=1)
    every = np.arange(len(ids))
    whose, errors = ids[every, which], points[every, which] - truth.points
    size = _sizes(truth.points, eyes)
    lost = 0
    for appearance in range(1, appearances.max(initial=0) + 1):
        seen = found[appearances == appearance]
        first = min(int(seen.argmax()) if seen.any() else NOBODY, NOBODY)
        lost += int((~seen[first:]).sum())
    # Where it is cut by the picture's border, nobody can say.
    sure = (appearances > 0) | ~truth.inside.any(axis=1)
    good = found & (appearances > 0)
    nme = 100 * np.linalg.norm(errors, axis=2).mean(axis=1) / size
    resting = good & truth.rests
    steady = resting[:-2] & resting[1:-1] & resting[2:] & (whose[:-2] == whose[1:-1]) & (whose[1:-1] == whose[2:])
    second = 100 * np.linalg.norm(np.diff(errors, 2, axis=0), axis=2).mean(axis=1) / size[1:-1]
    return Quality(
        frames=int((appearances > 0).sum()),
        lost=lost,
        extra=int(((ids > 0) & (on_it < SAME))[sure].sum()),
        ids=len(set(whose[good].tolist())),
        appearances=int(appearances.max(initial=0)),
        nme=float(nme[good].mean()) if good.any() else None,
        jitter=float(second[steady].mean()) if steady.any() else None,
    )


def _overlaps(points: Array, others: Array) -> Array:
    """Intersection over union of the boxes of landmarks (…, L, 2)."""
    low, high = points.min(axis=-2), points.max(axis=-2)
    other_low, other_high = others.min(axis=-2), others.max(axis=-2)
    both = np.prod(np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None), axis=-1)
    one, other = np.prod(high - low, axis=-1), np.prod(other_high - other_low, axis=-1)
    return np.asarray(both / (one + other - both))


def _sizes(points: Array, eyes: Eyes | None) -> Array:
    """What errors are divided by: (frames,) pixels."""
    if eyes:
        return np.asarray(np.linalg.norm(points[:, eyes[0]] - points[:, eyes[1]], axis=1))
    return np.asarray(np.ptp(points, axis=1).mean(axis=1))
