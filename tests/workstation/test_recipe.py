"""The recipes against the modules that carry them out."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge import runtimes
from pipnet_edge.converters import destination
from pipnet_edge.converters.checkpoint.network import Network, maps_of
from pipnet_edge.converters.core import export
from pipnet_edge.converters.quantize.prepare import Prepared
from pipnet_edge.converters.recipe import FILE, Recipe, recipes
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.precisions import PRECISIONS

pytestmark = pytest.mark.usefixtures("one_thread")

Array = np.ndarray[Any, Any]
# litert-torch takes its time; what its module makes of every recipe is in test_tflite_int8.py.
PAIRS = [
    (row.name, name)
    for name in recipes()
    for row in runtimes.RUNTIMES.values()
    if name in row.precisions and row.name != "tflite"
]


def test_the_recipes_are_those_of_the_file() -> None:
    assert set(recipes()) == {"int8", "int8-full", "int16x8", "w8"}
    assert [line for line in FILE.read_text().splitlines() if line.startswith("[")] == [f"[{n}]" for n in recipes()]
    int8 = recipes()["int8"]
    assert int8 == Recipe(int8.summary, 8, 8, ("heads", "gates", "transposed", "swished"))
    assert all("int8" in runtimes.RUNTIMES[name].precisions for name in runtimes.DESTINATIONS)
    assert {(r.weights, r.activations) for r in recipes().values()} == {(8, 8), (8, 16), (8, 0)}


def test_no_recipe_asks_a_transposed_layer_to_be_int8() -> None:
    assert all("transposed" in recipe.keep for recipe in recipes().values())
    assert all(set(recipe.keep) <= {"heads", "gates", "transposed", "swished"} for recipe in recipes().values())


def test_no_recipe_has_the_name_of_a_float_precision() -> None:
    assert set(recipes()) == {row.name for row in PRECISIONS.values() if row.is_quantized}


def test_every_recipe_stores_its_weights_as_its_precision_says() -> None:
    for name, recipe in recipes().items():
        assert recipe.weights == 8 * PRECISIONS[name].weight_bytes
        assert (recipe.activations == 0) == PRECISIONS[name].widens


def test_every_runtime_that_has_a_recipe_has_a_module() -> None:
    for runtime in runtimes.RUNTIMES.values():
        if set(runtime.precisions) & set(recipes()):
            assert runtime.name in runtimes.DESTINATIONS
            offered = destination.find(runtime.name)
            assert callable(offered.int8)
            assert all(map(version, offered.tools))


@pytest.mark.parametrize("runtime", runtimes.DESTINATIONS)
def test_every_destination_has_the_bits_that_recipes_ask_of_it(runtime: str) -> None:
    has = runtimes.RUNTIMES[runtime].precisions
    asked = {name: recipe.activations for name, recipe in recipes().items() if name in has}
    offered = destination.find(runtime).bits
    assert {name: bits for name, bits in asked.items() if bits not in offered} == {}
    # And nothing is offered that no recipe asks for.
    assert set(offered) == set(asked.values())


@pytest.mark.parametrize(("runtime", "name"), PAIRS)
def test_every_runtime_carries_out_its_recipes(
    runtime: str, name: str, tiny_prepared: Prepared, tiny_faces: Array, tmp_path: Path
) -> None:
    recipe, offered = recipes()[name], destination.find(runtime)
    given = tiny_prepared.keeping(tiny_prepared.kinds(recipe.keep))
    core = export(given.graph, given.spec, tmp_path)
    made = tmp_path / "bundle" / f"{runtime}-{name}"
    made.mkdir(parents=True)
    offered.int8(core, given, recipe.activations, made)
    assert sorted(path.name for path in made.iterdir()) == sorted(runtimes.adapter(runtime).FILES)
    session = runtimes.load(runtime, made, given.spec, name, 1)
    found = [session.run(crop) for crop in tiny_faces[:4]]
    session.close()
    exact = maps_of(Network(given.spec, given.graph, 0), tiny_faces[:4])
    for map_ in MAP_NAMES:
        got, wanted = np.stack([getattr(maps, map_) for maps in found]), getattr(exact, map_)
        difference = np.abs(got - wanted).mean() / np.abs(wanted).mean()
        assert difference < (0.2 if recipe.activations == 8 else 0.01)
        assert difference > (1e-3 if recipe.activations == 8 else -1)
