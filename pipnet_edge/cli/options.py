"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipnet_edge.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipnet_edge.preprocess import Rect
    from pipnet_edge.targets.place import Place

BundleArgument = Annotated[Path, typer.Argument(metavar="[BUNDLE]", help="The bundle's folder.")]
Threads = Annotated[
    int, typer.Option(min=0, help="Threads of the runtime; 0: as many as this machine has cores, at most 4.")
]
DEFAULT_BUNDLE = Path("bundle")
# For commands that take one target; bench takes several.
Target = Annotated[str | None, typer.Option(help="Do it on a device (see `pipnet-edge targets`), not here.")]
Host = Annotated[str | None, typer.Option(help="Where ssh finds the target: USER@HOST.")]
Emulate = Annotated[bool, typer.Option("--emulate", help="Emulate the target's core on this machine.")]
# For commands that find landmarks in what a user has.
DetectorPath = Annotated[
    Path | None,
    typer.Option(help="A face detector's bundle, or a YuNet .onnx file, if not that of `pipnet-edge detector`."),
]
Threshold = Annotated[
    float | None, typer.Option(help="The score above which there is a face, 0 to 1, if not the detector's own.")
]
ChosenVariant = Annotated[
    str | None, typer.Option(help="For example ncnn-fp32; as `bench --tune` found, else the likely fastest here.")
]
ChosenThreads = Annotated[
    int | None,
    typer.Option(
        min=0, help="Threads of the runtime; as `bench --tune` found, else 0: as many as there are cores, at most 4."
    ),
]
# For commands that quantize.
CheckpointFile = Annotated[Path, typer.Argument(help="A PIPNet state_dict (.pth) or a five-map ONNX file.")]
Mean = Annotated[str | None, typer.Option(help="Mean of R,G,B in [0, 1], if not ImageNet's.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation of R,G,B in [0, 1], if not ImageNet's.")]
Weights = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which network of a checkpoint that holds several, such as ema.")
]
Outputs = Annotated[
    str | None,
    typer.Option(help="An ONNX file's maps by name, if it has other names: SCORE,X,Y,NB_X,NB_Y, or the first three."),
]
Dataset = Annotated[
    str | None, typer.Option(help="Dataset: aflw, cofw, wflw, lapa, 300w, 300w-celeba, 300w-cofw-wflw.")
]
MeanFaceFile = Annotated[Path | None, typer.Option(help="Mean-face file of a custom dataset: x0 y0 x1 y1 …")]
Calibrate = Annotated[
    Path | None, typer.Option(help="Faces to quantize with: a folder of crops, or of pictures with labels.")
]
CalibrateLabels = Annotated[Path | None, typer.Option(help="Label file that cuts the calibration faces, as for drift.")]
CalibrateCount = Annotated[int | None, typer.Option(help="So many calibration faces (256), chosen by --seed.")]
Seed = Annotated[int, typer.Option(min=0, help="Chooses the calibration faces.")]
Ranges = Annotated[str, typer.Option(help="How activations are clipped: mse, minmax, percentile, kl.")]
Rounding = Annotated[str, typer.Option(help="How weights are rounded: sequential (GPTQ, bias corrected) or nearest.")]


def thread_count(given: int) -> int:
    """The number given, at most the cores of this machine; for 0 as many as it has cores, at most 4."""
    from pipnet_edge import host

    return host.cut_threads(given or host.default_threads(), len(host.allowed_cpus()))[0]


def useless_threads(given: int) -> list[str]:
    """A line if `thread_count` cuts the number given."""
    from pipnet_edge import host

    cut = host.cut_threads(given, len(host.allowed_cpus()))[1]
    return [cut] if cut else []


def calibration_count(given: int | None) -> int:
    """The number given, or the usual one. Raises EdgeError for too few to calibrate with."""
    from pipnet_edge.converters.quantize import calibration

    if given is not None and given < calibration.LEAST:
        raise EdgeError(f"--calibrate-count {given}; at least {calibration.LEAST} faces are needed")
    return calibration.COUNT if given is None else given


def listed(text: str) -> tuple[str, ...]:
    """The words that commas separate."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def normalization(mean: str | None, std: str | None) -> dict[str, Any]:
    """--mean and --std where they are given, as checkpoint.read.Options takes them.

    Raises EdgeError for what is no three numbers in [0, 1].
    """
    from pipnet_edge.spec import check_normalization

    given = {"mean": mean, "std": std}
    chosen = {name: floats(name, text, 3) for name, text in given.items() if text is not None}
    for name, values in chosen.items():
        check_normalization(f"--{name}", values)
    return chosen


def output_names(text: str | None) -> tuple[str, ...]:
    """The names in --outputs. Raises EdgeError unless there are five, or three of a network without neighbours."""
    names = listed(text or "")
    if text is not None and (len(names) not in (3, 5) or len(set(names)) != len(names)):
        raise EdgeError(f"--outputs {text}; five names are needed, SCORE,X,Y,NB_X,NB_Y, or the first three")
    return names


def floats(name: str, text: str, count: int) -> tuple[float, ...]:
    """The `count` numbers in the text of option `name`. Raises EdgeError for anything else."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise EdgeError(f"--{name} {text}; {count} numbers separated by commas are needed")
    return numbers


def places(names: Sequence[str], hosts: Sequence[str], emulate: bool, predict: bool) -> list[Place]:
    """The places that --target, --host, --emulate and --predict together name."""
    from pipnet_edge import host as this
    from pipnet_edge.targets import place as known

    names = list(dict.fromkeys(names)) or [known.LOCAL]
    given: dict[str, str] = {}
    for text in hosts:
        name, equals, host = text.rpartition("=")
        if not equals and len(names) > 1:
            raise EdgeError(f"--host {text} for {len(names)} targets; TARGET=USER@HOST is needed")
        if equals and name not in names:
            raise EdgeError(f"--host {text} is for {name}, which is no --target; those are {', '.join(names)}")
        if (name or names[0]) in given:
            raise EdgeError(f"--host {text}, but {name or names[0]} has the host {given[name or names[0]]} already")
        given[name or names[0]] = host
    board = str(this.facts().get("board", ""))
    saved = known.hosts()
    found = [known.resolve(name, given.get(name), emulate, predict, board, saved) for name in names]
    for index, place in enumerate(found):
        if place.name in (other.name for other in found[:index]):
            raise EdgeError(f"--target {names[index]} is {place.name}, which is given already")
    return found


def faces_in(
    images: Path, labels: Path | None
) -> tuple[dict[tuple[Path, Rect | None], NDArray[np.float64] | None], list[str]]:
    """The faces in a folder with their labels: whole pictures, or the parts that a label file cuts from them.

    The second value says what was left out.
    """
    from pipnet_edge.benchmarks.accuracy import labels as label_files

    found = label_files.read_labels(labels, images) if labels else label_files.image_folder(images)
    nothing = [None] * len(found.images)
    faces = zip(found.images, found.crops or nothing, strict=True)
    return dict(zip(faces, nothing if found.points is None else found.points, strict=True)), found.notes()
