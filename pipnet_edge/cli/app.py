"""The command line: the commands, in the order in which --help lists them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pipnet_edge import __version__
from pipnet_edge.cli import (
    bench,
    convert,
    demo,
    detector,
    doctor,
    drift,
    emulator,
    inspect,
    parity,
    render,
    report,
    run,
    sensitivity,
    targets,
    track,
)
from pipnet_edge.cli.render import INTERRUPTED

__all__ = ["INTERRUPTED", "app", "main"]

app = typer.Typer(
    help="Takes trained PIPNet checkpoints to NCNN, MNN, TFLite and ONNX Runtime, and checks that the landmarks stay.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"pipnet-edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _function in (
    bench.bench,
    targets.targets,
    emulator.emulator,
    report.report,
    demo.demo,
    inspect.inspect,
    convert.convert,
    detector.detector,
    sensitivity.sensitivity,
    run.run,
    track.track,
    parity.parity,
    drift.drift,
    doctor.doctor,
):
    app.command(_function.__name__)(_function)


def main() -> None:
    status = render.printed(lambda: app(prog_name="pipnet-edge"))
    if status == INTERRUPTED:
        # All is cleaned up by now. Python would take seconds to free what torch holds.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
