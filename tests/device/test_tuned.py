"""How what tuning finds is kept, who follows it, and the command."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from pipnet_edge import Landmarker, host, picture
from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.speed import bench, tune
from pipnet_edge.benchmarks.speed.bench import Plan
from pipnet_edge.benchmarks.speed.result import Settings, State
from pipnet_edge.bundle import MANIFEST, Bundle, Tuned
from pipnet_edge.defaults import Choice, choose
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol

Edit = Callable[[Path, tuple[str | int, ...], object], None]
HERE = host.name(host.facts())
CPUS = tuple(host.allowed_cpus())
FP16 = Tuned("null-fp16", 1, (), 1.5, "numpy 2", "2026-01-02T03:04:05+00:00")

pytestmark = pytest.mark.skipif(HERE is None, reason="needs a machine that tells its board or CPU")


def tuned(bundle: Bundle, entry: Tuned = FP16, machine: str | None = HERE) -> Bundle:
    """The bundle, written with an entry for a machine."""
    assert machine
    made = replace(bundle, tuned={machine: entry})
    made.write_manifest()
    return made


def command(*words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", "pipnet_edge.cli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, env=env)


def quiet(text: str) -> str:
    """stderr without its lines of progress."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("["))


# --- In the manifest.


def test_what_was_tuned_is_read_again(bundle: Bundle) -> None:
    cpus = replace(FP16, threads=2, cpus=(4, 5, 9))
    made = replace(bundle, tuned={"Raspberry Pi 5, 4 cores": FP16, "ä, 8 cores": cpus})
    made.write_manifest()
    assert bundles.read(bundle.folder) == made
    assert str(FP16) == "null-fp16, 1 thread: 1.50 ms (numpy 2, 2026-01-02)"
    assert str(cpus) == "null-fp16, 2 threads on CPUs 4-5,9: 1.50 ms (numpy 2, 2026-01-02)"


def test_a_bundle_that_was_never_tuned_says_so(bundle: Bundle) -> None:
    assert json.loads((bundle.folder / MANIFEST).read_text())["tuned"] == {}
    assert bundles.read(bundle.folder).tuned == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variant", "null-int8", "has no variant 'null-int8', tuned for some board"),
        ("variant", None, "str is needed"),
        ("threads", 0, "has 0 threads; 1 to 4096 are allowed"),
        ("threads", 4097, "has 4097 threads"),
        ("threads", True, "int is needed"),
        ("cpus", [0, 4096], "ascending numbers from 0 to 4095"),
        ("cpus", [-1], "ascending numbers"),
        ("cpus", [1, 1], "ascending numbers"),
        ("cpus", [2, 1], "ascending numbers"),
        ("cpus", "0-3", "list is needed"),
        ("ms", 0, "more than 0 is needed"),
        ("ms", float("nan"), "a finite number is needed"),
        ("runtime", "a\nb", "cannot be printed"),
        ("colour", "red", "unknown field 'colour'"),
    ],
)
def test_an_entry_is_as_untrusted_as_the_rest(
    bundle: Bundle, edit_manifest: Edit, field: str, value: object, message: str
) -> None:
    tuned(bundle, machine="some board")
    edit_manifest(bundle.folder, ("tuned", "some board", field), value)
    with pytest.raises(EdgeError, match=message) as caught:
        bundles.read(bundle.folder)
    assert "\n" not in str(caught.value)


def test_more_threads_than_cpus_to_keep_to() -> None:
    with pytest.raises(EdgeError, match="has 3 threads; 1 to 2 are allowed, at most one a CPU"):
        replace(FP16, threads=3, cpus=(4, 5))


def test_a_manifest_that_cannot_be_written_stays_as_it_was(bundle: Bundle) -> None:
    before = (bundle.folder / MANIFEST).read_bytes()
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(EdgeError, match=r"^cannot write .*manifest\.json: File too large$"):
            tuned(bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    assert (bundle.folder / MANIFEST).read_bytes() == before
    assert [path.name for path in bundle.folder.iterdir() if path.name.startswith(".")] == []


def test_what_others_tuned_meanwhile_stays(bundle: Bundle) -> None:
    tuned(bundle, machine="another")
    tune.write(bundle, {"this": FP16})
    assert set(bundles.read(bundle.folder).tuned) == {"another", "this"}


def test_another_bundle_in_its_place_is_not_written_to(bundle: Bundle, edit_manifest: Edit) -> None:
    edit_manifest(bundle.folder, ("source", "parameters"), 1)
    with pytest.raises(EdgeError, match="was changed while it was tuned; nothing was written"):
        tune.write(bundle, {"this": FP16})
    assert bundles.read(bundle.folder).tuned == {}


# --- Which machine it is.


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (
            {"board": "Raspberry Pi 4 Model B Rev 1.4", "cpu": "Cortex-A72", "cores": 4},
            "Raspberry Pi 4 Model B Rev 1.4",
        ),
        ({"cpu": "AMD  EPYC\x07 9", "cores": 4}, "AMD EPYC 9"),
        ({"board": "", "cpu": "x", "cores": 4}, "x"),
        ({"cores": 4}, None),
        ({"cpu": "x"}, None),
        ({}, None),
    ],
)
def test_a_machine_s_name(facts: Mapping[str, object], name: str | None) -> None:
    assert host.name(facts) == (name and f"{name}, 4 cores")


@pytest.mark.parametrize(
    ("cpus", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 3), "0-3"), ((0, 2, 3, 7), "0,2-3,7"), ((4, 5), "4-5")]
)
def test_cpus_as_text(cpus: Sequence[int], text: str) -> None:
    assert host.cpu_list(cpus) == text


def test_a_worker_tells_its_cpus() -> None:
    groups = calls.here(protocol.Cpus()).groups
    assert sorted(cpu for group in groups for cpu in group) == list(CPUS)
    assert groups == tuple(group.cpus for group in host.clusters())


# --- Who follows it.


def test_what_is_not_given_is_as_tuned(bundle: Bundle) -> None:
    made = tuned(bundle, replace(FP16, cpus=CPUS[-1:]))
    assert choose(made, None, None, 3) == Choice("null-fp16", 1, CPUS[-1:], f"as tuned for {HERE}")
    assert choose(made, "null-fp16", None, 3) == choose(made, None, 1, 3) == choose(made, None, None, 3)


def test_what_is_given_wins_and_cpus_go_with_the_whole_alone(bundle: Bundle) -> None:
    made = tuned(bundle, replace(FP16, cpus=CPUS[-1:]))
    assert choose(made, None, 2, 3) == Choice("null-fp16", 2)
    assert choose(made, "null-fp16", 2, 3) == Choice("null-fp16", 2)
    assert choose(made, "null-fp32", None, 3) == Choice("null-fp32", 3)
    with pytest.raises(EdgeError, match="has no variant 'x'"):
        choose(made, "x", None, 3)


def test_more_threads_than_cpus_are_cut_to_them(bundle: Bundle) -> None:
    many = choose(bundle, None, 100_000, 3)
    assert (many.threads, (many.note or "").partition(" on ")[0]) == (len(CPUS), "100000 threads are useless")
    far = choose(tuned(bundle, replace(FP16, cpus=(4095,))), None, 999, 3)
    assert (far.note or "").startswith("999 threads are useless on ")
    assert f"; not as tuned for {HERE}: it takes CPUs 4095" in (far.note or "")
    with Landmarker(bundle.folder, "null-fp32", threads=999) as landmarker:
        assert landmarker.threads == len(CPUS)


def test_other_machines_have_the_defaults(bundle: Bundle) -> None:
    found = choose(bundle, None, None, 3)
    assert found == choose(tuned(bundle, machine=f"{HERE}."), None, None, 3) == Choice("null-fp32", 3, (), found.note)
    assert (found.note or "").startswith("null-fp32: not measured on ")


def test_what_cannot_be_followed_here_is_said(bundle: Bundle) -> None:
    far = choose(tuned(bundle, replace(FP16, cpus=(4095,))), None, None, 3)
    assert far == Choice("null-fp32", 3, (), far.note)
    assert (far.note or "").startswith(f"not as tuned for {HERE}: it takes CPUs 4095, and this process may use ")
    many = choose(tuned(bundle, replace(FP16, threads=4096)), None, None, 3)
    assert "it takes 4096 CPUs" in (many.note or "")


def test_the_first_variant_runs_where_the_runtime_of_the_tuned_one_is_absent(
    bundle: Bundle, image: Path, tmp_path: Path, without: Callable[..., dict[str, str]]
) -> None:
    first, second = bundle.variants
    other = replace(bundle, variants=(first, replace(second, name="ncnn-fp16", runtime="ncnn")))
    tuned(other, replace(FP16, variant="ncnn-fp16"))
    done = command("run", bundle.folder, image, "--whole", "-o", tmp_path / "out.png", env=without("ncnn"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "by null-fp32" in done.stdout
    assert f"\nnot as tuned for {HERE}: the runtime of ncnn-fp16 is not installed; null-fp32: " in done.stdout


def test_the_library_follows_but_leaves_the_process_where_it_is(bundle: Bundle) -> None:
    tuned(bundle, replace(FP16, cpus=CPUS[-1:]))
    with Landmarker(bundle.folder) as landmarker:
        assert (landmarker.variant, landmarker.threads) == ("null-fp16", 1)
        assert tuple(host.allowed_cpus()) == CPUS
    with Landmarker(bundle.folder, "null-fp32") as landmarker:
        assert (landmarker.variant, landmarker.threads) == ("null-fp32", 1)
    with pytest.raises(EdgeError, match="0 threads; at least 1 is needed"):
        Landmarker(bundle.folder, threads=0)


@pytest.fixture
def image(bundle: Bundle, tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "face.png"), bundle.read_golden()[0][0][:, :, ::-1])
    return tmp_path / "face.png"


def test_run_follows_it_and_says_so(bundle: Bundle, image: Path, tmp_path: Path) -> None:
    tuned(bundle, replace(FP16, cpus=CPUS[-1:]))
    words = ("run", bundle.folder, image, "--whole", "-o", tmp_path / "out.png")
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "by null-fp16 (null" in done.stdout
    assert f", 1 thread; faces from the whole picture\nas tuned for {HERE}\n" in done.stdout
    found = json.loads(command(*words, "--threads", "2", "--json").stdout)["result"]
    assert (found["variant"], found["threads"], found["cpus"], found["note"]) == ("null-fp16", 2, [], None)
    assert (
        f"tuned for {HERE}: null-fp16, 1 thread on CPUs {CPUS[-1]}: 1.50 ms" in command("inspect", bundle.folder).stdout
    )


def test_the_worker_of_run_keeps_to_the_cpus(bundle: Bundle, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process could use a CPU that the worker then does not find."""
    tuned(bundle, replace(FP16, cpus=(4095,)))
    monkeypatch.setattr(host, "allowed_cpus", lambda: [*CPUS, 4095])
    with pytest.raises(EdgeError, match="CPUs 4095 are not all here"):
        picture.annotate(bundle.folder, image, picture.Asked(whole=True), None, None, None, image.with_name("out.png"))


# --- The command.

PLAN = Plan(threads=(1,), settings=Settings(warmup=1, seconds=0, count=5))
QUICK = ("--variant", "null-fp16", "--threads", "1", "--seconds", "0", "--count", "5", "--warmup", "1")


def test_tune_writes_what_run_then_does(bundle: Bundle, image: Path, tmp_path: Path) -> None:
    done = command("bench", bundle.folder, "--tune", *QUICK)
    assert (done.returncode, quiet(done.stderr)) == (0, "")
    (entry,) = bundles.read(bundle.folder).tuned.items()
    assert entry[0] == HERE
    assert (entry[1].variant, entry[1].threads) == ("null-fp16", 1)
    assert f"local  {entry[1]}, written for {HERE}\n" in done.stdout
    (row,) = (line.split() for line in done.stdout.splitlines() if line.startswith("null-fp16"))
    assert row[1] == "1"
    assert row[-1] == "chosen"
    found = command("run", bundle.folder, image, "--whole", "-o", tmp_path / "out.png")
    assert "by null-fp16" in found.stdout


def test_a_tuning_under_load_is_marked(bundle: Bundle) -> None:
    """For everybody who looks at it later."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert command("bench", bundle.folder, "--tune", *QUICK).returncode == 0
    finally:
        for process in busy:
            process.kill()
            process.wait()
    (entry,) = bundles.read(bundle.folder).tuned.values()
    assert re.fullmatch(r"null \(numpy \S+\), under load \d+\.\d", entry.runtime)
    assert f" ms ({entry.runtime}, " in command("inspect", bundle.folder).stdout


def test_what_ran_is_marked_if_most_runs_were_beside_other_work(bundle: Bundle) -> None:
    run, _ = bench.sweep(calls.here, "local", bundle, PLAN, protocol.Machine({}, ("null",)), lambda *_: None)
    idle = replace(run, states=(State(0.0, (), None, None, 1.0),))
    loaded = replace(run, states=(State(0.0, (), None, None, 6.0),))
    assert tune.ran(idle, [idle, loaded], {}) == run.runtime
    assert tune.ran(idle, [idle, loaded, loaded], {}) == f"{run.runtime}, under load 6.0"
    assert tune.ran(loaded, [loaded], {"cores": "16"}) == run.runtime


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "rpi4", "--emulate"), "--tune needs a machine to time; rpi4 is emulated: give --host USER@HOST"),
        (("--target", "rpi5", "--predict"), "--tune needs a machine to time; rpi5 is predicted"),
        (("--sustain", "5"), "--tune with --sustain"),
        (("--limit", "p50<=1"), "--tune with --limit"),
        (("-o", "x.json"), "--tune with -o"),
        (("--cores", "4095"), "CPUs 4095 are not all on local; allowed: "),
        (("--variant", "x"), "has no variant 'x'"),
    ],
)
def test_refusals(null_bundle: Bundle, words: Sequence[str], message: str) -> None:
    done = command("bench", null_bundle.folder, "--tune", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_tune_says_that_threads_are_cut(bundle: Bundle) -> None:
    done = command("bench", bundle.folder, "--tune", *QUICK, "--threads", "4096")
    assert done.returncode == 0
    assert "\n4096 threads are useless: at most one a core was used\n" in done.stdout
    assert next(iter(bundles.read(bundle.folder).tuned.values())).threads == len(CPUS)


def test_an_interrupt_leaves_the_manifest_as_it_was(bundle: Bundle) -> None:
    before = (bundle.folder / MANIFEST).read_bytes()
    line = [sys.executable, "-P", "-m", "pipnet_edge.cli", "bench", str(bundle.folder), "--tune", "--seconds", "600"]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    assert running.stderr.readline().startswith("[1/")
    time.sleep(0.5)  # the worker is at it
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert quiet(err) == "pipnet-edge bench: interrupted; nothing half-written was left"
    assert (bundle.folder / MANIFEST).read_bytes() == before
    assert sorted(os.listdir(bundle.folder)) == ["golden.npz", MANIFEST, "null-fp16", "null-fp32"]


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(bundle: Bundle, isolated: tuple[str, ...]) -> None:
    words = [sys.executable, "-P", "-m", "pipnet_edge.cli", "bench", str(bundle.folder), "--tune"]
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    line = [*isolated, "sh", "-c", script, "sh", str(bundle.folder), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr == f"pipnet-edge bench: cannot write into {bundle.folder}, where --tune keeps what it finds\n"
