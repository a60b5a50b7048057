"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A suite that was started in the background ignores Ctrl-C, and so would every command that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rounded weights are cached; neither may a test find what an earlier run left, nor leave anything itself."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _unlimited_process() -> Iterator[None]:
    """A limit that a test leaves on this process would fail a test of another file, much later."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    yield
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.fixture(scope="session")
def shared() -> Path:
    """Checkpoints and faces that are not part of the project; a tree without them skips, CI must have them."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        _need("material that is not part of the project")
    return folder


@pytest.fixture(scope="session")
def isolated() -> tuple[str, ...]:
    """A command prefix that runs the rest without any network and lets it mount file systems of its own."""
    prefix = ("unshare", "--map-root-user", "--net", "--mount")
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        _need("unshare with user namespaces")
    return prefix


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory, isolated: tuple[str, ...]) -> Path:
    """The embedded checkpoint converted for every runtime, fp32, fp16 and int8, with the network cut off."""
    pytest.importorskip("torch", reason="converting needs the workstation half")
    from pipnet_edge.converters import demo

    folder = tmp_path_factory.mktemp("demo") / "bundle"
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "convert", str(demo.CHECKPOINT), "--data", "300w"]
    options = ["--calibrate", str(demo.CALIBRATION), "--max-drift", "none", "-o", str(folder)]
    # One thread: two that wait for each other on a busy machine take many times as long.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*isolated, *command, *options], capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    return folder


def _need(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI has to provide {what}")
    pytest.skip(f"needs {what}")
