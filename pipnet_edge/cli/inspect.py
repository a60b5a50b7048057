"""What a checkpoint or a bundle is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import Mean, Outputs, Std, Weights, normalization, output_names
from pipnet_edge.output import Output


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
    from pipnet_edge.benchmarks import tables

    if path.is_dir():
        from pipnet_edge import bundle as bundles

        bundle = bundles.read(path)
        tuned = [f"tuned for {machine}: {tuned}" for machine, tuned in bundle.tuned.items()]
        return Output(
            bundle.to_json(),
            (
                tables.network(bundle.spec, bundle.source),
                "",
                tables.variants(bundle),
                *tables.quantization(bundle),
                *tuned,
            ),
        )
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
