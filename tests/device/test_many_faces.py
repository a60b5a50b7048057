"""More faces in a picture than are cut at a time, on the null runtime."""

from __future__ import annotations

import contextlib
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipnet_edge import host, picture
from pipnet_edge.bundle import Bundle
from pipnet_edge.worker import call as calls

COUNT = 160


@pytest.fixture
def image(null_bundle: Bundle, tmp_path: Path) -> Path:
    """The golden crops side by side."""
    crops, _ = null_bundle.read_golden()
    cv2.imwrite(str(tmp_path / "faces.png"), np.concatenate(crops, axis=1)[:, :, ::-1])
    return tmp_path / "faces.png"


def asked(bundle: Bundle, count: int) -> picture.Asked:
    """Boxes that are cut as golden crops, one after the other."""
    side, crops = bundle.spec.input_size, len(bundle.read_golden()[0])
    box, margin = side / 1.2, (side - side / 1.2) / 2
    return picture.Asked([(index % crops * side + margin, margin, box, box) for index in range(count)])


def annotated(bundle: Bundle, image: Path, count: int, threads: int | None) -> picture.Annotated:
    return picture.annotate(
        bundle.folder, image, asked(bundle, count), None, "null-fp32", threads, image.with_name("x.png")
    )


def test_parts_give_what_the_whole_gives(null_bundle: Bundle, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = annotated(null_bundle, image, 10, 1)
    assert whole.faces[0] != whole.faces[1]
    monkeypatch.setattr(picture, "PART", 4)  # no multiple of the three places
    for threads in (1, None):
        parts = annotated(null_bundle, image, 10, threads)
        assert parts.faces == whole.faces
        assert parts.version == whole.version


def test_crops_are_held_in_parts(null_bundle: Bundle, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "PART", COUNT // 4)
    crops = COUNT * null_bundle.spec.input_size**2 * 3
    tracemalloc.start()
    try:
        found = annotated(null_bundle, image, COUNT, 1)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.faces) == COUNT
    assert crops // 4 < most < crops


def test_each_cpu_has_one_part_in_work(null_bundle: Bundle, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    psutil: Any = pytest.importorskip("psutil")
    monkeypatch.setattr(picture, "PART", 5)
    seen, is_over = set[int](), threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not is_over.is_set():
            with contextlib.suppress(psutil.Error):  # one of them has ended
                seen.add(sum("pipnet_edge.worker" in child.cmdline() for child in me.children()))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        annotated(null_bundle, image, 30, None)
    finally:
        is_over.set()
        watcher.join()
    cpus = len(host.allowed_cpus())
    assert min(2, cpus) <= max(seen) <= cpus


@pytest.mark.parametrize(
    ("count", "most", "workers", "sizes"),
    [
        (0, 4, 2, []),
        (1, 4, 2, [1]),
        (9, 4, 1, [3, 3, 3]),
        (9, 4, 2, [2, 2, 2, 3]),
        (8, 4, 2, [4, 4]),
        (3, 4, 8, [1, 1, 1]),
    ],
)
def test_parts_are_even(count: int, most: int, workers: int, sizes: list[int]) -> None:
    found = calls.parts(range(count), most, workers)
    assert [len(part) for part in found] == sizes
    assert [item for part in found for item in part] == list(range(count))
