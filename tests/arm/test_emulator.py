"""The emulator is set up for real, is cut off, lacks things; and only a whole one of this version is used."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge import runtimes
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import cache_folder
from pipnet_edge.targets.emulated import debian
from pipnet_edge.targets.emulated import emulator as emulators
from pipnet_edge.targets.emulated.emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent.parent
SET_UP = """
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.emulated import emulator
try:
    emulator.set_up(lambda *step: print(step, flush=True))
except EdgeError as e:
    print(e)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pipnet-edge"


def left_in(cache: Path) -> list[str]:
    return sorted(name for name in os.listdir(cache) if "arm" in name)


def test_set_up_is_whole_and_soon_done(done_set_up: Any) -> None:
    emulator, steps = done_set_up.emulator, done_set_up.steps
    assert emulator.folder == cache_folder() / f"arm-{emulators.VERSION}"
    assert left_in(cache_folder()) == sorted(["arm.lock", emulator.folder.name])
    assert [(done, total) for _, done, total in steps] == [(index, len(steps)) for index in range(len(steps))]
    assert {what.partition(" ")[0] for what, *_ in steps} >= set(runtimes.DESTINATIONS)
    assert done_set_up.seconds < 120  # an issue's promise; it takes a quarter of that
    # A stranger's files would make results that nobody else can have.
    assert {path.name for path in (emulator.folder / "site").glob("*.dist-info")} == {
        f"{name.replace('-', '_')}-{version}.dist-info".lower() for name, version in emulators.WHEELS.items()
    }


def test_a_second_set_up_finds_the_first(emulator: Emulator) -> None:
    before = (emulator.folder / emulators.FILES).stat().st_mtime_ns
    steps: list[object] = []
    assert emulators.set_up(lambda *step: steps.append(step)) == emulators.find() == emulators.ready() == emulator
    assert steps == []
    assert (emulator.folder / emulators.FILES).stat().st_mtime_ns == before


def test_the_wheels_are_the_versions_that_are_tested_together() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.lower().split("==") for line in lines if "==" in line)
    assert {name.lower(): version for name, version in emulators.WHEELS.items()}.items() <= tested.items()


def test_another_version_s_emulator_is_not_used(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulators, "VERSION", "0123456789")
    assert emulators.find() is None
    with pytest.raises(EdgeError, match=r"is not set up in .*: `pipnet-edge emulator` does it"):
        emulators.ready()


def test_spoilt_emulators_are_not_used(emulator: Emulator) -> None:
    library = next((emulator.folder / "site" / "ncnn").glob("ncnn*.so"))
    content, mode = library.read_bytes(), library.stat().st_mode
    for left in (None, content[:-1]):
        library.unlink()
        if left is not None:
            library.write_bytes(left)
        assert emulators.find() is None
        library.write_bytes(content)
        library.chmod(mode)
        assert emulators.find() == emulator
    listed = emulator.folder / emulators.FILES
    text = listed.read_text()
    listed.write_text(text[:100])
    assert emulators.find() is None
    listed.write_text(text)
    assert json.loads(text).keys() >= {"runner/usr/bin/qemu-aarch64", "counter/usr/bin/qemu-aarch64"}


# --- Set-ups that do not come to an end.


@pytest.mark.parametrize("step", [0, 1])
def test_a_cut_off_set_up_leaves_nothing(emulator: Emulator, cache: Path, step: int) -> None:
    command = [sys.executable, "-c", SET_UP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as work:
        assert work.stdout is not None
        for _ in range(step + 1):
            work.stdout.readline()
        made = next(cache.glob(".arm-*"))
        while not list(made.rglob("*.deb")) + list(made.rglob("*InRelease*")):
            assert work.poll() is None
        work.send_signal(signal.SIGINT)
        _, error = work.communicate()
    assert error.splitlines()[-1] == "KeyboardInterrupt"
    assert left_in(cache) == ["arm.lock"]


def test_without_a_network_one_line_says_so_and_what_was_killed_is_swept(
    emulator: Emulator, cache: Path, isolated: tuple[str, ...]
) -> None:
    (cache / ".arm-killed" / "new").mkdir(parents=True)
    done = subprocess.run([*isolated, sys.executable, "-c", SET_UP], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    *_, said = done.stdout.splitlines()
    assert re.match(r"the emulator was not set up, apt-get failed: E: Failed to fetch http", said)
    assert left_in(cache) == ["arm.lock"]


def test_missing_tools_are_named_all_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("another machine is told something else")
    monkeypatch.setenv("PATH", str(cache.parent))
    monkeypatch.setattr(debian, "KEYRING", cache / "keyring.gpg")
    message = (
        r"needs Debian or the like on x86_64, and pip; this is Linux on x86_64 without apt-get, dpkg-deb, .*keyring"
    )
    with pytest.raises(EdgeError, match=message):
        emulators.set_up()
    assert not cache.exists()


@pytest.mark.parametrize(
    ("machine", "message"),
    [("aarch64", "this machine is aarch64 itself: leave out --emulate"), ("riscv64", "this is Linux on riscv64$")],
)
def test_other_machines(
    cache: Path, monkeypatch: pytest.MonkeyPatch, machine: str, message: str, emulator: Emulator
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(EdgeError, match=message):
        emulators.set_up()
    assert not cache.exists()


def test_a_mirror_can_be_named(cache: Path, monkeypatch: pytest.MonkeyPatch, emulator: Emulator) -> None:
    monkeypatch.setenv(debian.MIRROR, "file:/nowhere")
    with pytest.raises(EdgeError, match=r"apt-get failed: E: .*file:/nowhere"):
        emulators.set_up()
    assert left_in(cache) == ["arm.lock"]
