"""Jobs on a board: a real sshd on loopback with Pythons of its own (see conftest.py)."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge.bundle import GOLDEN, MANIFEST, Bundle
from pipnet_edge.decode import MAP_NAMES, Decoder
from pipnet_edge.errors import EdgeError
from pipnet_edge.runtimes import DESTINATIONS
from pipnet_edge.targets.ssh import advice, wire
from pipnet_edge.targets.ssh import board as ssh
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import protocol

Clean = Any  # conftest.StandIn
STORE = ".cache/pipnet-edge/files"


def refused(work: Callable[[], object]) -> str:
    """The message of the EdgeError that `work` raises: one line."""
    with pytest.raises(EdgeError) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def greet(clean: Clean, host: str = "board", **options: Any) -> None:
    with clean.connect(host, **options):
        pass


def forever(bundle: Bundle) -> protocol.Time:
    """A job that takes its time."""
    return protocol.Time(str(bundle.folder), "null-fp32", 1, warmup=1, seconds=600, count=1)


def name(event: protocol.Event) -> str:
    return type(event).__name__.lower()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files whose contents went over the wire."""
    paths: list[str] = []
    send = wire.Wire.send

    def seen(self: wire.Wire, message: Any, contents: Any = ()) -> None:
        if contents:
            paths.extend(path for path, _, _ in message["files"])
        send(self, message, contents)

    monkeypatch.setattr(wire.Wire, "send", seen)
    return paths


# --- Jobs that go well.


def test_facts_and_every_runtime(clean: Clean) -> None:
    with clean.connect() as board:
        machine = board.call(protocol.Facts())
        versions = {name: board.call(protocol.Probe(name)).version for name in DESTINATIONS}
    assert set(DESTINATIONS) <= set(machine.runtimes)
    assert all(re.search(r"\d+\.\d+", version) for version in versions.values())
    assert Path(board.has.python) == clean.home / "pipnet/bin/python"


def test_infer_gives_what_decode_gives(clean: Clean, bundle: Bundle, sent: list[str]) -> None:
    crops, maps = bundle.read_golden()
    events: list[protocol.Event] = []
    with clean.connect() as board:
        first = calls.infer(board.call, bundle.folder, "null-fp32", 1, crops, maps=True, listen=events.append)
        again = calls.infer(board.call, bundle.folder, "null-fp16", 1, crops)
    for found in (first, again):
        np.testing.assert_array_equal(found.landmarks.points, Decoder(bundle.spec)(maps).points)
    assert first.maps is not None
    for name in MAP_NAMES:
        np.testing.assert_array_equal(getattr(first.maps, name), getattr(maps, name))
    assert [name(event) for event in events] == ["loaded", *["progress"] * 4]
    # Each content once; of the bundle what was asked for; of the package the device half.
    names = [path.partition("/")[2] for path in sent]
    assert len(set(sent)) == len(sent)
    assert names.count(MANIFEST) == 1
    assert sum(path.startswith("crops-") for path in sent) == 1
    assert {"pipnet_edge/worker/serve.py", "pipnet_edge/meanfaces.json", "pipnet_edge/runtimes/ncnn.py"} <= set(names)
    assert [name for name in names if re.search("converters|benchmarks|targets", name)] == []


def test_the_worker_runs_what_was_pushed(clean: Clean) -> None:
    """No installed copy of the package is in reach of the board's Python."""
    python = clean.home / "pipnet/bin/python"
    done = subprocess.run([python, "-P", "-c", "import pipnet_edge"], capture_output=True, text=True, check=False)
    assert "No module named 'pipnet_edge'" in done.stderr


def test_time_streams_samples(clean: Clean, bundle: Bundle) -> None:
    events: list[protocol.Event] = []
    with clean.connect() as board:
        done = board.call(replace(forever(bundle), seconds=0, count=5), events.append)
    assert sum(len(event.stages["decode"]) for event in events if isinstance(event, protocol.Samples)) == 5
    assert isinstance(events[0], protocol.Loaded)
    assert done.peak_bytes


def test_two_boards_at_once(clean: Clean, bundle: Bundle) -> None:
    crops, maps = bundle.read_golden()
    expected = Decoder(bundle.spec)(maps).points
    meet = threading.Barrier(2, timeout=60)

    def visit(variant: str) -> Any:
        with clean.connect() as board:
            meet.wait()
            found = calls.infer(board.call, bundle.folder, variant, 1, crops)
            meet.wait()
        return found.landmarks.points

    with ThreadPoolExecutor(2) as pool:
        for points in pool.map(visit, ("null-fp32", "null-fp16")):
            np.testing.assert_array_equal(points, expected)


def test_a_login_shell_that_greets(clean: Clean) -> None:
    with clean.connect("noisy") as board:
        assert board.call(protocol.Facts()).facts["machine"]


def test_options_of_the_environment(clean: Clean, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ssh.OPTIONS, f"-F '{clean.options[1]}'")
    with ssh.connect("ssh://pi@board") as board:
        assert board.has.bits == 64


# --- What stays on the board.


@pytest.fixture
def emptied(board: Clean) -> Iterator[Clean]:
    yield board
    shutil.rmtree(board.home / ".cache", ignore_errors=True)


def test_nothing_stays_and_with_keep_only_what_changed_is_sent(
    emptied: Clean, bundle: Bundle, sent: list[str], tmp_path: Path
) -> None:
    crops, _ = bundle.read_golden()
    mine = tmp_path / "bundle"
    shutil.copytree(bundle.folder, mine)

    def visit(keep: bool) -> list[str]:
        sent.clear()
        with emptied.connect(keep=keep) as board:
            calls.infer(board.call, mine, "null-fp32", 1, crops)
        return [path.rpartition("/")[2] for path in sent]

    assert "serve.py" in visit(keep=True)
    assert visit(keep=True) == []
    assert not [path for path in emptied.files() if "session" in path]
    kept = [emptied.home / path for path in emptied.files() if STORE + "/" in path]
    # Another manifest, and what a power cut left half-written.
    text = (mine / MANIFEST).read_text()
    (mine / MANIFEST).write_text(text + "\n")
    worker = next(path for path in kept if b"`python -m pipnet_edge.worker` does one job" in path.read_bytes())
    worker.write_bytes(worker.read_bytes()[:100])
    assert sorted(visit(keep=True)) == [MANIFEST, "serve.py"]
    # Kept files that nobody wants any more go, and without keep all do.
    old = emptied.home / STORE / ("0" * 64)
    old.write_bytes(b"old")
    os.utime(old, (0, 0))
    assert visit(keep=True) == []
    assert not old.exists()
    assert visit(keep=False) == []
    assert emptied.files() == []


def test_folders_of_sessions_that_could_not_clean_up(emptied: Clean) -> None:
    root = emptied.home / ".cache/pipnet-edge"
    (root / "session-orphan" / "code").mkdir(parents=True)
    with emptied.connect() as running:
        for path in root.glob("session-*"):
            os.utime(path, (0, 0))
        with emptied.connect():
            assert not (root / "session-orphan").exists()
        assert Path(running.has.folder).exists()
        assert running.call(protocol.Facts()).facts["machine"]
    assert not root.exists()


def test_folders_that_were_there_stay(emptied: Clean) -> None:
    (emptied.home / ".cache/other").mkdir(parents=True)
    greet(emptied)
    assert emptied.files() == [".cache/other"]


# --- Connections that end.


def run_until_cut(clean: Clean, bundle: Bundle, cut: Callable[[], None], options: tuple[str, ...] = ()) -> str:
    """The message when `cut` is called after samples came. Samples until then have reached the listener."""
    samples: list[float] = []

    def listen(event: protocol.Event) -> None:
        if isinstance(event, protocol.Samples) and event.stages["decode"]:
            samples.extend(event.stages["decode"])
            assert any("pipnet_edge.worker" in line for line in clean.processes().values())
            cut()

    def visit() -> None:
        with ssh.connect("board", options=(*clean.options, *options)) as board:
            try:
                board.call(forever(bundle), listen)
            except calls.Lost:
                # It says so again, at once.
                assert "was lost" in refused(lambda: board.call(protocol.Facts()))
                raise

    message = refused(visit)
    assert samples
    return message


def sessions(clean: Clean) -> list[int]:
    """The server's processes of this connection."""
    return [pid for pid, line in clean.processes().items() if line.startswith("sshd:")]


def test_a_connection_that_is_cut(clean: Clean, bundle: Bundle) -> None:
    def cut() -> None:
        for pid in sessions(clean):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    message = run_until_cut(clean, bundle, cut)
    assert message.startswith("the connection to board was lost while 'time null-fp32' ran there (")
    assert re.search("closed|reset|[Bb]roken", message)


def test_a_connection_that_falls_silent(clean: Clean, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet says that the other end is gone; both ends notice by themselves."""
    monkeypatch.setattr(wire, "BEAT", 0.5)
    monkeypatch.setattr(wire, "PATIENCE", 4.0)
    stopped: list[int] = []

    def cut() -> None:
        stopped.extend(pid for pid in sessions(clean) if pid not in stopped)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    message = run_until_cut(clean, bundle, cut, ("-o", "ServerAliveInterval=1"))
    try:
        assert re.search("was lost .*(Timeout, server 127.0.0.1 not responding|no sign of life)", message)
        end = time.monotonic() + 20
        while any("sshd" not in line for line in clean.processes().values()):
            assert time.monotonic() < end, clean.processes()
            time.sleep(0.1)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_command_that_is_interrupted(clean: Clean, bundle: Bundle, number: signal.Signals) -> None:
    script = (
        "import sys\n"
        "from pipnet_edge.targets.ssh import board as ssh\n"
        "from pipnet_edge.worker.protocol import read_job\n"
        "with ssh.connect('board') as board:\n"
        "    board.call(read_job(sys.argv[1]), lambda event: print(type(event).__name__.lower(), flush=True))\n"
    )
    command = [sys.executable, "-P", "-c", script, protocol.write_job(forever(bundle))]
    environment = {**os.environ, ssh.OPTIONS: shlex.join(clean.options)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        assert [run.stdout.readline().strip() for _ in range(3)] == ["loaded", "first", "samples"]
        assert len(clean.files()) > 10
        run.send_signal(number)
        assert run.wait(30) != 0
    clean.wait_until_quiet()
    assert clean.files() == []


def test_a_listener_that_raises(clean: Clean, bundle: Bundle) -> None:
    """The worker is ended, and the board can be used again."""

    def enough(event: protocol.Event) -> None:
        raise LookupError(name(event))

    with clean.connect() as board:
        with pytest.raises(LookupError, match="loaded"):
            board.call(forever(bundle), enough)
        assert not any("pipnet_edge.worker" in line for line in clean.processes().values())
        assert board.call(protocol.Facts()).facts["machine"]


def test_another_thread_closes_the_connection(clean: Clean, bundle: Bundle) -> None:
    """As an interrupted command does, whose boards are at work in threads."""
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with clean.connect() as board:
            visit = pool.submit(board.call, forever(bundle), lambda _: started.set())
            assert started.wait(60)
        with pytest.raises(calls.Lost):
            visit.result(60)


def test_a_far_end_that_is_killed(clean: Clean, bundle: Bundle) -> None:
    """It cannot clean up; the worker ends with its next line, and the next session removes what lies there."""

    def kill(_: protocol.Event) -> None:
        for pid, line in clean.processes().items():
            if "sys.stdin.buffer.read" in line and not line.startswith("sshd"):
                os.kill(pid, signal.SIGKILL)

    with clean.connect() as board, pytest.raises(calls.Lost, match="was lost while 'time null-fp32' ran there"):
        board.call(forever(bundle), kill)
    clean.wait_until_quiet()
    for path in (clean.home / ".cache/pipnet-edge").glob("session-*"):
        os.utime(path, (0, 0))
    greet(clean)


# --- Boards that lack something.


def test_a_python_without_the_runtime(clean: Clean, sent: list[str]) -> None:
    python = clean.home / "bare/bin/python"
    with clean.connect(python="~/bare/bin/python") as board:
        message = refused(lambda: board.call(protocol.Probe("tflite")))
        assert board.call(protocol.Facts()).runtimes == ("null",)
    assert message.startswith("board: tflite needs the package ai-edge-litert in ")
    assert message.endswith(f": {python} -m pip install ai-edge-litert")


def test_a_python_without_numpy(clean: Clean) -> None:
    message = refused(lambda: greet(clean, python="~/empty/bin/python"))
    python = clean.home / "empty/bin/python"
    assert message == f"board: {python} ({os.uname().machine}) has no numpy: {python} -m pip install numpy"


def test_old_and_missing_pythons(clean: Clean) -> None:
    message = refused(lambda: greet(clean, python="python3"))
    assert message.startswith("board: Python 3.11 or newer is needed, python3 is 3.9.2; ")
    assert "python3 -m venv ~/pipnet" in message
    (clean.home / "pipnet").rename(clean.home / "elsewhere")
    try:
        assert "~/pipnet/bin/python is missing, python3 is 3.9.2;" in refused(lambda: greet(clean))
    finally:
        (clean.home / "elsewhere").rename(clean.home / "pipnet")
    assert "'; touch gone; ' is missing" in refused(lambda: greet(clean, python="'; touch gone; '"))


def test_a_runtime_that_crashes(clean: Clean) -> None:
    with clean.connect(python="~/crashing/bin/python") as board:
        message = refused(lambda: board.call(protocol.Probe("ncnn")))
        assert board.call(protocol.Facts()).facts["machine"]
    assert message.startswith("board: the runtime crashed with SIGABRT: ")


def test_the_worker_s_own_refusals(clean: Clean, bundle: Bundle) -> None:
    crops, _ = bundle.read_golden()
    with clean.connect() as board:
        message = refused(lambda: calls.infer(board.call, bundle.folder, "null-fp32", 1, crops[:, :64]))
        assert re.match(r"board: crops are uint8 \(4, 64, 96, 3\), this bundle takes", message)
        assert "has no variant 'ncnn-fp32'" in refused(
            lambda: calls.infer(board.call, bundle.folder, "ncnn-fp32", 1, crops)
        )


def test_spoilt_bundles_are_not_sent(clean: Clean, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    (tmp_path / "bundle/null-fp32" / GOLDEN).write_bytes(b"spoilt")
    with clean.connect() as board:
        job = replace(forever(bundle), bundle=str(tmp_path / "bundle"))
        assert "null-fp32/golden.npz in bundle" in refused(lambda: board.call(job))


def test_a_full_disk(clean: Clean, bundle: Bundle, tmp_path: Path, sent: list[str]) -> None:
    np.save(tmp_path / "crops.npy", np.zeros((60, 96, 96, 3), np.uint8))
    job = replace(forever(bundle), crops=str(tmp_path / "crops.npy"), seconds=0)
    with clean.connect("small") as board:
        message = refused(lambda: board.call(job))
        assert sent == []
        assert board.call(protocol.Facts()).facts["machine"]  # this much there is
    assert re.fullmatch(r"small: no space in \S+/small/pipnet-edge/\S+: 2\.\d MB are needed, 1\.0 MB are free", message)
    assert clean.remaining("small") == ""


def test_a_disk_that_fills_on_the_way(clean: Clean) -> None:
    """There are bytes left but no room for so many files."""
    with clean.connect("crowded") as board:
        message = refused(lambda: board.call(protocol.Facts()))
        assert "no space left for" in message
        assert "No space left on device" in message
        assert "no space left for" in refused(lambda: board.call(protocol.Facts()))  # the wire is in step
    assert clean.remaining("crowded") == ""


def test_a_read_only_home(clean: Clean) -> None:
    message = refused(lambda: greet(clean, "readonly"))
    assert re.fullmatch(
        r"readonly: \S+/readonly/pipnet-edge is on a read-only file system; make it writable.*", message
    )


# --- Hosts that cannot be reached.


@pytest.mark.parametrize(
    ("host", "advice", "words"),
    [
        ("locked", "no key that it accepts; check .* `ssh-copy-id locked`", "Permission denied"),
        ("stranger", "its host key is not known; connect once by hand, `ssh stranger`", "Host key verification failed"),
        ("reinstalled", "its host key is not the one in known_hosts", "Host key verification failed"),
        ("unresolved", "there is no such name", "Could not resolve hostname"),
        ("closed", "no ssh server listens; on the board: sudo systemctl enable --now ssh", "Connection refused"),
        ("barred", "`ssh -v barred true` tells more", "ssh ended without a word"),
    ],
)
def test_hosts_that_cannot_be_reached(clean: Clean, host: str, advice: str, words: str) -> None:
    message = refused(lambda: greet(clean, host))
    assert message.startswith(f"cannot connect to {host}: ")
    assert re.search(advice, message)
    assert words in message


@pytest.mark.parametrize(
    "host",
    ["", "-oProxyCommand=touch", "pi@-oProxyCommand", "two words", "new\nline", "$(touch x)", "a;b", "a`b`", "@a"],
)
def test_host_names_that_are_none(host: str) -> None:
    with pytest.raises(EdgeError, match="is no host; allowed"), ssh.connect(host):
        pass


@pytest.mark.parametrize("host", ["rpi4", "pi@rpi4.local", "ssh://pi@10.0.0.2:2222", "me.too@fe80::1%eth0", "[::1]"])
def test_host_names(host: str) -> None:
    assert ssh.HOST.fullmatch(host)


def test_a_machine_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeError, match="no ssh in PATH"), ssh.connect("rpi4"):
        pass


# --- What is said of boards that are not here.

PI = {"python": "/usr/bin/python3", "version": "3.11.2", "machine": "armv7l", "bits": 32, "venv": False}


@pytest.mark.parametrize(
    ("destination", "has", "message"),
    [
        ("onnx", {}, "onnxruntime does not exist for 32 bit, .* ncnn and tflite do, or put a 64-bit system"),
        ("mnn", {}, "MNN does not exist for 32 bit"),
        ("tflite", {"ensurepip": True}, "python3 -m venv ~/pipnet && ~/pipnet/bin/pip install numpy tflite-runtime"),
        ("tflite", {"version": "3.13.5"}, "tflite-runtime exists for 32 bit and Python 3.11 alone, .* is 3.13.5"),
        ("ncnn", {"bits": 64, "ensurepip": False}, "sudo apt install -y python3-venv && python3 -m venv ~/pipnet"),
        ("mnn", {"bits": 64, "venv": True, "python": "/home/pi/pipnet/bin/python"}, "/python -m pip install MNN$"),
    ],
)
def test_runtimes_to_install(destination: str, has: dict[str, Any], message: str) -> None:
    assert re.search(message, advice.runtime(destination, PI | has))


def test_numpy_to_install() -> None:
    assert "sudo apt install -y python3-numpy python3-venv && python3 -m venv --system" in advice.numpy(PI)
    assert advice.numpy(PI | {"bits": 64, "ensurepip": True}).endswith("~/pipnet/bin/pip install numpy")
