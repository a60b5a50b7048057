"""The worker's protocol is known in one place, and ways to run by their rooms alone."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipnet_edge.targets import place as places

ROOT = Path(__file__).resolve().parents[2]
# Sent to a board as text, and so it can import nothing; tests/ssh/test_far.py holds it to the recorded talks.
TEXT = {"targets/ssh/remote.py"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every installed module by its path in the project."""
    for folder in ("pipnet_edge", "converters", "benchmarks", "targets"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if "studies" not in path.parts and name not in TEXT:
                yield name, ast.parse(path.read_text())


SOURCES = dict(sources())


def using(*names: str) -> set[str]:
    """The modules that use a name, plain or as an attribute."""
    return {
        path
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in names) or (isinstance(node, ast.Name) and node.id in names)
    }


@pytest.mark.parametrize("key", ["event", "do", "protocol"])
def test_the_protocol_alone_spells_its_keys(key: str) -> None:
    spelt = {
        path
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == key
    }
    assert spelt <= {"pipnet_edge/worker/protocol.py"}


def test_one_function_follows_a_worker() -> None:
    assert using("read_event") == {"pipnet_edge/worker/call.py"}
    assert using("follow") == {"pipnet_edge/worker/call.py", "targets/ssh/board.py"}


def test_one_list_says_what_the_device_half_is() -> None:
    assert using("device_half") == {"targets/ssh/board.py", "targets/emulated/emulator.py"}


def test_ways_are_the_rooms_that_have_one() -> None:
    rooms = {path.parent.name for path in (ROOT / "targets").glob("*/way.py")}
    assert set(places.WAYS) == rooms == {"emulated", "local", "predicted", "ssh"}


@pytest.mark.parametrize("name", places.WAYS)
def test_a_way_says_what_it_gives_and_connects(name: str) -> None:
    way = importlib.import_module(f"pipnet_edge.targets.{name}.way")
    assert way.GIVES in ("measured", "emulated", "predicted")
    assert isinstance(way.IS_APART, bool)
    assert callable(way.connect)


def test_nobody_asks_a_place_what_it_is_called() -> None:
    """What a place gives is asked for instead."""
    assert using("way") == {"targets/place.py"}
