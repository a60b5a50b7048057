"""The level crop, written from docs/video.md alone: tests/device/video/test_level.py runs it on every vector.

Each function raises ValueError for what has to be refused. `python tests/golden/video/reader.py` writes level.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = tuple[int, int, int, int]
LONGEST = 16384


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """(height, width, 3): byte n is (n * 2654435761 mod 2^32) >> 24."""
    n = np.arange(width * height * 3, dtype=np.uint64)
    return (
        ((n * np.uint64(2654435761) % np.uint64(1 << 32)) >> np.uint64(24)).astype(np.uint8).reshape(height, width, 3)
    )


def around(points: Sequence[Sequence[float]], eyes: Sequence[int] | None, margin: float, side: int) -> Numbers:
    """X, Y, across, down."""
    c, s = 1.0, 0.0
    if eyes is not None:
        (x, y), (to_x, to_y) = points[eyes[0]], points[eyes[1]]
        dx, dy = to_x - x, to_y - y
        d = math.sqrt(dx * dx + dy * dy)
        if d > 0:
            c, s = dx / d, dy / d
    u = [x * c + y * s for x, y in points]
    v = [y * c - x * s for x, y in points]
    mu, mv = (min(u) + max(u)) / 2, (min(v) + max(v)) / 2
    h = margin * max(max(u) - min(u), max(v) - min(v)) / (2 * side)
    floats = [65536 * (mu * c - mv * s), 65536 * (mu * s + mv * c), 65536 * h * c, 65536 * h * s]
    if not all(map(math.isfinite, floats)):
        raise ValueError("not finite")
    x, y, across, down = (math.floor(value + 0.5) for value in floats)
    if not 1 <= 2 * side * math.hypot(across, down) / 65536 <= LONGEST or max(abs(x), abs(y)) > LONGEST * 65536:
        raise ValueError("cannot be cut")
    return x, y, across, down


def cut(pixels: NDArray[np.uint8], crop: Numbers, side: int) -> NDArray[np.uint8]:
    """(side, side, 3). Computed with 64 bits, so that a number that does not fit 32 would show in a test."""
    x, y, across, down = crop
    height, width = pixels.shape[:2]
    if max(width, height) > LONGEST or not (0 <= x <= width * 65536 and 0 <= y <= height * 65536):
        raise ValueError("the middle lies outside, or the picture is too large")
    j, i = np.indices((side, side))
    a, b = 2 * i + 1 - side, 2 * j + 1 - side
    px = x - 32768 + 1024 + a * across - b * down
    py = y - 32768 + 1024 + a * down + b * across
    x0, y0, fx, fy = px >> 16, py >> 16, (px >> 11 & 31)[..., None], (py >> 11 & 31)[..., None]

    def p(column: NDArray[Any], row: NDArray[Any]) -> NDArray[Any]:
        return pixels[row.clip(0, height - 1), column.clip(0, width - 1)].astype(np.int64)

    upper = (32 - fx) * p(x0, y0) + fx * p(x0 + 1, y0)
    lower = (32 - fx) * p(x0, y0 + 1) + fx * p(x0 + 1, y0 + 1)
    return (((32 - fy) * upper + fy * lower + 512) >> 10).astype(np.uint8)


def to_picture(crop: Numbers, side: int, points: Sequence[Sequence[float]]) -> list[list[float]]:
    """Landmarks normalised to the crop as pixels of the picture."""
    x, y, across, down = crop
    halves = [(2 * side * px - side, 2 * side * py - side) for px, py in points]
    return [[(x + a * across - b * down) / 65536, (y + a * down + b * across) / 65536] for a, b in halves]


# --- Vectors.


def _vectors() -> dict[str, list[dict[str, Any]]]:
    random = np.random.default_rng(15)
    found: dict[str, list[dict[str, Any]]] = {"around": [], "refused": [], "cut": [], "landmarks": []}
    for index in range(24):
        size, angle = float(np.exp(random.uniform(np.log(5), np.log(900)))), float(random.uniform(-math.pi, math.pi))
        at = random.uniform(-0.5, 0.5, (5, 2)) * size
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        points = (at @ turn + random.uniform(0, 600, 2)).astype(np.float32).tolist()
        given = {
            "points": points,
            "eyes": [0, 1] if index % 4 else None,
            "margin": [1.2, 1.1, 1.5][index % 3],
            "side": [256, 96, 64, 1][index % 4],
        }
        found["around"].append(given | {"crop": around(**given)})
    same = {"points": [[100.0, 80.0], [100.0, 80.0], [150.0, 200.0]], "eyes": [0, 1], "margin": 1.2, "side": 256}
    found["around"].append(same | {"crop": around(**same)})
    far, wide = [[20000.0, 10.0], [20100.0, 90.0]], [[0.0, 0.0], [14000.0, 10.0]]
    for points in ([[5.0, 5.0], [5.0, 5.0]], [[5.0, 5.0], [5.5, 5.5]], far, wide, [[1e300, 0.0], [0.0, 1e300]]):
        found["refused"].append({"points": points, "eyes": None, "margin": 1.2, "side": 256})
    for index in range(24):
        width, height = (int(value) for value in random.integers(1, 640, 2))
        side, angle = [256, 128, 8, 64][index % 4], float(random.uniform(-math.pi, math.pi)) * (index % 6 > 0)
        step = float(np.exp(random.uniform(np.log(2), np.log(1500)))) / (2 * side) * 65536
        x, y = int(random.integers(0, width * 65536 + 1)), int(random.integers(0, height * 65536 + 1))
        crop = (x, y, round(step * math.cos(angle)), round(step * math.sin(angle)))
        pixels = cut(picture(width, height), crop, side)
        values = {"pixels": pixels.ravel().tolist()} if side == 8 else {}
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        found["cut"].append({"width": width, "height": height, "crop": crop, "side": side, "sha256": digest} | values)
    for case in found["around"][:8]:
        points = random.uniform(-0.2, 1.2, (3, 2)).astype(np.float32).tolist()
        back = to_picture(case["crop"], case["side"], points)
        found["landmarks"].append({"crop": case["crop"], "side": case["side"], "points": points, "picture": back})
    return found


if __name__ == "__main__":
    lines = [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(case)}" for case in cases) + "\n ]"
        for name, cases in _vectors().items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    sys.exit(0 if Path(__file__).with_name("level.json").write_text(text) else 1)
