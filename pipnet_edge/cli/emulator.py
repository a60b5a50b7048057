"""Sets up what --emulate needs."""

from __future__ import annotations

from pipnet_edge.cli import render
from pipnet_edge.cli.command import command
from pipnet_edge.output import Output


@command
def emulator() -> Output:
    """Set up what --emulate needs, once: an aarch64 Python with the runtimes, under qemu, from Debian and PyPI."""
    from pipnet_edge.targets.emulated import emulator as emulators

    progress = render.Progress()
    with progress.shown():
        made = emulators.set_up(progress.step)
    return Output({"emulator": str(made.folder)}, (f"emulator  {made.folder}",))
