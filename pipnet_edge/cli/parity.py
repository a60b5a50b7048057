"""Every variant against the float network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import (
    DEFAULT_BUNDLE,
    BundleArgument,
    Emulate,
    Host,
    Target,
    Threads,
    places,
    thread_count,
    useless_threads,
)
from pipnet_edge.output import Output
from pipnet_edge.words import counted


@command
def parity(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    variant: Annotated[list[str] | None, typer.Option(help="A variant to check; all if not given. Repeatable.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of face crops, or of pictures for a detector, to compare on, not the golden ones."),
    ] = None,
    crops: Annotated[int | None, typer.Option(min=1, help="Compare on no more than so many of them.")] = None,
    threads: Threads = 1,
    target: Target = None,
    host: Host = None,
    emulate: Emulate = False,
) -> Output:
    """Check, here or on a target, that every variant gives the float network's maps, and landmarks or faces."""
    from pipnet_edge import bundle as bundles
    from pipnet_edge.benchmarks import detector_tables, tables
    from pipnet_edge.benchmarks.accuracy import faces
    from pipnet_edge.benchmarks.accuracy import parity as check
    from pipnet_edge.targets.place import calling

    (place,) = places([target] if target else (), [host] if host else (), emulate, False)
    # A board cuts them to its own cores.
    count = thread_count(threads) if place.is_here or not threads else threads
    opened = bundles.read_any(bundle)
    progress = render.Progress()
    with progress.shown(), calling(place) as call:
        pictures = check.images_in(images) if images else ()
        asked = (variant or (), count, pictures, progress.step, call, crops)
        rows: Sequence[check.Row | faces.Row]
        if isinstance(opened, bundles.Bundle):
            rows = found = check.check(opened, *asked)
            table, about = tables.parity(found), f"px: pixels of the crop, {counted(rows[0].images, 'crop')}"
        else:
            rows = compared = faces.check(opened, *asked)
            table, about = detector_tables.parity(compared), f"{faces.MEANING}; {counted(rows[0].images, 'picture')}"
    failed = check.first_failure(rows)
    where = "" if place.is_here else f", {place.kind} on {place.name}"
    return Output(
        {"target": place.name, "kind": place.kind, "rows": [row.to_json() for row in rows]},
        (
            table,
            "",
            f"{about}, against {rows[0].reference}{where}",
            *(useless_threads(threads) if place.is_here else ()),
        ),
        code=failed.code if failed else 0,
        error=str(failed) if failed else None,
    )
