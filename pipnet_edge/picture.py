"""One picture through one variant: landmarks in pixels of the picture, as JSON and drawn."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import draw, files, host
from pipnet_edge.bundle import MANIFEST, Bundle
from pipnet_edge.decode import Landmarks
from pipnet_edge.defaults import Choice, choose, others
from pipnet_edge.detect.detector import path_of
from pipnet_edge.detect.spec import check_threshold
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Box, Rect, crop_rect, cut, read_picture
from pipnet_edge.spec import CROPS
from pipnet_edge.worker import detected
from pipnet_edge.worker.call import Died, Inference, Workers, here, infer, parts, works
from pipnet_edge.worker.protocol import Find

# A whole picture that is likely to be a face's crop: sides in pixels, and the longer one divided by the shorter.
SIDES, RATIO = (32, 4096), 2.0
# Pixels of a detected face that have to lie in the picture, in both directions.
LEAST = 4
# Faces that are cut at a time: 25 MB of crops of 256 px.
PART = 128


@dataclass(frozen=True)
class Face:
    """A face in a picture, in its pixels.

    box: x, y, width, height, as given or as a detector found it; None for the whole picture. detected: the detector's
    score, if one found it. rect: left, top, right, bottom of the crop. points: (x, y). scores: raw, by landmark.
    """

    box: tuple[float, float, float, float] | None
    detected: float | None
    rect: tuple[int, int, int, int]
    points: list[list[float]]
    scores: list[float]


@dataclass(frozen=True)
class Asked:
    """Where faces are to be looked for: in these boxes, in the whole picture, or wherever a detector finds some.

    detector: a bundle or a YuNet file; None for the usual one. threshold: from 0 to 1; None for the detector's own.
    """

    boxes: Sequence[Box] = ()
    whole: bool = False
    detector: Path | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_threshold(self.threshold)
        by_hand = "--box" if self.boxes else "--whole"
        for option, value in (("--detector", self.detector), ("--threshold", self.threshold)):
            if value is not None and (self.boxes or self.whole):
                raise EdgeError(f"{option} {value} with {by_hand}: then nothing is detected")
        if self.boxes and self.whole:
            raise EdgeError("--box with --whole; one of them says where the faces are")


@dataclass(frozen=True)
class _Places:
    """Where faces are: by whom that is said, and for each its box, a detector's score and the rectangle to cut."""

    by: str
    faces: tuple[tuple[Box | None, float | None, Rect], ...]


@dataclass(frozen=True)
class Annotated:
    """What `annotate` found and where it wrote it. by: who said where faces are. cpus: those that the worker kept to.

    note: that of defaults.Choice, whether the whole picture is likely no crop of a face, and which faces likely are
    none.
    """

    image: str
    by: str
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
    asked: Asked,
    policy: str | None,
    variant: str | None,
    threads: int | None,
    output: Path | None,
) -> Annotated:
    """Finds the landmarks of the faces asked for, and writes the drawing and the JSON.

    Workers run the networks. policy: the crop policy; by default the network's own. Variant, threads and the worker's
    CPUs are by default those that the bundle was tuned to for this machine (see pipnet_edge.defaults). Raises EdgeError
    for unreadable input, unknown variants and paths that cannot be written; it calls boxes and the policy by their
    options. No face is no error.
    """
    opened = bundles.read(bundle)
    if policy not in (None, *CROPS):
        raise EdgeError(f"--crop {policy}; allowed: {', '.join(CROPS)}")
    path, data = _outputs(output or Path(f"{image.stem}-landmarks.png"), (image, bundle / MANIFEST))
    picture = read_picture(image)
    detector = None if asked.boxes or asked.whole else path_of(asked.detector)
    height, width = picture.shape[:2]
    places = _places(picture, asked, detector, policy or opened.spec.crop)
    # A picture without a face is shown to the network all the same: it says whether the variant works.
    rects = [rect for *_, rect in places.faces] or [Rect.whole(picture)]
    chosen, version, found = _inferred(opened, variant, threads, picture, rects)
    each = zip(places.faces, found.points, found.score.astype(float), strict=bool(places.faces))
    faces, points = list[Face](), list[NDArray[np.float32]]()
    for (box, score, rect), normalised, scores in each:
        points.append(rect.to_picture(normalised))
        corners = rect.left, rect.top, rect.right, rect.bottom
        faces.append(Face(box, score, corners, points[-1].astype(float).round(2).tolist(), scores.round(4).tolist()))
    notes = (chosen.note, _doubt(width, height) if asked.whole else None, _doubtful(faces, opened.spec.presence))
    result = Annotated(
        str(image),
        places.by,
        chosen.variant,
        version,
        chosen.threads,
        chosen.cpus,
        "; ".join(filter(None, notes)) or None,
        opened.spec.num_lms,
        tuple(faces),
        str(path),
        str(data),
    )
    drawn = draw.annotate(picture, np.stack(points)) if points else picture.copy()
    for face in faces:
        if face.box is not None:
            draw.box(drawn, face.box, "" if face.detected is None else f"{face.detected:.2f}")
    draw.write_picture(path, drawn)
    files.write(data, (json.dumps(result.to_json(), indent=1) + "\n").encode())
    return result


def _places(picture: NDArray[np.uint8], asked: Asked, detector: Path | None, policy: str) -> _Places:
    """Where the faces in a picture are, and how a crop policy cuts them."""
    height, width = picture.shape[:2]
    if asked.boxes:
        rects = [crop_rect(box, width, height, policy, "--box") for box in asked.boxes]
        return _Places("--box", tuple((box, None, rect) for box, rect in zip(asked.boxes, rects, strict=True)))
    if detector is None:
        return _Places("the whole picture", ((None, None, Rect.whole(picture)),))
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        given, out = Path(folder, "picture.npy"), Path(folder, "out.npz")
        files.write_array(given, picture)
        job = Find(str(detector), str(given), str(out), host.default_threads(), threshold=asked.threshold)
        found = detected.places(here, job)
    # The demo policy cuts around a detector's own box, the other around the landmarks.
    boxes = found.boxes if policy == "demo" else found.fit
    faces = []
    for own, box, score in zip(found.boxes.tolist(), boxes.tolist(), found.scores.tolist(), strict=True):
        x, y, w, h = box
        across, down = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
        if min(across, down) >= LEAST:
            # A policy may leave nothing of a face at the picture's edge.
            with contextlib.suppress(EdgeError):
                rect = crop_rect((x, y, w, h), width, height, policy)
                faces.append((tuple(round(side, 2) for side in own), round(score, 4), rect))
    return _Places(found.version, tuple(faces))


def _inferred(
    bundle: Bundle, variant: str | None, threads: int | None, picture: NDArray[np.uint8], rects: Sequence[Rect]
) -> tuple[Choice, str, Landmarks]:
    """Runs the network over what rects cut from a picture, PART of them at a time. Also gives the runtime's version.

    The first part says which runtime starts. Of the others, each CPU has one in work, unless threads are given.
    """

    def crops(part: Sequence[Rect]) -> NDArray[np.uint8]:
        return np.stack([cut(picture, rect, bundle.spec.input_size) for rect in part])

    chosen, first = _started(bundle, variant, threads, crops(rects[:PART]))
    jobs, each = (len(chosen.cpus or host.allowed_cpus()), 1) if threads is None else (1, chosen.threads)
    with ThreadPoolExecutor(jobs) as pool, Workers() as workers:

        def work(part: Sequence[Rect]) -> Inference:
            return infer(workers.call, bundle.folder, chosen.variant, each, crops(part), cpus=chosen.cpus)

        try:
            found = [first, *pool.map(work, parts(rects[PART:], PART, jobs))]
        except BaseException:
            # The pool's end waits for its threads, which hear nothing of Ctrl-C.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return chosen, first.version, Landmarks.joined([part.landmarks for part in found])


def _started(
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
            if not isinstance(e, Died) and works(bundle.variant(choice.variant).runtime):
                raise
            failed.append((choice.variant, e))
            continue
        notes = [*(f"not {name}: {error}" for name, error in failed), choice.note]
        return replace(choice, note="; ".join(filter(None, notes)) or None), found
    name, first = failed[0]
    raise EdgeError(f"{name}: {first}", first.code) from first


def _doubt(width: int, height: int) -> str | None:
    """Says so when a whole picture is probably no crop of a face."""
    short, long = sorted((width, height))
    if SIDES[0] <= short and long <= SIDES[1] and long <= RATIO * short:
        return None
    return f"the whole picture of {width}x{height} pixels was taken as one face; if it is not one, leave --whole out"


def _doubtful(faces: Sequence[Face], presence: float | None) -> str | None:
    """Says which faces are likely none by their landmarks' scores."""
    low = [number for number, face in enumerate(faces, 1) if presence and np.mean(face.scores) < presence]
    if not low:
        return None
    which = f"face{'s' if low[1:] else ''} {', '.join(map(str, low))}"
    return f"{which}: landmarks score below {presence:.3g}, where this network sees no face"


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
