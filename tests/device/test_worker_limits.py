"""What a worker may not do: hang, take all memory, tell too much or what is no text, outlive its command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipnet_edge.bundle import Bundle
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import limits, protocol, serve

Script = Callable[[str], None]
PYTHON = sys.executable
# It holds Python's lock, so that no other thread of the process can run.
HANGS = """
import ctypes, os
open(os.environ["PID"], "w").write(str(os.getpid()))
while True:
    ctypes.PyDLL(None).sleep(600)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """script(text): Python's text that is run in the worker's place, after it has read its job."""

    def install(text: str) -> None:
        path = tmp_path / "worker"
        path.write_text(f"#!{PYTHON} -IS\nimport os, sys, time\nos.read(0, 1 << 20)\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return install


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(EdgeError) as caught:
        work()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return str(caught.value)


def write(content: str, times: int = 1) -> str:
    """Python's text that writes these bytes."""
    return f"for _ in range({times}):\n    os.write(1, {content})\n"


PROGRESS = """b'{"event": "progress", "done": 1, "of": 2}\\n'"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (write("""b'{"event": "done", "version": "\\xff\\xfe"}\\n'"""), "a line that is not UTF-8"),
        (write("""b'{"event": ' + b'[' * 100_000 + b'\\n'"""), "what the worker wrote is no JSON"),
        (write("""b'{"event": "done", "version": "1"}\\n'""", 2), "went on after its answer to 'probe onnx'"),
        (write(PROGRESS, limits.LINES + 9), f"wrote more than {limits.LINES} lines for 'probe onnx'"),
        (write(PROGRESS + " * 20_000", 1_000), f"wrote more than {limits.LINES} lines"),
        (write("""b'{"event": ' + b' ' * 1_000_000 + b'3}\\n'"""), "the worker told of 3"),
        (write("""b'{"event": "done", "version": "1"'"""), "ended with status 0"),
    ],
    ids=["no utf-8", "brackets", "two answers", "lines", "fast lines", "almost long", "cut"],
)
def test_what_is_not_said(script: Script, text: str, message: str) -> None:
    script(text)
    assert message in refused(lambda: calls.here(protocol.Probe("onnx")))


def test_a_worker_that_hangs(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that goes on telling, and one that started something that has its stdout."""
    monkeypatch.setattr(limits, "SOON", 1.0)
    pid = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    more = f"while True:\n    os.write(1, {PROGRESS})\n    time.sleep(0.01)"
    for text in ("time.sleep(600)", more, f"if os.fork():\n    os._exit(0)\n{pid}time.sleep(600)"):
        script(pid + text)
        start = time.monotonic()
        assert refused(lambda: calls.here(protocol.Probe("onnx"))) == "'probe onnx' did not answer within 1 s"
        assert time.monotonic() - start < 5
        ended(tmp_path / "pid")


def ended(path: Path) -> None:
    """Until the process whose id is in a file has ended."""
    end = time.monotonic() + 20
    while Path(f"/proc/{path.read_text()}/stat").exists():
        if Path(f"/proc/{path.read_text()}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_runtime_that_holds_the_lock_ends_with_its_command(
    packages: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PID", str(tmp_path / "pid"))
    packages("ncnn", HANGS)
    text = "from pipnet_edge.worker import call, protocol; call.here(protocol.Probe('ncnn'))"
    with subprocess.Popen([sys.executable, "-P", "-c", text]) as command:
        end = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        command.send_signal(signal.SIGKILL)
    ended(tmp_path / "pid")


def test_memory_has_a_limit(packages: Callable[[str, str], None]) -> None:
    packages("ncnn", "import numpy as np\nnp.ones(1 << 34, np.uint8)\n")
    said = refused(lambda: calls.here(protocol.Probe("ncnn")))
    assert said.startswith("ncnn is installed but cannot be imported: ")
    assert "Unable to allocate 16.0 GiB" in said


def test_the_limits_grow_with_the_job(null_bundle: Bundle, tmp_path: Path) -> None:
    crops = tmp_path / "crops.npy"
    np.save(crops, np.zeros((7, 4, 4, 3), np.uint8))
    bundle = str(null_bundle.folder)
    soon, few = limits.of(protocol.Facts()), limits.of(protocol.Infer(bundle, "null-fp32", 1, "out.npz"))
    many = limits.of(protocol.Infer(bundle, "null-fp32", 1, "out.npz", str(crops)))
    assert soon.seconds == limits.SOON == 60
    assert many.seconds - few.seconds == 7 * limits.FRAME
    assert limits.of(protocol.Time(bundle, "null-fp32", 1, 1, 3600.0, 1)).seconds > 3600
    assert limits.of(protocol.Probe("onnx"), slowness=10).seconds == 600
    small, large = limits.memory(0), limits.memory(1 << 30, str(crops))
    assert 2e9 < small < large - 20 * (1 << 30) < small + 1e6
    assert limits.memory(1 << 60) == limits.MOST_MEMORY


def test_samples_are_told_in_short_lines(null_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the frames are."""
    monkeypatch.setattr(serve, "MOST", 8)
    job = protocol.Time(str(null_bundle.folder), "null-fp32", 1, 1, 0.0, 50)
    told = [event for event in serve.timing(job) if isinstance(event, protocol.Samples)]
    assert sum(len(event.stages["decode"]) for event in told) == 50
    assert {len(event.stages["decode"]) for event in told} <= set(range(9))
    samples = (123456.7891,) * 8192
    line = protocol.write_event(protocol.Samples(1.0, dict.fromkeys(protocol.STAGES, samples), protocol.State()))
    assert len(line) < protocol.LONGEST


def test_an_error_is_cut(packages: Callable[[str, str], None]) -> None:
    packages("ncnn", "raise ImportError('x' * 5_000_000)\n")
    assert len(refused(lambda: calls.here(protocol.Probe("ncnn")))) < 600
