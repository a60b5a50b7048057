"""Targets and their hosts, listed, saved, and taken by the commands beside bench."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge.bundle import Bundle
from pipnet_edge.errors import USER_ERROR

Run = Callable[..., subprocess.CompletedProcess[str]]
Failed = Callable[..., str]
Envelope = Callable[..., dict[str, Any]]


def test_targets_are_listed_with_their_hosts(here: Run, envelope: Envelope, config: Path) -> None:
    result = here("targets", "--save", "rpi4=pi@four", "--save", "rpi5=pi@five", "--save", "rpi5=")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert {"rpi3", "rpi4", "rpi5", "zero2w", "arm64", "x86_64", "rk3588"} <= set(rows)
    assert json.loads(config.read_text()) == {"rpi4": "pi@four"}
    found = envelope(here("targets", "--json"), "targets")["targets"]
    assert (found["rpi4"]["host"], found["rpi5"]["host"]) == ("pi@four", None)
    assert found["rk3588"]["cores"] == "4 Cortex-A76 at 2.4 GHz + 4 Cortex-A55 at 1.8 GHz"
    assert any(text.startswith("governor performance: ") for text in found["rpi4"]["settings"])


@pytest.mark.parametrize(
    ("saved", "message"),
    [("rpi4", "--save rpi4; TARGET=USER@HOST is needed"), ("rpi9=pi@x", "target 'rpi9' is unknown; allowed: arm64")],
)
def test_hosts_that_cannot_be_saved(here: Run, failed: Failed, config: Path, saved: str, message: str) -> None:
    failed(here("targets", "--save", saved), USER_ERROR, message)
    assert not config.exists()


def test_a_spoilt_file_of_hosts(here: Run, failed: Failed, config: Path, null_bundle: Bundle) -> None:
    config.parent.mkdir(parents=True)
    config.write_text("{")
    for arguments in (("targets",), ("bench", null_bundle.folder, "--target", "rpi5"), ("doctor", "--target", "rpi5")):
        failed(here(*arguments), USER_ERROR, "hosts.json is not an object of target: host; mend or remove it")


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("arguments", [("doctor",), ("parity", "{bundle}")])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--target", "rpi9"), "target 'rpi9' is unknown; allowed: "),
        (("--target", "rpi5"), "this machine is no Raspberry Pi 5"),
        (("--target", "rpi5", "--emulate", "--host", "pi@x"), "--host and --emulate for rpi5"),
        (("--emulate",), "--emulate needs --target"),
        (("--target", "rpi4", "--host", "rpi5=pi@x"), "is for rpi5, which is no --target"),
    ],
)
def test_targets_of_other_commands(
    here: Run,
    failed: Failed,
    envelope: Envelope,
    null_bundle: Bundle,
    arguments: tuple[str, ...],
    more: tuple[str, ...],
    message: str,
) -> None:
    result = here(*(a.format(bundle=null_bundle.folder) for a in arguments), *more, "--json")
    failed(result, USER_ERROR, message)
    assert envelope(result, arguments[0]) == {}


def test_local_is_a_target(here: Run, envelope: Envelope, null_bundle: Bundle) -> None:
    found = envelope(here("parity", null_bundle.folder, "--target", "local", "--json"), "parity")
    assert (found["target"], found["kind"], len(found["rows"])) == ("local", "measured", 2)
    found = envelope(here("doctor", "--target", "local", "--json"), "doctor")
    assert (found["target"], found["kind"]) == ("local", "measured")
