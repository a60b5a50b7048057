"""The import rules and the length of files, read from the source, and what a bare device can do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipnet_edge import runtimes
from pipnet_edge.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent.parent
# Folder to the package it is installed as.
FOLDERS = {
    "pipnet_edge": "pipnet_edge",
    "converters": "pipnet_edge.converters",
    "benchmarks": "pipnet_edge.benchmarks",
    "targets": "pipnet_edge.targets",
}
# Run from a clone, and may import anything; nobody imports them.
NOT_INSTALLED = {"studies"}
UPPER = ("converters", "benchmarks", "targets")
MAY_USE = {
    "pipnet_edge": {"pipnet_edge"},
    "converters": {"pipnet_edge", "converters"},
    "targets": {"pipnet_edge", "targets"},
    "benchmarks": {"pipnet_edge", "targets", "benchmarks"},
}
WORKSTATION = {
    *("torch", "torchvision", "onnx", "onnxsim", "onnxscript", "pnnx", "litert_torch", "ai_edge_quantizer"),
    *("_tools", "tensorflow", "jax", "safetensors"),
}
# Module of an adapter to what it may import.
ADAPTERS = {
    f"pipnet_edge.runtimes.{row.module}": set(row.modules)
    for row in runtimes.RUNTIMES.values()
    if row.name in runtimes.DESTINATIONS
}
RUNTIMES = set().union(*ADAPTERS.values())
COMMAND_LINE = "pipnet_edge.cli"
# What each module of the device half may import when it is imported, besides the standard library and numpy.
OWN_PACKAGES = {
    **{
        f"{COMMAND_LINE}.{path.stem}": {"typer"}
        for path in sorted((ROOT / "pipnet_edge" / "cli").glob("*.py"))
        if path.stem not in ("__init__", "render")
    },
    **ADAPTERS,
}


@dataclass(frozen=True)
class Import:
    """module imported, line, and where: at module level, in a function, or for type checkers alone."""

    module: str
    line: int
    where: str


def sources() -> dict[str, Path]:
    """Every module of the project by its dotted name. Path.rglob does not follow the folders' links to each other."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if (folder == "pipnet_edge" and parts[0] in UPPER) or parts[0] in NOT_INSTALLED:
                continue
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


SOURCES = sources()


def folder_of(module: str) -> str | None:
    """The folder a dotted name lies in, None for what is not ours."""
    parts = module.split(".")
    if parts[0] != "pipnet_edge":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in UPPER else "pipnet_edge"


def imports(module: str, text: str, is_package: bool = False) -> list[Import]:
    """All imports of a module's source, relative ones made absolute."""
    return list(_imports(ast.parse(text), module if is_package else module.rpartition(".")[0], "module"))


def _imports(node: ast.AST, package: str, where: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, where) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            base = ".".join([*above, *([child.module] if child.module else [])])
            # `from pipnet_edge import targets` imports a module, `from pipnet_edge.errors import EdgeError` a name:
            # the longer name lies in the same folder or is the module meant.
            yield from (Import(f"{base}.{alias.name}", child.lineno, where) for alias in child.names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, package, "function")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), package, "typing")
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), package, where)
        else:
            yield from _imports(child, package, where)


def of(module: str) -> list[Import]:
    path = SOURCES[module]
    return imports(module, path.read_text(), path.name == "__init__.py")


def broken(module: str, allowed: Callable[[Import], bool]) -> list[str]:
    return [f"{SOURCES[module].relative_to(ROOT)}:{i.line} imports {i.module}" for i in of(module) if not allowed(i)]


def modules(folder: str) -> list[str]:
    return [module for module in SOURCES if folder_of(module) == folder]


def within(room: str, module: str) -> bool:
    """Whether a dotted name is the room's, or lies in it."""
    return f"{module}.".startswith(f"{room}.")


# --- The checker itself.


def test_imports_are_found_wherever_they_stand() -> None:
    text = (
        "import a.b as c, d\n"
        "from pipnet_edge import targets, errors\n"
        "from . import sibling\n"
        "from ..spec import ModelSpec\n"
        "if TYPE_CHECKING:\n    import typed\nelse:\n    import untyped\n"
        "try:\n    import tried\nexcept ImportError:\n    pass\n"
        "class C:\n    import inside\n    def f(self):\n        with x:\n            import deep\n"
    )
    found = {(i.module, i.where) for i in imports("pipnet_edge.runtimes.ncnn", text)}
    assert found == {
        ("a.b", "module"),
        ("d", "module"),
        ("pipnet_edge.targets", "module"),
        ("pipnet_edge.errors", "module"),
        ("pipnet_edge.runtimes.sibling", "module"),
        ("pipnet_edge.spec.ModelSpec", "module"),
        ("typed", "typing"),
        ("untyped", "module"),
        ("tried", "module"),
        ("inside", "module"),
        ("deep", "function"),
    }
    assert [i.module for i in imports("pipnet_edge.targets", "from . import local", is_package=True)] == [
        "pipnet_edge.targets.local"
    ]
    assert folder_of("pipnet_edge.targets.local") == "targets"
    assert folder_of("pipnet_edge.spec") == folder_of("pipnet_edge") == "pipnet_edge"
    assert folder_of("torch") is None
    assert within("pipnet_edge.cli", "pipnet_edge.cli.app")
    assert within("pipnet_edge.cli", "pipnet_edge.cli")
    assert not within("pipnet_edge.cli", "pipnet_edge.clip")


def test_every_folder_has_modules() -> None:
    for folder in FOLDERS:
        assert modules(folder)
    assert "pipnet_edge.runtimes.null" in SOURCES
    assert SOURCES["pipnet_edge.targets.local"] == ROOT / "targets" / "local" / "__init__.py"


# --- The rules.


@pytest.mark.parametrize("folder", UPPER)
def test_imports_go_one_way(folder: str) -> None:
    def allowed(i: Import) -> bool:
        return (folder_of(i.module) or folder) in MAY_USE[folder]

    assert [line for module in modules(folder) for line in broken(module, allowed)] == []


def test_nothing_in_the_device_half_imports_upward() -> None:
    def allowed(i: Import) -> bool:
        return folder_of(i.module) in (None, "pipnet_edge")

    def allowed_to_commands(i: Import) -> bool:
        return i.where != "module" or allowed(i)

    found = [
        line
        for module in modules("pipnet_edge")
        for line in broken(module, allowed_to_commands if within(COMMAND_LINE, module) else allowed)
    ]
    assert found == []


def test_nothing_below_needs_the_command_line() -> None:
    def allowed(i: Import) -> bool:
        return not within(COMMAND_LINE, i.module)

    others = [module for module in SOURCES if not within(COMMAND_LINE, module)]
    assert [line for module in others for line in broken(module, allowed)] == []


def test_nobody_imports_the_studies() -> None:
    def allowed(i: Import) -> bool:
        return not within("pipnet_edge.benchmarks.studies", i.module)

    assert [line for module in SOURCES for line in broken(module, allowed)] == []


@pytest.mark.parametrize("folder", ["pipnet_edge", "benchmarks", "targets"])
def test_only_converters_use_workstation_packages(folder: str) -> None:
    def allowed(i: Import) -> bool:
        return i.module.split(".")[0] not in WORKSTATION

    assert [line for module in modules(folder) for line in broken(module, allowed)] == []


@pytest.mark.parametrize("module", modules("pipnet_edge"))
def test_the_device_half_needs_numpy_alone(module: str) -> None:
    packages = {"pipnet_edge", "numpy", *sys.stdlib_module_names, *OWN_PACKAGES.get(module, set())}

    def allowed(i: Import) -> bool:
        return i.where != "module" or i.module.split(".")[0] in packages

    assert broken(module, allowed) == []


def test_runtimes_are_imported_by_their_own_adapter_alone() -> None:
    others = [m for m in SOURCES if folder_of(m) != "converters" and not OWN_PACKAGES.get(m, set()) & RUNTIMES]

    def allowed(i: Import) -> bool:
        return i.module.split(".")[0] not in RUNTIMES

    assert [line for module in others for line in broken(module, allowed)] == []


def test_nothing_uses_the_folders_bare_names() -> None:
    def allowed(i: Import) -> bool:
        return i.module.split(".")[0] not in UPPER

    assert [line for module in SOURCES for line in broken(module, allowed)] == []


# --- No file is long, tests included.


def files() -> list[str]:
    """Every program text below the folders, and tests, by its path. Path.rglob does not follow links here either."""
    found = (path for folder in (*FOLDERS, "tests") for path in (ROOT / folder).rglob("*"))
    return sorted(str(path.relative_to(ROOT)) for path in found if path.suffix in (".py", ".sh"))


@pytest.mark.parametrize("path", files())
def test_files_are_short(path: str) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= 400


# --- A device with numpy and nothing else.

DECODES = """
import json, sys
import pipnet_edge
loaded = sorted(sys.modules)
for name in pipnet_edge.__all__:
    getattr(pipnet_edge, name)
bundle = pipnet_edge.read_bundle(__import__("pathlib").Path(sys.argv[1]))
crops, maps = bundle.read_golden()
decode = pipnet_edge.Decoder(bundle.spec)
before_session = sorted(sys.modules)
session = bundle.open_session("null-fp32", 1)
points = decode(session.run(crops[0])).points
same = bool((points == decode(maps).points[0]).all())
with pipnet_edge.Landmarker(sys.argv[1], "null-fp16") as landmarker:
    same = same and bool((landmarker.crop(crops[0]).points == points).all())
print(json.dumps({"loaded": loaded, "before_session": before_session, "after": sorted(sys.modules), "same": same}))
"""
HEAVY = {*WORKSTATION, *RUNTIMES, "typer", "click", "rich", "cv2", "PIL", "scipy"}


def bare(script: str, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-P", "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_device_with_numpy_alone_loads_a_bundle_and_decodes(
    null_bundle: Bundle, without: Callable[..., dict[str, str]]
) -> None:
    found = json.loads(bare(DECODES, without(*HEAVY), str(null_bundle.folder)))
    assert found["same"] is True
    # numpy comes with the first name that needs it, and runtimes with the first session.
    assert "numpy" not in found["loaded"]
    assert [name for name in found["before_session"] if name.startswith("pipnet_edge.runtimes.")] == []
    assert [name for name in found["after"] if name.startswith("pipnet_edge.runtimes.")] == [
        "pipnet_edge.runtimes.null"
    ]


def test_nothing_heavy_is_loaded_where_it_is_there(null_bundle: Bundle, without: Callable[..., dict[str, str]]) -> None:
    """Without the blockade too: an optional import that is merely tried costs seconds on a Pi."""
    found = json.loads(bare(DECODES, without(), str(null_bundle.folder)))
    assert HEAVY.intersection(found["after"]) == set()
    assert [name for name in found["after"] if folder_of(name) in UPPER] == []


def test_the_blockade_blocks(without: Callable[..., dict[str, str]]) -> None:
    script = "import importlib.util as u; print(u.find_spec('cv2'), u.find_spec('typer'), u.find_spec('numpy') is None)"
    assert bare(script, without("cv2", "typer")).split() == ["None", "None", "False"]


def test_public_names_are_there_and_others_are_not() -> None:
    import pipnet_edge

    for name in pipnet_edge.__all__:
        assert getattr(pipnet_edge, name).__name__ in (name, "read")
    with pytest.raises(AttributeError, match="has no attribute 'torch'"):
        pipnet_edge.torch  # noqa: B018
