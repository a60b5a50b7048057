"""Sets up the emulator: an aarch64 Python with the runtimes' own aarch64 wheels, and qemu-user to run it, in a folder.

    runner/      qemu of bookworm-backports: static, right about Arm's newer instructions, takes no plugins
    counter/     qemu of bookworm and the libraries it needs: takes plugins, which can count instructions
    guest/       Debian's Python for arm64
    site/        the wheels
    files.json   every file's size

Debian packages are unpacked there, nothing is installed. Root, chroot and binfmt_misc are not needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipnet_edge import runtimes
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import cache_folder
from pipnet_edge.targets.emulated import debian
from pipnet_edge.targets.emulated.debian import Tree
from pipnet_edge.worker import call as calls
from pipnet_edge.worker import device_half
from pipnet_edge.worker.protocol import Probe

HOST, GUEST = "amd64", "arm64"  # as Debian calls them
SUITE, PYTHON = "bookworm", "3.11"
FIRST, *OTHERS = ((row.package, row.wheel) for row in runtimes.RUNTIMES.values() if row.wheel)
# Name and version. These can be imported without their other dependencies. The versions are those of constraints.txt.
# The first runtime comes last: the order is part of VERSION, so another order would not find an existing emulator.
WHEELS = dict((("numpy", "2.4.6"), ("opencv-python-headless", "5.0.0.93"), *OTHERS, FIRST))
PLATFORMS = tuple(f"manylinux{tag}_aarch64" for tag in ("2014", *(f"_2_{minor}" for minor in (17, 24, 26, 27, 28, 34))))
QEMU = "qemu-aarch64"
FILES = "files.json"
PROBED_ON = "cortex-a76"  # the core with the most instructions
WORKER = ("-m", "pipnet_edge.worker")
SLOWNESS = 10.0  # a worker may take so many times as long as on a board

Step = Callable[[str, int, int], None]


TREES = (
    Tree("runner", HOST, f"{SUITE}-backports", ("qemu-user",), alone=True),
    Tree("counter", HOST, SUITE, ("qemu-user",)),
    Tree("guest", GUEST, SUITE, (f"python{PYTHON}", "libgomp1", "libstdc++6")),
)
# How the parts are put together; raise it when this changes and the parts do not. 1: the first.
LAYOUT = 1
# The end of the folder's name.
VERSION = hashlib.sha256(repr((LAYOUT, TREES, PYTHON, WHEELS)).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Emulator:
    """A folder that set_up has made."""

    folder: Path

    @property
    def guest(self) -> Path:
        """The guest's root. A file that is not below it is looked for on this machine."""
        return self.folder / "guest"

    def python(self, cpu: str) -> list[str]:
        """The command that starts the guest's Python on qemu's `cpu`; Python's arguments follow."""
        return [str(self.folder / "runner/usr/bin" / QEMU), "-cpu", cpu, "-L", str(self.guest), *self._python]

    def counted_python(self, cpu: str, guest: Path, plugin: Path, log: Path) -> list[str]:
        """The same with the qemu that takes plugins. guest: the guest's root. log: the file that the plugin writes."""
        counter = self.folder / "counter"
        libraries = [counter / part / "x86_64-linux-gnu" for part in ("lib", "usr/lib")]
        loader = [str(libraries[0] / "ld-linux-x86-64.so.2"), "--library-path", ":".join(map(str, libraries))]
        # A comma would end the plugin's name.
        plugged = ["-plugin", str(plugin).replace(",", ",,"), "-d", "plugin", "-D", str(log)]
        return [*loader, str(counter / "usr/bin" / QEMU), "-cpu", cpu, "-L", str(guest), *plugged, *self._python]

    @property
    def _python(self) -> list[str]:
        # Without `site`, because it would take settings from this machine's /etc/python3.
        return [str(self.guest / f"usr/bin/python{PYTHON}"), "-S", "-P"]

    @contextlib.contextmanager
    def environment(self) -> Iterator[dict[str, str]]:
        """Environment variables for the guest: its packages, a copy of the device half, and nothing of this machine's.

        Its home and its temporary files are removed when the block ends.
        """
        with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
            for name, path in device_half.files():
                Path(folder, name).parent.mkdir(exist_ok=True)
                shutil.copy(path, Path(folder, name))
            yield {
                **{"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
                "PYTHONPATH": f"{self.folder / 'site'}:{folder}",
                # For threads other than the job's own. Threads that spin while they wait are slow under emulation.
                **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
            }


def find() -> Emulator | None:
    """The emulator of this version, if it is set up and no file has been lost or cut off since."""
    folder = cache_folder() / f"arm-{VERSION}"
    try:
        sizes = json.loads((folder / FILES).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return Emulator(folder) if _sizes(folder).items() >= sizes.items() else None


def ready() -> Emulator:
    """The emulator of this version. Raises EdgeError that names the command which sets it up."""
    found = find()
    if not found:
        raise EdgeError(f"the emulator is not set up in {cache_folder()}: `pipnet-edge emulator` does it (440 MB)")
    return found


def set_up(step: Step = lambda *_: None) -> Emulator:
    """The emulator of this version. If it is not there yet, it is fetched and tried: 440 MB, in half a minute.

    Raises EdgeError when this machine cannot have one, or with the complaint of apt-get, dpkg-deb or pip.
    """
    found = find()
    if found:
        return found
    _demand()
    import fcntl

    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "arm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be setting it up; its lock ends with it
        found = find()
        if found:
            return found
        for left in cache_folder().glob(".arm-*"):
            shutil.rmtree(left)
        scratch = Path(tempfile.mkdtemp(prefix=".arm-", dir=cache_folder()))
        try:
            _build(scratch / "new", step)
            target = cache_folder() / f"arm-{VERSION}"
            if target.exists():
                target.rename(scratch / "spoilt")
            (scratch / "new").rename(target)
        finally:
            shutil.rmtree(scratch)
    return Emulator(target)


def _demand() -> None:
    """Raises EdgeError that names everything this machine lacks."""
    machine = platform.machine()
    if machine == "aarch64":
        raise EdgeError("this machine is aarch64 itself: leave out --emulate to run here, or give --host for a board")
    lacking = [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]
    lacking += [f"{debian.KEYRING} (package debian-archive-keyring)"] if not debian.KEYRING.is_file() else []
    lacking += [f"pip for {sys.executable}"] if not importlib.util.find_spec("pip") else []
    if machine != "x86_64" or lacking:
        given = f"this is {platform.system()} on {machine}" + (f" without {', '.join(lacking)}" if lacking else "")
        raise EdgeError(f"the emulator needs Debian or the like on x86_64, and pip; {given}")


def _build(folder: Path, step: Step) -> None:
    tried = [row.name for row in runtimes.RUNTIMES.values() if row.wheel]
    steps = len(TREES) + 1 + len(tried)
    mirror = debian.mirror()
    for done, tree in enumerate(TREES):
        step(f"{tree.folder}: {' '.join(tree.packages)} from {mirror}", done, steps)
        debian.unpack(tree, mirror, folder / tree.folder)
        if tree.architecture == HOST:
            for program in (folder / tree.folder / "usr/bin").iterdir():
                if program.name != QEMU:
                    program.unlink()
    step(f"{len(WHEELS)} wheels", len(TREES), steps)
    _install_wheels(folder / "site")
    emulator = Emulator(folder)
    for done, runtime in enumerate(tried):
        step(f"{runtime} in the emulator", len(TREES) + 1 + done, steps)
        with emulator.environment() as environment:
            command = [*emulator.python(PROBED_ON), *WORKER]
            calls.start(command, Probe(runtime), environment=environment, slowness=SLOWNESS)
    (folder / FILES).write_text(json.dumps(_sizes(folder)))


def _install_wheels(site: Path) -> None:
    given = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:"]
    for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none"):
        given += ["--abi", abi]
    for tag in PLATFORMS:
        given += ["--platform", tag]
    pinned = [f"{name}=={version}" for name, version in WHEELS.items()]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    debian.run([*pip, "--no-deps", *given, "--target", str(site), *pinned], name="pip")


def _sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every file below a folder, by its path in the folder. Links are not followed."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found
