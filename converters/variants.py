"""Makes one variant of a network, for any runtime: a folder of files, and what the manifest says about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from torch import nn

from pipnet_edge.bundle import File, Quantization, Variant
from pipnet_edge.converters import destination as destinations
from pipnet_edge.converters import sparse
from pipnet_edge.converters.cores import Cores, Exported
from pipnet_edge.converters.graph import convolutions
from pipnet_edge.converters.quantize.prepare import Options
from pipnet_edge.converters.recipe import recipes
from pipnet_edge.errors import CHECK_FAILED, EdgeError


def of_float(network: Exported, destination: str, precision: str, folder: Path) -> Variant:
    """Makes the float variant `<destination>-<precision>` in the bundle at `folder`."""
    to = destinations.find(destination)
    own_folder = folder / f"{destination}-{precision}"
    own_folder.mkdir()
    to.fp(network.core, precision, own_folder)
    if network.heads:
        to.add_heads(network.heads, precision, own_folder)
    return described(folder, destination, precision, to.tools, network.heads is not None)


def quantized(
    networks: Cores, methods: Options, destination: str, precision: str, folder: Path, kept: tuple[str, ...] = ()
) -> Variant:
    """Makes a quantized variant, by the recipe of its precision, in the bundle at `folder`.

    methods: how the networks were rounded. kept: layers that stay in float for a budget, in addition to the recipe's.
    Raises EdgeError (code 3) if no layer is left.
    """
    to, recipe = destinations.find(destination), recipes()[precision]
    prepared = networks.prepared[to.levels]
    own_folder = folder / f"{destination}-{precision}"
    own_folder.mkdir()
    reasons = dict.fromkeys(kept, "budget") | prepared.kinds(recipe.keep)
    is_sparse = networks.is_sparse and "heads" in recipe.keep
    inside = prepared.kinds(("heads",)) if is_sparse and to.heads_inside else {}
    # Heads inside the model have int8 weights, but no map is stored in 8 bits: only that would cost accuracy.
    reasons = {name: reason for name, reason in reasons.items() if name not in inside}
    if not convolutions(prepared.float_).keys() - reasons.keys():
        raise EdgeError(f"all of its layers stay in float, so it would be {precision} by name only", CHECK_FAILED)
    network = networks.keeping(to.levels, frozenset(reasons), is_sparse)
    given = replace(network.given, keep=network.given.keep | inside.keys())
    to.int8(network.core, given, recipe.activations, own_folder)
    if network.heads:
        to.add_heads(network.heads, precision, own_folder)
    how = Quantization(methods.ranges, methods.rounding, reasons, given.spec.mean, given.spec.std)
    return replace(described(folder, destination, precision, to.tools, is_sparse), quantization=how)


def rounds_heads(net: nn.Module, precisions: Iterable[str]) -> bool:
    """Whether a network's heads have to be rounded for these precisions.

    Heads of 1x1 always are: that takes seconds, sparse ones may be int8, and one rounding then serves all commands.
    """
    found = [recipes()[precision] for precision in precisions if precision in recipes()]
    return sparse.can_split(net) or any("heads" not in recipe.keep for recipe in found)


def described(
    folder: Path, destination: str, precision: str, tools: tuple[str, ...], is_sparse: bool = False
) -> Variant:
    """What the folder of a variant in the bundle at `folder` holds."""
    name = f"{destination}-{precision}"
    files = tuple(File.of(folder, path) for path in sorted((folder / name).rglob("*")) if path.is_file())
    versions = {tool: version(tool) for tool in tools}
    return Variant(name, destination, precision, files, versions, is_sparse=is_sparse)
