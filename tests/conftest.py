"""Fixtures that several folders of tests share."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge.files import cache_folder

ROOT = Path(__file__).resolve().parent.parent
# The face detector's weights, where the user has them: once they run, tests have a cache folder of their own.
WEIGHTS = cache_folder() / "FaceBoxesV2.pth"
# What one process runs, for the sake of one set-up; elsewhere, the tests of a file.
TOGETHER = {"tests/arm/": "emulator", "tests/ssh/test_arm.py": "emulator", "tests/ssh/": "board"}

# One core a test, and before torch is imported: threads that wait for each other on busy cores take twice the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: what belongs together goes to one process, in the order of the files."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((group for start, group in TOGETHER.items() if file.startswith(start)), file)

    config.option.loadscopereorder = False
    return Together(config, log)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A suite that was started in the background ignores Ctrl-C, and so would every command that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "run"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(of_this_run: Path) -> None:
    """Rounded weights are cached; neither may a test find what an earlier run left, nor leave anything itself."""
    cache = of_this_run / "cache"
    cache.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(cache)


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
def demo_bundle(of_this_run: Path, isolated: tuple[str, ...]) -> Path:
    """The embedded checkpoint converted for every runtime, fp32, fp16 and int8, with the network cut off.

    All processes of a run share it: who comes second waits, and finds it.
    """
    pytest.importorskip("torch", reason="converting needs the workstation half")
    from pipnet_edge.converters import demo

    folder = of_this_run / "bundle"
    with _alone(of_this_run / "bundle.lock"):
        if not folder.exists():
            command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "convert", str(demo.CHECKPOINT), "--data", "300w"]
            options = ["--calibrate", str(demo.CALIBRATION), "--max-drift", "none", "-o", str(folder)]
            done = subprocess.run([*isolated, *command, *options], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    return folder


@dataclass(frozen=True)
class Chain:
    """A bundle that faces can be tracked with, a detector's bundle for the same runtimes, and a cache that has it."""

    bundle: Path
    detector: Path
    cache: Path


@pytest.fixture(scope="session")
def chain(of_this_run: Path, demo_bundle: Path) -> Chain:
    """The demo's bundle and the trained detector, for tflite in fp32. All processes of a run share them."""
    if not WEIGHTS.is_file():
        _need(str(WEIGHTS))
    folder = of_this_run / "chain"
    found = Chain(folder / "bundle", folder / "pipnet-edge" / "detector", folder)
    with _alone(of_this_run / "chain.lock"):
        if not folder.exists():
            command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "detector", str(WEIGHTS), "--to", "tflite"]
            options = ["--precision", "fp32", "-o", str(found.detector)]
            done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            shutil.copytree(demo_bundle, found.bundle)
            manifest = json.loads((found.bundle / "manifest.json").read_text())
            manifest["spec"]["presence"] = manifest["spec"]["presence"] or 0.25
            (found.bundle / "manifest.json").write_text(json.dumps(manifest))
    return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Only one process is past this; the system frees it when the process ends, however it does."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _need(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI has to provide {what}")
    pytest.skip(f"needs {what}")
