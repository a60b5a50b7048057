"""The cost of int8 in each layer.

Rows come from converters.quantize.sensitivity.LayerSensitivity.to_json, in the network's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipnet_edge.benchmarks.pictures import drawing
from pipnet_edge.benchmarks.pictures.drawing import BOLD, HAIRLINE, MUTED, PAPER
from pipnet_edge.draw import INK, Image
from pipnet_edge.errors import EdgeError

Row = Mapping[str, Any]

COST, GAIN, LOSS, BAND = (205, 30, 45), (38, 120, 200), (186, 196, 210), (243, 245, 248)
LABELLED = 8  # bars of each panel that carry their number
TICKS = 5


def picture(rows: Sequence[Row], title: str, width: int = 1300) -> Image:
    """Two bars for every layer, one row per layer, the first layer on top; (H, width, 3), H grows with the layers.

    Left, red: the drift in px when only this layer is in int8. Right, blue: how much the drift of the int8 network
    falls when this layer returns to float; grey if it rises. Both have one scale. Raises EdgeError without rows.
    """
    if not rows:
        raise EdgeError("no layer is in int8, so there is no sensitivity to draw")
    u = width / 1300  # every length below is in 1300ths of the width
    pitch, upper = 24 * u, 160 * u
    lower = upper + pitch * len(rows)
    canvas = np.full((round(lower + 60 * u), width, 3), PAPER, dtype=np.uint8)
    drawing.put_text(canvas, title, 40 * u, 42 * u, 17 * u, font=BOLD, anchor=(0, 0.5), most=1220 * u)
    total = rows[0]["px_without"] + rows[0]["px_gain"]
    text = f"all {len(rows)} layers in int8: {total:.3f} px mean drift from the float net"
    drawing.put_text(canvas, text, 40 * u, 78 * u, 11 * u, MUTED, anchor=(0, 0.5))

    blocks = [_block(row["layer"]) for row in rows]
    shaded = False
    for index, row in enumerate(rows):
        y = upper + (index + 0.5) * pitch
        shaded ^= index > 0 and blocks[index] != blocks[index - 1]
        if shaded:
            drawing.put_box(canvas, 30 * u, y - pitch / 2, 1270 * u, y + pitch / 2, BAND)
        name = row["layer"].removeprefix("backbone.")
        drawing.put_text(canvas, name, 40 * u, y, 10 * u, anchor=(0, 0.5), most=300 * u)

    alone, gain = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("px_alone", "px_gain"))
    top = drawing.round_up(max(float(alone.max()), float(gain.max())))
    below = min(0.0, float(gain.min()))
    digits = 2 if top > 0.2 else 3
    scale = 790 * u / (2 * top - below)
    zeros = 350 * u, 1210 * u - scale * top
    titles = "px with this layer alone in int8", "px gained by this layer in float"
    for values, zero, heading, colour in zip((alone, gain), zeros, titles, (COST, GAIN), strict=True):
        drawing.put_text(canvas, heading, min(zero, 990 * u), 112 * u, 11 * u, anchor=(0, 0.5))
        _axis(canvas, zero, upper, lower, top, scale, u)
        labelled = set(np.argsort(-values, kind="stable")[:LABELLED].tolist())
        for index, value in enumerate(values.tolist()):
            y, end = upper + (index + 0.5) * pitch, zero + scale * value
            shade = colour if value > 0 else LOSS
            drawing.put_box(canvas, min(zero, end), y - 7 * u, max(zero, end), y + 7 * u, shade)
            if index in labelled and value > 0:
                drawing.put_text(canvas, f"{value:.{digits}f}", end + 6 * u, y, 9 * u, anchor=(0, 0.5))
        drawing.put_line(canvas, np.array([zero, upper]), np.array([zero, lower]), INK, 1.5 * u)
    return canvas


def _axis(canvas: Image, zero: float, upper: float, lower: float, top: float, scale: float, u: float) -> None:
    """Vertical lines from 0 to `top` with their numbers above and below."""
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        x = zero + scale * value
        drawing.put_line(canvas, np.array([x, upper]), np.array([x, lower]), HAIRLINE, u)
        for y in (upper - 14 * u, lower + 16 * u):
            drawing.put_text(canvas, f"{value:.3g}", x, y, 9 * u, MUTED, anchor=(0.5, 0.5))


def _block(layer: str) -> str:
    """The block that a layer belongs to: its name up to the last number."""
    words = layer.split(".")
    numbers = [index for index, word in enumerate(words) if word.isdigit()]
    return ".".join(words[: numbers[-1] + 1] if numbers else words[:-1])
