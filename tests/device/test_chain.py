"""The chain of `bench --chain`: its stages in their order, its clock, what the worker gives back, and its numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge.benchmarks import chain_tables
from pipnet_edge.benchmarks.accuracy.tracking import Quality
from pipnet_edge.benchmarks.pictures import clip
from pipnet_edge.benchmarks.speed import chain as chains
from pipnet_edge.benchmarks.speed.chain import Chained, ChainResult
from pipnet_edge.benchmarks.speed.result import Settings, State
from pipnet_edge.bundle import Bundle, File, Variant
from pipnet_edge.decode import Landmarks
from pipnet_edge.detect.boxes import Found
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec
from pipnet_edge.targets.emulated.count import CHAIN_FRAMES, _read_chain
from pipnet_edge.targets.emulated.instructions import Count
from pipnet_edge.video.source import Frame
from pipnet_edge.worker import chain, limits, protocol
from pipnet_edge.worker.chain import CROP, DETECT, DRAW, END, LANDMARKS, SMOOTH, SOURCE
from pipnet_edge.worker.protocol import CHAIN

FACE = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)), (0, 1))
SPEC = ModelSpec("resnet18", 5, 2, 32, 96, FACE, presence=0.4)


# So that the next crop is the same.
POINTS = ((np.array(FACE.points) - (0.5, 0.5625)) / (0.625 * 1.2) + 0.5).astype(np.float32)


class Face:
    """In place of a Landmarker: the same face in every crop, with this score."""

    spec, score = SPEC, 0.9

    def crop(self, pixels: np.ndarray) -> Landmarks:
        assert pixels.shape == (96, 96, 3)
        return Landmarks(POINTS, np.full(5, self.score, np.float32), np.zeros(5, np.int64))


def shown(count: int) -> Iterator[Frame]:
    return (Frame(np.zeros((240, 320, 3), np.uint8), index / 30, index) for index in range(count))


def find(_: object) -> list[Found]:
    return [Found((100, 60, 80, 100), 0.9)]


# --- The worker's half.


def test_a_frame_goes_through_all_stages() -> None:
    begun: list[int] = []
    track = chain.tracker(find, Face(), begun.append)  # type: ignore[arg-type]
    frames = list(chain.play(shown(3), track, begun.append))
    assert [[face.id for face in frame.faces] for frame in frames] == [[1]] * 3
    assert [frame.detected for frame in frames] == [True, False, False]
    followed = [SOURCE, SMOOTH, CROP, LANDMARKS, SMOOTH, DRAW, END]
    first = [SOURCE, SMOOTH, DETECT, SMOOTH, CROP, LANDMARKS, SMOOTH, DRAW, END]
    assert begun == [*first, *followed, *followed, SOURCE]  # the last time there is no frame


def test_a_reading_that_is_doubted_is_taken_twice() -> None:
    begun: list[int] = []
    face = Face()
    face.score = 0.5
    track = chain.tracker(find, face, begun.append)  # type: ignore[arg-type]
    list(chain.play(shown(2), track, begun.append))
    assert begun.count(LANDMARKS) == begun.count(CROP) == 4


def test_the_clock_has_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    monkeypatch.setattr(time, "perf_counter", clock)
    watch = chain.Stopwatch()
    for _ in range(2):
        for stage in (SOURCE, SMOOTH, CROP, LANDMARKS, SMOOTH, DRAW, END):
            watch.begin(stage)
        # Between END and the next SOURCE nothing is counted; SMOOTH is there twice.
        assert watch.take() == pytest.approx((1, 0, 1, 1, 2, 1))


def test_a_network_without_a_presence_threshold_is_refused() -> None:
    face = Face()
    face.spec = ModelSpec("resnet18", 5, 2, 32, 96, FACE)
    with pytest.raises(EdgeError, match="the bundle has no presence threshold"):
        chain.tracker(find, face, lambda _: None)  # type: ignore[arg-type]


def test_what_was_found_is_read_as_it_was_written(tmp_path: Path) -> None:
    track = chain.tracker(find, Face(), lambda _: None)  # type: ignore[arg-type]
    frames = list(chain.play(shown(clip.COUNT), track, lambda _: None))
    chain._write(tmp_path / "out.npz", frames, 5, track.rules.faces)
    # As if the face of the clip were there all the time.
    truth = clip.truth(np.zeros((2, 5, 2)))
    truth.points[:] = frames[-1].faces[0].points
    truth.inside[:] = True
    found = chains._quality(tmp_path / "out.npz", SPEC, truth)
    assert (found.lost, found.extra, found.ids, found.appearances) == (0, 0, 1, 2)
    assert found.nme == pytest.approx(0, abs=1)


def test_another_file_is_refused(tmp_path: Path) -> None:
    truth, path = clip.truth(np.zeros((2, 5, 2))), tmp_path / "out.npz"
    ids, points = np.ones((clip.COUNT, 4), np.int64), np.zeros((clip.COUNT, 4, 5, 2), np.float32)
    score = np.ones((clip.COUNT, 4), np.float32)
    np.savez(path, id=ids[1:], points=points, score=score)
    with pytest.raises(EdgeError, match="id has shape"):
        chains._quality(path, SPEC, truth)
    points[3, 1] = np.nan
    np.savez(path, id=ids, points=points, score=score)
    with pytest.raises(EdgeError, match="points hold NaN"):
        chains._quality(path, SPEC, truth)


def test_a_worker_has_time_for_slow_boards() -> None:
    job = protocol.Chain("b", "v", "d", "v", 1, "clip", 189, "out", 8, 2.0, 50)
    assert limits.of(job).seconds > 2 * 2 + 8 * 189
    counting = protocol.CountChain("b", "v", "d", "v", "clip", 3)
    assert limits.of(counting, 10).seconds >= 10 * limits.of(counting).seconds - 1


# --- Instructions.


def test_marks_become_stages_of_frames() -> None:
    """A mark's number, then three counters; a frame takes 1000 instructions in each stage, and 50 are between two."""
    lines, total = [], 0

    def frame(stages: list[int]) -> None:
        nonlocal total
        for stage in stages:
            lines.append(f"{stage} {total} 0 0")
            total += 1000 if stage != END else 50

    first = [SOURCE, SMOOTH, DETECT, SMOOTH, CROP, LANDMARKS, SMOOTH, DRAW, END]
    for _ in range(2):
        frame(first)
        for _ in range(CHAIN_FRAMES - 1):
            frame([SOURCE, SMOOTH, CROP, LANDMARKS, SMOOTH, DRAW, END])
        frame([SOURCE])
    detecting, *tracked = _read_chain("\n".join(lines))
    assert detecting["detect"] == Count(1000, 0, 0)
    assert detecting["smooth"].total == 3000
    assert [{name: count.total for name, count in each.items()} for each in tracked] == [
        {"source": 1000, "detect": 0, "crop": 1000, "landmarks": 1000, "smooth": 2000, "draw": 1000}
    ] * (CHAIN_FRAMES - 1)


# --- The command's half.


@pytest.fixture
def run() -> Callable[..., Chained]:
    """run(**other fields): ten frames, of which the first is detected in and the last has no face."""

    def make(**changed: Any) -> Chained:
        samples = {name: [1.0] * 10 for name in CHAIN} | {"detect": [7.0] + [0.0] * 9}
        for name in ("crop", "landmarks"):
            samples[name][9] = 0.0
        fields: dict[str, Any] = {
            **{"target": "local", "variant": "tflite-fp32", "detector": "tflite-fp32", "arithmetic": "fp32"},
            **{
                "threads": 1,
                "runtime": "t 1",
                "cpus": (0,),
                "load_ms": 1.0,
                "first_ms": 9.0,
                "peak_bytes": 1,
                "fps": 300.0,
            },
            "samples": {name: tuple(values) for name, values in samples.items()},
            "states": (State(0.0, (), None, None, 0.1),),
            "quality": Quality(159, 0, 0, 3, 3, 2.0, 0.1),
            "failure": None,
        }
        return Chained(**(fields | changed))

    return make


def result(*runs: Chained) -> ChainResult:
    return ChainResult(1, "0", "2026", "net", "0", "1", {"truth": "labels"}, Settings(), {"local": {}}, runs, ())


def test_statistics(run: Callable[..., Chained]) -> None:
    found = chains.statistics(run())
    assert (found["tracked"], found["detecting"]) == (5, 12)
    assert found["mean"] == pytest.approx((12 + 8 * 5 + 3) / 10)
    assert found["detections"] == pytest.approx(0.1)
    assert found["stages"] == dict.fromkeys(CHAIN, 1.0) | {"detect": 7.0}
    assert chains.statistics(run(failure="it broke")) == {}


def test_a_tracker_that_loses_faces_is_marked_and_fails(run: Callable[..., Chained]) -> None:
    good, bad, confused = (
        run(quality=Quality(159, lost, 0, ids, 3, 2.0, 0.1)) for lost, ids in ((0, 3), (9, 3), (0, 5))
    )
    found = result(good, bad, confused)
    assert chains.failures(found) == [
        "tflite-fp32 on local loses the face in 9 of 159 frames",
        "tflite-fp32 on local gives 5 ids to 3 appearances",
    ]
    table: Any = chain_tables.tables(found)[0]
    assert [row[-1] for row in table.rows] == ["measured", "LOSES FACES", "CONFUSES FACES"]
    assert [row[table.columns.index(">lost")] for row in table.rows] == ["0/159", "9/159", "0/159"]


def test_a_run_that_failed_has_a_row(run: Callable[..., Chained]) -> None:
    found = result(run(failure="crashed with SIGSEGV", quality=None))
    assert chains.failures(found) == ["tflite-fp32: crashed with SIGSEGV"]
    table: Any = chain_tables.tables(found)[0]
    assert table.rows[0][-1] == "FAIL: crashed with SIGSEGV"
    assert len(table.rows[0]) == len(table.columns)


def test_other_work_is_said(run: Callable[..., Chained]) -> None:
    busy = run(states=(State(0.0, (), None, None, 5.0),))
    assert any("end other work" in warning for warning in busy.warnings({"cores": "2"}))
    assert run().warnings({"cores": "2"}) == ()


def test_the_detector_s_variant_is_of_the_same_runtime(null_bundle: Bundle) -> None:
    def variant(name: str) -> Variant:
        return Variant(name, *name.split("-"), (File(f"{name}/model", "0" * 64, 1),))  # type: ignore[arg-type]

    names = ("onnx-fp32", "onnx-int8", "ncnn-fp16")
    detector: Any = type("D", (), {"variants": tuple(map(variant, names)), "folder": Path("detector")})()
    assert chains.partner(detector, variant("onnx-int8")).name == "onnx-int8"
    assert chains.partner(detector, variant("onnx-fp16")).name == "onnx-fp32"
    assert chains.partner(detector, variant("ncnn-int8")).name == "ncnn-fp16"
    with pytest.raises(EdgeError, match="detector has no variant for null"):
        chains.partner(detector, null_bundle.variants[0])
