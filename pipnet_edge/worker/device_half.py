"""Which files are the device half: what a worker needs, wherever it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pipnet_edge

# Below the package's folder.
FILES = ("*.py", "*.json", "runtimes/*.py", "worker/*.py")


def files() -> Iterator[tuple[str, Path]]:
    """Every file by its path from the folder that holds the package, "pipnet_edge/decode.py"."""
    folder = Path(pipnet_edge.__file__).parent
    for pattern in FILES:
        for path in sorted(folder.glob(pattern)):
            yield f"pipnet_edge/{path.relative_to(folder).as_posix()}", path
