"""bench: its rows, its envelope, comparison, limits, and what is refused before anything is measured."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge import host
from pipnet_edge.benchmarks.speed import result as results
from pipnet_edge.bundle import Bundle, Tuned
from pipnet_edge.cli.app import INTERRUPTED
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR
from pipnet_edge.targets import devices

Run = Callable[..., subprocess.CompletedProcess[str]]
Failed = Callable[..., str]
Envelope = Callable[..., dict[str, Any]]
USAGE = 2
FAST = ("--seconds", "0", "--count", "25", "--warmup", "1", "--threads", "1")


def kiosk(folder: Path) -> Path:
    """A user's own device, like a Raspberry Pi 4."""
    text = (devices.FOLDER / "rpi4.toml").read_text()
    path = folder / "kiosk.toml"
    path.write_text(text.replace('name = "rpi4"', 'name = "kiosk"', 1))
    return path


def test_bench_prints_a_row_a_variant(run: Run, null_bundle: Bundle) -> None:
    result = run("bench", *FAST, cwd=null_bundle.folder.parent)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:5] == ["variant", "threads", "size", "p50", "ms"]
    rows = [line.split() for line in lines[2:4]]
    assert [row[:2] for row in rows] == [["null-fp32", "1"], ["null-fp16", "1"]]
    assert all("local" in row and "measured" in row for row in rows)
    assert "[2/2] local null-fp16, 1 thread" in result.stderr
    assert [line for line in lines if line.startswith("local: untuned, run takes null-fp32: ")]


def test_bench_says_what_is_run_as_tuned_and_nothing_of_a_part(here: Run, bundle: Bundle) -> None:
    machine = host.name(host.facts())
    if machine is None:
        pytest.skip("needs a machine that tells its board or CPU")
    entry = Tuned("null-fp16", 1, (), 1.5, "numpy 2", "2026-01-02T03:04:05+00:00")
    replace(bundle, tuned={machine: entry}).write_manifest()
    assert "\nlocal: run takes null-fp16, as tuned\n" in here("bench", bundle.folder, *FAST).stdout
    assert "run takes" not in here("bench", bundle.folder, *FAST, "--variant", "null-fp32").stdout


def test_bench_writes_the_envelope_that_it_prints(
    here: Run, envelope: Envelope, null_bundle: Bundle, tmp_path: Path
) -> None:
    output = tmp_path / "bench.json"
    result = here("bench", null_bundle.folder, *FAST, "--variant", "null-fp16", "-o", output, "--json")
    found = envelope(result, "bench")
    assert json.loads(output.read_text()) == json.loads(result.stdout)
    kept = results.read(output)
    (measured,) = kept.measured
    assert (measured.variant, measured.frames.size, kept.settings.count) == ("null-fp16", 25, 25)
    assert found["summary"]["measured"][0]["p50"] == pytest.approx(measured.frame(0.5))
    assert list(tmp_path.iterdir()) == [output]


def test_more_threads_than_cores_are_cut(here: Run, envelope: Envelope, null_bundle: Bundle) -> None:
    asked = (*FAST[:-1], "1,999,100000", "--variant", "null-fp32")
    found = here("bench", null_bundle.folder, *asked)
    assert found.stdout.endswith("\n999, 100000 threads are useless: at most one a core was used\n")
    runs = envelope(here("bench", null_bundle.folder, *asked, "--json"), "bench")["measured"]
    assert [run["threads"] for run in runs] == list(dict.fromkeys((1, host.facts()["cores"])))


def test_sustain_takes_the_place_of_seconds(here: Run, envelope: Envelope, null_bundle: Bundle) -> None:
    arguments = ("--seconds", "0", "--sustain", "1", "--count", "1", "--threads", "1", "--variant", "null-fp32")
    found = envelope(here("bench", null_bundle.folder, *arguments, "--json"), "bench")
    assert found["settings"]["seconds"] == 1
    assert found["measured"][0]["states"][-1]["at"] >= 1


@pytest.mark.parametrize(
    ("cores", "cpus"),
    [("big", set(host.clusters()[0].cpus)), ("all", set(host.allowed_cpus())), (str(min(host.allowed_cpus())), None)],
)
def test_bench_keeps_to_cores(
    here: Run, envelope: Envelope, null_bundle: Bundle, cores: str, cpus: set[int] | None
) -> None:
    arguments = (*FAST, "--variant", "null-fp32", "--cores", cores, "--json")
    found = envelope(here("bench", null_bundle.folder, *arguments), "bench")
    assert set(found["measured"][0]["cpus"]) == (cpus or {int(cores)})


def test_bench_compares_with_an_earlier_result(
    here: Run, envelope: Envelope, null_bundle: Bundle, tmp_path: Path
) -> None:
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


def test_a_result_that_cannot_be_compared_is_kept(
    here: Run, failed: Failed, null_bundle: Bundle, tmp_path: Path
) -> None:
    earlier, now = tmp_path / "earlier.json", tmp_path / "now.json"
    assert here("bench", null_bundle.folder, *FAST, "--variant", "null-fp16", "-o", earlier).returncode == 0
    arguments = (*FAST, "--variant", "null-fp32", "--compare", earlier, "-o", now)
    failed(here("bench", null_bundle.folder, *arguments), CHECK_FAILED, "--compare: nothing to compare")
    assert [measured.variant for measured in results.read(now).measured] == ["null-fp32"]


def test_limits_that_are_broken_and_kept(
    here: Run, failed: Failed, envelope: Envelope, null_bundle: Bundle, tmp_path: Path
) -> None:
    kept = ("--limit", "p99<=1e6", "--limit", "memory<=1e6")
    assert here("bench", null_bundle.folder, *FAST, *kept).returncode == 0
    output = tmp_path / "bench.json"
    result = here("bench", null_bundle.folder, *FAST, *kept, "--limit", "p50<=1e-9", "-o", output, "--json")
    assert len(envelope(result, "bench")["measured"]) == 2
    line = failed(result, CHECK_FAILED, "null-fp32 with 1 thread on local: p50<=1e-09 is broken by ")
    assert line.endswith("(and 1 more)")
    assert len(results.read(output).measured) == 2


def test_a_variant_that_cannot_run_is_in_the_table(here: Run, failed: Failed, bundle: Bundle) -> None:
    (bundle.folder / "null-fp32" / "golden.npz").write_bytes(b"")
    result = here("bench", bundle.folder, *FAST)
    failed(result, CHECK_FAILED, "null-fp32: ")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[2:4]}
    assert "FAIL: " in rows["null-fp32"]
    assert "measured" in rows["null-fp16"]


def test_predictions_need_nothing_but_the_device_s_file(
    here: Run, failed: Failed, envelope: Envelope, null_bundle: Bundle, tmp_path: Path
) -> None:
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
        (("--limit", "p50<20"), "is not METRIC<=NUMBER; metrics: p50 [ms], p90 [ms], p99 [ms], memory [MB]"),
        (("--limit", "px<=1"), "no metric 'px'; allowed: p50 [ms]"),
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
    here: Run,
    failed: Failed,
    envelope: Envelope,
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


def test_cores_that_are_not_here(here: Run, failed: Failed, null_bundle: Bundle) -> None:
    """Said once, before anything runs."""
    result = here("bench", null_bundle.folder, *FAST, "--cores", "4095")
    assert failed(result, USER_ERROR, "CPUs 4095 are not all on local; allowed: ")[-1].isdecimal()
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)


def test_a_full_disk_does_not_cost_the_table(
    failed: Failed, null_bundle: Bundle, tmp_path: Path, isolated: tuple[str, ...]
) -> None:
    words = [sys.executable, "-P", "-m", "pipnet_edge.cli", "bench", null_bundle.folder, *FAST, "--count", "2000"]
    script = 'mount -t tmpfs -o size=16k none "$1" && shift && exec "$@"'
    line = [*isolated, "sh", "-c", script, "sh", tmp_path, *words, "-o", tmp_path / "r.json"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False, timeout=120)
    failed(done, USER_ERROR, "r.json: No space left on device")
    assert [row.split()[0] for row in done.stdout.splitlines()[2:4]] == ["null-fp32", "null-fp16"]
    assert "result  " not in done.stdout


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
def test_usage_errors_of_bench(here: Run, null_bundle: Bundle, arguments: tuple[str, ...]) -> None:
    assert here("bench", null_bundle.folder, *arguments).returncode == USAGE


def test_an_interrupted_bench_leaves_no_result(
    failed: Failed, envelope: Envelope, null_bundle: Bundle, tmp_path: Path
) -> None:
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
