"""Landmarks in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import DEFAULT_BUNDLE, ChosenThreads, ChosenVariant, DetectorPath, Threshold, floats
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Output
from pipnet_edge.words import counted

if TYPE_CHECKING:
    from pipnet_edge.preprocess import Box


@command
def run(
    paths: Annotated[
        list[Path], typer.Argument(metavar="[BUNDLE] IMAGE", help="An image, after the bundle if not ./bundle.")
    ],
    box: Annotated[
        list[str] | None, typer.Option(help="A face: x,y,width,height in pixels. Repeat for more faces.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="The picture is the crop of one face.")] = False,
    detector: DetectorPath = None,
    threshold: Threshold = None,
    crop: Annotated[
        str | None, typer.Option(help="How a box is cut: test (x1.2) or demo (for a detector's box).")
    ] = None,
    variant: ChosenVariant = None,
    threads: ChosenThreads = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The picture to draw; IMAGE-landmarks.png if not given.")
    ] = None,
) -> Output:
    """Find landmarks in a picture: JSON and an annotated picture. Without boxes, faces are detected."""
    from pipnet_edge import picture
    from pipnet_edge.host import default_threads

    if len(paths) > 2:
        raise EdgeError(f"{len(paths)} paths; give [BUNDLE] IMAGE")
    bundle, image = (paths[0], paths[1]) if len(paths) == 2 else (DEFAULT_BUNDLE, paths[0])
    if bundle.is_file():
        raise EdgeError(f"{bundle} is no bundle; BUNDLE comes first, then IMAGE")
    if image.is_dir():
        raise EdgeError(f"{image} is a folder; an image is needed: [BUNDLE] IMAGE")
    asked = picture.Asked(tuple(_box(text) for text in box or ()), whole, detector, threshold)
    found = picture.annotate(
        bundle, image, asked, crop, variant, default_threads() if threads == 0 else threads, output
    )
    lines = [
        f"{counted(len(found.faces), 'face')}, {found.landmarks} landmarks each, by {found.variant} ({found.version}), "
        f"{counted(found.threads, 'thread')}; faces from {found.by}",
        *([found.note] if found.note else []),
    ]
    return Output(found.to_json(), (*lines, f"picture    {found.picture}", f"landmarks  {found.json}"))


def _box(text: str) -> Box:
    x, y, width, height = floats("box", text, 4)
    return x, y, width, height
