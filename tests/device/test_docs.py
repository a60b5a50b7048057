"""README and docs are about the commands there are, and about all of them; what they name is there."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from pipnet_edge.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
# commands.md is generated, and has a test of its own.
GENERATED = ROOT / "docs" / "commands.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
WRITTEN = {name: text for name, text in PAGES.items() if ROOT / name != GENERATED}
README = PAGES["README.md"]
ALL = "\n".join(WRITTEN.values())
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", ALL, flags=re.DOTALL)
# A block of no kind is made of commands; in a console's, they stand after a $.
LINES = [re.split("#| > ", line)[0] for kind, block in BLOCKS if not kind for line in block.splitlines()]
TYPED = [line.removeprefix("$ ") for kind, block in BLOCKS if kind == "console" for line in block.splitlines()]
INLINE = re.findall(r"`(pipnet-edge [^`]+)`", ALL)
USES = list(
    dict.fromkeys(text.strip() for text in (*LINES, *TYPED, *INLINE) if text.strip().startswith("pipnet-edge "))
)
GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands  # type: ignore[attr-defined]
RESULTS = [
    ROOT / "benchmarks" / "studies" / "results" / f"head_to_head_{name}.json"
    for name in ("resnet18", "mobilenet_v2", "mobilenet_v3")
]
PAGE_OF_RESULTS = ROOT / "benchmarks" / "studies" / "head_to_head" / "page.py"


@pytest.mark.parametrize("use", USES)
def test_every_use_in_the_docs_parses(use):
    """The words are parsed by the command itself, which raises on unknown options and missing arguments."""
    _, name, *words = shlex.split(use)
    if name.startswith("-"):
        assert not words
        assert name in {word for option in GROUP.params for word in option.opts}
        return
    context = COMMANDS[name].make_context(name, words)
    assert context.params


def test_every_command_is_in_the_docs():
    used = {name for name in (shlex.split(use)[1] for use in USES) if not name.startswith("-")}
    assert used == set(COMMANDS)
    assert "make demo" in README
    assert "make test" in README


def test_the_readme_is_a_first_page():
    assert len(README.splitlines()) <= 150
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"\]\(([^)]+)\)", README))


@pytest.mark.parametrize("width", ["40", "200"])
def test_the_commands_page_is_what_help_says(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    generator = runpy.run_path(str(GENERATED.with_suffix(".py")))
    assert generator["page"]() == GENERATED.read_text(), "run `python docs/commands.py`"


def test_python_in_the_docs_is_valid():
    sources = [block for kind, block in BLOCKS if kind == "python"]
    assert sources
    assert "```python\n" in README
    for source in sources:
        names = {
            alias.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "pipnet_edge"
            for alias in node.names
        }
        import pipnet_edge

        assert names <= set(pipnet_edge.__all__)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_that_are_there(name):
    prose = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    missing = [
        target
        for target in targets
        if not re.match("https?:", target) and target and not ((ROOT / name).parent / target).exists()
    ]
    assert not missing


def test_modules_and_scripts_named_in_the_docs_exist():
    modules = set(re.findall(r"python -m (pipnet_edge[.\w]*)", ALL))
    scripts = set(re.findall(r"python ([\w/]+\.py)", ALL))
    assert modules
    assert scripts
    for module in modules:
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    assert not [script for script in scripts if not (ROOT / script).is_file()]


def test_datasets_and_extras_named_in_the_docs_exist():
    from pipnet_edge.spec import mean_faces

    assert all(f"`{name}`" in ALL for name in mean_faces())
    project = (ROOT / "pyproject.toml").read_text()
    named = set(re.findall(r"\.\[(\w+)\]", ALL))
    assert "ncnn" in named
    for extra in named | {"onnxruntime", "ncnn", "mnn", "tflite", "runtimes", "convert", "test"}:
        assert f"\n{extra} = [" in project


def test_the_tables_beside_others_are_those_of_the_committed_results():
    page = runpy.run_path(str(PAGE_OF_RESULTS))
    performance = PAGES["docs/performance.md"]
    assert page["table"](RESULTS) in performance
    assert page["ratios"](RESULTS) in performance


def test_the_headline_is_that_of_the_committed_results():
    """Our float and our int8 beside their float, with one thread, of the networks that are trained."""
    rows = runpy.run_path(str(PAGE_OF_RESULTS))["ratios"](RESULTS).splitlines()[2:]
    single = [row.replace(" | 1 | ", " | ", 1) for row in rows if " | 1 | " in row and " * |" not in row]
    assert len(single) == 2
    assert all(row in README for row in single)
