"""Commands that fail: an exit code for each kind of failure, one line an error, and interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from pipnet_edge import runtimes
from pipnet_edge.bundle import GOLDEN, Bundle, File
from pipnet_edge.cli.app import INTERRUPTED
from pipnet_edge.cli.command import command
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR, EdgeError
from pipnet_edge.output import Output

Run = Callable[..., subprocess.CompletedProcess[str]]
Failed = Callable[..., str]
Envelope = Callable[..., dict[str, Any]]
USAGE = 2
RUNTIME_PACKAGES = [module for name in runtimes.DESTINATIONS for module in runtimes.RUNTIMES[name].modules]
CONVERTER_PACKAGES = ("torch", "onnx", "onnxsim", "pnnx", "litert_torch", "ai_edge_quantizer")


@pytest.fixture(scope="module")
def drifting(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose variants put the own offsets of landmarks a fifth of a cell aside."""
    folder = tmp_path_factory.mktemp("drifting") / "bundle"
    _, maps = make_bundle(folder).read_golden()
    return make_bundle(folder.with_name("off"), maps={"offset_x": maps.offset_x + np.float32(0.2)})


# --- Exit code 3: a check failed.


def test_parity_that_fails(run: Run, failed: Failed, envelope: Envelope, drifting: Bundle) -> None:
    result = run("parity", drifting.folder, "--json")
    found = envelope(result, "parity")
    line = failed(result, CHECK_FAILED, "null-fp32: ")
    assert "(limit 0.01)" in line
    assert "(and 1 more)" in line
    assert [row["maps"]["offset_x"][0] > 0.19 for row in found["rows"]] == [True, True]
    assert all("limit" in row["failure"] and row["worst_map"] == "offset_x" for row in found["rows"])


def test_parity_of_a_variant_that_gives_nan_or_cannot_run(
    run: Run, failed: Failed, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    made = make_bundle(tmp_path / "nan", maps={"score": np.full((3, 5, 3, 3), np.nan, np.float32)})
    (made.folder / "null-fp16" / "golden.npz").unlink()
    result = run("parity", made.folder)
    failed(result, CHECK_FAILED, "null-fp32: map 'score' holds NaN or infinity (and 1 more)")
    assert result.stdout.count("FAIL") == 2


def test_parity_of_maps_as_far_apart_as_float32_allows(
    run: Run, failed: Failed, envelope: Envelope, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Their difference is infinite in float32, and JSON has no infinity."""
    score = np.zeros((3, 5, 3, 3), np.float32)
    score[..., 0, 0] = -np.finfo(np.float32).max
    made = make_bundle(tmp_path / "far", maps={"score": score})
    with np.load(made.folder / GOLDEN) as arrays:
        golden = {**arrays, "score": -score}
    np.savez(made.folder / GOLDEN, **golden)
    replace(made, golden=File.of(made.folder, made.folder / GOLDEN)).write_manifest()
    result = run("parity", made.folder, "--variant", "null-fp32", "--json")
    envelope(result, "parity")
    failed(result, CHECK_FAILED, "null-fp32: ")


def test_doctor_with_broken_runtimes(
    run: Run, failed: Failed, envelope: Envelope, without: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "ncnn.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')\n")
    (tmp_path / "MNN.py").write_text("import os\nos.abort()\n")
    environment = without("onnxruntime", "ai_edge_litert", "tflite_runtime")
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    result = run("doctor", "--json", env=environment)
    found = envelope(result, "doctor")["runtimes"]
    assert {name: r["result"] for name, r in found.items()} == {
        "onnx": "absent",
        "ncnn": "FAIL",
        "mnn": "FAIL",
        "tflite": "absent",
    }
    assert found["ncnn"]["detail"].startswith("ncnn is installed but cannot be imported: ImportError: libgomp.so.1: ")
    assert found["tflite"]["detail"] == "tflite needs the package ai-edge-litert: pip install ai-edge-litert"
    assert "crashed with SIGABRT" in found["mnn"]["detail"]
    failed(result, CHECK_FAILED, "ncnn, mnn")


# --- Exit code 1: the user's to mend.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "{tmp}"), "manifest.json"),
        (("parity",), "manifest.json"),
        (("parity", "{bundle}", "--variant", "ncnn-int8"), "no variant 'ncnn-int8', only null-fp32, null-fp16"),
        (("parity", "{bundle}", "--images", "{tmp}"), "holds no pictures"),
        (("run", "{bundle}", "missing.jpg"), "there is no image missing.jpg"),
        (("run", "{image}"), "manifest.json"),
        (("run", "{bundle}", "{image}", "--box", "1,2,3"), "--box 1,2,3; 4 numbers separated by commas are needed"),
        (("run", "{bundle}", "{image}", "--box", "a,b,c,d"), "4 numbers separated by commas are needed"),
        (("run", "{bundle}", "{image}", "--box", "9,9,nan,9"), "--box 9,9,nan,9; four numbers in pixels"),
        (("run", "{bundle}", "{image}", "--box", "900,9,9,9"), "lies outside the picture of 96x96 pixels"),
        (("run", "{bundle}", "{image}", "--crop", "tight"), "--crop tight; allowed: test, demo"),
        (("run", "{bundle}", "{image}", "--whole", "--variant", "x"), "no variant 'x'"),
        (("run", "{bundle}", "{image}", "--whole", "-o", "out.xyz"), "use .png or .jpg"),
        (("run", "{bundle}", "{image}", "--whole", "-o", "no/such/out.png"), "cannot write"),
        (("run", "{bundle}", "{image}", "-o", "."), "cannot write a picture as .; use .png or .jpg"),
        (("run", "{bundle}", "{image}", "-o", ""), "use .png or .jpg"),
        (("drift", "{bundle}", "--images", "{folder}", "-o", "{image}"), "Not a directory"),
        (("run", "a", "b", "c"), "3 paths; give [BUNDLE] IMAGE"),
    ],
)
def test_user_errors(
    here: Run,
    failed: Failed,
    envelope: Envelope,
    null_bundle: Bundle,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"bundle": null_bundle.folder, "image": image, "folder": image.parent, "tmp": tmp_path}
    result = here(*(a.format(**places) for a in arguments), "--json")
    failed(result, USER_ERROR, message)
    assert envelope(result, arguments[0]) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "tensorrt"), "--to tensorrt; allowed: mnn, ncnn, onnx, tflite"),
        (("--precision", "fp8"), "--precision fp8; allowed:"),
        (("--to", ","), "--to names nothing"),
    ],
)
def test_wrong_options_of_convert(
    run: Run,
    failed: Failed,
    envelope: Envelope,
    tmp_path: Path,
    without: Callable[..., dict[str, str]],
    arguments: Sequence[str],
    message: str,
) -> None:
    """Nobody has to install a converter, or to wait for torch, to be told that an option is wrong."""
    result = run("convert", "x.pth", *arguments, "--json", cwd=tmp_path, env=without(*CONVERTER_PACKAGES))
    failed(result, USER_ERROR, message)
    assert envelope(result, "convert") == {}
    assert list(tmp_path.iterdir()) == []


def test_errors_without_json_leave_stdout_empty(run: Run, failed: Failed, null_bundle: Bundle) -> None:
    result = run("run", null_bundle.folder, "missing.jpg")
    assert failed(result, USER_ERROR, "") == "pipnet-edge run: there is no image missing.jpg"
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [("demo",), ("convert", "net.pth", "--data", "300w"), ("inspect", "net.pth")])
def test_the_workstation_half_is_missing(
    run: Run,
    failed: Failed,
    envelope: Envelope,
    tmp_path: Path,
    without: Callable[..., dict[str, str]],
    arguments: Sequence[str],
) -> None:
    """A Raspberry Pi has no torch: that is a thing to be told in one line."""
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04")
    result = run(*arguments, "--json", cwd=tmp_path, env=without(*CONVERTER_PACKAGES))
    failed(result, USER_ERROR, "torch")
    assert envelope(result, arguments[0]) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_run_without_the_bundle_s_runtimes(
    run: Run,
    failed: Failed,
    make_bundle: Callable[..., Bundle],
    tmp_path: Path,
    image: Path,
    without: Callable[..., dict[str, str]],
) -> None:
    made = make_bundle(tmp_path / "b")
    text = (made.folder / "manifest.json").read_text()
    for before, after in (('"null-fp32"', '"onnx-fp32"'), ('"null-fp16"', '"ncnn-fp16"')):
        text = text.replace(before, after).replace('"runtime": "null"', f'"runtime": {after[:5]}"', 1)
    (made.folder / "manifest.json").write_text(text)
    result = run("run", made.folder, image, "--whole", "-o", tmp_path / "x.png", env=without(*RUNTIME_PACKAGES))
    failed(result, USER_ERROR, "none of this bundle's runtimes is installed: pip install one of ncnn, onnxruntime")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("source",), {}),
        (("source", "parameters"), float("nan")),
        (("source", "parameters"), "many"),
        (("source", "onnx_nodes"), 3),
        (("variants",), []),
        (("variants", 0, "parity"), ["px_mean"]),
        (("variants", 0, "parity"), {"px_mean": "small"}),
        (("spec", "backbone"), "\ud800"),
    ],
    ids=str,
)
def test_odd_manifests_never_give_a_traceback(
    here: Run, bundle: Bundle, edit_manifest: Callable[..., None], path: tuple[str, ...], value: object
) -> None:
    edit_manifest(bundle.folder, path, value)
    inspected = (here("inspect", bundle.folder), here("inspect", bundle.folder, "--json"))
    assert all(result.returncode in (0, USER_ERROR) for result in inspected)


def test_parity_of_a_bundle_without_variants(here: Run, bundle: Bundle, edit_manifest: Callable[..., None]) -> None:
    edit_manifest(bundle.folder, ("variants",), [])
    assert here("parity", bundle.folder).returncode == USER_ERROR


def test_an_error_is_one_line_whatever_the_name(run: Run, failed: Failed, tmp_path: Path, null_bundle: Bundle) -> None:
    failed(run("run", null_bundle.folder, "two\nlines.png", cwd=tmp_path), USER_ERROR, "there is no image")


# --- Exit code 2: usage.


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("inspect",),
        ("inspect", "a", "b"),
        ("run",),
        ("parity", "--nonsense"),
        ("parity", "--threads", "many"),
        ("parity", "--threads", "-1"),
        ("convert", "x.pth", "--input-size", "big"),
        ("doctor", "extra"),
    ],
)
def test_usage_errors(here: Run, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--json",)):
        result = here(*arguments, *more)
        assert result.returncode == USAGE
        assert result.stdout == ""
        assert "Usage: pipnet-edge" in result.stderr


def test_a_usage_error_of_the_real_process(run: Run, tmp_path: Path) -> None:
    result = run("parity", "--threads", "many", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (USAGE, "")
    assert "Traceback" not in result.stderr


# --- Interruption.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_so_and_ends_its_worker(
    failed: Failed, envelope: Envelope, without: Callable[..., dict[str, str]], tmp_path: Path, number: signal.Signals
) -> None:
    started = tmp_path / "pid"
    (tmp_path / "ncnn.py").write_text(
        f"import os, pathlib, time\np = pathlib.Path({str(started)!r})\n"
        "p.with_suffix('.part').write_text(str(os.getpid()))\np.with_suffix('.part').rename(p)\ntime.sleep(60)\n"
    )
    environment = without("onnxruntime", "MNN", "ai_edge_litert", "tflite_runtime")
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "doctor", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            deadline = time.monotonic() + 30
            while not started.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=20)
        finally:
            process.kill()
    result = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    failed(result, INTERRUPTED, "interrupted")
    assert envelope(result, "doctor") == {}
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


@pytest.mark.parametrize("kind", [ImportError, EdgeError])
def test_an_interruption_that_became_another_error(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    """As ONNX Runtime's does while it is imported."""

    @command
    def work() -> Output:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as e:
            raise kind("initialization failed") from e

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended:
        work(json=False)
    signal.signal(signal.SIGTERM, before)
    assert ended.value.exit_code == INTERRUPTED
    assert capsys.readouterr().err == "pipnet-edge work: interrupted; nothing half-written was left\n"


def test_a_folder_where_the_json_belongs_is_named_before_anything_is_written(
    here: Run, failed: Failed, null_bundle: Bundle, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.json").mkdir()
    result = here("run", null_bundle.folder, image, "-o", tmp_path / "out.png")
    failed(result, USER_ERROR, "out.json: it is a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
