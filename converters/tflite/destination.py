"""How networks are converted for TFLite."""

from __future__ import annotations

from pipnet_edge.converters.destination import Destination
from pipnet_edge.converters.tflite import fp, heads, int8

HERE = Destination(
    tools=fp.TOOLS,
    bits=int8.BITS,
    levels=int8.LEVELS,
    heads_inside=True,
    fp=fp.convert,
    int8=int8.convert,
    add_heads=heads.add,
)
