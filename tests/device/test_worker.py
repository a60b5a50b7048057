"""A real worker process on the null runtime: jobs that go well, cannot be done, or meet noise."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge import runtimes
from pipnet_edge.bundle import MANIFEST, Bundle
from pipnet_edge.decode import MAP_NAMES, Decoder
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.runtimes import null
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import opened, protocol, serve

# A runtime whose native code writes to stdout: on import, when it runs, and, buffered, at the end of the process.
NOISY = """
import ctypes, os
import numpy as np

libc = ctypes.CDLL(None)
__version__ = "0.0-noisy"
os.write(1, b"noise on import\\n")
print("more noise", flush=True)


class SessionOptions:
    pass


class InferenceSession:
    def __init__(self, path, options, providers):
        os.write(1, b'{"event": "done", "version": "forged"}\\n')

    def run(self, names, feed):
        libc.puts(b"noise that C buffers until the process ends")
        (image,) = feed.values()
        return [image[0, 0] + 2 * image[0, 1] + 0.5]
"""


@pytest.fixture
def crops(null_bundle: Bundle) -> NDArray[np.uint8]:
    return null_bundle.read_golden()[0]


# --- Jobs that go well.


def test_infer_gives_what_decode_gives(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    _, maps = null_bundle.read_golden()
    steps: list[tuple[int | None, int | None]] = []
    found = calls.infer(
        calls.here,
        null_bundle.folder,
        "null-fp16",
        1,
        crops[::-1],
        maps=True,
        listen=lambda event: steps.append((getattr(event, "done", None), getattr(event, "of", None))),
    )
    expected = Decoder(null_bundle.spec)(maps)
    np.testing.assert_array_equal(found.landmarks.points, expected.points[::-1])
    np.testing.assert_array_equal(found.landmarks.score, expected.score[::-1])
    np.testing.assert_array_equal(found.landmarks.cell, expected.cell[::-1])
    assert found.maps is not None
    for name in MAP_NAMES:
        np.testing.assert_array_equal(getattr(found.maps, name), getattr(maps, name)[::-1])
    assert found.version == null.version()
    assert steps == [(None, None), (1, 3), (2, 3), (3, 3)]  # the first says that it has loaded


def test_infer_gives_maps_only_when_asked(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    found = calls.infer(calls.here, null_bundle.folder, "null-fp32", 1, crops[:1])
    assert found.maps is None
    assert found.landmarks.points.shape == (1, 5, 2)


def test_relative_bundles(null_bundle: Bundle, crops: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(null_bundle.folder.parent)
    assert len(calls.infer(calls.here, Path("bundle"), "null-fp32", 1, crops).landmarks.points) == 3


def test_facts_are_the_machine_s() -> None:
    from pipnet_edge import host

    machine = calls.here(protocol.Facts())
    assert machine.facts == host.facts()
    assert "null" in machine.runtimes
    assert set(machine.runtimes) <= set(runtimes.RUNTIMES)


def time_job(bundle: Bundle, warmup: int = 2, **job: Any) -> protocol.Time:
    return protocol.Time(str(bundle.folder), "null-fp32", 1, warmup, **job)


def timed(bundle: Bundle, **job: Any) -> tuple[list[protocol.Event], protocol.Peak]:
    """A timing job's events and its end."""
    events: list[protocol.Event] = []
    return events, calls.here(time_job(bundle, **job), events.append)


def names(events: list[Any]) -> list[str]:
    return [type(event).__name__.lower() for event in events]


def ask(line: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """What a worker writes that is given a line, its stdin staying open."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-m", "pipnet_edge.worker"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        worker.stdin.write(line)
        worker.stdin.flush()
        stdout, stderr = worker.stdout.read(), worker.stderr.read()
        return subprocess.CompletedProcess(command, worker.wait(), stdout, stderr)


def stage(events: list[Any], name: str) -> list[float]:
    return [sample for event in events if isinstance(event, protocol.Samples) for sample in event.stages[name]]


def test_time_takes_as_many_samples_as_asked(null_bundle: Bundle) -> None:
    events, done = timed(null_bundle, seconds=0.0, count=7)
    assert names(events) == ["loaded", "first", "samples", "samples"]
    for name in protocol.STAGES:
        assert len(stage(events, name)) == 7
        assert min(stage(events, name)) > 0
    loaded, first, *_ = events
    assert isinstance(loaded, protocol.Loaded)
    assert isinstance(first, protocol.First)
    assert loaded.version == null.version()
    assert loaded.milliseconds is not None
    assert loaded.milliseconds > 0
    assert first.milliseconds > 0
    assert done.peak_bytes is not None
    assert done.peak_bytes > 10e6


def test_time_goes_on_for_as_long_as_asked_and_tells_meanwhile(null_bundle: Bundle) -> None:
    start = time.perf_counter()
    events, _ = timed(null_bundle, seconds=0.7, count=1)
    took = time.perf_counter() - start
    told = [event.at for event in events if isinstance(event, protocol.Samples)]
    assert took > 0.7
    assert told[0] == 0.0
    assert told == sorted(told)
    assert len(told) >= 4
    assert told[-1] >= 0.7
    # The samples are milliseconds of that very time.
    total = sum(sum(stage(events, name)) for name in protocol.STAGES)
    assert 300 < total < took * 1000


def test_frames_begin_with_a_larger_picture_from_which_the_crop_is_cut(crops: NDArray[np.uint8]) -> None:
    pictures, prepare = opened._around(crops, 1)
    assert prepare is not None
    for picture, crop in zip(pictures, crops, strict=True):
        assert picture.shape[0] == 2 * crop.shape[0]
        again = prepare(picture)
        assert again.shape == crop.shape
        assert np.abs(again.astype(int) - crop).mean() < null.TOLERANCE / 2


def test_frames_begin_with_the_crop_where_there_is_no_opencv(
    null_bundle: Bundle, without: Callable[..., dict[str, str]]
) -> None:
    job = time_job(null_bundle, warmup=1, seconds=0, count=3)
    done = ask(protocol.write_job(job), env=without("cv2"))
    assert done.returncode == 0
    events = [protocol.read_event(line, job) for line in done.stdout.splitlines()]
    assert stage(events, "preprocess") == []
    assert len(stage(events, "inference")) == len(stage(events, "decode")) == 3


def test_time_warms_up_and_takes_the_crops_in_turn(
    null_bundle: Bundle, crops: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    frames = list(crops)
    monkeypatch.setattr(opened, "_around", lambda *_: (frames, None))

    def counted(self: null.Session, crop: NDArray[np.uint8]) -> Any:
        seen.append([crop is frame for frame in frames].index(True))
        return run(self, crop)

    run = null.Session.run
    monkeypatch.setattr(null.Session, "run", counted)
    list(serve.timing(time_job(null_bundle, warmup=4, seconds=0, count=5)))
    assert seen == [0, 1, 2, 0, 0, 1, 2, 0, 1]


def test_time_keeps_to_the_cpus_given(null_bundle: Bundle) -> None:
    last = max(os.sched_getaffinity(0))
    events, _ = timed(null_bundle, seconds=0, count=1, cpus=[last])
    assert isinstance(events[1], protocol.First)
    assert events[1].cpus == (last,)
    refused("CPUs 4095 are not all here; allowed: ", lambda: timed(null_bundle, seconds=0, count=1, cpus=[4095]))


def test_the_protocol_is_one_json_object_a_line(null_bundle: Bundle, crops: NDArray[np.uint8], tmp_path: Path) -> None:
    np.save(tmp_path / "crops.npy", crops)
    paths = str(tmp_path / "out.npz"), str(tmp_path / "crops.npy")
    done = ask(protocol.write_job(protocol.Infer(str(null_bundle.folder), "null-fp32", 1, *paths)))
    assert done.returncode == 0
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["loaded", "progress", "progress", "progress", "done"]
    assert done.stderr == ""


# --- Jobs that cannot be done: the worker's own message comes back.


def refused(message: str, work: Callable[[], object]) -> EdgeError:
    with pytest.raises(EdgeError, match=message) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return caught.value


def test_unknown_jobs() -> None:
    @dataclass(frozen=True)
    class Format(protocol.Job[protocol.Version]):
        DO, ANSWER = "format", protocol.Version

    error = refused("no job 'format'; allowed: probe, facts, infer, find, time", lambda: calls.here(Format()))
    assert error.code == USER_ERROR
    assert serve.serve(io.StringIO(), "{}") == USER_ERROR


def test_missing_and_spoilt_bundles(bundle: Bundle, crops: NDArray[np.uint8], tmp_path: Path) -> None:
    refused("manifest.json", lambda: calls.infer(calls.here, tmp_path / "nowhere", "null-fp32", 1, crops))
    refused(
        "has no variant 'ncnn-fp32', only null-fp32",
        lambda: calls.infer(calls.here, bundle.folder, "ncnn-fp32", 1, crops),
    )
    (bundle.folder / "null-fp32" / "golden.npz").write_bytes(b"")
    refused("was changed after it was written", lambda: calls.infer(calls.here, bundle.folder, "null-fp32", 1, crops))
    (bundle.folder / MANIFEST).write_text("[]")
    refused(
        "is not a pipnet-edge-bundle manifest", lambda: calls.infer(calls.here, bundle.folder, "null-fp16", 1, crops)
    )


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda a: a.astype(np.float32), r"float32 \(3, 96, 96, 3\)"),
        (lambda a: a[:, :64], r"uint8 \(3, 64, 96, 3\)"),
        (lambda a: a[0], r"uint8 \(96, 96, 3\)"),
        (lambda a: np.moveaxis(a, 3, 1), r"uint8 \(3, 3, 96, 96\)"),
        (lambda a: a[:0], r"uint8 \(0, 96, 96, 3\)"),
        (lambda a: a[..., 0], r"uint8 \(3, 96, 96\)"),
    ],
)
def test_wrong_crops(
    null_bundle: Bundle, crops: NDArray[np.uint8], tmp_path: Path, spoil: Callable[..., Any], found: str
) -> None:
    np.save(tmp_path / "crops.npy", spoil(crops))
    lines, paths = io.StringIO(), (str(tmp_path / "out.npz"), str(tmp_path / "crops.npy"))
    job = protocol.Infer(str(null_bundle.folder), "null-fp32", 1, *paths)
    status = serve.serve(lines, protocol.write_job(job))
    event = json.loads(lines.getvalue())
    assert (event["event"], event["code"], status) == ("error", USER_ERROR, USER_ERROR)
    assert re.fullmatch(rf"crops are {found}, this bundle takes uint8 \(n, 96, 96, 3\)", event["message"])
    assert not (tmp_path / "out.npz").exists()


def test_refusals_cross_the_process(null_bundle: Bundle, crops: NDArray[np.uint8]) -> None:
    refused("crops are uint8", lambda: calls.infer(calls.here, null_bundle.folder, "null-fp32", 1, crops[:, :64]))
    refused(
        "this crop is none of them", lambda: calls.infer(calls.here, null_bundle.folder, "null-fp32", 1, 255 - crops)
    )


def test_nan_from_a_runtime_is_an_error(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "nan", maps={"offset_x": np.full((3, 5, 3, 3), np.nan, np.float32)})
    crops, _ = made.read_golden()
    refused("map 'offset_x' holds NaN or infinity", lambda: calls.infer(calls.here, made.folder, "null-fp32", 1, crops))


def test_unknown_runtimes() -> None:
    message = "no runtime 'tensorrt'; allowed: onnx, ncnn, mnn, tflite"
    refused(message, lambda: calls.here(protocol.Probe("tensorrt")))


def test_runtimes_that_are_not_installed(
    without: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in without("onnxruntime", "ncnn", "MNN", "ai_edge_litert", "tflite_runtime").items():
        monkeypatch.setenv(key, value)
    for runtime in ("onnx", "tflite"):
        package = runtimes.RUNTIMES[runtime].package
        job = protocol.Probe(runtime)
        refused(f"{runtime} needs the package {package}: pip install {package}", functools.partial(calls.here, job))


# --- What surrounds a worker does not reach it.


def test_noise_on_stdout_stays_out_of_the_protocol(packages: Callable[[str, str], None]) -> None:
    packages("onnxruntime", NOISY)
    assert calls.here(protocol.Probe("onnx")).version == "onnxruntime 0.0-noisy"


def test_noise_on_stdout_goes_to_stderr(packages: Callable[[str, str], None]) -> None:
    packages("onnxruntime", NOISY)
    done = ask(protocol.write_job(protocol.Probe("onnx")))
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"event": "done", "version": "onnxruntime 0.0-noisy"}
    for noise in ("noise on import", "more noise", "forged", "noise that C buffers"):
        assert noise in done.stderr


@pytest.mark.parametrize("name", ["json", "numpy", "pipnet_edge"])
def test_files_in_the_current_folder_are_not_imported(
    name: str, null_bundle: Bundle, crops: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    found = calls.infer(calls.here, null_bundle.folder, "null-fp32", 1, crops[:1])
    assert found.landmarks.points.shape == (1, 5, 2)
    assert not (tmp_path / "imported").exists()
