"""What converts networks for TFLite."""

from __future__ import annotations

from pipnet_edge.converters.destination import Destination
from pipnet_edge.converters.tflite import fp, heads, int8

HERE = Destination(fp.TOOLS, int8.BITS, True, fp.convert, int8.convert, heads.add)
