"""What tests need of Debian, without installing it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def need(what: str) -> None:
    """Skips a test; CI has to have what it needs."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI has to provide {what}")
    pytest.skip(f"needs {what}")


def unpack(folder: Path, packages: Sequence[str], architecture: str | None = None) -> None:
    """Fetches Debian packages, with what they depend on for another architecture, and unpacks them into a folder.

    Nothing is installed: apt has lists, caches and a state of its own.
    """
    own = folder / ".apt"
    for name in ("lists/partial", "archives/partial"):
        (own / name).mkdir(parents=True)
    (own / "status").touch()
    settings = {"Dir::State::lists": own / "lists", "Dir::Cache": own, "APT::Sandbox::User": "root"}
    fetch = ["download"]
    if architecture:
        other = {"APT::Architecture": architecture, "APT::Architectures::": architecture}
        settings |= {**other, "Dir::State::status": own / "status"}
        fetch = ["install", "-y", "--download-only", "--no-install-recommends"]
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]

    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=own / "archives", check=True, capture_output=True, text=True)

    try:
        run("apt-get", "-qq", *options, "update")
        run("apt-get", "-qq", *options, *fetch, *packages)
        for package in (own / "archives").glob("*.deb"):
            run("dpkg-deb", "-x", package, folder)
    except (OSError, subprocess.CalledProcessError) as error:
        need(f"{', '.join(packages)} ({getattr(error, 'stderr', None) or error})")
    shutil.rmtree(own)
