"""One picture through one variant: landmarks in pixels of the picture, as JSON and drawn."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import host
from pipnet_edge.benchmarks.pictures import drawing
from pipnet_edge.defaults import choose
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Box, Rect, crop_rect, cut, read_picture
from pipnet_edge.spec import CROPS
from pipnet_edge.worker.call import here, infer


@dataclass(frozen=True)
class Face:
    """rect: left, top, right, bottom of the crop. points: (x, y) in pixels of the picture. scores: raw, a landmark."""

    rect: tuple[int, int, int, int]
    points: list[list[float]]
    scores: list[float]


@dataclass(frozen=True)
class Annotated:
    """What `annotate` found and where it put it. cpus: those it kept to; note: whether that is as tuned."""

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
    """Landmarks of every box (the whole picture without boxes) in a worker; writes the drawing and the JSON beside it.

    policy is the crop policy, the network's own by default. Variant and threads are by default what the bundle was
    tuned to for this machine, as are the worker's CPUs (see pipnet_edge.choice). Raises EdgeError for unreadable input,
    unknown variants and places that cannot be written.
    """
    read = bundles.read(bundle)
    if policy not in (None, *CROPS):
        raise EdgeError(f"crop policy {policy!r}; allowed: {', '.join(CROPS)}")
    picture = read_picture(image)
    height, width = picture.shape[:2]
    rects = [crop_rect(box, width, height, policy or read.spec.crop) for box in boxes] or [Rect(0, 0, width, height)]
    chosen = choose(read, variant, threads, host.default_threads())
    crops = np.stack([cut(picture, rect, read.spec.input_size) for rect in rects])
    inference = infer(here, bundle, chosen.variant, chosen.threads, crops, cpus=chosen.cpus)
    found = inference.landmarks
    points = np.stack([rect.to_picture(p) for rect, p in zip(rects, found.points, strict=True)])
    drawn = drawing.annotate(picture, points)
    target = output or Path(f"{image.stem}-landmarks.png")
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
        chosen.note,
        read.spec.num_lms,
        faces,
        str(target),
        str(target.with_suffix(".json")),
    )
    write_picture(target, drawn)
    write(target.with_suffix(".json"), (json.dumps(result.to_json(), indent=1) + "\n").encode())
    return result


def draw_crops(bundle: bundles.Bundle, variant: str, crops: NDArray[np.uint8], output: Path) -> Path:
    """Draws a variant's landmarks on crops (n, S, S, 3) uint8 RGB side by side into `output`, and returns that path."""
    points = infer(here, bundle.folder, variant, 1, crops).landmarks.points * bundle.spec.input_size
    faces = [drawing.annotate(crop, p) for crop, p in zip(crops, points, strict=True)]
    write_picture(output, np.hstack(faces))
    return output


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Writes an (H, W, 3) uint8 RGB picture in its suffix's format. EdgeError for unknown ones and full disks."""
    try:
        done, data = cv2.imencode(path.suffix, picture[:, :, ::-1])
    except cv2.error:
        done = False
    if not done:
        raise EdgeError(f"cannot write a picture as {path.name}; use .png or .jpg")
    write(path, data.tobytes())


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all. Raises EdgeError with the system's reason."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise EdgeError(f"cannot write {path}: {e.strerror}") from e
