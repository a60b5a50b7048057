"""Fuzzing guided by coverage: it finds what is planted, and says in one line that its package is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.planted import FAULTS

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = "import runpy, sys; sys.modules['atheris'] = None; runpy.run_module('tests.fuzz', run_name='__main__')"


def guided(out: Path, target: str, *python: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *python, "--guided", "--target", target, "--seconds", "8", "-o", str(out)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_without_its_package_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = guided(tmp_path / "found", "planted-raises", "-c", WITHOUT)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "atheris: pip install" in line
    assert not done.stdout


@pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize(("name", "kind", "what"), [*FAULTS, ("deep", "exception", "KeyError: 'planted'")])
def test_a_planted_fault_is_found_at_its_line(tmp_path: Path, name: str, kind: str, what: str) -> None:
    """Without guidance the deep one takes some ten million inputs, which are many minutes."""
    done = guided(tmp_path / "found", f"planted-{name}", "-m", "tests.fuzz")
    assert done.returncode == 1, done.stderr
    (told,) = (tmp_path / "found").glob("*.json")  # one place, one finding
    finding = json.loads(told.read_text())
    assert finding["kind"] == kind
    assert finding["what"].startswith(what)
    assert finding["frames"][0].startswith("tests/fuzz/planted.py:")
    assert finding["frames"][0].endswith(name)
    assert told.with_suffix(".bin").read_bytes()
