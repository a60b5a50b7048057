"""The mean face of the dataset that a network was trained on: one of the reference's, or a file."""

from __future__ import annotations

import re
from pathlib import Path

from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MOST_LANDMARKS, MeanFace, mean_faces

LARGEST_FILE = 1_000_000  # bytes; 1000 landmarks take 50 kB
# Byte-order marks, and how text is written after them.
ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
BETWEEN = re.compile(r"[\s,;\[\](){}]+")


def choose_mean_face(num_lms: int, data: str | None, file: Path | None) -> MeanFace:
    """The mean face by file, by dataset name, or by the landmark count if only one dataset has it.

    Raises EdgeError if the count is ambiguous (68) or unknown, and if it contradicts what was given.
    """
    if file is not None:
        if data is not None:
            raise EdgeError("--data and --meanface exclude each other")
        face = read_mean_face(file)
    elif data is not None:
        name = data.lower().removeprefix("data_").replace("_", "-")
        if name not in mean_faces():
            raise EdgeError(f"--data {data}; allowed: {', '.join(mean_faces())}")
        face = mean_faces()[name]
    else:
        fitting = [face for face in mean_faces().values() if len(face.points) == num_lms]
        if len(fitting) != 1:
            known = (
                f"several datasets have {num_lms} landmarks" if fitting else f"no known dataset has {num_lms} landmarks"
            )
            choice = f"--data {' or '.join(f.name for f in fitting)}" if fitting else "--meanface FILE"
            raise EdgeError(f"{known}: say which with {choice}")
        face = fitting[0]
    if len(face.points) != num_lms:
        raise EdgeError(f"the checkpoint has {num_lms} landmarks, {face.name} has {len(face.points)}")
    return face


def read_mean_face(path: Path) -> MeanFace:
    """A mean face from text: x0 y0 x1 y1 …, like the reference's meanface.txt; any brackets and separators between."""
    if path.exists() and not path.is_file():
        raise EdgeError(f"cannot read the mean face {path}: it is no file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as e:
        raise EdgeError(f"cannot read the mean face {path}: {e.strerror}") from e
    if len(content) > LARGEST_FILE:
        raise EdgeError(f"mean face {path} has more than {LARGEST_FILE:,} bytes; {MOST_LANDMARKS} landmarks need less")
    encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
    words = [word for word in BETWEEN.split(content.decode(encoding, "replace")) if word]
    numbers = [_number(path, word) for word in words]
    if len(numbers) % 2:
        raise EdgeError(f"mean face {path} has {len(numbers)} numbers, an even count is needed (x y pairs)")
    return MeanFace(path.stem, tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def _number(path: Path, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise EdgeError(f"mean face {path} is not a list of numbers: {word[:40]!r} is none") from None
