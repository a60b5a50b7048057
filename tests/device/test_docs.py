"""The README is about the commands there are, and about all of them."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from pipnet_edge.cli.app import app

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
LINES = [re.split("#| > ", line)[0] for kind, block in BLOCKS if not kind for line in block.splitlines()]
INLINE = re.findall(r"`(pipnet-edge [^`]+)`", README)
USES = [text.strip() for text in (*LINES, *INLINE) if text.strip().startswith("pipnet-edge ")]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("use", USES)
def test_every_use_in_the_readme_parses(use):
    """The words are parsed by the command itself, which raises on unknown options and missing arguments."""
    _, name, *words = shlex.split(use)
    context = COMMANDS[name].make_context(name, words)
    assert context.params


def test_every_command_is_in_the_readme():
    used = {shlex.split(use)[1] for use in USES} | {"demo"}
    assert used == set(COMMANDS)
    assert "make demo" in README
    assert "make test" in README


def test_python_in_the_readme_is_valid():
    sources = [block for kind, block in BLOCKS if kind == "python"]
    assert sources
    for source in sources:
        names = {
            alias.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        import pipnet_edge

        assert names <= set(pipnet_edge.__all__)


def test_datasets_and_extras_named_in_the_readme_exist():
    from pipnet_edge.spec import mean_faces

    assert all(f"`{name}`" in README for name in mean_faces())
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    for extra in ("onnxruntime", "ncnn", "mnn", "tflite", "runtimes", "convert", "test"):
        assert f"\n{extra} = [" in project


def test_the_table_beside_others_is_that_of_the_committed_results():
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "studies"
    page = runpy.run_path(str(folder / "head_to_head" / "page.py"))
    names = ("resnet18", "mobilenet_v2", "mobilenet_v3")
    assert page["table"](folder / "results" / f"head_to_head_{name}.json" for name in names) in README
