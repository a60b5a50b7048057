"""Maps to landmarks: cell selection and neighbour fusion, shared by every runtime.

Pure numpy and equal to forward_pip and the fusion in lib/demo.py of jhb86253817/PIPNet (paper section 3.2 and 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec, neighbour_table

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Maps:
    """A network's dense output, float32, raw scores and offsets in grid units; a leading batch axis B is optional.

    score, offset_x, offset_y: ([B,] L, H, W). neighbor_x, neighbor_y: ([B,] L, N, H, W), the offset from the winning
    cell of landmark l to its k-th neighbour at [l, k]. A network of three maps has no neighbours: there N is 0.
    """

    score: Array
    offset_x: Array
    offset_y: Array
    neighbor_x: Array
    neighbor_y: Array

    @staticmethod
    def from_outputs(outputs: Mapping[str, NDArray[np.generic]], spec: ModelSpec) -> Maps:
        """Maps from a runtime's named outputs, in any shape that holds exactly the elements needed.

        Raises EdgeError naming the output when one is missing or has another number of elements.
        """
        return Maps(**_arrays(outputs, map_shapes(spec)))


MAP_NAMES = tuple(field.name for field in fields(Maps))


def map_names(num_nb: int) -> tuple[str, ...]:
    """The maps that a network of so many neighbours returns, in order: all five, or three if it has none."""
    return MAP_NAMES if num_nb else MAP_NAMES[:3]


@dataclass(frozen=True)
class Features:
    """The output of a network without its offset heads, float32; a leading batch axis B is optional.

    score: ([B,] L, H, W). features: ([B,] C, H, W), what the heads read, in any memory layout.
    """

    score: Array
    features: Array

    @staticmethod
    def from_outputs(outputs: Mapping[str, NDArray[np.generic]], spec: ModelSpec) -> Features:
        """Features from a runtime's named outputs for one crop; features may be (1, C, H, W) or (C, H, W).

        Raises EdgeError naming the output when one is missing or has another number of elements.
        """
        missing = [name for name in FEATURE_NAMES if name not in outputs]
        if missing:
            raise EdgeError(f"the model has no output {missing[0]!r}, only {', '.join(sorted(outputs))}")
        score, features = outputs["score"], outputs["features"]
        shape = (spec.num_lms, spec.grid, spec.grid)
        one = features.ndim >= 3 and math.prod(features.shape[:-3]) == 1
        if score.size != math.prod(shape) or not one or features.shape[-2:] != shape[1:]:
            given = f"{score.shape} and {features.shape}"
            raise EdgeError(f"outputs 'score' and 'features' have shapes {given}; {shape} and (C, *cells) are needed")
        return Features(
            np.ascontiguousarray(score, dtype=np.float32).reshape(shape),
            features.astype(np.float32, copy=False).reshape(features.shape[-3:]),
        )


FEATURE_NAMES = tuple(field.name for field in fields(Features))


@dataclass(frozen=True)
class Winners:
    """The output of a network that computes offsets only at winning cells, float32; a leading batch axis B is optional.

    score: ([B,] L, H, W). offsets: ([B,] L, 2, 1 + N), x and y in grid units at the cell with the landmark's highest
    score (the lowest index on ties): first its own offset, then its neighbours'.
    """

    score: Array
    offsets: Array

    @staticmethod
    def from_outputs(outputs: Mapping[str, NDArray[np.generic]], spec: ModelSpec) -> Winners:
        """Winners from a runtime's named outputs for one crop, in any shape that holds exactly the elements needed.

        Raises EdgeError naming the output when one is missing or has another number of elements.
        """
        return Winners(**_arrays(outputs, winner_shapes(spec)))

    @staticmethod
    def at(maps: Maps, cell: NDArray[np.intp]) -> Winners:
        """The values of maps ([B,] L, ...) at these cells ([B,] L)."""
        cells = math.prod(maps.score.shape[-2:])
        picked = [
            np.take_along_axis(
                part.reshape(*cell.shape, math.prod(part.shape[cell.ndim : -2]), cells), cell[..., None, None], -1
            )
            for part in (maps.offset_x, maps.neighbor_x, maps.offset_y, maps.neighbor_y)
        ]
        return Winners(maps.score, np.concatenate(picked, axis=-2).reshape(*cell.shape, 2, -1))

    def by_map(self) -> dict[str, Array]:
        """Map name -> its values at the winning cells: ([B,] L), or ([B,] L, N) of neighbours. Scores: all cells."""
        x, y = self.offsets[..., 0, :], self.offsets[..., 1, :]
        return dict(zip(MAP_NAMES, (self.score, x[..., 0], y[..., 0], x[..., 1:], y[..., 1:]), strict=True))


WINNER_NAMES = tuple(field.name for field in fields(Winners))
Output = Maps | Features | Winners


def outputs(names: Collection[str], spec: ModelSpec) -> type[Maps] | type[Features] | type[Winners]:
    """The kind of output that a model with these output names gives. Raises EdgeError when it is none of the three."""
    kinds = {Maps: map_names(spec.num_nb), Features: FEATURE_NAMES, Winners: WINNER_NAMES}
    for kind, needed in kinds.items():
        if set(names) >= set(needed):
            return kind
    allowed = " or ".join(map(", ".join, kinds.values()))
    raise EdgeError(f"outputs {', '.join(sorted(names))}; {allowed} are needed")


def _arrays(outputs: Mapping[str, NDArray[np.generic]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Outputs by name, contiguous, float32 and in these shapes. Raises EdgeError naming one that does not fit."""
    found = {}
    for name, shape in shapes.items():
        if name not in outputs and 0 not in shape:
            raise EdgeError(f"the model has no output {name!r}, only {', '.join(sorted(outputs))}")
        try:
            # A network of three maps has no output for the two empty ones.
            found[name] = np.ascontiguousarray(outputs.get(name, np.zeros(shape)), np.float32).reshape(shape)
        except ValueError:
            raise EdgeError(f"output {name!r} has shape {outputs[name].shape}, {shape} is needed") from None
    return found


@dataclass(frozen=True)
class Heads:
    """The offset heads: 1x1 convolutions, as a matrix for every landmark. Offsets are x, then y.

    weight: (L, 2, 1 + N, C) float32, for the landmark's own offset and then its N neighbours'; bias: (L, 2, 1 + N).
    """

    weight: Array
    bias: Array

    def maps(self, found: Features) -> Maps:
        """All maps, with the offsets of every cell, as the network would give them if it had its heads."""
        lead, (num_lms, _, count, channels) = found.score.shape[:-3], self.weight.shape
        cells = found.score.shape[-2:]
        flat = found.features.reshape(*lead, channels, -1)
        dense = self.weight.reshape(-1, channels) @ flat + self.bias.reshape(-1, 1)
        dense = dense.reshape(*lead, num_lms, 2, count, *cells)
        x, y = np.moveaxis(dense, -4, 0)
        first = (..., 0, slice(None), slice(None))
        rest = (..., slice(1, None), slice(None), slice(None))
        return Maps(found.score, *(np.ascontiguousarray(part) for part in (x[first], y[first], x[rest], y[rest])))


def map_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of each map of one crop."""
    cells = (spec.grid, spec.grid)
    per_landmark = {"neighbor_x": (spec.num_lms, spec.num_nb), "neighbor_y": (spec.num_lms, spec.num_nb)}
    return {name: (*per_landmark.get(name, (spec.num_lms,)), *cells) for name in MAP_NAMES}


def winner_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of each output of Winners of one crop."""
    return {"score": (spec.num_lms, spec.grid, spec.grid), "offsets": (spec.num_lms, 2, 1 + spec.num_nb)}


@dataclass(frozen=True)
class Landmarks:
    """Decoded landmarks; a leading batch axis B is there when the maps had one.

    points: ([B,] L, 2) float32, x then y, normalised to the crop (values outside [0, 1] are normal).
    score: ([B,] L) float32, the winning cell's raw score. cell: ([B,] L) int, its index row * W + col.
    """

    points: Array
    score: Array
    cell: NDArray[np.intp]

    @classmethod
    def joined(cls, parts: Sequence[Landmarks]) -> Landmarks:
        """Those of several batches as those of one."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


class Decoder:
    """Decodes maps or winners of one ModelSpec, or features if heads are given.

    Index tables are built once; calls share no state, so threads may share it.
    """

    def __init__(self, spec: ModelSpec, heads: Heads | None = None) -> None:
        self.spec = spec
        self._shapes, self._winner_shapes = map_shapes(spec), winner_shapes(spec)
        cells = np.arange(spec.grid**2)
        count = 1 + spec.num_nb
        # Each cell's corner, repeated for every prediction: (cells, 2, 1 + N), the layout of offsets.
        corner = np.stack([cells % spec.grid, cells // spec.grid], axis=1).astype(np.float32)
        self._corner = corner[:, :, None].repeat(count, axis=2)
        own = 2 * count * np.arange(spec.num_lms, dtype=np.intp)
        table = neighbour_table(spec.mean_face, spec.num_nb).T
        about = 2 * count * (table // spec.num_nb) + table % spec.num_nb + 1
        # A landmark that is nobody's neighbour has only its own prediction.
        x = np.concatenate([own[None], np.where(table < 0, own, about)])
        # (predictions about a landmark, 2 L): x and y of each landmark, so that a mean is a sum of whole rows.
        self._fused_from = np.ascontiguousarray(np.stack([x, x + count], axis=2).reshape(len(x), -1))
        self._scale = np.float32(1.0 / (spec.grid * len(x)))
        self._first = np.arange(0, spec.num_lms * len(cells), len(cells))
        self._heads = _blocks(heads, spec) if heads else None

    def __call__(self, maps: Output) -> Landmarks:
        """Landmarks of one crop or of a batch. Raises EdgeError for wrong shapes and for NaN or infinity in any map."""
        # After a run of the network, little of this is left in the processor's cache, so fewer calls are faster.
        spec, shape = self.spec, maps.score.shape[:-2]
        self._check(maps)

        # Select: the winning cell (lowest index on ties), and all that each landmark predicts from its winning cell.
        score = maps.score.reshape(-1, spec.grid**2)
        cell = score.argmax(axis=1)
        winner = cell + (np.arange(0, score.size, score.shape[1]) if len(shape) > 1 else self._first)
        if isinstance(maps, Winners):
            offsets = maps.offsets.reshape(-1, 2, 1 + spec.num_nb)
        else:
            offsets = self._offsets(maps, cell) if isinstance(maps, Features) else self._select(maps, winner, cell)
        predicted = offsets + self._corner.take(cell, axis=0)

        # Fuse: the mean of the own prediction and of the neighbours' predictions about this landmark.
        about = predicted.reshape(*shape[:-1], -1).take(self._fused_from, axis=-1)
        # No matrix product, because each BLAS rounds it in its own way: every machine must give the same landmarks.
        points = (np.add.reduce(about, axis=-2) * self._scale).reshape(*shape, 2)
        if spec.clamp:
            points = points.clip(0.0, 1.0)
        return Landmarks(points, score.take(winner).reshape(shape), cell.reshape(shape))

    def _select(self, maps: Maps, winner: NDArray[np.intp], cell: NDArray[np.intp]) -> Array:
        """Offsets (rows, 2, 1 + N) at the winning cells: the landmark's own, then its neighbours'."""
        spec, cells, rows = self.spec, self.spec.grid**2, len(cell)
        neighbour = np.arange(0, rows * spec.num_nb * cells, cells).reshape(rows, spec.num_nb) + cell[:, None]
        offsets = np.empty((rows, 2, 1 + spec.num_nb), dtype=np.float32)
        offsets[:, 0, 0] = maps.offset_x.take(winner)
        offsets[:, 1, 0] = maps.offset_y.take(winner)
        offsets[:, 0, 1:] = maps.neighbor_x.take(neighbour)
        offsets[:, 1, 1:] = maps.neighbor_y.take(neighbour)
        return offsets

    def _offsets(self, found: Features, cell: NDArray[np.intp]) -> Array:
        """The same, computed by the heads only at the winning cells."""
        assert self._heads is not None
        spec, (weight, bias) = self.spec, self._heads
        row, column = np.divmod(cell.reshape(-1, spec.num_lms), spec.grid)
        at = np.moveaxis(found.features.reshape(-1, *found.features.shape[-3:]), 1, 3)
        seen = at[np.arange(len(row))[:, None], row, column]
        offsets = np.matmul(weight, seen[:, :, None, :, None]).reshape(*row.shape, -1)[..., : bias.shape[-1]]
        return np.asarray(offsets + bias).reshape(cell.size, 2, 1 + spec.num_nb)

    def _check(self, maps: Output) -> None:
        lead = maps.score.shape[:-3]
        shapes = self._shapes
        if isinstance(maps, Winners):
            shapes = self._winner_shapes
        elif isinstance(maps, Features):
            if self._heads is None:
                raise EdgeError("these are features, which only a decoder with heads can decode")
            shapes = {"score": shapes["score"], "features": (self._heads[0].shape[-1], *shapes["score"][1:])}
        for name, shape in shapes.items():
            values: Array = getattr(maps, name)
            if values.shape != lead + shape or len(lead) > 1 or not maps.score.size:
                raise EdgeError(
                    f"map {name!r} has shape {values.shape}, needed is {shape}, or with one batch axis before it"
                )
            if not _is_finite(values):
                raise EdgeError(f"map {name!r} holds NaN or infinity")


@np.errstate(over="ignore", invalid="ignore")
def _sum(values: Array) -> float:
    return float(np.add.reduce(values, axis=None))


def _is_finite(values: Array) -> bool:
    """Whether all values are finite, in vectorised passes without a temporary array."""
    # A finite sum has finite terms. Another sum may have overflowed: then max and min are finite. Both pass on NaN.
    total = float(np.vdot(values, values)) if values.size <= ONE_THREAD_DOT else _sum(values)
    return math.isfinite(total) or math.isfinite(float(values.max()) - float(values.min()))


# Every OpenBLAS multiplies a matrix of fewer values, or a vector of no more than these, on the calling thread. Larger
# ones wake all cores.
ONE_THREAD, ONE_THREAD_DOT = 2304 * 4, 10_000


def _blocks(heads: Heads, spec: ModelSpec) -> tuple[Array, Array]:
    """Weights (L, blocks, rows, C), with zeros at the end, and biases (L, 2 * (1 + N)). Each block is one product.

    Raises EdgeError for heads of another network, and for NaN and infinity in them.
    """
    count, channels = 2 * (1 + spec.num_nb), heads.weight.shape[-1]
    if heads.weight.shape[:3] != (spec.num_lms, 2, 1 + spec.num_nb) or heads.bias.shape != heads.weight.shape[:3]:
        raise EdgeError(
            f"heads have shapes {heads.weight.shape} and {heads.bias.shape}; "
            f"{(spec.num_lms, 2, 1 + spec.num_nb)} is needed, the weights with channels"
        )
    if not (np.isfinite(heads.weight).all() and np.isfinite(heads.bias).all()):
        raise EdgeError("the heads hold NaN or infinity")
    most = max(1, (ONE_THREAD - 1) // channels)
    blocks = -(-count // most)
    rows = -(-count // blocks)
    weight = np.zeros((spec.num_lms, blocks * rows, channels), np.float32)
    weight[:, :count] = heads.weight.reshape(spec.num_lms, count, channels)
    return weight.reshape(spec.num_lms, blocks, rows, channels), heads.bias.reshape(spec.num_lms, count)
