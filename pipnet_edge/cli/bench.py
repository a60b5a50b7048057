"""Speed: measured here or on a board, counted under emulation, or predicted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import DEFAULT_BUNDLE, BundleArgument, Emulate, listed, places
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.output import Output, Table, envelope

if TYPE_CHECKING:
    from pipnet_edge.benchmarks.speed.bench import Plan
    from pipnet_edge.benchmarks.speed.result import Result
    from pipnet_edge.bundle import Bundle
    from pipnet_edge.targets.place import Place


@command
def bench(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A device (see `pipnet-edge targets`), a .toml file of your own, or local. Repeatable."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Where ssh finds it: USER@HOST; with several targets TARGET=USER@HOST. Repeatable."),
    ] = None,
    emulate: Emulate = False,
    predict: Annotated[bool, typer.Option("--predict", help="Predict times from published ones.")] = False,
    variant: Annotated[list[str] | None, typer.Option(help="A variant; all if not given. Repeatable.")] = None,
    threads: Annotated[str | None, typer.Option(help="Thread counts; 1,2,4 as far as there are cores.")] = None,
    cores: Annotated[
        str, typer.Option(help="CPUs to keep to: big (the fastest kind), all, or numbers: 4,5,6,7.")
    ] = "big",
    seconds: Annotated[float, typer.Option(min=0, max=86400, help="Time every variant for at least so long,")] = 2.0,
    count: Annotated[int, typer.Option(min=1, help="and for at least so many frames,")] = 50,
    warmup: Annotated[int, typer.Option(min=1, help="after so many that do not count.")] = 8,
    sustain: Annotated[
        float | None,
        typer.Option(min=1, max=86400, help="Run for so many seconds instead, to see what heat does to the clock."),
    ] = None,
    rest: Annotated[float, typer.Option(min=0, max=86400, help="Seconds between two runs, for a board to cool.")] = 0.0,
    compare: Annotated[Path | None, typer.Option(help="An earlier result to put beside this one.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="For example p50<=20 (ms) or memory<=200 (MB); exit 3 if broken. Repeatable."),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Find the fastest of --variant, --threads, --cores; keep it in the bundle for `run`."
        ),
    ] = False,
    chain: Annotated[
        bool,
        typer.Option(
            "--chain", help="A video from its file to drawn faces, not one frame: detect, track, draw; and how well."
        ),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was pushed on the board for the next time.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the result here, as JSON.")] = None,
) -> Output:
    """Measure speed here or on a board, count instructions under emulation, or predict times."""
    from pipnet_edge import bundle as bundles
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.limits import parse
    from pipnet_edge.benchmarks.speed import bench as benches
    from pipnet_edge.benchmarks.speed import result as results

    if output and (output.is_dir() or not os.access(output.absolute().parent, os.W_OK)):
        raise EdgeError(f"cannot write {output}; a file in a folder that exists and may be written is needed")
    limits = [parse(text, results.UNITS) for text in limit or ()]
    earlier = results.read(compare) if compare else None
    where = places(target or (), host or (), emulate, predict)
    settings = results.Settings(warmup, sustain or seconds, count, rest)
    if chain:
        others: dict[str, object] = {"--tune": tune, "--compare": compare, "--limit": limit, "--predict": predict}
        _refuse(others, "--chain", "--chain only measures, or counts with --emulate")
    if tune:
        others = {"--sustain": sustain, "--compare": compare, "--limit": limit, "-o": output}
        _refuse(others, "--tune", "--tune writes only into the bundle's manifest (and --json prints)")
    plan = benches.Plan(tuple(variant or ()), _counts(threads), _cpus(cores), settings)
    progress = render.Progress()
    if chain:
        return _written(_chain(bundles.read(bundle), plan, where, progress, keep), output)
    opened = bundles.read_any(bundle)
    if tune:
        if not isinstance(opened, bundles.Bundle):
            raise EdgeError(f"--tune with a face detector, {bundle}; bundles of landmarks can be tuned")
        return _tune(opened, plan, where, progress, keep)
    with progress.shown():
        found, errors = benches.run(opened, plan, where, progress.step, keep)
    parts = tables.bench(found)
    data = found.to_json() | {"summary": results.summary(found)}
    if earlier:
        try:
            changes, differences = results.compare(earlier, found)
        except EdgeError as e:
            errors = {**errors, "--compare": e}
        else:
            parts += ["", tables.changes(changes), *(f"not alike: {line}" for line in differences)]
            data["summary"]["compared"] = [change.to_json() for change in changes]
            data["summary"]["differences"] = differences
    failed = [f"{name}: {error}" for name, error in errors.items()] + results.failures(found, limits)
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    cut = _cut(plan, [*(run.threads for run in found.measured), *(row.threads for row in found.predicted)])
    taken = [] if plan.variants else tables.taken(opened, found)
    out = Output(
        data,
        (*parts, *_notes(found), *taken, *cut),
        CHECK_FAILED if failed else 0,
        failed[0] + more if failed else None,
    )
    return _written(out, output)


def _refuse(options: Mapping[str, object], what: str, why: str) -> None:
    """Raises EdgeError if one of the options is given: it does not go with the other."""
    for option, given in options.items():
        if given:
            raise EdgeError(f"{what} with {option}; {why}")


def _written(out: Output, path: Path | None) -> Output:
    """Writes an output to a path, if there is one, and says so."""
    if path is None:
        return out
    from pipnet_edge.files import write

    try:
        write(path, (json.dumps(envelope("bench", out), allow_nan=False) + "\n").encode())
    except EdgeError as e:  # what was measured is shown all the same
        return Output(out.data, out.parts, e.code, str(e))
    return Output(out.data, (*out.parts, f"result  {path}"), out.code, out.error)


def _chain(bundle: Bundle, plan: Plan, where: list[Place], progress: render.Progress, keep: bool) -> Output:
    from pipnet_edge import bundle as bundles
    from pipnet_edge.benchmarks import chain_tables
    from pipnet_edge.benchmarks.speed import chain
    from pipnet_edge.converters.demo import FACES
    from pipnet_edge.detect.detector import usual
    from pipnet_edge.video.track import Rules

    Rules.of(bundle.spec)  # before any work, it says what is wrong
    if not usual().exists():
        raise EdgeError(f"--chain needs a face detector; `pipnet-edge detector` makes it (there is none at {usual()})")
    detector = bundles.read_detector(usual())
    with progress.shown():
        found, errors = chain.run(bundle, detector, FACES, plan, where, progress.step, keep)
    failed = [f"{name}: {error}" for name, error in errors.items()] + chain.failures(found)
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    notes = [*(chain_tables.MEANING if found.measured else ()), *_cut(plan, [run.threads for run in found.measured])]
    if found.counted:
        notes.append("emulated: instructions of one frame, 1 thread; they say nothing about time.")
    if found.clip["truth"] != "labels":
        notes.append(f"truth: what {found.clip['truth']} finds in the faces at rest and without noise.")
    data = found.to_json() | {"summary": chain.summary(found)}
    parts = (*chain_tables.tables(found), *notes)
    return Output(data, parts, CHECK_FAILED if failed else 0, failed[0] + more if failed else None)


def _tune(bundle: Bundle, plan: Plan, where: list[Place], progress: render.Progress, keep: bool) -> Output:
    from pipnet_edge.benchmarks import tables
    from pipnet_edge.benchmarks.speed import tune as tuning

    with progress.shown():
        found, errors = tuning.run(bundle, plan, where, progress.step, keep)
    parts: list[Table | str] = [
        tables.tuned(found),
        *(f"{each.target}: {warning}" for each in found for warning in each.warnings),
        "",
        "ms: picture in memory to landmarks; x fastest: median of ratios, in turns; px: distance to torch's landmarks.",
        *(f"{each.target}  {each.tuned}, written for {each.machine}" for each in found),
        *_cut(plan, [trial.candidate.threads for each in found for trial in each.trials]),
    ]
    failed = [f"{name}: {error}" for name, error in errors.items()]
    data = {"tuned": [each.to_json() for each in found]}
    return Output(data, parts, CHECK_FAILED if failed else 0, failed[0] if failed else None)


def _cut(plan: Plan, used: Sequence[int]) -> list[str]:
    """A sentence if the plan has more threads than any machine had cores."""
    cut = [str(count) for count in plan.threads if used and count > max(used)]
    return [f"{', '.join(cut)} threads are useless: at most one a core was used"] if cut else []


def _notes(found: Result) -> list[str]:
    notes = [""]
    if found.measured:
        # The name "fp16" promises arithmetic that many CPUs do not have.
        notes += dict.fromkeys(
            f"{run.variant} computes in {run.arithmetic}"
            for run in found.measured
            if run.frames.size and not run.variant.endswith(f"-{run.arithmetic}")
        )
        notes.append(
            "ms: picture in memory to landmarks or faces, p50 and p90 of all frames; inference: its part from crop to "
            "maps; px: distance to torch's landmarks."
        )
    if found.counted:
        notes.append("emulated: instructions of one frame, 1 thread; they say nothing about time.")
    if found.predicted:
        notes += dict.fromkeys(f"{row.variant.partition('-')[0]}: {row.note}" for row in found.predicted if row.note)
        notes.append("predicted: crop to maps, by a model fitted to published timings; nothing was run.")
    return notes


def _counts(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise EdgeError(f"--threads {text}; whole numbers from 1, separated by commas, are needed")
    return tuple(dict.fromkeys(int(word) for word in listed(text)))


def _cpus(text: str) -> str | tuple[int, ...]:
    if text in ("big", "all"):
        return "big" if text == "big" else ()
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise EdgeError(f"--cores {text}; allowed: big, all, or numbers separated by commas")
    return tuple(int(word) for word in listed(text))
