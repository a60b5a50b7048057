"""Mean faces and normalization: what a file cannot say about its network, as people write it."""

from __future__ import annotations

import os

import pytest

from pipnet_edge.converters.checkpoint.mean_face import read_mean_face
from pipnet_edge.errors import EdgeError

POINTS = ((0.25, 0.5), (-0.125, 1.0), (3e-2, 0.75))
TEXT = "0.25 0.5 -0.125 1.0 3e-2 0.75"


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        f"  {TEXT}\n\n",
        TEXT.replace(" ", "\n"),
        TEXT.replace(" ", "\r\n"),
        TEXT.replace(" ", ","),
        TEXT.replace(" ", ", "),
        TEXT.replace(" ", ";"),
        TEXT.replace(" ", "\t"),
        TEXT.replace(" ", "\u00a0"),
        f"[{TEXT.replace(' ', ', ')}]",
        "[[0.25, 0.5], [-0.125, 1.0], [3e-2, 0.75]]",
        "[[ 0.25 0.5]\n [-0.125 1.0]\n [3e-2 0.75]]",
        "{(0.25, 0.5), (-0.125, 1.0), (3e-2, 0.75)}",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_mean_faces_as_people_write_them(tmp_path, content, encoding):
    path = tmp_path / "mine.txt"
    path.write_bytes(content.encode(encoding))
    face = read_mean_face(path)
    assert (face.name, face.points) == ("mine", POINTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2 3", "3 numbers, an even count is needed"),
        ("1 two", "is not a list of numbers: 'two' is none"),
        ("x" * 100_000, "is not a list of numbers: '" + "x" * 40 + "' is none"),
        ("1 2", "at least two"),
        ("", "at least two"),
        ("[]", "at least two"),
        ("1 2 3 nan", "finite"),
        ("1 2 3 1e999", "finite"),
        ("\x1b[2J 1", r"'\x1b' is none"),
        ("0.5 " * 2002, "has 1001 points; allowed: 2 to 1000"),
        ("0.5 " * 250_001, "more than 1,000,000 bytes"),
        (b"\x00\xff\xfe\x01" * 9, "is not a list of numbers"),
    ],
)
def test_mean_face_files_that_are_none(tmp_path, content, message):
    (tmp_path / "face.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EdgeError) as refused:
        read_mean_face(tmp_path / "face.txt")
    assert message in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_what_is_no_file(tmp_path):
    with pytest.raises(EdgeError, match="it is no file"):
        read_mean_face(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EdgeError, match="it is no file"):
        read_mean_face(tmp_path / "pipe")
    with pytest.raises(EdgeError, match="No such file"):
        read_mean_face(tmp_path / "missing.txt")


@pytest.mark.parametrize("command", ["convert", "inspect"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--mean", "123.675,116.28,103.53"),
            "--mean 123.675,116.28,103.53: numbers from 0 to 1 are needed; given in pixels? that would be --mean "
            "0.485,0.456,0.406",
        ),
        (("--mean", "0.5,0.5,0.5", "--std", "58.395,57.12,57.375"), "that would be --std 0.229,0.224,0.225"),
        (("--std", "0,0,0"), "--std 0,0,0: numbers above 0 and up to 1 are needed"),
        (("--mean", "nan,0,0"), "--mean nan,0,0: three finite numbers are needed"),
        (("--mean", "-1,0,0"), "--mean -1,0,0: numbers from 0 to 1 are needed"),
    ],
)
def test_normalization_in_pixels_is_refused(saved, state, tmp_path, say, command, options, message):
    output = ("-o", tmp_path / "bundle") if command == "convert" else ()
    status, out, err = say(command, saved(state), *options, *output)
    assert (status, out) == (1, "")
    assert message in err
    assert not (tmp_path / "bundle").exists()
