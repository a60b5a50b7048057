"""What drift keeps of a run, and what it takes to run again, on the null runtime."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipnet_edge import host, runtimes
from pipnet_edge.benchmarks.accuracy import chunks, drift, labels
from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import Landmarks
from pipnet_edge.errors import EdgeError


@pytest.fixture
def faces(null_bundle: Bundle, tmp_path: Path) -> drift.Faces:
    """The golden crops as picture files."""
    crops, _ = null_bundle.read_golden()
    (tmp_path / "faces").mkdir()
    for index, crop in enumerate(crops):
        cv2.imwrite(str(tmp_path / "faces" / f"{index}.png"), crop[:, :, ::-1])
    return drift.Faces(labels.image_folder(tmp_path / "faces"), null_bundle.spec.input_size)


@pytest.fixture
def drifting(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    """A bundle whose fp16 finds every landmark half a cell, 16 px, to the right of where fp32 finds it."""
    fp32 = make_bundle(tmp_path / "as fp32")
    with np.load(fp32.folder / "golden.npz") as arrays:
        right = {name: arrays[name] + np.float32(0.5) for name in ("offset_x", "neighbor_x")}
    bundle = make_bundle(tmp_path / "bundle", maps=right)
    shutil.copytree(fp32.folder / "null-fp32", bundle.folder / "null-fp32", dirs_exist_ok=True)
    bundle = replace(bundle, variants=(fp32.variants[0], bundle.variants[1]))
    bundle.write_manifest()
    return bundle


def kept(bundle: Bundle, faces: drift.Faces, cache: Path) -> set[str]:
    """Names of the chunks in the cache after a run."""
    rows = drift.run(bundle, faces, drift.choose(bundle, (), "null-fp32"), cache, chunks.processes(1)).rows
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


# --- Files of the cache.


def measured(bundle: Bundle, faces: drift.Faces, cache: Path) -> dict[str, Landmarks]:
    return drift.run(bundle, faces, drift.choose(bundle, (), "null-fp32"), cache, chunks.processes(1)).landmarks


def signed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-8],
        lambda data: data + bytes(8),
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: bytes(len(data)),
        lambda data: signed(data[32:-160]),
        lambda data: signed(np.full((len(data) - 32) // 8, np.nan).tobytes()),
        lambda data: signed(np.full((len(data) - 32) // 8, np.inf).tobytes()),
    ],
)
def test_a_chunk_that_is_not_what_was_written_is_measured_again(
    null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    cache = tmp_path / "cache"
    right = measured(null_bundle, faces, cache)
    written = {path: path.read_bytes() for path in cache.iterdir()}
    assert len(written) == 1  # the two variants have the same files
    for path, data in written.items():
        path.write_bytes(spoil(data))
    again = measured(null_bundle, faces, cache)
    for name, landmarks in right.items():
        assert np.array_equal(again[name].points, landmarks.points)
        assert np.array_equal(again[name].cell, landmarks.cell)
    assert {path: path.read_bytes() for path in cache.iterdir()} == written


def test_files_of_older_caches_are_left_alone(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    for path in kept(null_bundle, faces, tmp_path / "cache"):
        (tmp_path / "cache" / path).rename((tmp_path / "cache" / path).with_suffix(".npy"))
    after = kept(null_bundle, faces, tmp_path / "cache")
    assert sorted(Path(name).suffix for name in after) == [".landmarks", ".npy"]


def test_a_chunk_that_cannot_be_written_is_one_error(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    for name in kept(null_bundle, faces, tmp_path / "cache"):
        (tmp_path / "cache" / name).unlink()
        (tmp_path / "cache" / name).mkdir()
    with pytest.raises(EdgeError, match=r"^cannot write .*\.landmarks: Is a directory$"):
        measured(null_bundle, faces, tmp_path / "cache")


@pytest.mark.parametrize("cache", ["file", "file/below", "/proc/cache", "a" * 300])
def test_a_cache_that_cannot_be_a_folder(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, cache: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match=f"^cannot write into .*{cache}: "):
        measured(null_bundle, faces, tmp_path / cache)


# --- The command.


def words(bundle: Bundle, faces: drift.Faces, *more: object) -> list[str]:
    start = [sys.executable, "-P", "-m", "pipnet_edge.cli", "drift", bundle.folder, "--reference", "null-fp32"]
    return [str(word) for word in (*start, "--images", faces.labels.images[0].parent, "--variant", "null-fp16", *more)]


def command(bundle: Bundle, faces: drift.Faces, *more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(bundle, faces, *more), capture_output=True, text=True, check=False, timeout=120)


def write_labels(bundle: Bundle, faces: drift.Faces, folder: Path, swap: bool = False, shift: float = 0.0) -> Path:
    """Labels that are what the reference finds, but for x and y swapped or a shift by part of the crop."""
    points = measured(bundle, faces, folder / "labels-cache")["null-fp32"].points.astype(float) + shift
    points = points[..., ::-1] if swap else points
    lines = [
        " ".join([image.name, *map(repr, face.ravel().tolist())])
        for image, face in zip(faces.labels.images, points, strict=True)
    ]
    (folder / "labels.txt").write_text("\n".join(lines))
    return folder / "labels.txt"


def test_labels_that_fit(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    path = write_labels(null_bundle, faces, tmp_path)
    done = command(null_bundle, faces, "--labels", path, "--label-format", "pipnet", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "\nthe NME of null-fp32 itself is 0.000 %\n" in done.stdout
    assert "warning" not in done.stdout


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"swap": True}, "x and y are swapped in them, it would be 0.000 %"),
        ({"shift": 0.5}, "swapped x and y? another order of landmarks? another crop?"),
    ],
)
def test_labels_that_fit_nothing(
    null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    path = write_labels(null_bundle, faces, tmp_path, **wrong)
    out = ("-o", tmp_path / "out", "--json")
    done = command(null_bundle, faces, "--labels", path, "--label-format", "pipnet", *out)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["labels"]["fits"] is False
    assert result["labels"]["nme"] > drift.FITS
    assert (result["labels"]["nme_swapped"] < 0.01) == ("swap" in wrong)
    (note,) = result["notes"]
    assert note.startswith("warning: the labels do not fit the faces, as the NME of null-fp32 itself is ")
    assert note.endswith(said)


def test_limits_kept_and_broken(drifting: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    limits = ("--limit", "px_mean<=1", "--limit", "flips<=0", "--limit", "px_max<=1e9")
    done = command(drifting, faces, *limits, "-o", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    table = [line.split() for line in done.stdout.splitlines() if "<=" in line]
    assert [(row[0], row[1], row[-1]) for row in table] == [
        ("null-fp16", "px_mean<=1", "broken"),
        ("null-fp16", "flips<=0", "kept"),
        ("null-fp16", "px_max<=1e+09", "kept"),
    ]
    assert table[0][2] == "16.000"  # half a cell of 32 px
    assert done.stderr.splitlines()[-1] == "pipnet-edge drift: null-fp16: --limit px_mean<=1 is broken by 16"
    told = json.loads(command(drifting, faces, *limits, "-o", tmp_path / "out", "--json").stdout)["result"]["limits"]
    assert [limit["kept"] for limit in told] == [False, True, True]
    assert told[0] == {
        "variant": "null-fp16",
        "metric": "px_mean",
        "most": 1.0,
        "value": pytest.approx(16),
        "kept": False,
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--limit", "nme<=0.03"), "--limit nme<=0.03 needs labels; without --labels: px_mean, px_p50, "),
        (("--limit", "px_mean<0.3"), "--limit 'px_mean<0.3' is not METRIC<=NUMBER; metrics: nme [%], "),
        (("--limit", "px<=0.3"), "--limit 'px<=0.3': no metric 'px'; allowed: nme [%], "),
    ],
)
def test_limits_that_say_nothing(
    null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    done = command(null_bundle, faces, *more, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"pipnet-edge drift: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_more_jobs_than_cores_are_cut_and_said(null_bundle: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    done = command(null_bundle, faces, "--jobs", 1000, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"--jobs 1000: {len(host.allowed_cpus())} run at a time, one a core" in done.stdout.splitlines()


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_picture_that_cannot_be_read_is_named_with_its_label(
    null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, content: bytes
) -> None:
    path = write_labels(null_bundle, faces, tmp_path)
    faces.labels.images[1].write_bytes(content)
    done = command(null_bundle, faces, "--labels", path, "--label-format", "pipnet", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"pipnet-edge drift: {path} line 2: {faces.labels.images[1]} is not an image that OpenCV can read"
    )


def test_faces_done_are_told_within_a_chunk(drifting: Bundle, faces: drift.Faces, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    variants = drift.choose(drifting, (), "null-fp32")
    drift.run(drifting, faces, variants, tmp_path / "cache", chunks.processes(1), lambda *step: told.append(step))
    count = len(faces)
    assert {(what, total) for what, _, total in told} == {("faces, 2 variants", count)}
    assert sorted({done for _, done, _ in told}) == list(range(count))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_drift_ends_and_says_what_it_kept(
    null_bundle: Bundle, faces: drift.Faces, tmp_path: Path, number: signal.Signals
) -> None:
    """A thousand faces take the null runtime many seconds."""
    data = faces.labels.images[0].read_bytes()
    for index in range(1000):
        (faces.labels.images[0].parent / f"x{index}.png").write_bytes(data)
    process = subprocess.Popen(
        words(null_bundle, faces, "-o", tmp_path / "out", "--jobs", 1), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        assert process.stderr.readline().startswith("[1/1003] faces, 2 variants")
        while not list((tmp_path / "out/cache").glob("*")):
            assert process.poll() is None, "it was done before it was interrupted"
            time.sleep(0.01)
        start = time.monotonic()
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert time.monotonic() - start < 3
    assert process.returncode == 130
    assert error.splitlines()[-1] == (
        f"pipnet-edge drift: interrupted; chunks of faces that were finished are kept in {tmp_path}/out/cache, "
        "the same command goes on with them"
    )
    whole = list((tmp_path / "out/cache").iterdir())
    assert whole
    assert {path.suffix for path in whole} == {".landmarks"}
