"""A minute of fuzzing finds nothing, kept cases stay mended, and the harness finds what is planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.planted import FAULTS

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((ROOT / "tests" / "fuzz" / "cases").glob("*.bin"))
SECONDS = 60
MOST = 4096  # bytes of a case


def fuzz(out: Path, *options: object) -> tuple[int, dict[str, Any]]:
    """The status of the harness and its table."""
    table = out.with_suffix(".table")
    words = [sys.executable, "-m", "tests.fuzz", "-o", out, "--json", table, *options]
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert table.exists(), done.stderr
    return done.returncode, json.loads(table.read_text())


@pytest.fixture(scope="module", autouse=True)
def _whole() -> None:
    for package in ("torch", "onnx", "onnxsim", "cv2", "ncnn", "MNN", "ai_edge_litert"):
        pytest.importorskip(package, reason="the parsers of the workstation half are fuzzed too")


def test_a_minute_finds_nothing(tmp_path: Path) -> None:
    """Reproduce what it finds with `python -m tests.fuzz --target NAME --seed 1 --index NUMBER`."""
    status, table = fuzz(tmp_path / "found", "--seconds", SECONDS, "--seed", 1)
    assert table["findings"] == []
    low = {row["target"]: row["past"] for row in table["targets"] if row["past"] < 1 / 3}
    assert not low, "these do not reach the parser behind its first check"
    silent = {row["target"] for row in table["targets"] if not row["accepted"]}
    assert silent <= {"model-mnn", "model-tflite"}, "not even a seed is accepted; those two load a model of other maps"
    assert status == 0


@pytest.mark.parametrize(("name", "kind", "what"), FAULTS)
def test_a_planted_fault_is_found_at_its_line_and_made_small(tmp_path: Path, name: str, kind: str, what: str) -> None:
    status, table = fuzz(tmp_path / "found", "--target", f"planted-{name}", "--seconds", 2)
    assert status == 1
    (row,) = table["targets"]
    assert row[kind] == 1, "one place, one finding"
    (told,) = (tmp_path / "found").glob(f"planted-{name}-{kind}-*.json")
    finding = json.loads(told.read_text())
    assert finding["what"].startswith(what)
    assert finding["frames"][0].startswith("tests/fuzz/planted.py:")
    assert finding["frames"][0].endswith(name)
    case = told.with_suffix(".bin").read_bytes()
    assert b"\xff" in case
    assert len(case) == 1 or kind == "hang"


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    words = (sys.executable, "-m", "tests.fuzz", "--target", "planted-takes", "--index", "70", "--seed")
    told = [
        subprocess.run([*words, seed], cwd=ROOT, capture_output=True, text=True, check=False).stdout for seed in "112"
    ]
    assert told[0] == told[1] != told[2]


def test_kept_cases_are_mended(tmp_path: Path) -> None:
    """A case is named after its target: golden-shape_of_terabytes.bin."""
    assert CASES
    assert all(case.stat().st_size < MOST for case in CASES)
    status, table = fuzz(tmp_path / "found", "--cases", CASES[0].parent)
    assert table["findings"] == []
    assert sum(row["inputs"] for row in table["targets"]) == len(CASES)
    assert status == 0


def test_a_case_that_is_not_mended_is_told(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "planted-raises-x.bin").write_bytes(b"\xff")
    status, table = fuzz(tmp_path / "found", "--target", "planted-raises", "--cases", tmp_path / "cases")
    assert [text.partition(" at ")[0] for text in table["findings"]] == [
        "planted-raises #0: exception: \"KeyError: 'planted'\""
    ]
    assert status == 1
