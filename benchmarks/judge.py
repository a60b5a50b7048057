"""One variant's drift and time, by which a conversion with a budget of drift decides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy import metrics
from pipnet_edge.benchmarks.speed import bench
from pipnet_edge.benchmarks.speed.result import QUICK
from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import Landmarks
from pipnet_edge.worker.call import here, infer
from pipnet_edge.worker.protocol import Event, Progress


def judge(
    bundle: Bundle,
    variant: str,
    crops: NDArray[np.uint8],
    reference: Landmarks,
    truth: NDArray[np.float64] | None = None,
    count: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """One variant's drift over crops (n, S, S, 3) uint8 RGB against the float network's landmarks.

    px: mean over landmarks, pixels of the crop. nme: |change of the NME|, in % points, if truth (n, L, 2), normalised
    to the crop, is given. ms: the median time from a crop to landmarks with one thread. `count` gets how many faces
    are done, and of how many.
    """

    def listen(event: Event) -> None:
        if isinstance(event, Progress):
            count(event.done, event.of)

    found = infer(here, bundle.folder, variant, 1, crops, listen=listen).landmarks
    sample = metrics.measure(found, reference, bundle.spec, truth)
    drift = {"px": float(sample.px.mean())}
    if sample.nme is not None and sample.reference_nme is not None:
        drift["nme"] = 100 * abs(float(sample.nme.mean() - sample.reference_nme.mean()))
    return drift | {"ms": bench.measure(bundle, variant, 1, crops, QUICK).frame(0.5)}
