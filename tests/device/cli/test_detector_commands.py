"""Commands on a face detector's bundle: inspect, parity, drift and bench, and what they refuse of one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.bundle import Bundle, DetectorBundle, read_detector
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Failed = Callable[[Result, int, str], str]
Envelope = Callable[[Result, str], dict[str, Any]]
QUICK = ("--threads", "1", "--seconds", "0", "--count", "5", "--warmup", "1")


@pytest.fixture(scope="module")
def drifting(
    make_detector: Callable[..., DetectorBundle],
    scenes: NDArray[np.uint8],
    tmp_path_factory: pytest.TempPathFactory,
) -> DetectorBundle:
    """null-fp16 loses one of three faces, and finds one that is none."""
    left, right = (15.0, 5.0, 66.0, 100.0, 0.875), (111.0, 5.0, 66.0, 100.0, 0.75)
    folder = tmp_path_factory.mktemp("drifting") / "bundle"
    return make_detector(folder, scenes, ((left, right), (left,), ()), ((left,), (left, right), ()))


@pytest.fixture(scope="module")
def pictures(scenes: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, scene in enumerate(scenes):
        cv2.imwrite(str(folder / f"{index}.png"), scene[:, :, ::-1])
    return folder


# --- inspect.


def test_inspect(null_detector: DetectorBundle, here: Run, envelope: Envelope) -> None:
    said = here("inspect", null_detector.folder)
    assert (said.returncode, said.stderr) == (0, "")
    rows = {line.split("  ")[0]: line for line in said.stdout.splitlines()}
    assert rows["detector"].split() == ["detector", "two_levels"]
    assert rows["input"].split() == ["input", "192x128"]
    assert "30, strides 32,64" in rows["priors"]
    assert rows["a face"].endswith("score above 0.5")
    assert {"null-fp32", "null-fp16"} <= rows.keys()
    found = envelope(here("inspect", null_detector.folder, "--json"), "inspect")
    assert (found["kind"], found["spec"]["margins"]["top"], found["damaged"]) == ("detector", -0.2, {})


def test_inspect_names_what_is_damaged(
    null_detector: DetectorBundle, tmp_path: Path, here: Run, failed: Failed
) -> None:
    folder = shutil.copytree(null_detector.folder, tmp_path / "bundle")
    (folder / "null-fp32" / "192x128" / "golden.npz").unlink()
    failed(here("inspect", folder), USER_ERROR, f"{folder} is damaged: null-fp32/192x128/golden.npz is missing")


# --- parity.


def test_parity(null_detector: DetectorBundle, here: Run, envelope: Envelope) -> None:
    said = here("parity", null_detector.folder)
    assert said.returncode == 0
    assert "against torch" in said.stdout
    assert "3 pictures" in said.stdout
    found = envelope(here("parity", null_detector.folder, "--json"), "parity")
    assert [row["variant"] for row in found["rows"]] == ["null-fp32", "null-fp16"]
    for row in found["rows"]:
        assert (row["parity"]["faces"], row["parity"]["lost"], row["parity"]["new"]) == (3, 0, 0)
        assert "failure" not in row


def test_parity_that_fails(drifting: DetectorBundle, here: Run, failed: Failed, envelope: Envelope) -> None:
    result = here("parity", drifting.folder, "--json")
    line = failed(result, CHECK_FAILED, "null-fp16: ")
    assert "0.333 of the faces lost (limit 0.05), 0.333 of so many new (limit 0.05)" in line
    first, second = envelope(result, "parity")["rows"]
    assert "failure" not in first
    assert (second["parity"]["lost"], second["parity"]["new"]) == (1, 1)
    said = here("parity", drifting.folder).stdout.splitlines()
    assert [line.split()[1] for line in said if line.startswith("null-")] == ["ok", "FAIL"]


def test_parity_over_pictures(drifting: DetectorBundle, pictures: Path, here: Run, envelope: Envelope) -> None:
    asked = ("parity", drifting.folder, "--images", pictures, "--json")
    rows = envelope(here(*asked), "parity")["rows"]
    assert [(row["reference"], row["images"]) for row in rows] == [("null-fp32", 3)] * 2
    # The second picture alone has a face more, none less.
    rows = envelope(here(*asked, "--variant", "null-fp16", "--crops", "1"), "parity")["rows"]
    assert [(row["images"], row["parity"]["lost"], row["parity"]["new"]) for row in rows] == [(1, 1, 0)]


# --- drift.


def test_drift(drifting: DetectorBundle, pictures: Path, here: Run, envelope: Envelope, tmp_path: Path) -> None:
    found = envelope(here("drift", drifting.folder, "--images", pictures, "--variant", "null-fp32", "--json"), "drift")
    assert found["reference"] == "null-fp32"
    (row,) = found["rows"]
    assert (row["parity"]["faces"], row["parity"]["lost"], row["parity"]["map_max"]) == (3, 0, 0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (("lost<=0",), "null-fp16: "),
        (("lost<=50", "new<=50"), "null-fp16: "),  # it breaks those of fp16 itself
        (("nme<=1",), "--limit 'nme<=1': no metric 'nme'; allowed: lost [%], new [%]"),
        (("lost<1",), "--limit 'lost<1' is not METRIC<=NUMBER; metrics: lost [%], new [%]"),
    ],
)
def test_limits_of_drift(
    drifting: DetectorBundle, pictures: Path, here: Run, failed: Failed, limits: Sequence[str], message: str
) -> None:
    words = [word for limit in limits for word in ("--limit", limit)]
    code = CHECK_FAILED if message == "null-fp16: " else USER_ERROR
    failed(here("drift", drifting.folder, "--images", pictures, *words), code, message)


def test_a_limit_that_is_kept(null_detector: DetectorBundle, pictures: Path, here: Run) -> None:
    result = here("drift", null_detector.folder, "--images", pictures, "--limit", "lost<=0", "--limit", "new<=0")
    assert result.returncode == 0
    assert result.stdout.count(" ok ") == 2


@pytest.mark.parametrize("option", [("--labels", "l.txt"), ("--label-format", "wflw"), ("--reference", "null-fp32")])
def test_what_drift_of_a_detector_has_not(
    null_detector: DetectorBundle, pictures: Path, here: Run, failed: Failed, option: tuple[str, str]
) -> None:
    message = f"{' '.join(option)} with a face detector; it is compared with its first fp32"
    failed(here("drift", null_detector.folder, "--images", pictures, *option), USER_ERROR, message)


def test_drift_without_pictures(null_detector: DetectorBundle, tmp_path: Path, here: Run, failed: Failed) -> None:
    failed(here("drift", null_detector.folder, "--images", tmp_path), USER_ERROR, "holds no pictures")


# --- bench.


def test_bench(null_detector: DetectorBundle, here: Run, envelope: Envelope, tmp_path: Path) -> None:
    said = here("bench", null_detector.folder, *QUICK, "-o", tmp_path / "result.json")
    assert said.returncode == 0
    assert {"null-fp32", "null-fp16"} <= {line.split(" ")[0] for line in said.stdout.splitlines()}
    found = envelope(here("bench", null_detector.folder, *QUICK, "--json"), "bench")
    assert found["network"] == "two_levels, 192x128 px"
    assert [len(run["samples"]["inference"]) for run in found["measured"]] == [5, 5]
    assert [run["px"] for run in found["measured"]] == [None, None]
    # A result is compared with an earlier one as that of a network for landmarks is.
    again = here("bench", null_detector.folder, *QUICK, "--compare", tmp_path / "result.json")
    assert again.returncode == 0


def test_bench_cannot_tune_a_detector(null_detector: DetectorBundle, here: Run, failed: Failed) -> None:
    before = (null_detector.folder / "manifest.json").read_bytes()
    message = f"--tune with a face detector, {null_detector.folder}; bundles of landmarks can be tuned"
    failed(here("bench", null_detector.folder, "--tune"), USER_ERROR, message)
    assert (null_detector.folder / "manifest.json").read_bytes() == before


def test_predictions(null_detector: DetectorBundle, here: Run, envelope: Envelope, tmp_path: Path) -> None:
    folder = shutil.copytree(null_detector.folder, tmp_path / "bundle")
    first, second = null_detector.variants
    other = replace(first, name="ncnn-fp32", runtime="ncnn")
    replace(read_detector(folder), variants=(other, second)).write_manifest()
    found = envelope(here("bench", folder, "--predict", "--target", "rpi4", "--json"), "bench")
    rows = {row["variant"]: row for row in found["predicted"] if row["threads"] == 1}
    assert rows["ncnn-fp32"]["ms"] > 0
    assert rows["null-fp16"]["ms"] is None


def test_a_bundle_of_landmarks_is_none_of_a_detector(null_bundle: Bundle, here: Run, failed: Failed) -> None:
    """Its own limits stay its own."""
    failed(
        here("drift", null_bundle.folder, "--images", ".", "--limit", "lost<=1"),
        USER_ERROR,
        "no metric 'lost'; allowed",
    )
