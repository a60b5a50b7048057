"""What a network's own scores and landmarks say: from which score on there is a face, and how wide to cut it.

Both are found on a few faces, cut as the network takes them: those of calibration, else the embedded ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.converters import golden
from pipnet_edge.converters.checkpoint.network import Network, maps_of
from pipnet_edge.decode import Decoder, Maps
from pipnet_edge.preprocess import resized
from pipnet_edge.spec import MARGIN, ModelSpec
from pipnet_edge.video.level import UNITS, LevelCrop, cut_level

Crops = NDArray[np.uint8]
Floats = NDArray[np.floating]

# Faces and backgrounds that are looked at.
FACES = NOISES = 16

# A square seen from a face's crop: x and y of its middle and its side, as shares of the crop's side; degrees.
Square = tuple[float, float, float, float]
# Squares with no whole face, every second of them for a face: half of it beyond the edge, upside down, a part of it or
# of what is around it. Landmarks read in them are wrong by a third of the face and more.
AWAY: tuple[Square, ...] = (
    *((1.1, 0.5, 1, 0), (-0.1, 0.5, 1, 0), (0.5, 1.1, 1, 0), (0.5, -0.1, 1, 0), (0.5, 0.5, 1, 180)),
    *((x, y, side, 0) for side in (0.3, 0.5) for x in (0.2, 0.8) for y in (0.2, 0.8)),
)
# Presence lies so far up from the score that hardly any crop without a face reaches to that of the median face. It is
# near the lower end, because scores of hard faces are far apart and those of other things are not.
FEW, SHARE = 0.05, 0.25
# If more of the faces are below it, scores do not tell faces from other things.
MOST_LOST = 0.25

# Margins that are tried; and how the square is moved in each of them, as faces move from frame to frame: shares of the
# landmarks' box, times its side, degrees. The third is opposite to the first, the fourth to the second. Given are crops
# of 1.2: of one of 1.5, more than a third would be made up.
TRIED = (1.1, 1.2, 1.3)
MOVES: tuple[Square, ...] = (
    *((0.06, 0.06, 0.94, 8), (-0.06, 0.06, 1.06, -8)),
    *((-0.06, -0.06, 1.06, -8), (0.06, -0.06, 0.94, 8)),
)
# Landmarks that change by so much more than with the best margin are as good.
AS_GOOD = 1.05


def measured(network: Network, crops: Crops | None = None) -> ModelSpec:
    """The network's spec with the presence threshold and the margin that are found on faces.

    crops: (n, S, S, 3) uint8 RGB, a face in each, of which the first FACES are looked at; None: the embedded faces.
    If the scores do not tell faces from other things, presence is None and the margin the usual one.
    """
    faces = (golden.faces(network.spec.input_size, FACES) if crops is None else crops)[:FACES]
    read = maps_of(network, faces)
    found = _presence(network, faces, _scores(read))
    return replace(network.spec, presence=found, margin=MARGIN if found is None else _margin(network, faces, read))


def _presence(network: Network, faces: Crops, with_face: Floats) -> float | None:
    """The mean winning score from which there is a face; with_face: those of the faces."""
    away = [_cut(face, square) for index, face in enumerate(faces) for square in AWAY[index % 2 :: 2]]
    without = _scores(maps_of(network, np.stack([*away, *_noise(network.spec.input_size)])))
    if not np.isfinite([with_face.sum(), without.sum()]).all():
        return None
    low = float(np.quantile(without, 1 - FEW))
    found = round(low + SHARE * (float(np.median(with_face)) - low), 3)
    return found if found > max(low, 0) and (with_face < found).mean() <= MOST_LOST else None


def _margin(network: Network, faces: Crops, read: Maps) -> float:
    """The widest margin that is as good as the best: wide crops forgive a wrong square, narrow ones run away.

    The best is the one with which landmarks change least when the square moves. read: the faces' maps.
    """
    points = Decoder(network.spec)(read).points
    first, last = points.min(axis=1), points.max(axis=1)
    # Where a network is no good, landmarks may lie anywhere.
    middles, boxes = ((first + last) / 2).clip(0, 1), (last - first).max(axis=1).clip(0.1, 2)
    changes = {margin: _change(network, faces, middles, boxes, margin) for margin in TRIED}
    return max(margin for margin in TRIED if changes[margin] <= AS_GOOD * min(changes.values()))


def _change(network: Network, faces: Crops, middles: Floats, boxes: Floats, margin: float) -> float:
    """How far landmarks are from where they are after the opposite move, as a share of the box: the median face's.

    Squares are cut with this margin around middles (n, 2); boxes (n,) is the longer side of the landmarks' box.
    """
    changes = []
    for index, (face, (x, y), box) in enumerate(zip(faces, middles.tolist(), boxes.tolist(), strict=True)):
        moves = MOVES[index % 2 :: 2]
        squares = [(x + box * right, y + box * below, box * margin * side, turn) for right, below, side, turn in moves]
        found = Decoder(network.spec)(maps_of(network, np.stack([_cut(face, square) for square in squares]))).points
        one, other = (_seen_from_crop(*pair) for pair in zip(found, squares, strict=True))
        changes.append(np.linalg.norm(one - other, axis=1).mean() / box)
    return float(np.median(changes))


def _scores(maps: Maps) -> Floats:
    """The mean winning score of each crop (n,)."""
    return np.asarray(maps.score.max(axis=(2, 3)).mean(axis=1, dtype=np.float64))


def _cut(face: Crops, square: Square) -> Crops:
    """The pixels (S, S, 3) of a square; outside of the face's crop, its border is repeated."""
    x, y, size, degrees = square
    side, half, turn = len(face), size * UNITS / 2, math.radians(degrees)
    # A square's middle has to lie in the picture.
    room = side // 4
    around = np.pad(face, ((room, room), (room, room), (0, 0)), "edge")
    x, y = ((room + at * side) * UNITS for at in (x, y))
    return cut_level(
        around, LevelCrop(round(x), round(y), round(half * math.cos(turn)), round(half * math.sin(turn)), side)
    )


def _seen_from_crop(points: Floats, square: Square) -> Floats:
    """Landmarks (L, 2) that are normalised to a square, normalised to the face's crop."""
    x, y, size, degrees = square
    cos, sin = size * math.cos(math.radians(degrees)), size * math.sin(math.radians(degrees))
    return np.asarray((points - 0.5) @ np.array([[cos, sin], [-sin, cos]]) + (x, y))


def _noise(side: int) -> Crops:
    """Backgrounds (NOISES, side, side, 3) of smooth noise, coarse and fine, always the same ones."""
    random = np.random.default_rng(0)

    def drawn(cells: int) -> Crops:
        return resized(random.integers(0, 256, (cells, cells, 3), np.uint8), side, side)

    depths = {3: 0.42, 6: 0.28, 12: 0.19, 24: 0.11}
    pictures = [sum(depth * drawn(cells) for cells, depth in depths.items()) for _ in range(NOISES)]
    return np.stack(pictures).astype(np.uint8)
