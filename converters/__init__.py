"""The workstation half: checkpoints to bundles. Needs torch and the converters."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipnet_edge import runtimes
from pipnet_edge.bundle import GOLDEN, Bundle, File, Parity, Source, Variant, replacing
from pipnet_edge.errors import EdgeError

if TYPE_CHECKING:
    from pipnet_edge.converters.checkpoint import Options
    from pipnet_edge.converters.export import Core

Step = Callable[[str, int, int], None]
Verify = Callable[[Bundle], Mapping[str, Parity]]


@dataclass(frozen=True)
class Plan:
    """Which variants to make: destinations and precisions; combinations that a runtime does not have are left out.

    Raises EdgeError for unknown names and when no combination is left.
    """

    destinations: tuple[str, ...]
    precisions: tuple[str, ...]

    def __post_init__(self) -> None:
        known = {precision for precisions in runtimes.PRECISIONS.values() for precision in precisions}
        for name, given, allowed in (
            ("--to", self.destinations, set(runtimes.DESTINATIONS)),
            ("--precision", self.precisions, known),
        ):
            unknown = [word for word in given if word not in allowed]
            if unknown or not given:
                raise EdgeError(
                    f"{name} {', '.join(unknown) or 'names nothing'}; allowed: {', '.join(sorted(allowed))}"
                )
        if not self.variants:
            raise EdgeError(f"{', '.join(self.destinations)} has no {', '.join(self.precisions)} variant")

    @property
    def variants(self) -> tuple[tuple[str, str], ...]:
        """(destination, precision) pairs, in the order given."""
        return tuple(
            (destination, precision)
            for destination in dict.fromkeys(self.destinations)
            for precision in dict.fromkeys(self.precisions)
            if precision in runtimes.PRECISIONS[destination]
        )


def convert(
    source: Path,
    out: Path,
    plan: Plan,
    options: Options,
    verify: Verify,
    step: Step = lambda *_: None,
    simplify: bool = True,
) -> Bundle:
    """Makes a bundle at `out` from a checkpoint or five-map ONNX file.

    `verify` gets the written bundle, returns each variant's parity for the manifest and raises when a variant fails;
    then, as after any other failure, nothing is left at `out` and an older bundle there stays. `step` is told what is
    done.
    """
    total = len(plan.variants) + 3
    with replacing(out) as folder:
        work = Path(tempfile.mkdtemp(prefix="work-", dir=folder.parent))
        try:
            step("load", 0, total)
            from pipnet_edge.converters import checkpoint, export, golden

            network = checkpoint.load(source, options)
            step("export", 1, total)
            golden.write(folder / GOLDEN, network)
            core = export.export(network.net, network.spec, work, simplify)
            variants = []
            for index, (destination, precision) in enumerate(plan.variants):
                step(f"{destination}-{precision}", 2 + index, total)
                variants.append(_variant(core, destination, precision, folder))
            bundle = Bundle(
                folder=folder,
                spec=network.spec,
                golden=File.of(folder, folder / GOLDEN),
                variants=tuple(variants),
                source=Source(
                    # A name that cannot be printed is kept as Python would write it.
                    file=source.name if source.name.isprintable() else ascii(source.name),
                    sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
                    parameters=network.parameters,
                    onnx_nodes=core.nodes,
                    onnx_bytes=core.sizes,
                ),
            )
            bundle.write_manifest()
            step("parity", total - 1, total)
            measured = verify(bundle)
            bundle = replace(bundle, variants=tuple(replace(v, parity=measured[v.name]) for v in bundle.variants))
            bundle.write_manifest()
        except Exception as e:
            # Converters report a full disk in many ways, some by writing less than they should.
            free = shutil.disk_usage(folder).free
            if free < 1 << 20:
                raise EdgeError(f"no space left on the disk of {out.absolute().parent} ({free} bytes free)") from e
            raise
    return replace(bundle, folder=out)


def _variant(core: Core, destination: str, precision: str, folder: Path) -> Variant:
    name = f"{destination}-{precision}"
    (folder / name).mkdir()
    converter = importlib.import_module(f"{__name__}.{destination}")
    converter.convert(core, precision, folder / name)
    files = tuple(File.of(folder, path) for path in sorted((folder / name).iterdir()))
    return Variant(name, destination, precision, files, tools={tool: version(tool) for tool in converter.TOOLS})
