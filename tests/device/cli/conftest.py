"""The command line as a user meets it: how commands are started, and how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import typer.main
import typer.testing

from pipnet_edge.bundle import Bundle
from pipnet_edge.cli.app import app
from tests.device.cli import watching
from tests.device.video import streams

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Failed = Callable[[Result, int, str], str]
Envelope = Callable[[Result, str], dict[str, Any]]


@pytest.fixture(scope="session")
def run() -> Run:
    """run("inspect", …): the command in a process of its own."""

    def start(*arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
        command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)

    return start


@pytest.fixture(scope="session")
def here() -> Run:
    """here("inspect", …): the same in this process, for what needs no process of its own.

    Any exception but SystemExit is raised.
    """

    def invoke(*arguments: str | Path) -> Result:
        previous = signal.getsignal(signal.SIGTERM)
        try:
            found = typer.testing.CliRunner().invoke(
                app, list(map(str, arguments)), prog_name="pipnet-edge", catch_exceptions=False
            )
        finally:
            signal.signal(signal.SIGTERM, previous)
        return subprocess.CompletedProcess(arguments, found.exit_code, found.stdout, found.stderr)

    return invoke


@pytest.fixture(scope="session")
def failed() -> Failed:
    """failed(result, code, message): checks that a command failed as commands do, and returns its one line."""

    def check(result: Result, code: int, message: str) -> str:
        assert "Traceback" not in result.stderr, result.stderr
        assert result.returncode == code, result.stderr
        lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]  # [1/2] is progress
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("pipnet-edge ")
        assert message in lines[0]
        return lines[0]

    return check


@pytest.fixture(scope="session")
def envelope(failed: Failed) -> Envelope:
    """envelope(result, command): checks the contract of --json and returns the result."""

    def check(result: Result, command: str) -> dict[str, Any]:
        assert "Traceback" not in result.stderr, result.stderr
        assert result.stdout.endswith("}\n")
        assert len(result.stdout.splitlines()) == 1

        def refuse(constant: str) -> None:
            pytest.fail(f"{constant} is not JSON")

        data = json.loads(result.stdout, parse_constant=refuse)
        assert data["schema"] == "pipnet-edge/1"
        assert data["command"] == command
        assert data["ok"] is (result.returncode == 0)
        assert isinstance(data["result"], dict)
        if data["ok"]:
            assert set(data) == {"schema", "command", "ok", "result"}
        else:
            assert set(data) == {"schema", "command", "ok", "result", "error"}
            assert set(data["error"]) == {"message", "code"}
            assert data["error"]["code"] == result.returncode
            assert data["error"]["message"] in failed(result, result.returncode, "")
        found: dict[str, Any] = data["result"]
        return found

    return check


@pytest.fixture(scope="session")
def image(null_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that is the first golden crop."""
    path = tmp_path_factory.mktemp("image") / "face.png"
    cv2.imwrite(str(path), null_bundle.read_golden()[0][0][:, :, ::-1])
    return path


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which hosts are saved."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "pipnet-edge" / "hosts.json"


@pytest.fixture(scope="session")
def steady(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that finds the face of the film."""
    return streams.steady(make_bundle, tmp_path_factory.mktemp("steady") / "bundle")


@pytest.fixture
def film(steady: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A film in the working folder, which has the bundle too."""
    monkeypatch.chdir(tmp_path)
    Path("bundle").symlink_to(steady.folder)
    some, none = streams.frame(steady), streams.frame(steady, golden=1)
    return streams.write(Path("film.avi"), [some] * (watching.COUNT - watching.EMPTY) + [none] * watching.EMPTY, "MJPG")


@pytest.fixture
def start() -> Iterator[watching.Start]:
    """start("film.avi", …): `track`, which goes on."""
    started = list[subprocess.Popen[str]]()

    def begin(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [*watching.TRACK, *arguments]
        started.append(subprocess.Popen(command, text=True, **pipes | options))  # type: ignore[call-overload]
        return started[-1]

    yield begin
    for each in started:
        each.kill()
        each.communicate()
