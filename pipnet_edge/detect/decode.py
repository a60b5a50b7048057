"""A detector's maps to boxes: priors, scores, decoding. Pure numpy, and the same for every runtime.

Equal to FaceBoxesV2/faceboxes_detector.py of jhb86253817/PIPNet, which rounds its boxes to whole pixels at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.detect.boxes import Faces, Floats, best, without_doubles
from pipnet_edge.detect.spec import Level, Sized, check_threshold
from pipnet_edge.errors import EdgeError

# How many boxes compare with each other, and how many faces a picture may have.
MOST_CANDIDATES, MOST_FACES = 5000, 750
# No box is larger than so many times its prior. Only what is no trained network's says so, and it would overflow.
LARGEST_GROWTH = math.log(1000)


@dataclass(frozen=True, eq=False)
class BoxMaps:
    """A detector's dense output for one picture, float32, for each prior in the order of `priors`.

    boxes: (n, 4) centre x, y and log size, as the network gives them. logits: (n, 2) of background and face.
    """

    boxes: NDArray[np.float32]
    logits: NDArray[np.float32]

    @staticmethod
    def from_outputs(outputs: Mapping[str, NDArray[np.generic]], sized: Sized) -> BoxMaps:
        """From a runtime's named outputs for an input of that size, in any shape of just these elements.

        Raises EdgeError naming the output that is missing, has another number of elements, or holds NaN or infinity.
        """
        found = {name: _array(outputs, name, shape) for name, shape in sized.map_shapes.items()}
        boxes, logits = (
            np.concatenate([_by_prior(found[f"{kind}_{level.stride}"], level) for level in sized.spec.levels])
            for kind in ("box", "score")
        )
        return BoxMaps(boxes, logits)


def _array(outputs: Mapping[str, NDArray[np.generic]], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name not in outputs:
        raise EdgeError(f"the model has no output {name!r}, only {', '.join(sorted(outputs))}")
    values = outputs[name]
    if values.size != math.prod(shape):
        raise EdgeError(f"output {name!r} has shape {values.shape}, needed is {shape}")
    array = np.ascontiguousarray(values, np.float32).reshape(shape)
    if not np.isfinite(array).all():
        raise EdgeError(f"map {name!r} holds NaN or infinity")
    return array


def _by_prior(values: NDArray[np.float32], level: Level) -> NDArray[np.float32]:
    """A map (priors * k, rows, columns) as (rows * columns * priors, k), cell by cell."""
    count, (rows, columns) = level.in_cell, values.shape[1:]
    k = len(values) // count
    return values.reshape(count, k, rows, columns).transpose(2, 3, 0, 1).reshape(-1, k)


@lru_cache(maxsize=4)
def priors(levels: tuple[Level, ...], width: int, height: int) -> Floats:
    """(n, 3) centre x, y and side in pixels of every prior in a picture of this size. Nobody may write into it.

    Level by level, in it cell by cell (row, column), in a cell kind by kind, and those of a kind row by row.
    """
    found = np.concatenate([_of_level(level, *level.cells(width, height)) for level in levels])
    found.setflags(write=False)
    return found


def _of_level(level: Level, rows: int, columns: int) -> Floats:
    in_cell = np.array([(x, y, prior.size) for prior in level.priors for y in prior.offsets for x in prior.offsets])
    found = np.empty((rows, columns, len(in_cell), 3))
    found[..., 0] = (np.arange(columns)[:, None] + in_cell[:, 0]) * level.stride
    found[..., 1] = (np.arange(rows)[:, None, None] + in_cell[:, 1]) * level.stride
    found[..., 2] = in_cell[:, 2]
    return found.reshape(-1, 3)


def decode(maps: BoxMaps, sized: Sized, threshold: float | None = None) -> Faces:
    """The faces in an input of that size, at most MOST_FACES. threshold: another than the spec's.

    Raises EdgeError for a threshold that is none.
    """
    spec = sized.spec
    threshold = spec.threshold if threshold is None else threshold
    check_threshold(threshold)
    background, face = maps.logits.astype(np.float64).T
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(background - face))
    chosen = np.flatnonzero(scores > threshold)
    start, found = priors(spec.levels, *sized.size)[chosen], maps.boxes[chosen].astype(np.float64)
    centre = start[:, :2] + found[:, :2] * spec.variances[0] * start[:, 2:]
    sides = start[:, 2:] * np.exp(np.minimum(found[:, 2:] * spec.variances[1], LARGEST_GROWTH))
    faces = Faces(np.concatenate([centre - sides / 2, sides], axis=1), scores[chosen])
    return without_doubles(best(faces, MOST_CANDIDATES), spec.overlap, MOST_FACES)
