"""A tiny real inference for each runtime: the answer to "does it work on this machine".

The model is one 1x1 convolution, out = image[0] + 2 * image[1] + 0.5, on an image of (1, 2, 2, 2) float32. An adapter
has its files in TINY, in the order of FILES: as bytes, or as text, which is the bytes packed by zlib and base85.
"""

from __future__ import annotations

import base64
import tempfile
import zlib
from pathlib import Path

import numpy as np

from pipnet_edge import runtimes
from pipnet_edge.errors import EdgeError


def probe(runtime: str) -> str:
    """Runs the convolution and returns the runtime's name and version.

    Raises EdgeError when the package is missing or the result is wrong, and whatever the runtime itself raises.
    """
    adapter = runtimes.adapter(runtime)
    image = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in zip(adapter.FILES, adapter.TINY, strict=True):
            Path(folder, name).write_bytes(content if isinstance(content, bytes) else _unpacked(content))
        result = np.asarray(adapter.tiny(Path(folder), image)).ravel()
    expected = (image[0, 0] + 2 * image[0, 1] + 0.5).ravel()
    if not np.allclose(result, expected, rtol=1e-6, atol=0):
        raise EdgeError(f"a convolution gave {result.tolist()} where {expected.tolist()} is right")
    version: str = adapter.version()
    return version


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))
