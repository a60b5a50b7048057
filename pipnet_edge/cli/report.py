"""Results as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipnet_edge.cli.command import command
from pipnet_edge.output import Output


@command
def report(
    results: Annotated[list[Path], typer.Argument(help="What bench -o wrote, and bench, parity, drift with --json.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .html, .md or .csv file.")] = Path("report.html"),
) -> Output:
    """Put results of bench, parity and drift into one file: HTML with plots, Markdown or CSV."""
    from pipnet_edge.benchmarks import report as reports

    reports.write(reports.make(results), output)
    return Output({"report": str(output)}, (f"report  {output}",))
