"""A small machine with a camera: a Debian kernel, whose module `vivid` makes one, in qemu.

It has this machine's files, read-only, and so its Python and all packages. Debian's linux-image-amd64, busybox-static
and qemu-system-x86 are fetched for it (120 MB) and unpacked (600 MB), not installed, and removed again.
"""

from __future__ import annotations

import json
import lzma
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.debian import unpack
from tests.device.conftest import make_bundle  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]
INIT, INSIDE = (Path(__file__).with_name(name) for name in ("init", "inside.py"))
# One webcam, /dev/video0, and nothing else of what vivid can be.
MODULES = {
    "virtio_pci": "",
    "9pnet_virtio": "",
    "9p": "",
    "vivid": "n_devs=1 node_types=0x1 num_inputs=1 input_types=0",
}


@dataclass(frozen=True)
class Answer:
    """How a command ended in the guest."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Guest:
    """The running machine. share: the only folder it may write to, which has the same name in it and here."""

    share: Path
    process: subprocess.Popen[str]

    @property
    def interpreter(self) -> tuple[str, ...]:
        """A command there: this Python, which finds the project as it is here."""
        return "env", f"PYTHONPATH={ROOT}", sys.executable, "-BP"

    def sh(self, script: str) -> Answer:
        """Runs a shell script in the guest."""
        assert self.process.stdin
        assert self.process.stdout
        (self.share / "script").write_text(script)
        self.process.stdin.write(f"sh {self.share}/script\n")
        self.process.stdin.flush()
        status = self.process.stdout.readline()
        assert status, "the guest has ended"
        return Answer(int(status), *((self.share / name).read_text() for name in ("stdout", "stderr")))

    def python(self, *arguments: str) -> Answer:
        """Runs Python in the guest."""
        return self.sh(shlex.join([*self.interpreter, *arguments]))

    def inside(self, *arguments: str) -> Any:
        """Does one of the things in inside.py, and returns what it prints."""
        answer = self.python(str(INSIDE), *arguments)
        assert answer.status == 0, answer
        return json.loads(answer.stdout)


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The machine, booted once."""
    debian, share = tmp_path_factory.mktemp("debian"), tmp_path_factory.mktemp("share")
    if platform.machine() != "x86_64":
        pytest.skip("needs an x86-64 machine")
    unpack(debian, ["linux-image-amd64", "busybox-static", "qemu-system-x86"], "amd64")
    initrd = _initrd(debian, debian / "initrd")
    command = _qemu(debian, initrd, share)
    with (share / "qemu").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        assert line == "ready\n", [(share / name).read_text() for name in ("qemu", "console")]
        yield Guest(share, process)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(debian)


def _qemu(debian: Path, initrd: Path, share: Path) -> list[str]:
    """qemu with its own C library, whatever this machine's is. What a guest does is emulated: KVM may be missing."""
    libraries = ":".join(str(debian / folder / "x86_64-linux-gnu") for folder in ("lib", "usr/lib"))
    loader = [debian / "lib64/ld-linux-x86-64.so.2", "--library-path", libraries, debian / "usr/bin/qemu-system-x86_64"]
    firmware = [part for name in ("qemu", "seabios") for part in ("-L", debian / "usr/share" / name)]
    machine = ["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1G", "-nodefaults", "-no-reboot", "-display", "none"]
    kernel = next(debian.glob("boot/vmlinuz-*"))
    boot = ["-kernel", kernel, "-initrd", initrd, "-append", f"console=ttyS0 panic=-1 share={share}"]
    common = "security_model=none,multidevs=remap"
    files = [
        *("-virtfs", f"local,path=/,mount_tag=root,readonly=on,{common}"),
        *("-virtfs", f"local,path={share},mount_tag=share,{common}"),
    ]
    lines = ["-serial", f"file:{share}/console", "-serial", "stdio"]
    modules = ["env", f"QEMU_MODULE_DIR={debian}/usr/lib/x86_64-linux-gnu/qemu"]
    return [str(part) for part in (*modules, *loader, *firmware, *machine, *boot, *files, *lines)]


def _initrd(debian: Path, archive: Path) -> Path:
    """An archive of busybox, `init` and the modules with all that they need, in their order."""
    busybox, root = debian / "bin/busybox", debian / "root"
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copy(INIT, root / "init")
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in debian.glob("lib/modules/**/*.ko*")}
    order = list[str]()

    def add(name: str) -> None:
        if not name or name in order:
            return
        data = files[name].read_bytes()
        data = lzma.decompress(data) if files[name].suffix == ".xz" else data
        for needed in re.search(rb"\0depends=([^\0]*)", data)[1].decode().replace("-", "_").split(","):
            add(needed)
        order.append(name)
        (root / "modules" / f"{name}.ko").write_bytes(data)

    for module in MODULES:
        add(module)
    (root / "modules/order").write_text("".join(f"{name} {MODULES.get(name, '')}\n" for name in order))
    with archive.open("wb") as out:
        names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
        subprocess.run([busybox, "cpio", "-o", "-H", "newc"], cwd=root, input=names, stdout=out, check=True)
    return archive
