"""What drift keeps of a run, and what it takes to run again, on the null runtime."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from pipnet_edge import host, runtimes
from pipnet_edge.benchmarks.accuracy import chunks, drift, labels
from pipnet_edge.bundle import Bundle


@pytest.fixture
def faces(null_bundle: Bundle, tmp_path: Path) -> drift.Faces:
    """The golden crops as picture files."""
    crops, _ = null_bundle.read_golden()
    (tmp_path / "faces").mkdir()
    for index, crop in enumerate(crops):
        cv2.imwrite(str(tmp_path / "faces" / f"{index}.png"), crop[:, :, ::-1])
    return drift.Faces(labels.image_folder(tmp_path / "faces"), null_bundle.spec.input_size)


def kept(bundle: Bundle, faces: drift.Faces, cache: Path) -> set[str]:
    """Names of the chunks in the cache after a run."""
    rows, _ = drift.run(bundle, faces, drift.choose(bundle, (), "null-fp32"), cache, 1)
    assert [row.failure for row in rows] == [None]
    return {path.name for path in cache.iterdir()}


def test_what_was_run_is_not_run_again(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    first = kept(null_bundle, faces, tmp_path / "cache")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert kept(null_bundle, faces, tmp_path / "cache") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == written


@pytest.mark.parametrize("changed", ["runtime", "features", "program"])
def test_another_runtime_machine_or_program_runs_again(
    null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before = kept(null_bundle, faces, tmp_path / "cache")
    if changed == "runtime":
        monkeypatch.setattr(runtimes, "installed", lambda name: f"{name} 9.9")
    elif changed == "features":
        monkeypatch.setattr(host, "features", lambda: ("asimd",))
    else:
        monkeypatch.setattr(chunks, "__version__", "9.9")
    after = kept(null_bundle, faces, tmp_path / "cache")
    assert before < after
    assert len(after) == 2 * len(before)
