"""One picture through one variant: landmarks in pixels of the picture, as JSON and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import draw, files, host
from pipnet_edge.bundle import MANIFEST, Bundle
from pipnet_edge.defaults import Choice, choose, others
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Box, Rect, crop_rect, cut, read_picture
from pipnet_edge.spec import CROPS
from pipnet_edge.worker.call import Died, Inference, here, infer
from pipnet_edge.worker.protocol import Probe

# A whole picture that is likely to be a face's crop: sides in pixels, and the longer one divided by the shorter.
SIDES, RATIO = (32, 4096), 2.0


@dataclass(frozen=True)
class Face:
    """rect: left, top, right, bottom of the crop. points: (x, y) in pixels of the picture. scores: raw, by landmark."""

    rect: tuple[int, int, int, int]
    points: list[list[float]]
    scores: list[float]


@dataclass(frozen=True)
class Annotated:
    """What `annotate` found and where it wrote it. cpus: those that the worker kept to.

    note: that of defaults.Choice, and whether the whole picture is likely no crop of a face.
    """

    image: str
    variant: str
    version: str
    threads: int
    cpus: tuple[int, ...]
    note: str | None
    landmarks: int
    faces: tuple[Face, ...]
    picture: str
    json: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def annotate(
    bundle: Path,
    image: Path,
    boxes: Sequence[Box],
    policy: str | None,
    variant: str | None,
    threads: int | None,
    output: Path | None,
) -> Annotated:
    """Finds the landmarks in every box (without boxes: in the whole picture) and writes the drawing and the JSON.

    A worker runs the network. policy: the crop policy; by default the network's own. Variant, threads and the worker's
    CPUs are by default those that the bundle was tuned to for this machine (see pipnet_edge.defaults). Raises EdgeError
    for unreadable input, unknown variants and paths that cannot be written; it calls boxes and the policy by their
    options.
    """
    opened = bundles.read(bundle)
    if policy not in (None, *CROPS):
        raise EdgeError(f"--crop {policy}; allowed: {', '.join(CROPS)}")
    path, data = _outputs(output or Path(f"{image.stem}-landmarks.png"), (image, bundle / MANIFEST))
    picture = read_picture(image)
    height, width = picture.shape[:2]
    cut_by = policy or opened.spec.crop
    rects = [crop_rect(box, width, height, cut_by, "--box") for box in boxes] or [Rect.whole(picture)]
    crops = np.stack([cut(picture, rect, opened.spec.input_size) for rect in rects])
    chosen, inference = _inferred(opened, variant, threads, crops)
    found = inference.landmarks
    points = np.stack([rect.to_picture(p) for rect, p in zip(rects, found.points, strict=True)])
    drawn = draw.annotate(picture, points)
    faces = tuple(
        Face((r.left, r.top, r.right, r.bottom), p.round(2).tolist(), s.round(4).tolist())
        for r, p, s in zip(rects, points.astype(float), found.score.astype(float), strict=True)
    )
    result = Annotated(
        str(image),
        chosen.variant,
        inference.version,
        chosen.threads,
        chosen.cpus,
        "; ".join(filter(None, (chosen.note, None if boxes else _doubt(width, height)))) or None,
        opened.spec.num_lms,
        faces,
        str(path),
        str(data),
    )
    draw.write_picture(path, drawn)
    files.write(data, (json.dumps(result.to_json(), indent=1) + "\n").encode())
    return result


def _inferred(
    bundle: Bundle, variant: str | None, threads: int | None, crops: NDArray[np.uint8]
) -> tuple[Choice, Inference]:
    """Runs the network, in another runtime if the first does not start and no variant was asked for; its note says so.

    Raises the first runtime's EdgeError, with the variant's name, if none starts, and for all that is no fault of a
    runtime.
    """
    many = host.default_threads()
    chosen = choose(bundle, variant, threads, many)
    failed: list[tuple[str, EdgeError]] = []
    for choice in (chosen, *(others(bundle, chosen, threads, many) if variant is None else ())):
        try:
            found = infer(here, bundle.folder, choice.variant, choice.threads, crops, cpus=choice.cpus)
        except EdgeError as e:
            if not isinstance(e, Died) and _works(bundle.variant(choice.variant).runtime):
                raise
            failed.append((choice.variant, e))
            continue
        note = "; ".join(f"not {name}: {error}" for name, error in failed)
        return (replace(choice, note=note) if failed else choice), found
    name, first = failed[0]
    raise EdgeError(f"{name}: {first}", first.code) from first


def _works(runtime: str) -> bool:
    """Whether a runtime runs anything at all on this machine."""
    try:
        here(Probe(runtime))
    except EdgeError:
        return False
    return True


def _doubt(width: int, height: int) -> str | None:
    """Says so when a whole picture is probably no crop of a face."""
    short, long = sorted((width, height))
    if SIDES[0] <= short and long <= SIDES[1] and long <= RATIO * short:
        return None
    return f"the whole picture of {width}x{height} pixels was taken as one face; if it is not one, --box is needed"


def _outputs(path: Path, inputs: Sequence[Path]) -> tuple[Path, Path]:
    """The picture's path and the path of the JSON beside it.

    Raises EdgeError, before any work, for what is no file and for what is one of the inputs, by whatever name.
    """
    if not path.suffix:
        raise EdgeError(f"cannot write a picture as {path.name or path}; use .png or .jpg")
    both = path, path.with_suffix(".json")
    for each in both:
        if each.is_dir():
            raise EdgeError(f"cannot write {each}: it is a folder")
        for given in inputs:
            if each.exists() and given.exists() and each.samefile(given):
                raise EdgeError(f"cannot write {each}: it is what is read ({given}); give another name with -o")
    return both
