"""Advice for a board that lacks something: one line each, for the messages of board.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipnet_edge import runtimes

OLDEST = "3.11"
ENVIRONMENT = "~/pipnet"
# 32-bit ARM has wheels of these runtimes only, and numpy comes from the distribution there.
ON_32_BIT = tuple(row.name for row in runtimes.RUNTIMES.values() if row.on_32_bit)
APT_FOR_VENV = "sudo apt install -y python3-venv"
# Words of ssh, and what to check. The first entry whose words are found counts.
CAUSES = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one in known_hosts; if the board was set up anew: ssh-keygen -R {name}",
    ),
    (
        "Host key verification failed",
        "its host key is not known; connect once by hand, `ssh {host}`, and compare the fingerprint",
    ),
    (
        "Permission denied",
        "no key that it accepts; check the user's name, `ssh-add -l` and IdentityFile, or `ssh-copy-id {host}`",
    ),
    (
        "Too many authentication failures",
        "too many keys were tried; name the right one with IdentityFile and IdentitiesOnly",
    ),
    ("Could not resolve hostname", "there is no such name; check it, or give the board's address"),
    (
        "Connection refused",
        "it is there but no ssh server listens; on the board: sudo systemctl enable --now ssh, or check the port",
    ),
    ("timed out", "it does not answer; is it on, and on the same network?"),
    ("No route to host", "it does not answer; is it on, and on the same network?"),
    ("Network is unreachable", "this machine has no way there; check the network"),
)


def no_connection(host: str, said: str) -> str:
    """For an ssh that ended before the far end spoke. said: its stderr."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "ssh ended without a word"
    name = host.removeprefix("ssh://").rpartition("@")[2].rstrip("/")
    for words, advice in CAUSES:
        if words in said:
            return f"cannot connect to {host}: {advice.format(host=host, name=name)} ({last})"
    return f"cannot connect to {host}: {last}; `ssh -v {host} true` tells more"


def python(wanted: Sequence[str], found: Sequence[str]) -> str:
    """For a board on which no wanted Python is new enough. found: their versions, or "none"."""
    tried = ", ".join(
        f"{name} is missing" if version == "none" else f"{name} is {version}"
        for name, version in zip(wanted, found, strict=True)
    )
    return (
        f"Python {OLDEST} or newer is needed, {tried}; Raspberry Pi OS bookworm and trixie have one: {APT_FOR_VENV} "
        f"&& python3 -m venv {ENVIRONMENT}, or name another Python"
    )


def numpy(has: Mapping[str, Any]) -> str:
    """For a Python without numpy."""
    if has["bits"] == 32:
        apt = f"{APT_FOR_VENV.removesuffix('python3-venv')}python3-numpy python3-venv"
        return (
            f"{_which(has)} has no numpy: {apt} && python3 -m venv --system-site-packages {ENVIRONMENT} (32-bit: there "
            f"are no wheels of it, and of the runtimes only {' and '.join(ON_32_BIT)})"
        )
    return f"{_which(has)} has no numpy: {_pip(has, 'numpy')}"


def runtime(name: str, has: Mapping[str, Any]) -> str:
    """For a Python without a runtime's package."""
    row = runtimes.RUNTIMES[name]
    package = runtimes.package_for(name, has["bits"], has["version"])
    if package:
        return f"{name} needs the package {package} in {_which(has)}: {_pip(has, package)}"
    if not row.on_32_bit:
        return (
            f"{row.package} does not exist for 32 bit, as {_which(has)} is; {' and '.join(ON_32_BIT)} do, or put a "
            "64-bit system on the board"
        )
    others = " and ".join(name for name in ON_32_BIT if not runtimes.RUNTIMES[name].on_32_bit_python)
    which = f"{_which(has)} is {has['version']}"
    return f"{row.on_32_bit} exists for 32 bit and Python {row.on_32_bit_python} alone, {which}; {others} exists"


def space(folder: str, free: int, need: int) -> str:
    """For a disk with `free` bytes where `need` are needed."""
    return f"no space in {folder}: {need / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"


def unwritable(failure: Mapping[str, Any]) -> str:
    """For an OSError of the far end: errno (name), reason, path, free (bytes)."""
    if failure["errno"] in ("ENOSPC", "EDQUOT"):
        return f"no space left for {failure['path']}: {failure['reason']}, {failure['free'] / 1e6:.1f} MB are free"
    if failure["errno"] == "EROFS":
        return f"{failure['path']} is on a read-only file system; make it writable, or set XDG_CACHE_HOME on the board"
    return f"cannot use {failure['path']}: {failure['reason']}"


def _which(has: Mapping[str, Any]) -> str:
    return f"{has['python']} ({has['machine']})"


def _pip(has: Mapping[str, Any], package: str) -> str:
    """The command that installs a package: in that Python's environment, else in a new one that is found next time."""
    if has["venv"]:
        return f"{has['python']} -m pip install {package}"
    packages = " ".join(dict.fromkeys(["numpy", package]))
    make = f"python3 -m venv {ENVIRONMENT} && {ENVIRONMENT}/bin/pip install {packages}"
    return make if has["ensurepip"] else f"{APT_FOR_VENV} && {make}"
