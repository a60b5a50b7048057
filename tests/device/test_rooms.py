"""The rules between the rooms of converters/, and what holds for all modules, read from the source."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# Folder to the package it is installed as; studies are not installed, and may do as they like.
FOLDERS = {
    "pipnet_edge": "pipnet_edge",
    "converters": "pipnet_edge.converters",
    "benchmarks": "pipnet_edge.benchmarks",
    "targets": "pipnet_edge.targets",
}
CONVERTERS = "pipnet_edge.converters"
MOST_FILES = 22


def _paths() -> Iterator[tuple[str, Path]]:
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            # The device half holds the other folders as links.
            if parts[0] != "studies" and not (folder == "pipnet_edge" and parts[0] in FOLDERS):
                yield ".".join((package, *(part for part in parts if part != "__init__"))), path


PATHS = dict(_paths())
TREES = {module: ast.parse(path.read_text()) for module, path in PATHS.items()}


def names(node: ast.AST, everywhere: bool = True) -> Iterator[str]:
    """What is imported, `from a import b` as a.b; without `everywhere` only what is when the module itself is."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "relative imports are not looked at"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif everywhere or not (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        ):
            yield from names(child, everywhere)


def module_of(name: str, modules: Mapping[str, object] = PATHS) -> str:
    """The module that holds an imported name, or the name itself if that is a module or none of ours."""
    return name if name in modules or name.rpartition(".")[0] not in modules else name.rpartition(".")[0]


def imports(module: str, everywhere: bool = True) -> set[str]:
    return {module_of(name) for name in names(TREES[module], everywhere)}


def below(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def called(module: str) -> set[str]:
    """The last names of what a module calls: a.b.Source() is Source."""
    calls = [node.func for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
    return {f.id if isinstance(f, ast.Name) else f.attr for f in calls if isinstance(f, ast.Name | ast.Attribute)}


def texts(module: str) -> list[str]:
    return [n.value for n in ast.walk(TREES[module]) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


DESTINATIONS = {module.removesuffix(".destination") for module in PATHS if re.fullmatch(r".*\..+\.destination", module)}
DESTINATIONS.discard(CONVERTERS)
BACK_ENDS = {room.rpartition(".")[2] for room in DESTINATIONS}


def in_room(room: str) -> list[str]:
    return [module for module in PATHS if below(module, f"{CONVERTERS}.{room}")]


# --- The checker itself.


def test_imports_are_found() -> None:
    text = (
        "import a.b\nfrom c import d as e\n"
        "if TYPE_CHECKING:\n    import typed\n"
        "def f():\n    with x:\n        from deep import er\n"
        "class C:\n    import inside\n"
    )
    assert set(names(ast.parse(text))) == {"a.b", "c.d", "typed", "deep.er", "inside"}
    assert set(names(ast.parse(text), everywhere=False)) == {"a.b", "c.d", "inside"}
    assert module_of("a.b.Name", {"a.b": 0}) == module_of("a.b", {"a": 0, "a.b": 0}) == "a.b"
    assert module_of("numpy.ndarray", {"a.b": 0}) == "numpy.ndarray"
    assert {"onnx", "ncnn", "mnn", "tflite"} <= BACK_ENDS
    assert "Source" in called(f"{CONVERTERS}.workplace")


# --- Destinations: none knows another, and nobody knows them but by name.


@pytest.mark.parametrize("module", PATHS)
def test_a_destination_is_imported_by_its_own_room_alone(module: str) -> None:
    others = {room for room in DESTINATIONS if not below(module, room)}
    assert [name for name in imports(module) if below(name, *others)] == []


def test_variants_name_no_back_end() -> None:
    for text in texts(f"{CONVERTERS}.variants"):
        assert BACK_ENDS.isdisjoint(re.findall(r"[a-z]+", text.lower())), text


@pytest.mark.parametrize("module", [m for m in PATHS if re.fullmatch(rf"{re.escape(CONVERTERS)}\.\w+", m)])
def test_no_step_of_a_conversion_asks_which_back_end_it_is_for(module: str) -> None:
    assert BACK_ENDS.isdisjoint(texts(module))


# --- What rooms know.


@pytest.mark.parametrize("module", in_room("quantize"))
def test_quantize_knows_graphs_crops_and_numbers(module: str) -> None:
    """Never a bundle, a plan or a destination."""
    plain = [f"pipnet_edge.{name}" for name in ("decode", "errors", "files", "preprocess", "spec", "words")]
    own = [f"{CONVERTERS}.{name}" for name in ("checkpoint.network", "demo", "graph", "quantize")]
    assert [name for name in imports(module) if below(name, "pipnet_edge") and not below(name, *plain, *own)] == []


@pytest.mark.parametrize("module", in_room("checkpoint"))
def test_checkpoint_knows_neither_quantize_nor_destinations(module: str) -> None:
    own = [f"{CONVERTERS}.{name}" for name in ("checkpoint", "graph", "tool")]
    assert [name for name in imports(module) if below(name, CONVERTERS) and not below(name, *own)] == []


# --- A budget is given what makes its trials; nothing is forged for it.


def test_within_budget_is_given_what_makes_a_trial() -> None:
    (found,) = (
        node
        for node in ast.walk(TREES[f"{CONVERTERS}.within_budget"])
        if isinstance(node, ast.FunctionDef) and node.name == "within_budget"
    )
    assert [argument.arg for argument in found.args.args][:4] == ["order", "make", "judge", "limit"]
    assert [name for name in imports(f"{CONVERTERS}.within_budget") if below(name, f"{CONVERTERS}.variants")] == []


def test_a_source_is_made_where_bundles_are() -> None:
    allowed = {"pipnet_edge.manifest", "pipnet_edge.bundle", f"{CONVERTERS}.workplace"}
    assert {module for module in PATHS if "Source" in called(module)} - allowed == set()


def test_no_converter_says_what_parity_is() -> None:
    assert [module for module in PATHS if below(module, CONVERTERS) and "Parity" in called(module)] == []


# --- All modules.


def test_rooms_of_converters_are_small() -> None:
    rooms = [path.parent for module, path in PATHS.items() if below(module, CONVERTERS) and path.stem == "__init__"]
    counts = {room.name: sum(path.suffix in (".py", ".toml") for path in room.iterdir()) for room in rooms}
    assert {room: count for room, count in counts.items() if count > MOST_FILES} == {}


def test_no_imports_go_in_a_circle() -> None:
    # Raises CycleError, which names the circle.
    order = graphlib.TopologicalSorter({module: imports(module, everywhere=False) & PATHS.keys() for module in PATHS})
    assert set(order.static_order()) == PATHS.keys()


def test_plans_are_made_without_torch() -> None:
    """Whoever mistypes need not wait for it."""
    seen, left = set[str](), {CONVERTERS}
    while left:
        name = left.pop()
        seen.add(name)
        parents = {name[: dot.start()] for dot in re.finditer(r"\.", name)}
        left |= (parents | (imports(name, everywhere=False) if name in PATHS else set())) - seen
    assert f"{CONVERTERS}.convert" in seen
    assert {"torch", "onnx", "onnxruntime", "onnxsim", "cv2"} & {name.partition(".")[0] for name in seen} == set()
