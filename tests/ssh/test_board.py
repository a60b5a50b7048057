"""Jobs on a board, what stays there, and boards that lack something: a real sshd on loopback (see conftest.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
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
from pipnet_edge.targets.ssh import board as ssh
from pipnet_edge.targets.ssh import wire
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


def kind(event: protocol.Event) -> str:
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
    assert [kind(event) for event in events] == ["loaded", *["progress"] * 4]
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
