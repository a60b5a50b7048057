"""Where a bundle is made: a new folder that takes its place only if all went well, and a scratch folder beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipnet_edge.bundle import Contents, Manifest, Source, replacing
from pipnet_edge.converters.losses import is_full
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import file_sha256

if TYPE_CHECKING:
    from pipnet_edge.converters.core import Core


@contextlib.contextmanager
def making(out: Path, kind: type[Contents] = Manifest) -> Iterator[tuple[Path, Path]]:
    """The folder of a bundle that will be at `out`, and a folder for all temporary files; see bundle.replacing."""
    with replacing(out, kind) as folder, _full_disks_named(folder, out), _temporary_in(folder.parent / "work") as work:
        yield folder, work


def source(path: Path, parameters: int, core: Core) -> Source:
    """What the manifest says about the file that a bundle is made from."""
    return Source(
        # A name that cannot be printed is kept as Python would write it.
        file=path.name if path.name.isprintable() else ascii(path.name),
        sha256=file_sha256(path),
        parameters=parameters,
        onnx_nodes=core.nodes,
        onnx_bytes=core.sizes,
    )


@contextlib.contextmanager
def _temporary_in(folder: Path) -> Iterator[Path]:
    """Makes this folder and keeps all temporary files in it, also those of what is started: one sweep finds them."""
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    given, os.environ["TMPDIR"] = os.environ.get("TMPDIR"), str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        os.environ.pop("TMPDIR") if given is None else os.environ.update(TMPDIR=given)


@contextlib.contextmanager
def _full_disks_named(folder: Path, out: Path) -> Iterator[None]:
    """Says so if the disk is full: converters report that in many ways, and some only write less than they should."""
    try:
        yield
    except Exception as e:
        if is_full(folder):
            free = shutil.disk_usage(folder).free
            raise EdgeError(f"no space left on the disk of {out.absolute().parent} ({free} bytes free)") from e
        raise
