"""Small bundles for the null runtime, and a machine on which packages are missing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from pipnet_edge import confined
from pipnet_edge.bundle import CONV, GOLDEN, MANIFEST, Bundle, DetectorBundle, File, Layer, Source, Variant
from pipnet_edge.decode import map_shapes
from pipnet_edge.detect.decode import priors
from pipnet_edge.detect.spec import DetectorSpec, Level, Margins, Prior, Sized, named
from pipnet_edge.spec import MeanFace, ModelSpec

# A busy machine is not a defect.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)), (0, 1))
SPEC = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=FACE)
SOURCE = Source("net.pth", "0" * 64, 1_234_567, (172, 104), (17_000_000, 16_900_000))
DETECTOR = DetectorSpec(
    "two_levels",
    levels=(Level(32, (Prior(64),)), Level(64, (Prior(128),))),
    variances=(0.1, 0.2),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    threshold=0.5,
    overlap=0.3,
    input_sizes=((192, 128),),
    margins=Margins(left=0.1, top=-0.2, right=0.1, bottom=0.0),
)
# x, y, width, height in pixels, and score.
Detected = tuple[float, float, float, float, float]
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
        bundle = Bundle(
            spec=spec,
            source=SOURCE,
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


def detector_maps(sized: Sized, found: Sequence[Detected]) -> dict[str, NDArray[np.float32]]:
    """The maps by which a detector finds just these faces: each at the nearest prior that is still free."""
    starts = priors(sized.spec.levels, *sized.size)
    boxes, logits = np.zeros((len(starts), 4)), np.tile([4.0, -4.0], (len(starts), 1))
    (near, far), free = sized.spec.variances, np.ones(len(starts), bool)
    for x, y, w, h, score in found:
        distance = np.hypot(starts[:, 0] - (x + w / 2), starts[:, 1] - (y + h / 2))
        at = int(np.where(free, distance, np.inf).argmin())
        cx, cy, side = starts[at]
        boxes[at] = *((np.array([x + w / 2 - cx, y + h / 2 - cy])) / near / side), *(np.log([w / side, h / side]) / far)
        logits[at], free[at] = (0, np.log(score / (1 - score))), False
    maps, begin = {}, 0
    for level in sized.spec.levels:
        (rows, columns), count = level.cells(*sized.size), level.in_cell
        end = begin + rows * columns * count
        for kind, values in (("box", boxes), ("score", logits)):
            in_cells = values[begin:end].reshape(rows, columns, -1).transpose(2, 0, 1)
            maps[f"{kind}_{level.stride}"] = in_cells.astype(np.float32)
        begin = end
    return maps


@pytest.fixture(scope="session")
def make_detector() -> Callable[..., DetectorBundle]:
    """make_detector(folder, pictures, faces, half=faces): writes a detector's bundle with null-fp32 and null-fp16.

    pictures (n, 128, 192, 3): its golden ones. faces: those in each, x, y, width, height, score; half: those that
    null-fp16 finds. null-fp32 has a folder for the size, null-fp16 none.
    """

    def make(
        folder: Path,
        pictures: NDArray[np.uint8],
        faces: Sequence[Sequence[Detected]],
        half: Sequence[Sequence[Detected]] | None = None,
        spec: DetectorSpec = DETECTOR,
    ) -> DetectorBundle:
        def maps(found: Sequence[Sequence[Detected]]) -> dict[str, Any]:
            each = [detector_maps(sized, one) for one in found]
            return {name: np.stack([one[name] for one in each]) for name in each[0]}

        sized, size = spec.at(), named(spec.input_sizes[0])
        folder.mkdir(parents=True)
        golden = {f"{size}_{name}": values for name, values in maps(faces).items()}
        np.savez(folder / GOLDEN, **{f"{size}_pictures": pictures}, **golden)  # type: ignore[arg-type]
        variants = []
        for precision, found, inner in (("fp32", faces, size), ("fp16", half or faces, "")):
            path = folder / f"null-{precision}" / inner / "golden.npz"
            path.parent.mkdir(parents=True)
            np.savez(path, crops=pictures, **maps(found))
            variants.append(Variant(f"null-{precision}", "null", precision, (File.of(folder, path),), {"numpy": "2"}))
        bundle = DetectorBundle(
            spec=spec,
            source=SOURCE,
            golden=File.of(folder, folder / GOLDEN),
            variants=tuple(variants),
            layers=(Layer("heads.box_32", CONV, ((3, 128, 192),), (4, 4, 6), (32, 32), (32, 32)),),
            folder=folder,
        )
        bundle.write_manifest()
        return bundle

    return make


# What DETECTOR finds of faces whose crops lie at (0, 16) and (96, 16) in a picture: half a pixel in, as crops are cut.
LEFT, RIGHT = (15 + 1 / 6, 4.5, 200 / 3, 100.0, 0.875), (111 + 1 / 6, 4.5, 200 / 3, 100.0, 0.75)


@pytest.fixture(scope="session")
def scenes(null_bundle: Bundle) -> NDArray[np.uint8]:
    """Three pictures (128, 192, 3): of two golden crops, of one, of none."""
    crops, found = null_bundle.read_golden()[0], np.zeros((3, 128, 192, 3), np.uint8)
    found[0, 16:112, :96], found[0, 16:112, 96:], found[1, 16:112, :96] = crops[0], crops[2], crops[1]
    return found


@pytest.fixture(scope="session")
def null_detector(
    make_detector: Callable[..., DetectorBundle], scenes: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> DetectorBundle:
    """A detector's bundle that tests only read: it finds the faces in `scenes`."""
    return make_detector(tmp_path_factory.mktemp("detector") / "bundle", scenes, ((LEFT, RIGHT), (LEFT,), ()))


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
