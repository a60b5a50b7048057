"""The files of the device half: a worker needs them wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pipnet_edge

# Patterns below the package's folder.
FILES = ("*.py", "*.json", "detect/*.py", "runtimes/*.py", "video/*.py", "worker/*.py")


def files() -> Iterator[tuple[str, Path]]:
    """Every file, after its path from the folder that holds the package: "pipnet_edge/decode.py"."""
    folder = Path(pipnet_edge.__file__).parent
    for pattern in FILES:
        for path in sorted(folder.glob(pattern)):
            yield f"pipnet_edge/{path.relative_to(folder).as_posix()}", path
