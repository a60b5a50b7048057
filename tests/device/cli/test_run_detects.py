"""run finds the faces by itself: all of them, as the crop policy wants them, and says who found them."""

from __future__ import annotations

import json
import os
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

from pipnet_edge.bundle import Bundle, DetectorBundle
from pipnet_edge.decode import Decoder
from pipnet_edge.runtimes import null

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Failed = Callable[[Result, int, str], str]
Envelope = Callable[[Result, str], dict[str, Any]]
Make = Callable[..., DetectorBundle]
Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a cache folder, of its own: nobody has made a detector."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def usual(null_detector: DetectorBundle, tmp_path: Path) -> Path:
    """A detector where `pipnet-edge detector` puts it."""
    return Path(shutil.copytree(null_detector.folder, tmp_path / "cache" / "pipnet-edge" / "detector"))


def write(name: str, scene: Pixels) -> str:
    """A picture in which everything is twice as large."""
    cv2.imwrite(name, scene.repeat(2, axis=0).repeat(2, axis=1)[:, :, ::-1])
    return name


# --- Faces that are found.


def test_all_faces_are_found(
    usual: Path, scenes: Pixels, null_bundle: Bundle, here: Run, envelope: Envelope, place: Path
) -> None:
    picture = write("two.png", scenes[0])
    found = envelope(here("run", null_bundle.folder, picture, "--variant", "null-fp32", "--json"), "run")
    assert sorted(path.name for path in place.iterdir()) == ["two-landmarks.json", "two-landmarks.png", "two.png"]
    assert json.loads(Path("two-landmarks.json").read_text()) == found
    assert found["by"] == f"two_levels null-fp32, {null.version()}"
    assert found["note"] is None
    first, second = found["faces"]
    assert (first["detected"], second["detected"]) == (0.875, 0.75)
    np.testing.assert_allclose(first["box"], [30.33, 9, 133.33, 200], atol=0.011)
    np.testing.assert_allclose(second["box"], [222.33, 9, 133.33, 200], atol=0.011)
    # These lie on the edges of pixels.
    np.testing.assert_allclose([first["rect"], second["rect"]], [[1, 33, 193, 225], [193, 33, 383, 225]], atol=1)
    expected = Decoder(null_bundle.spec)(null_bundle.read_golden()[1])
    for face, index in ((first, 0), (second, 2)):
        left, top, right, bottom = face["rect"]
        points = expected.points[index] * [right - left, bottom - top] + [left, top]
        np.testing.assert_allclose(face["points"], points, atol=0.006)
        np.testing.assert_allclose(face["scores"], expected.score[index], atol=1e-4)


def test_it_says_who_found_them(usual: Path, scenes: Pixels, null_bundle: Bundle, here: Run) -> None:
    for scene, faces in ((scenes[0], "2 faces"), (scenes[1], "1 face")):
        said = here("run", null_bundle.folder, write("photo.png", scene), "--threads", "1").stdout
        by = f"null-fp32 ({null.version()}), 1 thread; faces from two_levels null-fp32, {null.version()}"
        assert said.splitlines()[0] == f"{faces}, 5 landmarks each, by {by}"


def test_boxes_and_scores_are_drawn(usual: Path, scenes: Pixels, null_bundle: Bundle, here: Run) -> None:
    assert here("run", null_bundle.folder, write("one.png", scenes[1]), "-o", "found.png").returncode == 0
    (face,) = json.loads(Path("found.json").read_text())["faces"]
    left, top, wide, high = face["box"]
    x, y, right, bottom = map(round, (left, top, left + wide, top + high))
    changed = (cv2.imread("found.png") != cv2.imread("one.png")).any(axis=-1)
    for side in (changed[y - 1 : y + 2, x:right], changed[bottom - 1 : bottom + 2, x:right]):
        assert side.any(axis=0).mean() > 0.95
    for side in (changed[y:bottom, x - 1 : x + 2], changed[y:bottom, right - 1 : right + 2]):
        assert side.any(axis=1).mean() > 0.95
    # The score stands at the upper left, and nothing is drawn beside the face.
    assert changed[: y - 1, x : x + 60].sum() > 20
    assert not changed[:, right + 2 :].any()


def test_another_detector_by_its_path(
    scenes: Pixels, null_detector: DetectorBundle, null_bundle: Bundle, here: Run, envelope: Envelope
) -> None:
    picture = write("one.png", scenes[1])
    found = envelope(here("run", null_bundle.folder, picture, "--detector", null_detector.folder, "--json"), "run")
    assert [face["detected"] for face in found["faces"]] == [0.875]


@pytest.mark.parametrize(("threshold", "count"), [("0.5", 2), ("0.8", 1)])
def test_thresholds(
    threshold: str, count: int, usual: Path, scenes: Pixels, null_bundle: Bundle, here: Run, envelope: Envelope
) -> None:
    picture = write("two.png", scenes[0])
    found = envelope(here("run", null_bundle.folder, picture, "--threshold", threshold, "--json"), "run")
    assert len(found["faces"]) == count


def test_faces_that_the_network_doubts(
    usual: Path, scenes: Pixels, make_bundle: Callable[..., Bundle], tmp_path: Path, here: Run, envelope: Envelope
) -> None:
    made = make_bundle(tmp_path / "bundle")
    scores = Decoder(made.spec)(made.read_golden()[1]).score[[0, 2]].mean(axis=1)
    assert scores[0] != scores[1]
    for presence, which in ((9.0, "faces 1, 2"), (float(scores.mean()), f"face {1 + int(scores.argmin())}")):
        replace(made, spec=replace(made.spec, presence=presence)).write_manifest()
        picture = write("two.png", scenes[0])
        found = envelope(here("run", made.folder, picture, "--variant", "null-fp32", "--json"), "run")
        assert found["note"] == f"{which}: landmarks score below {presence:.3g}, where this network sees no face"
    replace(made, spec=replace(made.spec, presence=float(scores.min()) - 0.01)).write_manifest()
    sure = here("run", made.folder, "two.png", "--variant", "null-fp32", "--json")
    assert envelope(sure, "run")["note"] is None


# --- The demo's policy cuts around a detector's own box.

OWN = (8.25, 7.25, 81.0, 97.0, 0.875)  # its demo crop is (0, 16) to (96, 112)


def test_the_demo_s_policy(
    make_detector: Make,
    make_bundle: Callable[..., Bundle],
    scenes: Pixels,
    tmp_path: Path,
    here: Run,
    envelope: Envelope,
) -> None:
    detector = make_detector(tmp_path / "own", scenes[1:2], ((OWN,),)).folder
    made = make_bundle(tmp_path / "bundle")
    cv2.imwrite("one.png", scenes[1][:, :, ::-1])
    asked = ("run", made.folder, "one.png", "--detector", detector, "--json")
    (face,) = envelope(here(*asked, "--crop", "demo"), "run")["faces"]
    assert (face["box"], face["rect"]) == ([8.25, 7.25, 81.0, 97.0], [0, 16, 96, 112])
    # It is that of a network that was trained with such crops.
    replace(made, spec=replace(made.spec, crop="demo")).write_manifest()
    assert envelope(here(*asked), "run")["faces"] == [face]


@pytest.mark.parametrize(
    ("policy", "box"),
    [
        ("demo", (20.0, 118.0, 100.0, 120.0)),  # the demo's crop begins below the picture
        ("demo", (189.0, 40.0, 60.0, 60.0)),
        ("test", (20.0, 126.0, 60.0, 60.0)),
        ("test", (-66.0, 20.0, 60.0, 60.0)),
    ],
)
def test_faces_of_which_too_little_is_in_the_picture(
    policy: str,
    box: tuple[float, ...],
    make_detector: Make,
    null_bundle: Bundle,
    scenes: Pixels,
    tmp_path: Path,
    here: Run,
    envelope: Envelope,
) -> None:
    """They are left out; the others are found."""
    whole = OWN if policy == "demo" else (15 + 1 / 6, 4.5, 200 / 3, 100.0, 0.875)
    detector = make_detector(tmp_path / "own", scenes[1:2], (((*box, 0.9), whole),)).folder
    cv2.imwrite("one.png", scenes[1][:, :, ::-1])
    asked = ("run", null_bundle.folder, "one.png", "--detector", detector, "--crop", policy, "--json")
    (face,) = envelope(here(*asked), "run")["faces"]
    assert face["rect"] == [0, 16, 96, 112]


# --- No face.


def test_a_picture_without_faces(
    make_detector: Make, null_bundle: Bundle, tmp_path: Path, here: Run, envelope: Envelope
) -> None:
    """It is drawn as it is. The network has seen the whole picture, for it may not work."""
    crop = cv2.resize(null_bundle.read_golden()[0][0], (192, 128))
    detector = make_detector(tmp_path / "none", crop[None], ((),)).folder
    cv2.imwrite("none.png", crop[:, :, ::-1])
    asked = ("run", null_bundle.folder, "none.png", "--detector", detector)
    result = here(*asked)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("0 faces, 5 landmarks each, by null-fp32")
    found = envelope(here(*asked, "--json"), "run")
    assert found["faces"] == []
    np.testing.assert_array_equal(cv2.imread("none-landmarks.png"), cv2.imread("none.png"))
    assert json.loads(Path("none-landmarks.json").read_text()) == found


# --- What is refused: one line, and nothing is written.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no face detector at {tmp}/cache/pipnet-edge/detector; `pipnet-edge detector` makes one; or say"),
        (("--detector", "gone"), "there is no face detector at gone; `pipnet-edge detector` makes one; or say where"),
        (("--detector", "{tmp}"), "there is no face detector at {tmp}; `pipnet-edge detector` makes one"),
        (
            ("--detector", "photo.png"),
            "photo.png is no face detector; a bundle's folder or a YuNet .onnx file is needed",
        ),
        (("--detector", "text.onnx"), "text.onnx is no YuNet that OpenCV can read"),
        (
            ("--detector", "{landmarks}"),
            "is a bundle of landmarks; a face detector's is needed, as `detector` makes it",
        ),
        (("--detector", "{detector}", "--threshold", "1.5"), "threshold 1.5; a number from 0 to 1 is needed"),
        (("--threshold", "-0.1"), "threshold -0.1; a number from 0 to 1 is needed"),
        (("--threshold", "nan"), "threshold nan; a number from 0 to 1 is needed"),
        (("--threshold", "nan", "--whole"), "threshold nan; a number from 0 to 1 is needed"),
        (("--box", "1,1,50,50", "--whole"), "--box with --whole; one of them says where the faces are"),
        (("--box", "1,1,50,50", "--threshold", "0.5"), "--threshold 0.5 with --box: then nothing is detected"),
        (("--whole", "--threshold", "0"), "--threshold 0.0 with --whole: then nothing is detected"),
        (("--whole", "--detector", "{detector}"), "--detector {detector} with --whole: then nothing is detected"),
        (("--detector", "{detector}", "--crop", "wide"), "--crop wide; allowed: test, demo"),
        (("--detector", "{detector}", "--variant", "x"), "has no variant 'x'"),
    ],
)
def test_what_is_refused(
    words: Sequence[str],
    message: str,
    null_detector: DetectorBundle,
    null_bundle: Bundle,
    scenes: Pixels,
    tmp_path: Path,
    place: Path,
    here: Run,
    failed: Failed,
    envelope: Envelope,
) -> None:
    write("photo.png", scenes[0])
    Path("text.onnx").write_text("not ONNX")
    names = {"tmp": tmp_path, "detector": null_detector.folder, "landmarks": null_bundle.folder}
    result = here("run", null_bundle.folder, "photo.png", *(word.format(**names) for word in words), "--json")
    failed(result, 1, message.format(**names))
    assert envelope(result, "run") == {}
    assert sorted(path.name for path in place.iterdir()) == ["photo.png", "text.onnx"]


def test_a_threshold_that_is_no_number(null_bundle: Bundle, here: Run) -> None:
    result = here("run", null_bundle.folder, "photo.png", "--threshold", "half")
    assert (result.returncode, result.stdout) == (2, "")


def test_a_detector_in_the_place_of_the_bundle(
    null_detector: DetectorBundle, scenes: Pixels, here: Run, failed: Failed
) -> None:
    message = f"{null_detector.folder} is a face detector's bundle; one of landmarks is needed, as `convert` makes it"
    failed(here("run", null_detector.folder, write("photo.png", scenes[0])), 1, message)


@pytest.mark.parametrize("name", ["manifest.json", "null-fp32/192x128/golden.npz"])
def test_a_spoilt_detector(
    name: str, usual: Path, scenes: Pixels, null_bundle: Bundle, here: Run, failed: Failed, place: Path
) -> None:
    path = usual / name
    path.write_bytes(path.read_bytes()[:-9])
    message = "manifest.json is no JSON" if name == "manifest.json" else f"{name} in bundle {usual} was changed"
    failed(here("run", null_bundle.folder, write("photo.png", scenes[0])), 1, message)
    assert [path.name for path in place.iterdir()] == ["photo.png"]


def test_a_detector_that_nobody_may_read(
    usual: Path, scenes: Pixels, null_bundle: Bundle, here: Run, failed: Failed
) -> None:
    os.remove(usual / "manifest.json")
    (usual / "manifest.json").mkdir()
    failed(here("run", null_bundle.folder, write("photo.png", scenes[0])), 1, "manifest.json is not readable")
