"""What calibration saw, kept in golden.npz, and the warning of drift about faces unlike that, on the null runtime."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy import chunks, drift, labels
from pipnet_edge.bundle import GOLDEN, HEADS, Bundle, File, Variant, read
from pipnet_edge.domain import LEAST, MARGIN, USUAL, Domain, means
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker import call as calls

CHANNELS, FACES = 40, 24
Array = NDArray[np.float32]


def features(count: int, seed: int, spread: float = 1.0) -> Array:
    """(count, C, 3, 3): what faces of one kind have in common is how far their means spread."""
    random = np.random.default_rng(seed)
    centre = random.standard_normal((count, CHANNELS, 1, 1)) * spread
    return (centre + 0.1 * random.standard_normal((count, CHANNELS, 3, 3))).astype(np.float32)


def npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


SEEN = means(features(100, 0))
DOMAIN = Domain.of(SEEN)
KEPT = {"feature_low": DOMAIN.low, "feature_high": DOMAIN.high, "feature_limit": np.array([DOMAIN.limit], np.float32)}


# --- The domain.


def test_a_fifth_of_the_faces_is_outside_of_what_the_others_showed() -> None:
    seen = np.random.default_rng(0).standard_normal((100, 2000)).astype(np.float32)
    outside = [Domain.of(np.delete(seen, i, axis=0)).are_outside(seen[i : i + 1])[0] for i in range(100)]
    assert np.mean(outside) == pytest.approx(USUAL, abs=0.05)


def test_faces_like_those_are_inside_and_wider_ones_outside() -> None:
    assert DOMAIN.are_outside(means(features(200, 1))).mean() < 0.35
    assert DOMAIN.are_outside(means(features(200, 2, spread=2))).mean() > 0.9
    assert not DOMAIN.are_outside(SEEN).any()


def test_rounding_is_no_stranger() -> None:
    """Also of a channel that never changes."""
    still = np.concatenate([SEEN, np.full((100, CHANNELS), 3, np.float32)], axis=1)
    rounded = (still[:, :] * (1 + MARGIN / 2)).astype(np.float32)
    assert not Domain.of(still).are_outside(rounded).any()


def test_means_are_over_cells_whatever_the_memory_layout() -> None:
    given = features(3, 4)
    last = np.ascontiguousarray(np.moveaxis(given, 1, 3))
    np.testing.assert_allclose(means(given), given.reshape(3, CHANNELS, 9).mean(2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(means(np.moveaxis(last, 3, 1)), means(given))
    assert means(np.full((2, 3, 3), 3e38, np.float32)) == pytest.approx(3e38)


def test_other_channels_are_refused() -> None:
    with pytest.raises(EdgeError, match=r"^features have 7 channels; their ranges in calibration 40$"):
        DOMAIN.are_outside(np.zeros((2, 7), np.float32))


# --- Kept in golden.npz.


@pytest.fixture
def set_domain(bundle: Bundle, set_golden: Callable[[Path, bytes], None]) -> Callable[..., Bundle]:
    """set_domain(feature_low=..., ...): the bundle, read again, with these arrays in its golden.npz."""

    def write(**arrays: NDArray[Any]) -> Bundle:
        with np.load(bundle.folder / GOLDEN) as golden:
            set_golden(bundle.folder, npz({**golden, **arrays}))
        return read(bundle.folder)

    return write


def test_a_bundle_without_it_is_read_as_before(bundle: Bundle) -> None:
    assert bundle.read_domain() is None


def test_it_is_read_and_the_golden_maps_too(set_domain: Callable[..., Bundle], null_bundle: Bundle) -> None:
    made = set_domain(**KEPT)
    found = made.read_domain()
    assert found
    np.testing.assert_array_equal(found.low, DOMAIN.low)
    np.testing.assert_array_equal(found.high, DOMAIN.high)
    assert found.limit == np.float32(DOMAIN.limit)
    np.testing.assert_array_equal(made.read_golden()[1].score, null_bundle.read_golden()[1].score)


@pytest.mark.parametrize(
    "changed",
    [
        {"feature_low": np.zeros(3, np.float32)},
        {"feature_low": DOMAIN.low.astype(np.float64)},
        {"feature_low": DOMAIN.high + 1},
        {"feature_high": DOMAIN.high * np.float32(np.nan)},
        {"feature_high": np.full(CHANNELS, np.inf, np.float32)},
        {"feature_limit": np.array([np.nan], np.float32)},
        {"feature_limit": np.array([1.5], np.float32)},
        {"feature_limit": np.zeros(2, np.float32)},
    ],
)
def test_what_is_no_domain_is_refused(set_domain: Callable[..., Bundle], changed: dict[str, NDArray[Any]]) -> None:
    made = set_domain(**KEPT | changed)
    with pytest.raises(EdgeError, match=r"feature_|the ranges of features"):
        made.read_domain()


# --- The warning.


@pytest.fixture
def sparse(make_bundle: Callable[..., Bundle], set_golden: Callable[[Path, bytes], None], tmp_path: Path) -> Bundle:
    """A bundle with a domain. null-fp32 gives features: half of the golden crops are like those of calibration."""
    made = make_bundle(tmp_path / "sparse bundle", count=FACES)
    with np.load(made.folder / GOLDEN) as golden:
        arrays = dict(golden)
    folder, random = made.folder / "null-fp32", np.random.default_rng(0)
    both = np.concatenate([features(FACES // 2, 1), features(FACES // 2, 2, spread=2)])
    (folder / "golden.npz").write_bytes(npz({"crops": arrays["crops"], "score": arrays["score"], "features": both}))
    heads = {"weight": random.standard_normal((5, 2, 3, CHANNELS)), "bias": random.standard_normal((5, 2, 3))}
    (folder / HEADS).write_bytes(npz({name: value.astype(np.float32) for name, value in heads.items()}))
    files = tuple(File.of(made.folder, folder / name) for name in ("golden.npz", HEADS))
    (made.folder / "null-fp16").rename(made.folder / "null-int8")
    int8 = Variant("null-int8", "null", "int8", (File.of(made.folder, made.folder / "null-int8/golden.npz"),))
    replace(made, variants=(replace(made.variants[0], files=files), int8)).write_manifest()
    set_golden(made.folder, npz(arrays | KEPT))
    return read(made.folder)


def pictures(bundle: Bundle, folder: Path, indices: range) -> Path:
    folder.mkdir()
    crops, _ = bundle.read_golden()
    for index in indices:
        cv2.imwrite(str(folder / f"{index:02}.png"), crops[index][:, :, ::-1])
    return folder


LIKE, UNLIKE = range(FACES // 2), range(FACES // 2, FACES)


def told(bundle: Bundle, images: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    """What the command says about the calibration, and its notes."""
    words = ("drift", bundle.folder, "--images", images, "--reference", "null-fp32", "--variant", "null-int8")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pipnet_edge.cli", *map(str, words), "-o", str(out), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    return result["calibration"], result["notes"]


def test_faces_of_another_kind_warn_and_those_of_the_same_do_not(sparse: Bundle, tmp_path: Path) -> None:
    known, notes = told(sparse, pictures(sparse, tmp_path / "like", LIKE), tmp_path / "out")
    assert known["outside"] <= 5
    assert (known["of"], known["usual"], known["warning"], notes) == (12, USUAL, False, [])
    images = pictures(sparse, tmp_path / "unlike", UNLIKE)
    for _ in range(2):  # measured, and from the cache
        known, notes = told(sparse, images, tmp_path / "out")
        assert known == {"outside": 12, "of": 12, "usual": USUAL, "warning": True}
        (note,) = notes
        assert note.startswith(
            "warning: 12 of 12 faces lie outside what calibration saw (of faces like its own 20% do)"
        )
        assert "--calibrate" in note
        assert "`sensitivity --images`" in note


def test_too_few_faces_say_nothing() -> None:
    assert not drift.Strangers(drift.FEWEST - 1, drift.FEWEST - 1).notes()
    assert drift.Strangers(drift.FEWEST, drift.FEWEST).notes()
    assert not drift.Strangers(10, 20).notes()


def measured(bundle: Bundle, faces: drift.Faces, cache: Path, *names: str) -> drift.Measured:
    return drift.run(bundle, faces, drift.choose(bundle, names, "null-fp32"), cache, chunks.processes(1))


def test_without_features_or_domain_nothing_is_known(
    sparse: Bundle, bundle: Bundle, set_golden: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    def faces(made: Bundle, name: str) -> drift.Faces:
        folder = pictures(made, tmp_path / name, range(len(made.read_golden()[0])))
        return drift.Faces(labels.image_folder(folder), made.spec.input_size)

    assert measured(sparse, faces(sparse, "sparse"), tmp_path / "cache").strangers
    with np.load(sparse.folder / GOLDEN) as golden:
        arrays = {name: value for name, value in golden.items() if name not in KEPT}
    set_golden(sparse.folder, npz(arrays))
    old = read(sparse.folder)
    assert measured(old, faces(old, "old"), tmp_path / "cache").strangers is None
    with np.load(bundle.folder / GOLDEN) as golden:
        set_golden(bundle.folder, npz({**golden, **KEPT}))
    dense = read(bundle.folder)
    assert measured(dense, faces(dense, "dense"), tmp_path / "cache").strangers is None


def test_another_calibration_is_measured_again(
    sparse: Bundle, set_golden: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    """And only where it matters: what int8 gives does not depend on what is known of calibration."""
    faces = drift.Faces(labels.image_folder(pictures(sparse, tmp_path / "faces", LIKE)), sparse.spec.input_size)
    measured(sparse, faces, tmp_path / "cache")
    before = set((tmp_path / "cache").iterdir())
    narrow = Domain.of(SEEN[:LEAST] / 8)
    with np.load(sparse.folder / GOLDEN) as golden:
        changed = {"feature_low": narrow.low, "feature_high": narrow.high}
        set_golden(sparse.folder, npz({**golden, **changed}))
    found = measured(read(sparse.folder), faces, tmp_path / "cache").strangers
    assert found == drift.Strangers(len(LIKE), len(LIKE))
    assert len(before) == 2
    assert len(set((tmp_path / "cache").iterdir()) - before) == 1


def test_features_of_the_worker_are_those_of_the_session(sparse: Bundle) -> None:
    crops, _ = sparse.read_golden()
    found = calls.infer(calls.here, sparse.folder, "null-fp32", 1, crops)
    with np.load(sparse.folder / "null-fp32" / "golden.npz") as golden:
        np.testing.assert_array_equal(found.features, means(golden["features"]))
    assert calls.infer(calls.here, sparse.folder, "null-int8", 1, crops[:1]).features is None
    assert chunks.Found(found.landmarks).outside is None
