"""Help everywhere, without numpy, and the installed script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipnet_edge.bundle import Bundle
from pipnet_edge.cli.app import app

Envelope = Callable[..., dict[str, Any]]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_commands() -> None:
    assert {"demo", "inspect", "convert", "run", "parity", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert command.help.strip()[0].isupper()
    assert command.help.strip().endswith(".")
    without_help = [p.name for p in command.params if p.name != "help" and not getattr(p, "help", None)]
    assert without_help == []
    assert "--json" in {flag for p in command.params for flag in p.opts}


HELP = """
import json, sys
from pipnet_edge.cli.app import INTERRUPTED, app
shown = {}
for command in sys.argv[1:]:
    sys.stdout = out = __import__("io").StringIO()
    try:
        app([*command.split(), "--help"], prog_name="pipnet-edge")
    except SystemExit as e:
        status = e.code
    sys.stdout = sys.__stdout__
    shown[command] = [status, out.getvalue()]
print(json.dumps([shown, sorted(sys.modules)]))
"""


def test_help_needs_no_numpy() -> None:
    command = [sys.executable, "-P", "-c", HELP, "", *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
    shown, loaded = json.loads(done.stdout)
    for name, (status, text) in shown.items():
        assert status == 0
        assert f"Usage: pipnet-edge {name}".rstrip() in text
        if name:
            for option in (flag for p in COMMANDS[name].params for flag in p.opts if flag.startswith("--")):
                assert option in text
    for heavy in ("numpy", "cv2", "torch", "onnx", "onnxruntime", "ncnn", "MNN", "ai_edge_litert", "rich.progress"):
        assert heavy not in loaded


def test_the_installed_script(envelope: Envelope, null_bundle: Bundle) -> None:
    script = Path(sys.executable).with_name("pipnet-edge")
    if not script.exists():
        pytest.skip("pipnet-edge is not installed as a script")
    result = subprocess.run(
        [script, "inspect", null_bundle.folder, "--json"], capture_output=True, text=True, check=True
    )
    assert envelope(result, "inspect")["variants"]
