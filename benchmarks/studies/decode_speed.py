"""How long decode takes, in microseconds per crop: `python -m pipnet_edge.benchmarks.studies.decode_speed`."""

from __future__ import annotations

import time

import numpy as np

from pipnet_edge.decode import MAP_NAMES, Decoder, Maps, map_shapes
from pipnet_edge.spec import ModelSpec, mean_faces

WARMUP, COUNT = 200, 2000


def measure(spec: ModelSpec) -> tuple[float, float]:
    """(median, 90th percentile) in microseconds of one dense decode, over random maps."""
    rng = np.random.default_rng(0)
    shapes = map_shapes(spec)
    maps = Maps(**{name: rng.standard_normal(shapes[name], np.float32) for name in MAP_NAMES})
    decode = Decoder(spec)
    samples = []
    for _ in range(WARMUP + COUNT):
        start = time.perf_counter()
        decode(maps)
        samples.append((time.perf_counter() - start) * 1e6)
    median, high = np.quantile(samples[WARMUP:], (0.5, 0.9))
    return float(median), float(high)


def main() -> None:
    print(f"{'mean face':16} {'landmarks':>9} {'p50 us':>8} {'p90 us':>8}")
    for name, face in mean_faces().items():
        median, high = measure(ModelSpec("any", len(face.points), 10, 32, 256, face))
        print(f"{name:16} {len(face.points):9} {median:8.1f} {high:8.1f}")


if __name__ == "__main__":
    main()
