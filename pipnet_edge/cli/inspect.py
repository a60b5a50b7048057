"""What a checkpoint or a bundle is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import Mean, Outputs, Std, Weights, normalization, output_names
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.output import Output, Table
from pipnet_edge.words import counted


@command
def inspect(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT|BUNDLE", help="A checkpoint, five-map ONNX or bundle.")],
    input_size: Annotated[int | None, typer.Option(help="Side of the crop, for ONNX files that leave it open.")] = None,
    weights: Weights = None,
    outputs: Outputs = None,
    mean: Mean = None,
    std: Std = None,
    trust_pickle: Annotated[bool, typer.Option(help="Load pickled modules, which run the file's code.")] = False,
) -> Output:
    """Say what a checkpoint or a bundle is."""
    if path.is_dir():
        return _bundle(path)
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.converters.checkpoint import read as checkpoints

    options = checkpoints.Options(
        input_size=input_size,
        trust_pickle=trust_pickle,
        outputs=output_names(outputs),
        weights=weights,
        **normalization(mean, std),
    )
    found = checkpoints.read(path, options.input_size, options.trust_pickle, options.outputs, options.weights)
    data = {
        "backbone": found.backbone,
        "num_lms": found.num_lms,
        "num_nb": found.num_nb,
        "net_stride": found.net_stride,
        "input_size": found.input_size,
        "parameters": found.parameters,
        "datasets": found.datasets,
        "mean": options.mean,
        "std": options.std,
        "notes": found.notes,
    }
    return Output(data, (tables.checkpoint(data), *found.notes))


def _bundle(path: Path) -> Output:
    """What a bundle is, and which of its files are not as they were written."""
    from pipnet_edge import bundle as bundles
    from pipnet_edge.benchmarks import detector_tables, tables
    from pipnet_edge.defaults import choose
    from pipnet_edge.host import default_threads

    bundle = bundles.read_any(path)
    damaged = bundle.damaged()
    if isinstance(bundle, bundles.Bundle):
        network, table = tables.network(bundle.spec, bundle.source), tables.variants(bundle)
    else:
        network, table = detector_tables.network(bundle), detector_tables.variants(bundle)
    if damaged:
        marks = ("damaged" if name in damaged else "" for name, *_ in table.rows)
        table = Table([*table.columns, ""], [[*row, mark] for row, mark in zip(table.rows, marks, strict=True)])
    faults = list(dict.fromkeys(fault for found in damaged.values() for fault in found))
    more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
    try:
        chosen = choose(bundle, None, None, default_threads())
        here = f"{chosen.variant}, {counted(chosen.threads, 'thread')}; {chosen.note}"
    except EdgeError as e:  # a bundle can be looked at where none of its runtimes is
        chosen, here = None, str(e)
    return Output(
        {**bundle.to_json(), "damaged": damaged, "here": asdict(chosen) if chosen else None},
        (
            network,
            "",
            table,
            *tables.quantization(bundle),
            *(f"tuned for {machine}: {tuned}" for machine, tuned in bundle.tuned.items()),
            f"run here: {here}",
            *(f"damaged: {fault}" for fault in faults),
        ),
        code=USER_ERROR if faults else 0,
        error=f"{path} is damaged: {faults[0]}{more}" if faults else None,
    )
