"""How networks are converted for ncnn."""

from __future__ import annotations

from pipnet_edge.converters import sparse
from pipnet_edge.converters.destination import Destination
from pipnet_edge.converters.ncnn import fp, int8

HERE = Destination(
    tools=fp.TOOLS,
    bits=int8.BITS,
    levels=int8.LEVELS,
    heads_inside=False,
    fp=fp.convert,
    int8=int8.convert,
    add_heads=sparse.write,
)
