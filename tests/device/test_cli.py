"""The command line as a user meets it: exit codes, one JSON envelope, one line an error, help everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer.main
import typer.testing
from numpy.typing import NDArray

from pipnet_edge import host, runtimes
from pipnet_edge.benchmarks.speed import result as results
from pipnet_edge.bundle import GOLDEN, Bundle, File
from pipnet_edge.cli.app import INTERRUPTED, app
from pipnet_edge.decode import Decoder
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR
from pipnet_edge.targets import devices

USAGE = 2
RUNTIME_PACKAGES = [module for name in runtimes.DESTINATIONS for module in runtimes.RUNTIMES[name].modules]
CONVERTER_PACKAGES = ("torch", "onnx", "onnxsim", "pnnx", "litert_torch", "ai_edge_quantizer")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

Result = subprocess.CompletedProcess[str]


def run(*arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


def here(*arguments: str | Path) -> Result:
    """The same in this process, for what needs no process of its own. Any exception but SystemExit is raised."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        found = typer.testing.CliRunner().invoke(
            app, list(map(str, arguments)), prog_name="pipnet-edge", catch_exceptions=False
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
    return subprocess.CompletedProcess(arguments, found.exit_code, found.stdout, found.stderr)


def failed(result: Result, code: int, message: str) -> str:
    """Checks that a command failed as commands do, and returns its one line."""
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]  # [1/2] is progress
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("pipnet-edge ")
    assert message in lines[0]
    return lines[0]


def envelope(result: Result, command: str) -> dict[str, Any]:
    """Checks the contract of --json and returns the result."""
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stdout.endswith("}\n")
    assert len(result.stdout.splitlines()) == 1

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    data = json.loads(result.stdout, parse_constant=refuse)
    assert data["schema"] == "pipnet-edge/1"
    assert data["command"] == command
    assert data["ok"] is (result.returncode == 0)
    assert isinstance(data["result"], dict)
    if data["ok"]:
        assert set(data) == {"schema", "command", "ok", "result"}
    else:
        assert set(data) == {"schema", "command", "ok", "result", "error"}
        assert set(data["error"]) == {"message", "code"}
        assert data["error"]["code"] == result.returncode
        assert data["error"]["message"] in failed(result, result.returncode, "")
    found: dict[str, Any] = data["result"]
    return found


@pytest.fixture(scope="module")
def drifting(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose variants put the own offsets of landmarks a fifth of a cell aside."""
    folder = tmp_path_factory.mktemp("drifting") / "bundle"
    _, maps = make_bundle(folder).read_golden()
    return make_bundle(folder.with_name("off"), maps={"offset_x": maps.offset_x + np.float32(0.2)})


@pytest.fixture(scope="module")
def image(null_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that is the first golden crop."""
    path = tmp_path_factory.mktemp("image") / "face.png"
    cv2.imwrite(str(path), null_bundle.read_golden()[0][0][:, :, ::-1])
    return path


# --- Commands that go well.


def test_inspect(null_bundle: Bundle) -> None:
    result = run("inspect", null_bundle.folder)
    assert (result.returncode, result.stderr) == (0, "")
    for text in ("resnet18", "5 (five), 2 neighbours each", "96 x 96 px, net stride 32", "1.23 M", "null-fp16"):
        assert text in result.stdout
    found = envelope(run("inspect", null_bundle.folder, "--json"), "inspect")
    assert found == json.loads(json.dumps(null_bundle.to_json()))


def test_parity(null_bundle: Bundle) -> None:
    result = run("parity", cwd=null_bundle.folder.parent)  # ./bundle
    assert result.returncode == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()[2:4]] == [["null-fp32", "ok"], ["null-fp16", "ok"]]
    assert "against torch" in result.stdout
    assert [line for line in result.stderr.splitlines() if "Error" in line or "Traceback" in line] == []
    found = envelope(run("parity", null_bundle.folder, "--variant", "null-fp16", "--json"), "parity")
    (row,) = found["rows"]
    assert row["variant"] == "null-fp16"
    assert (row["flips"], row["px_mean"], row["px_max"], row["images"]) == (0, 0.0, 0.0, 3)
    assert "failure" not in row


def test_run(null_bundle: Bundle, image: Path, tmp_path: Path) -> None:
    arguments = ("run", null_bundle.folder, image, "--variant", "null-fp32", "-o", tmp_path / "out.png")
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 face, 5 landmarks each, by null-fp32" in result.stdout
    found = envelope(run(*arguments, "--json"), "run")
    expected = Decoder(null_bundle.spec)(null_bundle.read_golden()[1])
    (face,) = found["faces"]
    np.testing.assert_allclose(face["points"], expected.points[0] * 96, atol=0.006)
    np.testing.assert_allclose(face["scores"], expected.score[0], atol=1e-4)
    assert found["landmarks"] == 5
    assert cv2.imread(str(tmp_path / "out.png")) is not None
    assert json.loads((tmp_path / "out.json").read_text()) == found


def test_run_in_the_default_places(null_bundle: Bundle, image: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(null_bundle.folder)
    assert run("run", image, cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "face-landmarks.json", "face-landmarks.png"]


def test_run_with_boxes(null_bundle: Bundle, tmp_path: Path) -> None:
    crops = null_bundle.read_golden()[0]
    picture: NDArray[np.uint8] = np.zeros((400, 300, 3), dtype=np.uint8)
    picture[100:196, 40:136], picture[200:296, 150:246] = crops[0], crops[2]
    cv2.imwrite(str(tmp_path / "two.png"), picture[:, :, ::-1])
    boxes = ("--box", "48,108,80,80", "--box", "158,208,80,80", "--crop", "test")
    result = run("run", null_bundle.folder, "two.png", *boxes, "--json", cwd=tmp_path)
    found = envelope(result, "run")
    assert [face["rect"] for face in found["faces"]] == [[40, 100, 136, 196], [150, 200, 246, 296]]
    expected = Decoder(null_bundle.spec)(null_bundle.read_golden()[1]).points[[0, 2]] * 96 + [[[40, 100]], [[150, 200]]]
    np.testing.assert_allclose([face["points"] for face in found["faces"]], expected, atol=0.006)


def test_doctor_without_runtimes(without: Callable[..., dict[str, str]]) -> None:
    result = run("doctor", "--json", env=without(*RUNTIME_PACKAGES))
    found = envelope(result, "doctor")
    assert {name: r["result"] for name, r in found["runtimes"].items()} == dict.fromkeys(
        runtimes.DESTINATIONS, "absent"
    )
    assert found["machine"]["machine"]


def test_doctor_on_this_machine() -> None:
    found = envelope(run("doctor", "--json"), "doctor")["runtimes"]
    for name, result in found.items():
        assert result["result"] == ("absent" if runtimes.is_missing(name) else "PASS"), result["detail"]


# --- Exit code 3: a check failed.


def test_parity_that_fails(drifting: Bundle) -> None:
    result = run("parity", drifting.folder, "--json")
    found = envelope(result, "parity")
    line = failed(result, CHECK_FAILED, "null-fp32: ")
    assert "(limit 0.01)" in line
    assert "(and 1 more)" in line
    assert [row["maps"]["offset_x"][0] > 0.19 for row in found["rows"]] == [True, True]
    assert all("limit" in row["failure"] and row["worst_map"] == "offset_x" for row in found["rows"])


def test_parity_of_a_variant_that_gives_nan_or_cannot_run(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "nan", maps={"score": np.full((3, 5, 3, 3), np.nan, np.float32)})
    (made.folder / "null-fp16" / "golden.npz").unlink()
    result = run("parity", made.folder)
    failed(result, CHECK_FAILED, "null-fp32: map 'score' holds NaN or infinity (and 1 more)")
    assert result.stdout.count("FAIL") == 2


def test_parity_of_maps_as_far_apart_as_float32_allows(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
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


def test_doctor_with_broken_runtimes(without: Callable[..., dict[str, str]], tmp_path: Path) -> None:
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
    assert "libgomp.so.1" in found["ncnn"]["detail"]
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
        (("run", "{bundle}", "{image}", "--box", "9,9,nan,9"), "is empty"),
        (("run", "{bundle}", "{image}", "--box", "900,9,9,9"), "lies outside the picture of 96x96 pixels"),
        (("run", "{bundle}", "{image}", "--crop", "tight"), "crop policy 'tight'; allowed: test, demo"),
        (("run", "{bundle}", "{image}", "--variant", "x"), "no variant 'x'"),
        (("run", "{bundle}", "{image}", "-o", "out.xyz"), "use .png or .jpg"),
        (("run", "{bundle}", "{image}", "-o", "no/such/out.png"), "cannot write"),
        (("run", "a", "b", "c"), "3 paths; give [BUNDLE] IMAGE"),
    ],
)
def test_user_errors(
    null_bundle: Bundle,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = here(*(a.format(bundle=null_bundle.folder, image=image, tmp=tmp_path) for a in arguments), "--json")
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
    tmp_path: Path, without: Callable[..., dict[str, str]], arguments: Sequence[str], message: str
) -> None:
    """Nobody has to install a converter, or to wait for torch, to be told that an option is wrong."""
    result = run("convert", "x.pth", *arguments, "--json", cwd=tmp_path, env=without(*CONVERTER_PACKAGES))
    failed(result, USER_ERROR, message)
    assert envelope(result, "convert") == {}
    assert list(tmp_path.iterdir()) == []


def test_errors_without_json_leave_stdout_empty(null_bundle: Bundle) -> None:
    result = run("run", null_bundle.folder, "missing.jpg")
    assert failed(result, USER_ERROR, "") == "pipnet-edge run: there is no image missing.jpg"
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [("demo",), ("convert", "net.pth", "--data", "300w"), ("inspect", "net.pth")])
def test_the_workstation_half_is_missing(
    tmp_path: Path, without: Callable[..., dict[str, str]], arguments: Sequence[str]
) -> None:
    """A Raspberry Pi has no torch: that is a thing to be told in one line."""
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04")
    result = run(*arguments, "--json", cwd=tmp_path, env=without(*CONVERTER_PACKAGES))
    failed(result, USER_ERROR, "torch")
    assert envelope(result, arguments[0]) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_run_without_the_bundle_s_runtimes(
    make_bundle: Callable[..., Bundle], tmp_path: Path, image: Path, without: Callable[..., dict[str, str]]
) -> None:
    made = make_bundle(tmp_path / "b")
    text = (made.folder / "manifest.json").read_text()
    for before, after in (('"null-fp32"', '"onnx-fp32"'), ('"null-fp16"', '"ncnn-fp16"')):
        text = text.replace(before, after).replace('"runtime": "null"', f'"runtime": {after[:5]}"', 1)
    (made.folder / "manifest.json").write_text(text)
    result = run("run", made.folder, image, "-o", tmp_path / "x.png", env=without(*RUNTIME_PACKAGES))
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
    bundle: Bundle, edit_manifest: Callable[..., None], path: tuple[str, ...], value: object
) -> None:
    edit_manifest(bundle.folder, path, value)
    inspected = (here("inspect", bundle.folder), here("inspect", bundle.folder, "--json"))
    assert all(result.returncode in (0, USER_ERROR) for result in inspected)


def test_parity_of_a_bundle_without_variants(bundle: Bundle, edit_manifest: Callable[..., None]) -> None:
    edit_manifest(bundle.folder, ("variants",), [])
    assert here("parity", bundle.folder).returncode == USER_ERROR


def test_an_error_is_one_line_whatever_the_name(tmp_path: Path, null_bundle: Bundle) -> None:
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
def test_usage_errors(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--json",)):
        result = here(*arguments, *more)
        assert result.returncode == USAGE
        assert result.stdout == ""
        assert "Usage: pipnet-edge" in result.stderr


def test_a_usage_error_of_the_real_process(tmp_path: Path) -> None:
    result = run("parity", "--threads", "many", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (USAGE, "")
    assert "Traceback" not in result.stderr


# --- Interruption.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_so_and_ends_its_worker(
    without: Callable[..., dict[str, str]], tmp_path: Path, number: signal.Signals
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


# --- Help.


def test_the_commands() -> None:
    assert {"demo", "inspect", "convert", "run", "parity", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert command.help.strip()[0].isupper()
    assert command.help.strip().endswith(".")
    without_help = [p.name for p in command.params if p.name != "help" and not getattr(p, "help", None)]
    assert without_help == []
    assert "--json" in {flag for p in command.params for flag in p.opts}


HELP = """
import json, sys
from pipnet_edge.cli.app import INTERRUPTED, app
shown = {}
for command in sys.argv[1:]:
    sys.stdout = out = __import__("io").StringIO()
    try:
        app([*command.split(), "--help"], prog_name="pipnet-edge")
    except SystemExit as e:
        status = e.code
    sys.stdout = sys.__stdout__
    shown[command] = [status, out.getvalue()]
print(json.dumps([shown, sorted(sys.modules)]))
"""


def test_help_needs_no_numpy() -> None:
    command = [sys.executable, "-P", "-c", HELP, "", *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
    shown, loaded = json.loads(done.stdout)
    for name, (status, text) in shown.items():
        assert status == 0
        assert f"Usage: pipnet-edge {name}".rstrip() in text
        if name:
            for option in (flag for p in COMMANDS[name].params for flag in p.opts if flag.startswith("--")):
                assert option in text
    for heavy in ("numpy", "cv2", "torch", "onnx", "onnxruntime", "ncnn", "MNN", "ai_edge_litert", "rich.progress"):
        assert heavy not in loaded


def test_the_installed_script(null_bundle: Bundle) -> None:
    script = Path(sys.executable).with_name("pipnet-edge")
    if not script.exists():
        pytest.skip("pipnet-edge is not installed as a script")
    result = subprocess.run(
        [script, "inspect", null_bundle.folder, "--json"], capture_output=True, text=True, check=True
    )
    assert envelope(result, "inspect")["variants"]


# --- Bench, and what else takes a target.

FAST = ("--seconds", "0", "--count", "25", "--warmup", "1", "--threads", "1")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which hosts are saved."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "pipnet-edge" / "hosts.json"


def kiosk(folder: Path) -> Path:
    """A user's own device, like a Raspberry Pi 4."""
    text = (devices.FOLDER / "rpi4.toml").read_text()
    path = folder / "kiosk.toml"
    path.write_text(text.replace('name = "rpi4"', 'name = "kiosk"', 1))
    return path


def test_bench_prints_a_row_a_variant(null_bundle: Bundle) -> None:
    result = run("bench", *FAST, cwd=null_bundle.folder.parent)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:5] == ["variant", "threads", "size", "p50", "ms"]
    rows = [line.split() for line in lines[2:4]]
    assert [row[:2] for row in rows] == [["null-fp32", "1"], ["null-fp16", "1"]]
    assert all("local" in row and "measured" in row for row in rows)
    assert "[2/2] local null-fp16, 1 thread" in result.stderr


def test_bench_writes_the_envelope_that_it_prints(null_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    result = here("bench", null_bundle.folder, *FAST, "--variant", "null-fp16", "-o", output, "--json")
    found = envelope(result, "bench")
    assert json.loads(output.read_text()) == json.loads(result.stdout)
    kept = results.read(output)
    (measured,) = kept.measured
    assert (measured.variant, measured.frames.size, kept.settings.count) == ("null-fp16", 25, 25)
    assert found["summary"]["measured"][0]["p50"] == pytest.approx(measured.frame(0.5))
    assert list(tmp_path.iterdir()) == [output]


def test_sustain_takes_the_place_of_seconds(null_bundle: Bundle) -> None:
    arguments = ("--seconds", "0", "--sustain", "1", "--count", "1", "--threads", "1", "--variant", "null-fp32")
    found = envelope(here("bench", null_bundle.folder, *arguments, "--json"), "bench")
    assert found["settings"]["seconds"] == 1
    assert found["measured"][0]["states"][-1]["at"] >= 1


@pytest.mark.parametrize(
    ("cores", "cpus"),
    [("big", set(host.clusters()[0].cpus)), ("all", set(host.allowed_cpus())), (str(min(host.allowed_cpus())), None)],
)
def test_bench_keeps_to_cores(null_bundle: Bundle, cores: str, cpus: set[int] | None) -> None:
    arguments = (*FAST, "--variant", "null-fp32", "--cores", cores, "--json")
    found = envelope(here("bench", null_bundle.folder, *arguments), "bench")
    assert set(found["measured"][0]["cpus"]) == (cpus or {int(cores)})


def test_bench_compares_with_an_earlier_result(null_bundle: Bundle, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.json"
    assert here("bench", null_bundle.folder, *FAST, "-o", earlier).returncode == 0
    alike = here("bench", null_bundle.folder, *FAST, "--compare", earlier)
    assert alike.returncode == 0
    assert "before ms" in alike.stdout
    assert "not alike" not in alike.stdout
    data = json.loads(earlier.read_text())
    data["result"]["facts"]["local"]["cpu"] = "Cortex-A72"
    earlier.write_text(json.dumps(data))
    assert (
        "not alike: local: cpu was Cortex-A72, now "
        in here("bench", null_bundle.folder, *FAST, "--compare", earlier).stdout
    )
    summary = envelope(here("bench", null_bundle.folder, *FAST, "--compare", earlier, "--json"), "bench")["summary"]
    assert [change["variant"] for change in summary["compared"]] == ["null-fp32", "null-fp16"]
    assert len(summary["differences"]) == 1


def test_a_result_that_cannot_be_compared_is_kept(null_bundle: Bundle, tmp_path: Path) -> None:
    earlier, now = tmp_path / "earlier.json", tmp_path / "now.json"
    assert here("bench", null_bundle.folder, *FAST, "--variant", "null-fp16", "-o", earlier).returncode == 0
    arguments = (*FAST, "--variant", "null-fp32", "--compare", earlier, "-o", now)
    failed(here("bench", null_bundle.folder, *arguments), CHECK_FAILED, "--compare: nothing to compare")
    assert [measured.variant for measured in results.read(now).measured] == ["null-fp32"]


def test_limits_that_are_broken_and_kept(null_bundle: Bundle, tmp_path: Path) -> None:
    kept = ("--limit", "p99<=1e6", "--limit", "memory<=1e6")
    assert here("bench", null_bundle.folder, *FAST, *kept).returncode == 0
    output = tmp_path / "bench.json"
    result = here("bench", null_bundle.folder, *FAST, *kept, "--limit", "p50<=1e-9", "-o", output, "--json")
    assert len(envelope(result, "bench")["measured"]) == 2
    line = failed(result, CHECK_FAILED, "null-fp32 with 1 thread on local: p50<=1e-09 is broken by ")
    assert line.endswith("(and 1 more)")
    assert len(results.read(output).measured) == 2


def test_a_variant_that_cannot_run_is_in_the_table(bundle: Bundle) -> None:
    (bundle.folder / "null-fp32" / "golden.npz").write_bytes(b"")
    result = here("bench", bundle.folder, *FAST)
    failed(result, CHECK_FAILED, "null-fp32: ")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[2:4]}
    assert "FAIL: " in rows["null-fp32"]
    assert "measured" in rows["null-fp16"]


def test_predictions_need_nothing_but_the_device_s_file(null_bundle: Bundle, tmp_path: Path) -> None:
    for target in ("rpi4", str(kiosk(tmp_path))):
        found = envelope(here("bench", null_bundle.folder, "--target", target, "--predict", "--json"), "bench")
        assert found["measured"] == []
        assert {row["target"] for row in found["predicted"]} == {Path(target).stem}
        assert found["facts"][Path(target).stem]["soc"] == "BCM2711"
    result = here("bench", null_bundle.folder, "--target", "rpi4", "--predict", "--limit", "p50<=20")
    failed(result, CHECK_FAILED, "p50<=20 was not checked, as nothing was measured")


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threads", "0"), "--threads 0; whole numbers from 1, separated by commas, are needed"),
        (("--threads", "1,,2"), "--threads 1,,2; whole numbers"),
        (("--threads", "2x"), "--threads 2x; whole numbers"),
        (("--threads", ""), "--threads ; whole numbers"),
        (("--cores", "fast"), "--cores fast; allowed: big, all, or numbers separated by commas"),
        (("--cores", "-1"), "--cores -1; allowed:"),
        (("--limit", "p50<20"), "is not NAME<=NUMBER with one of: p50, p90, p99 [ms], memory [MB]"),
        (("--limit", "px<=1"), "is not NAME<=NUMBER"),
        (("--variant", "ncnn-int8"), "no variant 'ncnn-int8', only null-fp32, null-fp16"),
        (("--target", "rpi9"), "target 'rpi9' is unknown; allowed: arm64"),
        (("--target", "mine.toml"), "mine.toml cannot be read as a device: No such file or directory"),
        (("--target", "rpi4"), "this machine is no Raspberry Pi 4 Model B; measure on one with --host USER@HOST"),
        (("--predict",), "--predict needs --target"),
        (("--emulate",), "--emulate needs --target"),
        (("--target", "rpi4", "--predict", "--emulate"), "--emulate and --predict for rpi4; one of them is allowed"),
        (("--target", "rpi4", "--predict", "--host", "pi@x"), "--host and --predict for rpi4"),
        (("--target", "rpi4", "--target", "rpi5", "--host", "pi@x"), "TARGET=USER@HOST is needed"),
        (("--target", "rpi4", "--host", "rpi5=pi@x"), "is for rpi5, which is no --target"),
        (("--host", "a", "--host", "b"), "--host b, but local has the host a already"),
        (("--compare", "missing.json"), "there is no result missing.json"),
        (("--compare", "{bundle}/manifest.json"), "is not what a command of pipnet-edge printed with --json"),
        (("-o", "no/such/bench.json"), "cannot write no/such/bench.json; a file in a folder that exists"),
        (("-o", "."), "cannot write .; a file in a folder"),
    ],
)
def test_user_errors_of_bench(
    null_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    message: str,
) -> None:
    """Told before anything is measured."""
    monkeypatch.chdir(tmp_path)
    result = here("bench", null_bundle.folder, *(a.format(bundle=null_bundle.folder) for a in arguments), "--json")
    failed(result, USER_ERROR, message)
    assert envelope(result, "bench") == {}
    assert "[1/" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_cores_that_are_not_here(null_bundle: Bundle) -> None:
    result = here("bench", null_bundle.folder, *FAST, "--cores", "4095")
    failed(result, CHECK_FAILED, "null-fp32: CPUs 4095 are not all here; allowed: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seconds", "inf"),
        ("--seconds", "nan"),
        ("--seconds", "-1"),
        ("--count", "0"),
        ("--warmup", "0"),
        ("--rest", "-1"),
    ],
)
def test_usage_errors_of_bench(null_bundle: Bundle, arguments: tuple[str, ...]) -> None:
    assert here("bench", null_bundle.folder, *arguments).returncode == USAGE


def test_an_interrupted_bench_leaves_no_result(null_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "bench", str(null_bundle.folder), "-o", str(output)]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--seconds", "60", "--json"], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("[1/")  # it measures
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=20)
        finally:
            process.kill()
    result = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    failed(result, INTERRUPTED, "interrupted")
    assert envelope(result, "bench") == {}
    assert list(tmp_path.iterdir()) == []


def test_targets_are_listed_with_their_hosts(config: Path) -> None:
    result = here("targets", "--save", "rpi4=pi@four", "--save", "rpi5=pi@five", "--save", "rpi5=")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert {"rpi3", "rpi4", "rpi5", "zero2w", "arm64", "x86_64", "rk3588"} <= set(rows)
    assert json.loads(config.read_text()) == {"rpi4": "pi@four"}
    found = envelope(here("targets", "--json"), "targets")["targets"]
    assert (found["rpi4"]["host"], found["rpi5"]["host"]) == ("pi@four", None)
    assert found["rk3588"]["cores"] == "4 Cortex-A76 at 2.4 GHz + 4 Cortex-A55 at 1.8 GHz"
    assert any(text.startswith("governor performance: ") for text in found["rpi4"]["settings"])


@pytest.mark.parametrize(
    ("saved", "message"),
    [("rpi4", "--save rpi4; TARGET=USER@HOST is needed"), ("rpi9=pi@x", "target 'rpi9' is unknown; allowed: arm64")],
)
def test_hosts_that_cannot_be_saved(config: Path, saved: str, message: str) -> None:
    failed(here("targets", "--save", saved), USER_ERROR, message)
    assert not config.exists()


def test_a_spoilt_file_of_hosts(config: Path, null_bundle: Bundle) -> None:
    config.parent.mkdir(parents=True)
    config.write_text("{")
    for arguments in (("targets",), ("bench", null_bundle.folder, "--target", "rpi5"), ("doctor", "--target", "rpi5")):
        failed(here(*arguments), USER_ERROR, "hosts.json is not an object of target: host; mend or remove it")


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("arguments", [("doctor",), ("parity", "{bundle}")])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--target", "rpi9"), "target 'rpi9' is unknown; allowed: "),
        (("--target", "rpi5"), "this machine is no Raspberry Pi 5"),
        (("--target", "rpi5", "--emulate", "--host", "pi@x"), "--host and --emulate for rpi5"),
        (("--emulate",), "--emulate needs --target"),
        (("--target", "rpi4", "--host", "rpi5=pi@x"), "is for rpi5, which is no --target"),
    ],
)
def test_targets_of_other_commands(
    null_bundle: Bundle, arguments: tuple[str, ...], more: tuple[str, ...], message: str
) -> None:
    result = here(*(a.format(bundle=null_bundle.folder) for a in arguments), *more, "--json")
    failed(result, USER_ERROR, message)
    assert envelope(result, arguments[0]) == {}


def test_local_is_a_target(null_bundle: Bundle) -> None:
    found = envelope(here("parity", null_bundle.folder, "--target", "local", "--json"), "parity")
    assert (found["target"], found["kind"], len(found["rows"])) == ("local", "measured", 2)
    found = envelope(here("doctor", "--target", "local", "--json"), "doctor")
    assert (found["target"], found["kind"]) == ("local", "measured")
