"""A bundle is written as a whole or not at all, and in place of nothing but a bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipnet_edge.bundle import MANIFEST, Bundle, DetectorBundle, DetectorManifest, Manifest, read, replacing
from pipnet_edge.errors import EdgeError


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_replacing_makes_a_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "bundle"
    with replacing(target) as folder:
        assert list(folder.iterdir()) == []
        assert not target.exists()
        (folder / "x").write_text("1")
    assert tree(tmp_path) == {"deep/er/bundle/x": b"1"}
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]


def test_replacing_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with replacing(tmp_path / "bundle") as folder:
        (folder / "x").write_text("1")
    assert tree(tmp_path) == {"bundle/x": b"1"}


def test_replacing_gives_the_usual_permissions(tmp_path: Path) -> None:
    with replacing(tmp_path / "bundle") as folder:
        (folder / "x").write_text("1")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_replacing_replaces_a_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a relative place, as on the command line
    before = tree(bundle.folder)
    with replacing(Path("bundle")) as folder:
        (folder / "x").write_text("1")
        assert tree(bundle.folder) == before
        os.chdir("/")
    assert tree(bundle.folder) == {"x": b"1"}
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_replacing_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    folder, file, dangling = tmp_path / "photos", tmp_path / "notes", tmp_path / "dangling"
    folder.mkdir()
    (folder / "cat.jpg").write_text("cat")
    (folder / "deep").mkdir()
    file.write_text("notes")
    dangling.symlink_to(tmp_path / "nowhere")
    names = sorted(p.name for p in tmp_path.iterdir())
    message = r"exists and is not a bundle|cannot write into"
    for place in (folder, file, dangling, file / "below"):
        with pytest.raises(EdgeError, match=message), replacing(place):
            pytest.fail("the work began")
    assert tree(tmp_path) == {"photos/cat.jpg": b"cat", "notes": b"notes"}
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_replacing_refuses_a_bundle_of_another_kind(
    bundle: Bundle, null_detector: DetectorBundle, tmp_path: Path
) -> None:
    detector = shutil.copytree(null_detector.folder, tmp_path / "detector")
    for folder, kind, what in (
        (bundle.folder, DetectorManifest, "a bundle of landmarks"),
        (detector, Manifest, "a face detector's bundle"),
    ):
        before = tree(folder)
        with pytest.raises(EdgeError, match=f"is {what}; give another place"), replacing(folder, kind):
            pytest.fail("the work began")
        assert tree(folder) == before
    with replacing(detector, DetectorManifest):
        pass
    assert tree(detector) == {}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, EdgeError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("exists", [False, True])
def test_replacing_leaves_nothing_when_the_work_fails(
    make_bundle: Callable[..., Bundle], tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    target = tmp_path / "bundle"
    if exists:
        make_bundle(target)
    before = tree(tmp_path)

    def work() -> None:
        with replacing(target) as folder:
            (folder / "x").write_text("1")
            (folder / "sub").mkdir()
            raise error("stop")

    with pytest.raises(error, match="stop"):
        work()
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["bundle"] if exists else [])


def test_replacing_keeps_the_old_bundle_when_the_last_rename_fails(bundle: Bundle, tmp_path: Path) -> None:
    before = tree(tmp_path)
    with pytest.raises(OSError, match="No such file"), replacing(bundle.folder) as folder:
        folder.rmdir()
    assert tree(tmp_path) == before
    assert read(bundle.folder) == bundle
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_replacing_takes_back_the_folders_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "b" / "bundle"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with replacing(tmp_path / "a" / "b" / "bundle") as new:
        (new / MANIFEST).touch()
    assert (tmp_path / "a" / "b" / "bundle" / MANIFEST).is_file()
