"""How far each stored tensor of a network reaches over a set of faces, and where it is best clipped.

Faces are streamed through the float network, once for the extremes and once for histograms between them, so that memory
does not grow with their number. Extremes are of all values, histograms of values drawn at random.

The methods differ in what they clip:
minmax: nothing.
percentile: the largest 0.01 % of the values and the smallest 0.01 % (the 99.99th percentile, on both sides).
kl: both ends by one factor, so that the distribution of what is stored diverges least (Kullback-Leibler) from the true
    one.
mse: each end by a factor of its own, so that rounding and clipping together make the least squared error.

Zero is always stored exactly and is frequent after a ReLU: it does not count. A tensor that only hard swishes read is
stored from where they begin, with every method: they make 0 of all smaller values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pipnet_edge.converters.checkpoint.network import Pictures, batches, normalise
from pipnet_edge.converters.graph import Run, is_before_swish, joined, maps, points, summed_before_relu
from pipnet_edge.converters.quantize.scheme import Range
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import Input

Progress = Callable[[int, int], None]
Look = Callable[[str, Tensor], None]

METHODS = ("minmax", "percentile", "kl", "mse")
BEST = "mse"
# Larger batches leave the processor's cache and take longer for each image.
BATCH = 4
BINS = 2048
# How many values of a node enter its histogram, per batch.
DRAWN = 1 << 15
CLIPPED = 1e-4
# A hard swish makes 0 of all smaller values.
SWISH_STARTS = -3.0
# The shares of the extremes that kl and mse try.
FACTORS = np.geomspace(1, 0.1, 50)


@dataclass(frozen=True, eq=False)
class Histogram:
    """counts: (BINS,) float64 of values other than 0, in equal bins from low (at most 0) to high (at least 0)."""

    counts: NDArray[np.float64]
    low: float
    high: float

    @property
    def centres(self) -> NDArray[np.float64]:
        """(BINS,) the middle of each bin."""
        return self.low + np.arange(0.5, len(self.counts), dtype=np.float64) * self.width

    @property
    def width(self) -> float:
        return (self.high - self.low) / len(self.counts)


def observe(
    graph: fx.GraphModule,
    spec: Input,
    pictures: Pictures,
    method: str = BEST,
    progress: Progress = lambda done, total: None,
    bits: int = 8,
) -> dict[str, Range]:
    """Node name -> range to store it in, of graph.points and graph.maps, from pictures of any sizes.

    Ranges contain 0. An image of whole numbers has the range of `image_range`. A concatenation and its branches have
    one range. `progress` gets how many images are done and how many there are, over both passes. Raises EdgeError for
    an unknown method and for a node with values that are not finite.
    """
    if method not in METHODS:
        raise EdgeError(f"calibration method {method!r}; allowed: {', '.join(METHODS)}")
    names = [*points(graph), *maps(graph)]
    image = next(node.name for node in graph.graph.nodes if node.op == "placeholder")
    fixed = {image: image_range(spec)} if _is_whole(spec) else {}
    wanted = [name for name in names if name not in fixed]
    passes = 1 if method == "minmax" else 2

    def stream(look: Look, index: int) -> None:
        done, total = index * len(pictures), passes * len(pictures)
        _stream(graph, spec, pictures, wanted, look, lambda n: progress(done + n, total))

    found = _extremes(lambda look: stream(look, 0))
    swished = [name for name in _swished(graph) if found[name][0] == SWISH_STARTS]
    if passes == 2:
        histograms = _histograms(lambda look: stream(look, 1), found)
        found |= {name: clip(histogram, method, bits) for name, histogram in histograms.items()}
    found |= {name: _to_swish(found[name][1], bits) for name in swished}
    for concatenations, branches in joined(graph):
        lows, highs = zip(*(found[name] for name in concatenations), strict=True)
        found |= dict.fromkeys(concatenations | branches - fixed.keys(), (min(lows), max(highs)))
    return {name: (fixed | found)[name] for name in names}


def image_range(spec: Input) -> Range:
    """(low, high) with a step of exactly 1 for an image of whole numbers, pixels minus the mean.

    It is the range of the channel with the middle mean. The other two are clipped by the difference of their means.
    """
    low = -round(255 * sorted(spec.mean)[1])
    return float(low), float(low + 255)


def clip(histogram: Histogram, method: str, bits: int = 8) -> Range:
    """The range that a method finds best for values stored in so many bits; minmax needs no histogram."""
    if method == "percentile":
        return _percentile(histogram)
    return _entropy(histogram, 2**bits) if method == "kl" else _squared_error(histogram, 2**bits)


def _is_whole(spec: Input) -> bool:
    """Whether normalised images are whole numbers, as pixel_lattice makes them."""
    pixels = 255 * np.array(spec.mean)
    return bool(np.allclose(spec.std, 1 / 255, rtol=1e-9) and np.allclose(pixels, pixels.round(), rtol=0, atol=1e-9))


def _stream(
    graph: fx.GraphModule,
    spec: Input,
    pictures: Pictures,
    names: Collection[str],
    look: Look,
    progress: Callable[[int], None],
) -> None:
    """Shows `look` each named node's output, (positions, channels), batch by batch."""

    cuts = {node: cut for name, node in points(graph).items() if (cut := summed_before_relu(graph, node))}
    swished = _swished(graph)
    waiting: dict[fx.Node, Tensor] = {}

    def hook(node: fx.Node, value: Tensor) -> Tensor:
        for summand in [summand for summand in waiting if cuts[summand].sum is node]:
            show(summand.name, _that_matters(waiting.pop(summand), value))
        if node in cuts:
            waiting[node] = value
        else:
            show(node.name, value.clamp_min(SWISH_STARTS) if node.name in swished else value)
        return value

    def show(name: str, value: Tensor) -> None:
        if name in names:
            look(name, value.movedim(1, -1).reshape(-1, value.shape[1]))

    run = Run(graph, hook)
    with torch.inference_mode():
        done = 0
        for batch in batches(pictures, BATCH):
            run.run(normalise(batch, spec))
            done += len(batch)
            progress(done)


def _swished(graph: fx.GraphModule) -> list[str]:
    """The points that only hard swishes read."""
    return [name for name, node in points(graph).items() if is_before_swish(graph, node)]


def _to_swish(high: float, bits: int) -> Range:
    """The range of a tensor that hard swishes read. It begins where they begin, or less than a step below.

    If it began above, all smaller values, often most of them, would be wrong in the same direction.
    """
    top = 2**bits - 1
    step = (high - SWISH_STARTS) / (top - 1)
    low = -math.ceil(-SWISH_STARTS / step) * step
    return low, low + top * step


def _that_matters(summand: Tensor, total: Tensor) -> Tensor:
    """A summand with its negative values raised until the sum reaches 0. The ReLU after the sum hides this change."""
    raised = torch.maximum(summand, summand - total).clamp_max(0)
    return torch.where(summand < 0, raised, summand)


def _extremes(stream: Callable[[Look], None]) -> dict[str, Range]:
    found: dict[str, Range] = {}

    def look(name: str, values: Tensor) -> None:
        low, high = (end.item() for end in values.flatten().aminmax())
        if not np.isfinite([low, high]).all():
            raise EdgeError(f"the network gives values that are not finite at {name} on the calibration images")
        before = found.get(name, (0.0, 0.0))
        found[name] = min(before[0], low), max(before[1], high)

    stream(look)
    return found


def _histograms(stream: Callable[[Look], None], extremes: dict[str, Range]) -> dict[str, Histogram]:
    """Histograms of the nodes that are not all zero. Every run draws the same positions, with all their channels."""
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name, (low, high) in extremes.items() if low < high}
    generator = torch.Generator().manual_seed(0)

    def look(name: str, values: Tensor) -> None:
        if name not in counts:
            return
        drawn = values
        if values.numel() > DRAWN:
            drawn = values[torch.randint(len(values), (-(-DRAWN // values.shape[1]),), generator=generator)]
        counts[name] += torch.histc(drawn[drawn != 0], BINS, *extremes[name]).double() * (len(values) / len(drawn))

    stream(look)
    for count in counts.values():
        # Each extreme was there at least once. If it was not drawn, clipping it must not look free.
        count[[0, -1]] += 1
    return {name: Histogram(count.numpy(), *extremes[name]) for name, count in counts.items()}


def _percentile(histogram: Histogram) -> Range:
    share = histogram.counts.cumsum() / histogram.counts.sum()
    low = histogram.low + int(np.searchsorted(share, CLIPPED, side="right")) * histogram.width
    high = histogram.low + (int(np.searchsorted(share, 1 - CLIPPED)) + 1) * histogram.width
    return min(low, 0.0), max(high, 0.0)


def _entropy(histogram: Histogram, levels: int) -> Range:
    divergences = []
    for factor in FACTORS:
        first, last = (
            round((factor * end - histogram.low) / histogram.width) for end in (histogram.low, histogram.high)
        )
        divergences.append(_divergence(histogram.counts, first, last, levels))
    factor = float(FACTORS[int(np.argmin(divergences))])
    return factor * histogram.low, factor * histogram.high


def _divergence(counts: NDArray[np.float64], first: int, last: int, levels: int) -> float:
    """Kullback-Leibler divergence of the bins first to last - 1, in so many levels, from all bins clipped there."""
    kept = counts[first:last]
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    level = np.arange(len(kept)) * levels // len(kept)
    occupied = kept > 0
    each = np.bincount(level, kept) / np.maximum(np.bincount(level, occupied), 1)
    flattened = np.where(occupied, each[level], 0)
    p, q = clipped / clipped.sum(), flattened / max(flattened.sum(), 1e-9)
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-9))).sum())


def _squared_error(histogram: Histogram, levels: int) -> Range:
    counts, centres = histogram.counts, histogram.centres
    lows, highs = histogram.low * FACTORS, histogram.high * FACTORS
    below = np.maximum(lows[:, None] - centres, 0) ** 2 @ counts
    above = np.maximum(centres - highs[:, None], 0) ** 2 @ counts
    # Values are spread evenly over a step, so the squared error of rounding is step^2 / 12 on average.
    rounding = ((highs - lows[:, None]) / (levels - 1)) ** 2 / 12 * counts.sum()
    low, high = np.unravel_index(np.argmin(below[:, None] + above + rounding), rounding.shape)
    return float(lows[low]), float(highs[high])
