"""A small bundle for the null runtime, and a machine on which packages are missing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from pipnet_edge import confined
from pipnet_edge.bundle import CONV, GOLDEN, MANIFEST, Bundle, File, Layer, Source, Variant
from pipnet_edge.decode import map_shapes
from pipnet_edge.spec import MeanFace, ModelSpec

# A busy machine is not a defect.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)), (0, 1))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)
# Run by every Python of the environment below before anything else: the packages are as if they were not installed.
ABSENT = """
import importlib.machinery, os
_real = importlib.machinery.PathFinder.find_spec
def _find_spec(cls, name, path=None, target=None):
    absent = os.environ["ABSENT_PACKAGES"].split(",")
    return None if name.partition(".")[0] in absent else _real(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(_find_spec)
"""


@pytest.fixture(scope="module", autouse=True)
def _unlimited() -> Iterator[None]:
    """A worker limits its own memory for good; a test that does a worker's job in this process goes on after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confined, "limit_memory", lambda _: None)
        yield


def golden_arrays(spec: ModelSpec, count: int, seed: int) -> dict[str, NDArray[Any]]:
    """Random crops (n, S, S, 3) uint8 and maps for them, as golden.npz holds them."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, spec.input_size // 16, spec.input_size // 16, 3), dtype=np.uint8)
    crops = blocks.repeat(16, axis=1).repeat(16, axis=2)  # so coarse that resizing changes little
    maps = {n: random.standard_normal((count, *s)).astype(np.float32) for n, s in map_shapes(spec).items()}
    return {"crops": crops, **maps}


def layers_of(spec: ModelSpec) -> tuple[Layer, ...]:
    """A convolution in place of a backbone, and the heads."""
    side, stride, cells = spec.input_size, spec.net_stride, spec.input_size // spec.net_stride
    first = Layer("backbone", CONV, ((3, side, side),), (8, cells, cells), (stride, stride), (stride, stride))
    counts = {name: int(np.prod(shape)) // cells**2 for name, shape in map_shapes(spec).items()}
    heads = (Layer(f"heads.{name}", CONV, (first.output,), (n, cells, cells)) for name, n in counts.items() if n)
    return first, *heads


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Bundle]:
    """make_bundle(folder, spec=SPEC, count=3, maps={}): writes a bundle with null-fp32 and null-fp16.

    The variants replay what golden.npz holds, but for the `maps` given.
    """

    def make(
        folder: Path, spec: ModelSpec = SPEC, count: int = 3, maps: Mapping[str, NDArray[Any]] | None = None
    ) -> Bundle:
        golden = golden_arrays(spec, count, 0)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / GOLDEN, **golden)  # type: ignore[arg-type]
        variants = []
        for precision in ("fp32", "fp16"):
            path = folder / f"null-{precision}" / "golden.npz"
            path.parent.mkdir()
            np.savez(path, **golden | dict(maps or {}))  # type: ignore[arg-type]
            variants.append(Variant(f"null-{precision}", "null", precision, (File.of(folder, path),), {"numpy": "2"}))
        source = Source("net.pth", "0" * 64, 1_234_567, (172, 104), (17_000_000, 16_900_000))
        bundle = Bundle(
            spec=spec,
            source=source,
            golden=File.of(folder, folder / GOLDEN),
            variants=tuple(variants),
            layers=layers_of(spec),
            folder=folder,
        )
        bundle.write_manifest()
        return bundle

    return make


@pytest.fixture(scope="session")
def null_bundle(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that tests only read."""
    return make_bundle(tmp_path_factory.mktemp("null") / "bundle")


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    """A bundle that a test may spoil."""
    return make_bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def edit_manifest() -> Callable[..., None]:
    """edit_manifest(folder, path, value): sets manifest[path[0]][path[1]]… to value and writes it."""

    def edit(folder: Path, path: tuple[str | int, ...], value: object) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        place = manifest
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


@pytest.fixture(scope="session")
def set_golden(edit_manifest: Callable[..., None]) -> Callable[[Path, bytes], None]:
    """set_golden(folder, content): another golden.npz, with a manifest that vouches for it."""

    def replace(folder: Path, content: bytes) -> None:
        (folder / GOLDEN).write_bytes(content)
        entry = {"path": GOLDEN, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        edit_manifest(folder, ("golden",), entry)

    return replace


@pytest.fixture(scope="session")
def without(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """without("torch", "onnx"): the environment for child processes in which these packages are not installed."""
    folder = tmp_path_factory.mktemp("absent")
    (folder / "sitecustomize.py").write_text(ABSENT)

    def environment(*packages: str) -> dict[str, str]:
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path, "ABSENT_PACKAGES": ",".join(packages)}

    return environment


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """packages(name, text): the worker finds this text as a package."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)

    def install(name: str, text: str) -> None:
        (folder / f"{name}.py").write_text(text)

    return install
