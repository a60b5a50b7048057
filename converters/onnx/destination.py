"""What converts networks for ONNX Runtime."""

from __future__ import annotations

from pipnet_edge.converters import sparse
from pipnet_edge.converters.destination import Destination
from pipnet_edge.converters.onnx import fp, int8

HERE = Destination(fp.TOOLS, int8.BITS, False, fp.convert, int8.convert, sparse.write)
