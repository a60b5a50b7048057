"""A real sshd on loopback as a stand-in board: in a mount and a process namespace of its own, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge.bundle import CONV, GOLDEN, Bundle, File, Layer, Source, Variant
from pipnet_edge.decode import map_shapes
from pipnet_edge.spec import MeanFace, ModelSpec
from pipnet_edge.targets.emulated.emulator import set_up
from pipnet_edge.targets.ssh import board as ssh
from tests.debian import need, unpack

ISOLATED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# The board's own users, a place for the server, and file systems that not much or nothing can be written to.
START = """
mount --bind {work}/passwd /etc/passwd
mount -t tmpfs none /run
mkdir /run/sshd
mount -t tmpfs -o size=1m none {work}/small
mount -t tmpfs -o nr_inodes=12 none {work}/crowded
mount -t tmpfs -o ro none {work}/readonly
exec env LD_LIBRARY_PATH={libraries} {sshd} -D -e -f {work}/sshd_config
"""
# How an arm64 program begins, and which of those bytes count.
ARM = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
ARM_START = (
    """
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
echo '"""
    + f":arm64:M::{ARM}:{MASK}:"
    + """{qemu}:F' > /proc/sys/fs/binfmt_misc/register
mount --rbind /proc {root}/proc
mount --rbind /dev {root}/dev
mount --bind {site} {root}/site
mkdir -p {root}{work}
mount --bind {work} {root}{work}
exec env QEMU_CPU=cortex-a72 chroot {root} /usr/sbin/sshd -D -e -f {work}/sshd_config
"""
)
SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {work}/host_key
AuthorizedKeysFile {work}/key.pub
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
StrictModes no
AcceptEnv XDG_CACHE_HOME
SetEnv {variables}
"""
CLIENT = """
Host unresolved
  HostName no-such-host.invalid
Host closed
  HostName 127.0.0.1
  Port {closed}
Host stranger
  UserKnownHostsFile {work}/nothing
Host reinstalled
  UserKnownHostsFile {work}/other_hosts
Host locked
  IdentityFile {work}/other_key
Host small
  SetEnv XDG_CACHE_HOME={work}/small
Host crowded
  SetEnv XDG_CACHE_HOME={work}/crowded
Host readonly
  SetEnv XDG_CACHE_HOME={work}/readonly
Host noisy
  User noisy
Host barred
  User barred
Host * !locked
  IdentityFile {work}/key
Host *
  HostName 127.0.0.1
  Port {port}
  User pi
  HostKeyAlias board
  IdentitiesOnly yes
  IdentityAgent none
  GlobalKnownHostsFile none
  UserKnownHostsFile {work}/known_hosts
"""


@dataclass(frozen=True)
class StandIn:
    """work holds the client's ssh_config; home is the board's; options make ssh go there. server: a process."""

    work: Path
    home: Path
    server: subprocess.Popen[str]

    @property
    def options(self) -> tuple[str, ...]:
        return ("-F", str(self.work / "ssh_config"))

    def connect(self, host: str = "board", **options: object) -> AbstractContextManager[ssh.Board]:
        return ssh.connect(host, options=self.options, **options)  # type: ignore[arg-type]

    def processes(self) -> dict[int, str]:
        """Command lines of what runs there, but for the server itself, by this machine's process ids."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                there = os.readlink(folder / "ns" / "pid") == self._namespace()
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:  # ended meanwhile, or somebody else's
                continue
            if there and line and parent != self.server.pid:
                found[int(folder.name)] = line
        return found

    def files(self) -> list[str]:
        """Everything in the board's home but what it had from the beginning, and the folder for caches itself."""
        new = [path for path in self.home.iterdir() if path.name not in (*OWN, ".cache")]
        below = [path for folder in (*new, self.home / ".cache") for path in folder.rglob("*")]
        return sorted(str(path.relative_to(self.home)) for path in (*new, *below))

    def remaining(self, folder: str) -> str:
        """What lies in one of the file systems that only the board sees."""
        command = ["ssh", *self.options, "board", f"ls -A {self.work / folder}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def wait_until_quiet(self, seconds: float = 20) -> None:
        """Until nothing runs there any more. Fails with what still does."""
        end = time.monotonic() + seconds
        while self.processes():
            assert time.monotonic() < end, self.processes()
            time.sleep(0.05)

    def _namespace(self) -> str:
        return os.readlink(f"/proc/{self.server.pid}/ns/pid_for_children")


OWN = ("pipnet", "bare", "crashing", "empty", "packages", "numpy", "broken", "bin")


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """The stand-in. Tests leave it as they find it: nothing runs there and nothing lies there."""
    _need_root()
    work, unpacked = tmp_path_factory.mktemp("board"), tmp_path_factory.mktemp("sshd")
    home = work / "the pi's home"
    for path in (home / "bin", work / "small", work / "crowded", work / "readonly"):
        path.mkdir(parents=True)
    _make_pythons(home)
    unpack(unpacked, ["openssh-server", "libwrap0"])
    _script(work / "noisy", 'echo "Welcome to the board"\nexec /bin/sh "$@"\n')
    users = {"pi": "/bin/sh", "noisy": work / "noisy", "barred": "/bin/false"}
    entries = [f"{name}:x:0:0::{home}:{shell}\n" for name, shell in users.items()]
    (work / "passwd").write_text("".join(entries) + "sshd:x:65533:65534::/run/sshd:/bin/false\n")
    libraries = next(unpacked.glob("usr/lib/*/libwrap.so.0")).parent
    start = START.format(work=work, libraries=libraries, sshd=unpacked / "usr/sbin/sshd")
    with _served(work, home, ISOLATED, start, f"PATH={home}/bin:/usr/bin:/bin") as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def arm_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """An aarch64 stand-in: sshd, shell and Python are arm64 programs, which the kernel hands to qemu's Cortex-A72.

    The kernel does so in a user namespace of the stand-in's own, where the machine allows that.
    """
    _need_root()
    allowed = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && test -e /proc/sys/fs/binfmt_misc/register"
    if subprocess.run([*ISOLATED, "--map-root-user", "sh", "-c", allowed], check=False).returncode:
        pytest.skip("needs a kernel with a binfmt_misc for each user namespace (Linux 6.7)")
    emulator = set_up()
    work, root = tmp_path_factory.mktemp("arm"), tmp_path_factory.mktemp("root") / "root"
    shutil.copytree(emulator.guest, root, symlinks=True)
    unpack(root, ["openssh-server", "dash"], "arm64")
    home = root / "home/pi"
    for path in (*(root / name for name in ("proc", "dev", "tmp", "run/sshd", "site", "usr/local/bin")), home):
        path.mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    os.chown(home, 1000, 1000)
    (root / "usr/local/bin/python3").symlink_to("/usr/bin/python3.11")
    accounts = [
        "root:x:0:0::/root:/bin/sh",
        "sshd:x:100:65534::/run/sshd:/bin/false",
        "pi:x:1000:1000::/home/pi:/bin/sh",
    ]
    (root / "etc/passwd").write_text("".join(f"{line}\n" for line in accounts))
    start = ARM_START.format(work=work, root=root, site=emulator.folder / "site", qemu=emulator.python("max")[0])
    variables = "PATH=/usr/local/bin:/usr/bin:/bin PYTHONPATH=/site QEMU_CPU=cortex-a72"
    with _served(work, home, (*ISOLATED, "--user"), start, *variables.split()) as stand_in:
        yield stand_in


@contextlib.contextmanager
def _served(work: Path, home: Path, isolated: Sequence[str], start: str, *variables: str) -> Iterator[StandIn]:
    """A server that the shell script `start` starts; variables of a login's environment."""
    work.chmod(0o755)  # the server reads the key as the user who logs in
    for key in ("host_key", "key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / key], check=True)
    host_key, other = ((work / f"{key}.pub").read_text() for key in ("host_key", "other_key"))
    (work / "known_hosts").write_text(f"board {host_key}")
    (work / "other_hosts").write_text(f"board {other}")
    port, closed = _free_ports(2)
    quoted = " ".join(f'"{variable}"' for variable in variables)
    (work / "sshd_config").write_text(SERVER.format(work=work, port=port, variables=quoted))
    (work / "ssh_config").write_text(CLIENT.format(work=work, port=port, closed=closed))
    log = work / "log"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [*isolated, "sh", "-ec", f"read go\n{start}"],
            stdin=subprocess.PIPE,
            stdout=stderr,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    try:
        if "--user" in isolated:
            _map_users(server.pid)
        assert server.stdin is not None
        with server.stdin as stdin:
            stdin.write("\n")
        _wait_for(port, server, log)
        yield StandIn(work, home, server)
    finally:
        # The first process of a namespace takes all others with it. Not every kernel ends it with its parent.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def clean(board: StandIn) -> Iterator[StandIn]:
    """The stand-in, which has to be empty and quiet after the test."""
    yield board
    board.wait_until_quiet()
    assert board.files() == []


def _make_pythons(home: Path) -> None:
    """Environments by what is in them, and in PATH a python3 that says it is an old one."""
    site = Path(sysconfig.get_paths()["purelib"])
    for name, pattern in (("packages", "*"), ("numpy", "numpy*")):
        (home / name).mkdir()
        for path in site.glob(pattern):
            # The worker is to run what is pushed, not what is installed here, and a board has no OpenCV.
            if not path.name.startswith(("pipnet_edge", "__editable__", "cv2")):
                (home / name / path.name).symlink_to(path)
    (home / "broken").mkdir()
    (home / "broken" / "ncnn.py").write_text("import os\nos.abort()\n")
    for name, packages in (("pipnet", "packages"), ("bare", "numpy"), ("crashing", "numpy broken"), ("empty", "")):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / name], check=True)
        purelib = next((home / name).glob("lib/python*/site-packages"))
        (purelib / "packages.pth").write_text("".join(f"{home / folder}\n" for folder in packages.split()))
    _script(home / "bin" / "python3", "echo 3.9.2\n")


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def _map_users(pid: int) -> None:
    """Gives a new user namespace the users of this one, as far as the stand-in has any."""
    end = time.monotonic() + 10
    while os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        assert time.monotonic() < end
        time.sleep(0.01)
    for kind in ("uid", "gid"):
        Path(f"/proc/{pid}/{kind}_map").write_text("0 0 65536\n")


def _need_root() -> None:
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("ssh"):
        need("root, unshare and ssh: the stand-in has users and file systems of its own")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """null-fp32 and null-fp16, which replay random maps for four random crops."""
    face = MeanFace("five", ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.875)), (0, 1))
    spec = ModelSpec("resnet18", num_lms=5, num_nb=2, net_stride=32, input_size=96, mean_face=face)
    folder = tmp_path_factory.mktemp("null") / "bundle"
    random = np.random.default_rng(0)
    arrays: Any = {"crops": random.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)}
    arrays |= {name: random.standard_normal((4, *shape)).astype(np.float32) for name, shape in map_shapes(spec).items()}
    paths = [folder / GOLDEN, *(folder / f"null-{precision}" / GOLDEN for precision in ("fp32", "fp16"))]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    golden, *files = (File.of(folder, path) for path in paths)
    variants = [Variant(Path(file.path).parent.name, "null", file.path[5:9], (file,)) for file in files]
    source = Source("net.pth", "0" * 64, 1, (1, 1), (1, 1))
    layer = Layer("backbone", CONV, ((3, 96, 96),), (8, 3, 3), (32, 32), (32, 32))
    made = Bundle(spec=spec, source=source, golden=golden, variants=tuple(variants), layers=(layer,), folder=folder)
    made.write_manifest()
    return made


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait_for(port: int, server: subprocess.Popen[str], log: Path) -> None:
    for _ in range(200):
        assert server.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    pytest.fail(log.read_text())
