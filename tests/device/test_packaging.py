"""What is published holds what the tree holds: all of the three folders and the device half, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Folder of the tree to where it is installed.
FOLDERS = {
    "pipnet_edge": "pipnet_edge",
    "converters": "pipnet_edge/converters",
    "benchmarks": "pipnet_edge/benchmarks",
    "targets": "pipnet_edge/targets",
}
BESIDE = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
# Run from a clone alone.
NOT_INSTALLED = ("benchmarks/studies/",)
CACHES = shutil.ignore_patterns("__pycache__", ".*")


def tree(root: Path) -> dict[str, bytes]:
    """Where each file of the tree has to lie when installed, and what it holds. Links to folders are not followed."""
    found = {}
    for folder, place in FOLDERS.items():
        for path in (root / folder).rglob("*"):
            inside = path.relative_to(root)
            if path.is_file() and not inside.as_posix().startswith(NOT_INSTALLED):
                found[f"{place}/{path.relative_to(root / folder).as_posix()}"] = path.read_bytes()
    return found


def copied(root: Path, to: Path) -> Path:
    """The tree without what Python, earlier builds and tools left in it: setuptools would take some of that up."""
    to.mkdir()
    for name in BESIDE:
        shutil.copy(root / name, to)
    for name in FOLDERS:
        shutil.copytree(root / name, to / name, symlinks=True, ignore=CACHES)
    return to


def build(kind: str, root: Path, out: Path) -> Path:
    """Builds the "wheel" or "sdist" of a tree, with the setuptools that is here and no network."""
    out.mkdir(exist_ok=True)
    script = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


def held(wheel: Path) -> dict[str, bytes]:
    """What a wheel installs, without what describes it."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert len(set(names)) == len(names)
        return {name: archive.read(name) for name in names}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, to be read and copied from."""
    return copied(ROOT, tmp_path_factory.mktemp("clean") / "tree")


@pytest.fixture(scope="module")
def wheel(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("wheel")
    return held(build("wheel", copied(clean, folder / "tree"), folder / "dist"))


def test_the_wheel_holds_the_tree(clean: Path, wheel: dict[str, bytes]) -> None:
    expected = tree(clean)
    assert all(any(name.startswith(f"{place}/") for name in expected) for place in FOLDERS.values())
    assert sorted(wheel) == sorted(expected)
    assert wheel == expected


def test_the_sdist_makes_the_same_wheel(clean: Path, wheel: dict[str, bytes], tmp_path: Path) -> None:
    sdist = build("sdist", copied(clean, tmp_path / "tree"), tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert held(build("wheel", unpacked, tmp_path / "dist")) == wheel


@pytest.mark.parametrize(
    "name",
    ["room/__init__.py", "room/table.toml", "data.odd"],
    ids=["package", "data of a package", "data of another kind"],
)
def test_what_is_left_out_is_noticed(clean: Path, tmp_path: Path, name: str) -> None:
    """pyproject.toml lists packages and kinds of data; nothing new is in a wheel by itself."""
    root = copied(clean, tmp_path / "tree")
    for folder in FOLDERS:
        (root / folder / name).parent.mkdir(exist_ok=True)
        (root / folder / name).touch()
    lacking = tree(root).keys() - held(build("wheel", root, tmp_path / "dist")).keys()
    assert lacking == {f"{place}/{name}" for place in FOLDERS.values()}
