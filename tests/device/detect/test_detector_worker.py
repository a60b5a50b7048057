"""Workers and detectors: faces, maps, times and counts of a bundle, the faces in one picture, and answers that lie."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.bundle import Bundle, DetectorBundle
from pipnet_edge.detect.decode import MOST_FACES
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.runtimes import null
from pipnet_edge.worker import detected, protocol, serve
from pipnet_edge.worker.call import here

Pictures = NDArray[np.uint8]


# --- Jobs that go well.


@pytest.mark.parametrize("variant", ["null-fp32", "null-fp16"])
@pytest.mark.parametrize("maps", [True, False])
def test_faces_in_pictures(null_detector: DetectorBundle, scenes: Pictures, variant: str, maps: bool) -> None:
    steps: list[tuple[int | None, int | None]] = []
    found = detected.detect(
        here,
        null_detector.folder,
        variant,
        1,
        scenes[::-1],
        maps,
        lambda event: steps.append((getattr(event, "done", None), getattr(event, "of", None))),
    )
    assert [len(faces) for faces in found.faces] == [0, 1, 2]
    np.testing.assert_allclose(found.faces[1].boxes, [[15.167, 4.5, 66.667, 100]], atol=1e-3)
    np.testing.assert_allclose(found.faces[2].scores, [0.875, 0.75], atol=1e-6)
    assert found.version == null.version()
    assert steps == [(None, None), (1, 3), (2, 3), (3, 3)]
    assert (found.maps is not None) == maps
    for ours, expected in zip(found.maps or (), null_detector.read_golden((192, 128))[1][::-1], strict=maps):
        np.testing.assert_array_equal(ours.boxes, expected.boxes)
        np.testing.assert_array_equal(ours.logits, expected.logits)


@pytest.mark.parametrize("maps", [True, False])
def test_pictures_without_any_face(null_detector: DetectorBundle, scenes: Pictures, maps: bool) -> None:
    found = detected.detect(here, null_detector.folder, "null-fp32", 1, scenes[2:], maps)
    (faces,) = found.faces
    assert (len(faces), faces.boxes.shape) == (0, (0, 4))


def test_a_job_without_pictures_takes_the_golden_ones(null_detector: DetectorBundle, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    here(protocol.Infer(str(null_detector.folder), "null-fp32", 1, str(out)))
    with np.load(out) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"count": (3,), "boxes": (3, 4), "scores": (3,)}
        assert arrays["count"].tolist() == [2, 1, 0]


def test_times(null_detector: DetectorBundle) -> None:
    events: list[Any] = []
    job = protocol.Time(str(null_detector.folder), "null-fp32", 1, 2, 0.0, 7)
    peak = here(job, events.append)
    assert [type(event).__name__ for event in events] == ["Loaded", "First", "Samples", "Samples"]
    for stage in protocol.STAGES:
        taken = [sample for event in events[2:] for sample in event.stages[stage]]
        assert len(taken) == 7
        assert min(taken) > 0
    assert (peak.peak_bytes or 0) > 10e6


def test_counts(null_detector: DetectorBundle) -> None:
    events: list[Any] = []
    answer = here(protocol.Count(str(null_detector.folder), "null-fp16", 2), events.append)
    assert answer.version == null.version()
    assert [type(event).__name__ for event in events] == ["Loaded"]


def test_the_faces_in_one_picture(null_detector: DetectorBundle, scenes: Pictures, tmp_path: Path) -> None:
    np.save(tmp_path / "picture.npy", scenes[0].repeat(2, axis=0).repeat(2, axis=1))
    paths = str(null_detector.folder), str(tmp_path / "picture.npy"), str(tmp_path / "out.npz")
    found = detected.places(here, protocol.Find(*paths, threads=999))
    assert found.version.startswith("two_levels null-fp32, null (numpy ")
    np.testing.assert_allclose(found.boxes[0], [30.333, 9, 133.333, 200], atol=2e-3)
    np.testing.assert_allclose(found.fit, [[17, 49, 160, 160], [209, 49, 160, 160]], atol=2e-3)
    np.testing.assert_allclose(found.scores, [0.875, 0.75], atol=1e-6)
    other = detected.places(here, protocol.Find(*paths, threads=1, variant="null-fp16", threshold=0.8))
    assert (len(other.scores), other.version[:20]) == (1, "two_levels null-fp16")
    assert len(detected.places(here, protocol.Find(*paths, threads=1, threshold=1.0)).scores) == 0


# --- Jobs that cannot be done.


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda a: a.astype(np.float32), r"float32 \(3, 128, 192, 3\)"),
        (lambda a: a[0], r"uint8 \(128, 192, 3\)"),
        (lambda a: a[:0], r"uint8 \(0, 128, 192, 3\)"),
        (lambda a: a[..., :2], r"uint8 \(3, 128, 192, 2\)"),
    ],
)
def test_wrong_pictures(
    null_detector: DetectorBundle, scenes: Pictures, tmp_path: Path, spoil: Callable[..., Any], found: str
) -> None:
    np.save(tmp_path / "pictures.npy", spoil(scenes))
    lines, paths = io.StringIO(), (str(tmp_path / "out.npz"), str(tmp_path / "pictures.npy"))
    job = protocol.Infer(str(null_detector.folder), "null-fp32", 1, *paths)
    assert serve.serve(lines, protocol.write_job(job)) == USER_ERROR
    event = json.loads(lines.getvalue())
    assert re.fullmatch(rf"pictures are {found}, this bundle takes uint8 \(n, H, W, 3\)", event["message"])
    assert not (tmp_path / "out.npz").exists()


def test_pictures_of_another_size(null_detector: DetectorBundle, scenes: Pictures) -> None:
    folder = null_detector.folder
    with pytest.raises(EdgeError, match="input size 192x32; sides of 64 to 4096 pixels are needed"):
        detected.detect(here, folder, "null-fp16", 1, scenes[:, :32])
    # The folder of null-fp16 is for all sizes, but its file knows one.
    with pytest.raises(EdgeError, match="the null runtime knows only the golden crops"):
        detected.detect(here, folder, "null-fp16", 1, scenes[:, :64])


@pytest.mark.parametrize(
    ("detector", "options", "message"),
    [
        ("{landmarks}", {}, "is a bundle of landmarks; a face detector's is needed, as `detector` makes it"),
        ("{detector}", {"variant": "mnn-fp32"}, "has no variant 'mnn-fp32', only null-fp32, null-fp16"),
        ("{detector}", {"threshold": 1.5}, "threshold 1.5; a number from 0 to 1 is needed"),
        ("{tmp}/gone", {}, "gone"),
        ("{tmp}/text.onnx", {}, "text.onnx is no YuNet that OpenCV can read"),
        ("{tmp}/text.onnx", {"variant": "null-fp32"}, "text.onnx has no variant 'null-fp32': it is a file, no bundle"),
    ],
)
def test_detectors_that_cannot_be_opened(
    null_detector: DetectorBundle,
    null_bundle: Bundle,
    scenes: Pictures,
    tmp_path: Path,
    detector: str,
    options: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "text.onnx").write_text("not ONNX")
    np.save(tmp_path / "picture.npy", scenes[0])
    path = detector.format(landmarks=null_bundle.folder, detector=null_detector.folder, tmp=tmp_path)
    job = protocol.Find(path, str(tmp_path / "picture.npy"), str(tmp_path / "out.npz"), 1, **options)
    with pytest.raises(EdgeError, match=re.escape(message)) as caught:
        detected.places(here, job)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# --- Workers that lie. On a board, nobody knows who answers.

SIZE = (64, 64)
GIVEN = {
    "count": np.array([1, 0, 2], np.int64),
    "boxes": np.ones((3, 4)),
    "scores": np.full(3, 0.75),
    "map_boxes": np.zeros((3, 5, 4), np.float32),
    "map_logits": np.zeros((3, 5, 2), np.float32),
}


def liar(arrays: dict[str, Any]) -> Callable[..., Any]:
    """A Call to a worker that gives these arrays."""

    def call(job: Any, listen: Any = None) -> protocol.Version:
        np.savez(job.out, **arrays)
        return protocol.Version("liar 1")

    return call


def asked(bundle: DetectorBundle, arrays: dict[str, Any], maps: bool = True) -> detected.Detection:
    return detected.detect(liar(arrays), bundle.folder, "null-fp32", 1, np.zeros((3, 64, 64, 3), np.uint8), maps)


def test_what_an_honest_worker_gives(null_detector: DetectorBundle) -> None:
    found = asked(null_detector, GIVEN)
    assert [len(faces) for faces in found.faces] == [1, 0, 2]
    assert len(found.maps or ()) == 3
    # What nobody asked for may be anything.
    assert asked(null_detector, {**GIVEN, "map_boxes": np.zeros(1)}, maps=False).maps is None
    none = {name: GIVEN[name] for name in ("map_boxes", "map_logits")} | {"count": np.zeros(3, np.int64)}
    assert [len(faces) for faces in asked(null_detector, none).faces] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", None, "it has no array 'count'"),
        ("count", np.array([1, 0, -1]), "count is not from 0 to 750"),
        ("count", np.array([MOST_FACES + 1, 0, 0]), "count is not from 0 to 750"),
        ("count", np.array([2**62, 2**62, 0]), "count is not from 0 to 750"),
        ("count", np.array([1, 0, 1]), "boxes"),
        ("count", np.array([1, 0, 3]), "boxes"),
        ("count", np.array([3]), "count"),
        ("count", np.array([1.0, 0.0, 2.0]), "count"),
        ("boxes", None, "it has no array 'boxes'"),
        ("boxes", np.ones((3, 5)), "boxes"),
        ("boxes", np.ones((3, 4), np.float32), "boxes"),
        ("boxes", np.full((3, 4), np.nan), "boxes holds NaN or infinity"),
        ("scores", np.ones((3, 1)), "scores"),
        ("scores", np.array([1, np.inf, 1]), "scores holds NaN or infinity"),
        ("map_boxes", None, "it has no array 'map_boxes'"),
        ("map_boxes", np.zeros((3, 6, 4), np.float32), "map_boxes"),
        ("map_boxes", np.zeros((2, 5, 4), np.float32), "map_boxes"),
        ("map_logits", np.zeros((3, 5, 2)), "map_logits"),
        ("map_logits", np.full((3, 5, 2), np.nan, np.float32), "map_logits holds NaN or infinity"),
    ],
)
def test_what_a_lying_worker_gives(null_detector: DetectorBundle, name: str, value: Any, message: str) -> None:
    arrays = {key: array for key, array in {**GIVEN, name: value}.items() if array is not None}
    with pytest.raises(EdgeError, match=f"what the worker gave.*{message}") as caught:
        asked(null_detector, arrays)
    assert "/" not in str(caught.value)


def test_an_answer_that_is_no_archive(null_detector: DetectorBundle, tmp_path: Path) -> None:
    def text(job: Any, listen: Any = None) -> protocol.Version:
        Path(job.out).write_text("no zip")
        return protocol.Version("liar 1")

    with pytest.raises(EdgeError, match="what the worker gave"):
        detected.detect(text, null_detector.folder, "null-fp32", 1, np.zeros((3, 64, 64, 3), np.uint8))
    with pytest.raises(EdgeError, match="what the worker gave"):
        detected.places(text, protocol.Find("d", "p", str(tmp_path / "out.npz"), 1))


FOUND = {"boxes": np.ones((2, 4)), "scores": np.full(2, 0.75), "fit": np.ones((2, 4))}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("boxes", value) for value in (None, np.ones((1, 4)), np.ones((2, 3)), np.ones((2, 4), np.float32))),
        *(("scores", value) for value in (None, np.ones((2, 1)), np.float64(1), np.array([0.5, np.nan]), np.ones(751))),
        *(("fit", value) for value in (None, np.ones((3, 4)), np.full((2, 4), np.inf))),
        ("more", np.ones(1)),
    ],
)
def test_places_that_a_lying_worker_gives(tmp_path: Path, name: str, value: Any) -> None:
    arrays = {key: array for key, array in {**FOUND, name: value}.items() if array is not None}
    with pytest.raises(EdgeError, match="what the worker gave holds") as caught:
        detected.places(liar(arrays), protocol.Find("d", "p", str(tmp_path / "out.npz"), 1))
    assert "/" not in str(caught.value)


@given(data=st.data())
@settings(max_examples=60)
def test_any_arrays_are_faces_or_an_error(
    null_detector: DetectorBundle, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    out = tmp_path_factory.mktemp("any") / "out.npz"
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    kinds = st.sampled_from([np.float64, np.float32, np.int64, np.uint8])
    number = st.sampled_from([0, 1, 2, -1, 200])
    names = st.lists(st.sampled_from([*GIVEN, *FOUND]), unique=True)
    arrays: dict[str, Any] = {
        name: np.full(data.draw(shapes), data.draw(number)).astype(data.draw(kinds)) for name in data.draw(names)
    }
    for work in (
        lambda: [len(faces.boxes) - len(faces.scores) for faces in asked(null_detector, arrays).faces],
        lambda: [len(detected.places(liar(arrays), protocol.Find("d", "p", str(out), 1)).fit) * 0],
    ):
        message = None
        try:
            assert not any(work())
        except EdgeError as e:
            message = str(e)
        assert message is None or message.startswith("what the worker gave")
