"""The devices that bench knows, and where ssh finds them."""

from __future__ import annotations

from typing import Annotated

import typer

from pipnet_edge.cli.command import command
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Output, Table


@command
def targets(
    save: Annotated[
        list[str] | None, typer.Option(help="Remember a host: TARGET=USER@HOST (TARGET= forgets it). Repeatable.")
    ] = None,
) -> Output:
    """List the devices that bench knows, and the hosts that are saved for them."""
    from pipnet_edge.targets import devices
    from pipnet_edge.targets import place as known

    for text in save or ():
        name, equals, host = text.partition("=")
        if not equals:
            raise EdgeError(f"--save {text}; TARGET=USER@HOST is needed")
        known.save(name, host)
    hosts = known.hosts()
    found = devices.devices()
    rows = [
        [
            device.name,
            device.title,
            " + ".join(f"{c.count} {c.type} at {c.mhz / 1000:g} GHz" for c in device.cores),
            f"{device.memory_gb_s:g}",
            str(len(device.anchors)),
            hosts.get(device.name, ""),
        ]
        for device in found.values()
    ]
    settings = {device.name: [f"{s.name} {s.value}: {s.reason}" for s in device.settings] for device in found.values()}
    lines = [f"{name}  {text}" for name, texts in settings.items() for text in texts]
    data = {
        name: {"title": row[1], "cores": row[2], "host": row[5] or None, "settings": settings[name]}
        for name, row in zip(found, rows, strict=True)
    }
    return Output(
        {"targets": data},
        (Table(["target", "device", "cores", ">GB/s", ">published", "host"], rows), "", *lines),
    )
