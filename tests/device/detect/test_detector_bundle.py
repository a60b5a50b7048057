"""A face detector's bundle: what is read of it, which files are for a size, and the detector that a program loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge import host, strict
from pipnet_edge.bundle import (
    MANIFEST,
    Bundle,
    DetectorBundle,
    FacesParity,
    File,
    Parity,
    Tuned,
    read,
    read_any,
    read_detector,
)
from pipnet_edge.detect import detector as detectors
from pipnet_edge.errors import EdgeError
from pipnet_edge.landmarker import Landmarker

EXAMPLE = Path(__file__).resolve().parents[2] / "golden" / "bundle" / "detector"
FOUND = FacesParity("torch", 3, 3, 0, 0, 1.0, 1.0, 0.0, 0.0)
Edit = Callable[[Path, tuple[str | int, ...], object], None]


@pytest.fixture
def detector(null_detector: DetectorBundle, tmp_path: Path) -> DetectorBundle:
    """A bundle that a test may spoil."""
    return read_detector(shutil.copytree(null_detector.folder, tmp_path / "detector"))


# --- What was written is read.


def test_round_trip(detector: DetectorBundle) -> None:
    first = replace(detector.variants[0], parity=FOUND)
    written = replace(detector, variants=(first, *detector.variants[1:]))
    written.write_manifest()
    again = read_detector(detector.folder)
    assert again == written == read_any(detector.folder)
    assert again.variants[0].parity == FOUND
    text = (detector.folder / MANIFEST).read_text()
    again.write_manifest()
    assert (detector.folder / MANIFEST).read_text() == text
    assert json.loads(text)["kind"] == "detector"


def test_what_it_says_of_itself(null_detector: DetectorBundle) -> None:
    assert null_detector.title == "two_levels, 192x128 px"
    assert null_detector.damaged() == {}
    (null, *_) = null_detector.variants
    assert null.size == (null_detector.folder / "null-fp32" / "192x128" / "golden.npz").stat().st_size


def test_bundles_of_the_other_kind(null_detector: DetectorBundle, null_bundle: Bundle) -> None:
    assert isinstance(read_any(null_detector.folder), DetectorBundle)
    assert isinstance(read_any(null_bundle.folder), Bundle)
    with pytest.raises(EdgeError, match=r"bundle is a face detector's bundle; one of landmarks is needed"):
        read(null_detector.folder)
    with pytest.raises(EdgeError, match=r"bundle is a bundle of landmarks; a face detector's is needed, as `detector`"):
        read_detector(null_bundle.folder)
    with pytest.raises(EdgeError, match=r"is a face detector's bundle; one of landmarks is needed, as `convert` makes"):
        Landmarker(null_detector.folder)
    with pytest.raises(EdgeError, match=r"is a bundle of landmarks; a face detector's is needed"):
        detectors.Detector(null_bundle.folder)


@pytest.mark.parametrize("kind", ["pictures", "Landmarks", 3, None, ["detector"]])
def test_kinds_that_there_are_not(detector: DetectorBundle, edit_manifest: Edit, kind: object) -> None:
    edit_manifest(detector.folder, ("kind",), kind)
    with pytest.raises(EdgeError, match=r"is of the kind .*; allowed: landmarks, detector"):
        read_any(detector.folder)


def test_the_parity_of_another_kind(detector: DetectorBundle, bundle: Bundle) -> None:
    theirs = Parity("torch", images=4, px_mean=0.001, px_max=0.25, flips=0)
    for held, parity, reader in ((detector, theirs, read_detector), (bundle, FOUND, read)):
        entry = {**held.to_json(), "variants": [replace(held.variants[0], parity=parity)]}
        text = json.dumps(entry, default=vars)
        (held.folder / MANIFEST).write_text(text)
        with pytest.raises(EdgeError, match=r"variant null-fp32 of bundle .* has the parity of another kind of bundle"):
            reader(held.folder)
        with pytest.raises(EdgeError, match=r"has the parity of another kind of bundle"):
            replace(held, variants=(replace(held.variants[0], parity=parity),))


# --- Files and sizes.


def test_the_sizes_of_a_variant(tmp_path: Path, edit_manifest: Edit) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "bundle")
    bundle = read_detector(folder)
    assert bundle.spec.input_sizes == ((48, 32), (32, 32))
    assert bundle.sizes("null-fp32") == bundle.sizes("null-int8") == bundle.spec.input_sizes
    with pytest.raises(EdgeError, match=r"variant 'null-fp32' is not for pictures of 64x32; allowed: 48x32, 32x32"):
        bundle.open_session("null-fp32", 1, (64, 32))
    with pytest.raises(EdgeError, match=r"input size 48x15; sides of 16 to 4096 pixels are needed"):
        bundle.open_session("null-int8", 1, (48, 15))
    one = bundle.to_json()["variants"][0]["files"][:1]
    edit_manifest(folder, ("variants", 0, "files"), one)
    assert read_detector(folder).sizes("null-fp32") == ((32, 32),)
    with pytest.raises(EdgeError, match=r"'null-fp32' is not for pictures of 48x32; allowed: 32x32"):
        read_detector(folder).open_session("null-fp32", 1)


def test_a_variant_without_files_of_any_size_says_so(detector: DetectorBundle, edit_manifest: Edit) -> None:
    edit_manifest(detector.folder, ("variants", 1, "files", 0, "path"), "elsewhere/golden.npz")
    with pytest.raises(EdgeError, match=r"'null-fp16' is not for pictures of 192x128; allowed: none"):
        read_detector(detector.folder).open_session("null-fp16", 1)


def test_only_the_files_of_the_size_are_checked(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "bundle")
    (folder / "null-fp32" / "32x32" / "golden.npz").unlink()
    bundle = read_detector(folder)
    bundle.open_session("null-fp32", 1).close()
    with pytest.raises(EdgeError, match=r"lacks null-fp32/32x32/golden.npz"):
        bundle.open_session("null-fp32", 1, (32, 32))
    assert bundle.damaged() == {"null-fp32": ["null-fp32/32x32/golden.npz is missing"]}


@pytest.mark.parametrize("variant", ["null-fp32", "null-fp16"])
def test_files_that_were_changed(detector: DetectorBundle, variant: str) -> None:
    (file,) = detector.variant(variant).files
    path = detector.folder / file.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EdgeError, match=f"{file.path} in bundle .* was changed after it was written .sha256 differs"):
        detector.open_session(variant, 1)


def test_a_file_that_is_not_listed_is_never_loaded(detector: DetectorBundle) -> None:
    folder = detector.folder / "null-fp32" / "192x128"
    (folder / "golden.npz").rename(folder / "other.npz")
    (folder / "golden.npz").write_bytes(b"from somewhere")
    listed = File.of(detector.folder, folder / "other.npz")
    spoilt = replace(detector, variants=(replace(detector.variants[0], files=(listed,)),))
    with pytest.raises(EdgeError, match=r"variant 'null-fp32' does not list its golden.npz"):
        spoilt.open_session("null-fp32", 1)


def test_threads_and_variants(null_detector: DetectorBundle) -> None:
    with pytest.raises(EdgeError, match=r"0 threads; at least 1 is needed"):
        null_detector.open_session("null-fp32", 0)
    with pytest.raises(EdgeError, match=r"has no variant 'ncnn-fp32', only null-fp32, null-fp16"):
        null_detector.open_session("ncnn-fp32", 1)


def test_pictures_of_another_size_never_reach_the_runtime(null_detector: DetectorBundle) -> None:
    session = null_detector.open_session("null-fp16", 1)
    for array in (
        np.zeros((192, 128, 3), np.uint8),
        np.zeros((128, 192, 3), np.float32),
        np.zeros((128, 192), np.uint8),
    ):
        with pytest.raises(EdgeError, match=r"192"):
            session.run(array)  # type: ignore[arg-type]
    session.close()


def test_golden_pictures_with_nan(detector: DetectorBundle, set_golden: Callable[[Path, bytes], None]) -> None:
    path = detector.folder / "golden.npz"
    with np.load(path) as arrays:
        held = dict(arrays)
    held["192x128_score_64"][0, 0, 0, 0] = np.nan
    np.savez(path, **held)
    set_golden(detector.folder, path.read_bytes())
    with pytest.raises(EdgeError, match=r"map 'score_64' holds NaN or infinity"):
        read_detector(detector.folder).read_golden((192, 128))


# --- The detector that a program loads.


def test_a_detector_finds_what_its_maps_say(null_detector: DetectorBundle, scenes: NDArray[np.uint8]) -> None:
    detector = detectors.Detector(null_detector.folder)
    assert (detector.variant, detector.threads) == ("null-fp32", 1)
    assert detector.version.startswith("two_levels null-fp32, null (numpy ")
    both, one, none = map(detector.faces, scenes)
    assert (len(both), len(one), len(none)) == (2, 1, 0)
    np.testing.assert_allclose(both.boxes, [[15.167, 4.5, 66.667, 100], [111.167, 4.5, 66.667, 100]], atol=1e-3)
    np.testing.assert_allclose(both.scores, [0.875, 0.75], atol=1e-6)
    # The boxes that landmarks fill; in a picture that is twice as large, twice as large.
    (first, second) = detector.find(scenes[0].repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_allclose(first.box, [17, 49, 160, 160], atol=2e-3)
    np.testing.assert_allclose(second.box, [209, 49, 160, 160], atol=2e-3)
    detector.close()


def test_it_runs_as_it_is_told_or_as_it_was_tuned(detector: DetectorBundle) -> None:
    tuned = Tuned("null-fp16", 1, (), 1.5, "null 1", "2026-01-02T03:04:05+00:00")
    replace(detector, tuned={host.name(host.facts()): tuned}).write_manifest()
    assert detectors.Detector(detector.folder).variant == "null-fp16"
    asked = detectors.Detector(detector.folder, "null-fp32", threads=4096)
    assert (asked.variant, asked.threads) == ("null-fp32", len(host.allowed_cpus()))
    with pytest.raises(EdgeError, match=r"has no variant 'x', only null-fp32, null-fp16"):
        detectors.Detector(detector.folder, "x")
    with pytest.raises(EdgeError, match=r"0 threads; at least 1 is needed"):
        detectors.Detector(detector.folder, threads=0)


@pytest.mark.parametrize(("threshold", "count"), [(0.0, None), (0.5, 2), (0.8, 1), (1.0, 0)])
def test_thresholds(
    null_detector: DetectorBundle, scenes: NDArray[np.uint8], threshold: float, count: int | None
) -> None:
    faces = detectors.Detector(null_detector.folder, threshold=threshold).faces(scenes[0])
    # At 0, every prior is a face that does not overlap a better one.
    assert len(faces) > 2 if count is None else len(faces) == count


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_thresholds_that_are_none(null_detector: DetectorBundle, threshold: float) -> None:
    with pytest.raises(EdgeError, match=f"threshold {threshold:g}; a number from 0 to 1 is needed"):
        detectors.Detector(null_detector.folder, threshold=threshold)


def test_a_detector_of_another_size() -> None:
    detector = detectors.Detector(EXAMPLE, "null-fp32", size=(32, 32))
    pictures, _ = read_detector(EXAMPLE).read_golden((32, 32))
    assert len(detector.faces(pictures[0])) == 3
    with pytest.raises(EdgeError, match=r"is not for pictures of 640x480; allowed: 48x32, 32x32"):
        detectors.Detector(EXAMPLE, "null-fp32", size=(640, 480))


def test_the_usual_place_is_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EdgeError, match=r"there is no face detector at .*; `pipnet-edge detector` makes one; or say"):
        detectors.path_of(None)
    # A folder without a bundle is none either.
    for path in (Path("nowhere"), tmp_path):
        with pytest.raises(EdgeError, match=f"there is no face detector at {path}; `pipnet-edge detector` makes one"):
            detectors.path_of(path)
    shutil.copytree(EXAMPLE, tmp_path / "pipnet-edge" / "detector")
    assert detectors.path_of(None) == tmp_path / "pipnet-edge" / "detector"
    loaded = detectors.load(detectors.path_of(None))
    assert isinstance(loaded, detectors.Detector)
    assert loaded.margins == read_detector(EXAMPLE).spec.margins


def test_files_that_are_no_detector(tmp_path: Path) -> None:
    (tmp_path / "yunet.txt").write_text("x")
    with pytest.raises(
        EdgeError, match=r"yunet.txt is no face detector; a bundle's folder or a YuNet .onnx file is need"
    ):
        detectors.load(tmp_path / "yunet.txt")


def test_bytes_of_a_detector(null_detector: DetectorBundle, tmp_path: Path) -> None:
    assert detectors.size_of(null_detector.folder) == max(variant.size for variant in null_detector.variants)
    (tmp_path / "yunet.onnx").write_bytes(b"12345")
    assert detectors.size_of(tmp_path / "yunet.onnx") == 5


# --- Unions of dataclasses, which the parity of both kinds needs.


@dataclass(frozen=True)
class One:
    a: int
    b: float


@dataclass(frozen=True)
class Other:
    a: int
    c: str


def test_unions_of_dataclasses_are_told_apart_by_their_fields() -> None:
    union: Any = One | Other | None
    assert strict.read(union, {"a": 1, "b": 2}, "it") == One(1, 2.0)
    assert strict.read(union, {"c": "x", "a": 1}, "it") == Other(1, "x")
    assert strict.read(union, None, "it") is None
    assert strict.read(Other | str, "plain", "it") == "plain"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": 1}, "it has no 'b'"),
        ({"a": 1, "b": 2, "c": "x"}, "it has an unknown field 'c'"),
        ({"a": 1, "c": 2}, "it.c is 2, str is needed"),
        ({"a": 1.5, "c": "x"}, "it.a is 1.5, int is needed"),
        ([], r"it is \[\], dict is needed"),
        ("x", "it is 'x', dict is needed"),
    ],
)
def test_what_is_none_of_a_union(data: object, message: str) -> None:
    union: Any = One | Other | None
    with pytest.raises(EdgeError, match=message):
        strict.read(union, data, "it")
