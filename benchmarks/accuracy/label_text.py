"""From the text of label files to faces as they are written: lines of names and numbers, and files of one face."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import strict
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import PICTURE_SUFFIXES
from pipnet_edge.words import megabytes

Array = NDArray[np.float64]

# Characters of a line (1000 landmarks take 50,000) and bytes of a file. No label file is so large.
LONGEST, LARGEST = 1 << 20, 256_000_000
# A name goes on to its last picture suffix: it may hold spaces and commas.
NAME = re.compile(rf"(.*(?:{'|'.join(map(re.escape, PICTURE_SUFFIXES))})[\"']?)(?=[\s,]|$)|([^\s,]+)", re.IGNORECASE)


class Face(NamedTuple):
    """One label as written. where: file and line for messages; points: (L, 2); box: left, top, right, bottom."""

    where: str
    image: str
    points: Array
    box: Array | None = None


def parse_named(source: Path, num_lms: int | None) -> Iterator[Face]:
    """Lines `image x0 y0 x1 y1 …`, separated by spaces, tabs or commas."""
    for line, text in rows(source):
        where = f"{source} line {line}"
        image, numbers = named(text)
        points = _points(numbers, num_lms, where)
        num_lms = len(points)
        yield Face(where, image.replace("\\", "/"), points)


def parse_wflw(source: Path, num_lms: int | None) -> Iterator[Face]:
    """Lines of 98 coordinate pairs, the face's box (left, top, right, bottom), 6 attributes and the image's path."""
    if num_lms not in (None, 98):
        raise EdgeError(f"{source}: a WFLW list has 98 landmarks, {num_lms} are needed")
    for line, text in rows(source):
        where = f"{source} line {line}"
        tokens = text.split(maxsplit=206)  # the path may hold spaces
        if len(tokens) != 207:
            raise EdgeError(f"{where}: {len(tokens)} fields; a WFLW list has 207: 196 coordinates, 4, 6 and the image")
        yield Face(where, tokens[206].strip("\"'"), _points(tokens[:196], 98, where), _numbers(tokens[196:200], where))


def parse_pts(source: Path, num_lms: int | None) -> Iterator[Face]:
    """iBUG .pts files: `version`, `n_points`, then one point a line between braces."""
    for file, image in files_of(source, ".pts"):
        lines = [(line, text.split()) for line, text in rows(file)]
        texts = ["".join(tokens) for _, tokens in lines]
        if texts.count("{") != 1 or texts[-1] != "}":
            raise EdgeError(f"{file} line {lines[-1][0]}: the points of a .pts file stand between one {{ and one }}")
        start = texts.index("{")
        said = [text.removeprefix("n_points:") for text in texts[:start] if text.startswith("n_points:")]
        claim = said[0] if len(said) == 1 else "given twice" if said else "missing"
        points = _body(f"{file} line {lines[start][0]}", f"n_points is {claim}", file, lines[start + 1 : -1], num_lms)
        num_lms = len(points)
        yield Face(f"{file} line 1", image.as_posix(), points)


def parse_lapa(source: Path, num_lms: int | None) -> Iterator[Face]:
    """LaPa's .txt files: the number of points, then one point a line. Images are in `images`, beside `landmarks`.

    The box is that of the landmarks: LaPa gives no other.
    """
    for file, image in files_of(source, ".txt"):
        first, *body = [(line, text.split()) for line, text in rows(file)]
        if not is_lapa(first[1]):
            raise EdgeError(
                f"{file} line {first[0]}: LaPa's files begin with the number of their points; a file with the labels "
                "of many images is given by its own path"
            )
        points = _body(f"{file} line {first[0]}", f"the number is {first[1][0]}", file, body, num_lms)
        num_lms = len(points)
        name = PurePosixPath(*("images" if part == "landmarks" else part for part in image.parts))
        yield Face(f"{file} line 1", str(name), points, np.concatenate([points.min(axis=0), points.max(axis=0)]))


def files_of(source: Path, suffix: str) -> list[tuple[Path, PurePosixPath]]:
    """(file, its path in the folder without suffix) of the label files in a folder and below, or of one label file."""
    if source.is_file():
        return [(source, PurePosixPath(source.stem))]
    inside = [(file, PurePosixPath(file.relative_to(source).with_suffix(""))) for file in source.rglob(f"*{suffix}")]
    # As with pictures: operating systems keep notes in files whose names begin with a dot.
    found = sorted((file, name) for file, name in inside if not any(part.startswith(".") for part in name.parts))
    if not found:
        raise EdgeError(f"no {suffix} file in {source}; a folder of labels holds one .pts or LaPa .txt for each image")
    return found


def _body(where: str, claim: str, file: Path, body: list[tuple[int, list[str]]], num_lms: int | None) -> Array:
    """The points (L, 2) of a file of one face, one a line. where: the line before them; claim: what it says of L."""
    if not claim.endswith(f" is {len(body)}"):
        raise EdgeError(f"{where}: {len(body)} points follow, {claim[:60]}")
    needed = num_lms or max(1, len(body))
    if len(body) != needed:
        raise EdgeError(f"{where}: {len(body)} landmarks, {needed} are needed")
    return np.concatenate([_points(tokens, 1, f"{file} line {line}") for line, tokens in body])


def rows(file: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of the lines that are not blank; there is at least one.

    Raises EdgeError for what is no text, for too long files and lines, and for lines that are no label at all.
    """
    try:
        if not file.is_file():
            raise EdgeError(f"{file} is not a file")
        if (size := file.stat().st_size) > LARGEST:
            raise EdgeError(f"{file} has {megabytes(size)}; label files of at most {megabytes(LARGEST)} are read")
        is_empty, line = True, 0
        with file.open(encoding="utf-8-sig") as stream:
            while text := stream.readline(LONGEST):
                line += 1
                if len(text) == LONGEST:
                    raise EdgeError(f"{file} line {line}: longer than {LONGEST} characters")
                if text := text.strip():
                    is_empty = False
                    _check_line(text, f"{file} line {line}")
                    yield line, text
    except (OSError, UnicodeDecodeError) as e:
        raise EdgeError(f"{file} is not a readable text file: {e}") from e
    if is_empty:
        raise EdgeError(f"{file} is empty")


def _check_line(text: str, where: str) -> None:
    if text.startswith("#"):
        raise EdgeError(f"{where} begins with #; a label file has no comments, each line is a label")
    if (separators := text.count(";")) > 1 and separators >= len(text.split()) - 1:
        raise EdgeError(f"{where}: fields separated by semicolons; spaces, tabs or commas are needed")


def named(text: str) -> tuple[str, list[str]]:
    """(name, the fields after it) of a line that begins with an image's name. Quotes around the name are dropped."""
    match = NAME.match(text)
    name = match[0] if match else ""
    rest = text[len(name) :].strip()
    cells = [cell.strip() for cell in rest.strip(",").split(",")]
    # A blank inside a cell: these commas are decimal commas, so the fields are not numbers.
    is_separated = len(cells) > 1 and not any(len(cell.split()) > 1 for cell in cells)
    return name.strip("\"'"), cells if is_separated else rest.strip(",").split()


def is_lapa(tokens: list[str]) -> bool:
    """Whether this is the first line of a LaPa file."""
    return len(tokens) == 1 and tokens[0].isascii() and tokens[0].isdigit()


def _points(tokens: list[str], num_lms: int | None, where: str) -> Array:
    """(L, 2) float64 of 2 L fields."""
    values = _numbers(tokens, where)
    needed = 2 * num_lms if num_lms else max(2, len(tokens) // 2 * 2)
    if len(values) != needed:
        raise EdgeError(f"{where}: {len(values)} coordinates; {needed} are needed for {needed // 2} landmarks")
    return values.reshape(-1, 2)


def _numbers(tokens: list[str], where: str) -> Array:
    try:
        values = np.array([float(token) for token in tokens])
    except ValueError:
        wrong = next(token for token in tokens if not is_number(token))
        raise EdgeError(f"{where}: {wrong!r:.60} is not a number") from None
    if not np.isfinite(values).all():
        raise EdgeError(f"{where}: {tokens[int(np.isfinite(values).argmin())]!r:.60} is not finite")
    return values


def is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def shown(name: str) -> str:
    """A name from a label file as messages show it: printable, and not too long."""
    text = strict.printable(name)
    return text if len(text) <= 100 else f"{text[:99]}…"
