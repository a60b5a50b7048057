"""When two float networks agree: by their landmarks. Where two cells all but tie, either of them is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.decode import Decoder, Landmarks, Maps

# Cells tie if their scores differ by less than this share of the map's largest magnitude. Networks that amplify
# rounding give scores in float32 that are off by as much.
TIE = 1e-3


def ties(score: NDArray[np.float32], cell: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether these cells ([B,] L) score as much as the best of their maps ([B,] L, H, W), or all but that."""
    flat = score.reshape(*cell.shape, -1)
    found = np.take_along_axis(flat, cell[..., None], -1)[..., 0]
    tied: NDArray[np.bool_] = flat.max(-1) - found <= TIE * np.abs(flat).max(-1)
    return tied


def settled(decoder: Decoder, maps: Maps, landmarks: Landmarks, cell: NDArray[np.intp]) -> Landmarks:
    """The landmarks of these maps, with another's winning cells ([B,] L) wherever they tie with the best in `maps`."""
    tied = (cell != landmarks.cell) & ties(maps.score, cell)
    if not tied.any():
        return landmarks
    score = maps.score.copy()
    best = np.nextafter(landmarks.score, np.float32(np.inf))
    flat = score.reshape(*cell.shape, -1)
    np.put_along_axis(flat, np.where(tied, cell, landmarks.cell)[..., None], best[..., None], -1)
    return replace(decoder(replace(maps, score=score)), score=landmarks.score)
