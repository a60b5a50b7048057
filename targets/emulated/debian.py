"""Debian packages of any architecture and suite, unpacked into a folder: nothing is installed, no rights are needed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipnet_edge.errors import EdgeError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "PIPNET_EDGE_DEBIAN_MIRROR"


@dataclass(frozen=True)
class Tree:
    """Debian packages of an architecture and suite for a folder. alone: without the packages that they depend on."""

    folder: str
    architecture: str
    suite: str
    packages: tuple[str, ...]
    alone: bool = False


def mirror() -> str:
    """The Debian mirror that the user has named (MIRROR), else the one that this machine's apt sources name."""
    if MIRROR in os.environ:
        return os.environ[MIRROR]
    lines = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"])
    for line in lines.splitlines():
        if line.rstrip("/").endswith(("/debian", "/debian.list")):
            return line
    raise EdgeError(f"this machine's apt sources name no Debian mirror; set {MIRROR} to the address of one")


def unpack(tree: Tree, mirror: str, folder: Path) -> None:
    """Fetches a tree's packages from a mirror and unpacks them into a new folder. Raises EdgeError as run does."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder.parent.parent, prefix="apt-") as scratch:
        apt, archives = Path(scratch), Path(scratch, "cache", "archives")
        for path in ("state/lists/partial", "cache/archives/partial"):
            (apt / path).mkdir(parents=True)
        (apt / "status").touch()
        source = f"deb [arch={tree.architecture} signed-by={KEYRING}] {mirror} {tree.suite} main\n"
        (apt / "sources.list").write_text(source)
        (apt / "apt.conf").write_text(_apt_conf(apt, tree.architecture))
        command = ["apt-get", "-qq", "-c", str(apt / "apt.conf")]
        run([*command, "--error-on=any", "update"])
        if tree.alone:
            run([*command, "download", *tree.packages], archives)
        else:
            run([*command, "--yes", "--download-only", "--no-install-recommends", "install", *tree.packages])
        for package in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "--extract", str(package), str(folder)])


def _apt_conf(folder: Path, architecture: str) -> str:
    """apt's configuration on top of this machine's: with it, apt writes only below `folder`."""
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        **{f"Dir::Etc::{name}": "/dev/null" for name in ("sourceparts", "preferences", "preferencesparts")},
    }
    # This machine's actions after an update are meant for its own packages.
    hooks = ("APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "APT::Architectures")
    return "".join(
        [*(f"#clear {hook};\n" for hook in hooks), *(f'{key} "{value}";\n' for key, value in settings.items())]
    )


def run(command: Sequence[str], folder: Path | None = None, name: str = "") -> str:
    """Runs a command and returns its stdout. After an interrupt, the command and its children are killed.

    Raises EdgeError with its first complaint. name: the command's name in that message, by default its first word.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    ) as tool:
        try:
            out, err = tool.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(tool.pid, signal.SIGKILL)
            tool.communicate()  # waits for the last child too, because it could still write files
            raise
    if tool.returncode:
        lines = err.strip().splitlines() or [f"status {tool.returncode}"]
        complaints = [line for line in lines if line.startswith(("E:", "ERROR:"))] or lines
        raise EdgeError(f"the emulator was not set up, {name or command[0]} failed: {complaints[0][:300]}")
    return out
