"""Files of arrays are untrusted: what they state is checked before memory is taken, and every fault is an EdgeError."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge import npz
from pipnet_edge.errors import EdgeError
from pipnet_edge.npz import Form

WEIGHT, BIAS = np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.ones((2, 3), np.float32)
FORMS = {"weight": Form((2, 3, "C")), "bias": Form((2, 3))}
BOMB = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)


def header(text: str) -> bytes:
    return BOMB + text.encode().ljust(117) + b"\n"


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(path: Path, save: Any) -> None:
    arrays = {
        "weight": WEIGHT,
        "bias": np.asfortranarray(BIAS),
        "none": np.zeros((0, 3), np.int64),
        "one": np.array(True),
        "row": np.arange(3, dtype=np.uint8),
        "turned": WEIGHT.T.astype(">f8"),
    }
    save(path, **arrays)
    found = npz.read_all(path)
    assert found.keys() == arrays.keys() == set(npz.names(path))
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        found[name][...] = 1  # as numpy.load gives them, arrays can be written to
    assert npz.read(path, FORMS).keys() == FORMS.keys()


def test_a_letter_stands_for_one_length(path: Path) -> None:
    np.savez(path, a=np.zeros((3, 2), np.float32), b=np.zeros((4, 2), np.float32))
    assert npz.read(path, {"a": Form(("n", 2)), "b": Form(("m", 2))})["b"].shape == (4, 2)
    with pytest.raises(EdgeError, match=r"a\.npz: b has shape \(4, 2\) of float32, \(3, 2\) of float32 is needed"):
        npz.read(path, {"a": Form(("n", 2)), "b": Form(("n", 2))})
    with pytest.raises(EdgeError, match=r"a has shape .* \(n,\) of uint8 or float16 is needed"):
        npz.read(path, {"a": Form(("n",), (np.uint8, np.float16))})
    with pytest.raises(EdgeError, match="it has no array 'c'"):
        npz.read(path, {"c": Form(())})


@pytest.mark.parametrize(
    "text",
    [
        "[" * 117,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), 'more': " + "(" * 40,
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3, 4), }",
        "{'descr': '|V9', 'fortran_order': False, 'shape': (2, 3, 4), }",
        "{'descr': '<f3', 'fortran_order': False, 'shape': (2, 3, 4), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3, 4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3, 4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4.5), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 3, 4), }",
    ],
)
def test_texts_before_arrays(path: Path, text: str) -> None:
    zipped(path, {"weight": header(text) + WEIGHT.tobytes(), "bias": npy(BIAS)})
    for reads in (lambda: npz.read(path, FORMS), lambda: npz.read_all(path)):
        with pytest.raises(EdgeError, match=r"a\.npz is not readable: 'weight' is no array of numbers$"):
            reads()


def test_sizes_are_checked_before_memory_is_taken(path: Path) -> None:
    stated = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 1000000000), }"
    zipped(path, {"weight": header(stated) + WEIGHT.tobytes(), "bias": npy(BIAS)})
    with pytest.raises(EdgeError, match="'weight' is cut or has more behind its array"):
        npz.read(path, FORMS)
    # A deflated member that unpacks to a thousand times its size, as its directory says.
    long = header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 8000000), }") + bytes(192_000_000)
    zipped(path, {"weight": long, "bias": npy(BIAS)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    for reads in (lambda: npz.read(path, FORMS, 100 << 20), lambda: npz.read_all(path, 100 << 20)):
        with pytest.raises(EdgeError, match=r"its arrays have 192000.* bytes; at most 104857600 are read"):
            reads()
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()
    # A directory that says less than there is.
    small = zipped(path, {"weight": npy(WEIGHT), "bias": npy(BIAS)}).read_bytes()
    at = small.index(b"PK\x01\x02") + 24
    path.write_bytes(small[:at] + struct.pack("<I", 130) + small[at + 4 :])
    with pytest.raises(EdgeError, match="it is damaged"):  # the checksum is not that of so few bytes
        npz.read(path, FORMS)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_ways_to_pack(path: Path, method: int) -> None:
    zipped(path, {"weight": npy(WEIGHT), "bias": npy(BIAS)}, method)
    with pytest.raises(EdgeError, match=r"'weight\.npy' is packed in a way that numpy does not use"):
        npz.read(path, FORMS)


def test_directories_of_many_members(path: Path) -> None:
    zipped(path, {f"{number}": b"" for number in range(5000)})
    with pytest.raises(EdgeError, match="it states 5000 arrays; at most 4096 are read"):
        npz.read(path, FORMS)
    zipped(path, {"weight": npy(WEIGHT), "bias": npy(BIAS)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "no array")
    assert npz.read(path, FORMS).keys() == FORMS.keys()
    with pytest.raises(EdgeError, match="it holds something that is no array"):
        npz.read_all(path)


def test_what_is_no_regular_file(tmp_path: Path, path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(EdgeError, match=r"a\.npz is no regular file$"):
        npz.read(path, FORMS)  # and it does not wait for a writer
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, why in (("zero", "no regular file"), ("folder", "Is a directory"), ("gone", "No such file")):
        with pytest.raises(EdgeError, match=why):
            npz.read(tmp_path / name, FORMS)
    with (tmp_path / "long").open("wb") as file:
        file.truncate(100 << 30)
    with pytest.raises(EdgeError, match=r"long has 107374182400 bytes; at most \d+ are read"):
        npz.read(tmp_path / "long", FORMS)


@given(st.data())
def test_files_with_changed_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """They are read, or refused with an EdgeError."""
    path = tmp_path_factory.mktemp("changed") / "a.npz"
    (np.savez_compressed if data.draw(st.booleans()) else np.savez)(path, weight=WEIGHT, bias=BIAS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    with contextlib.suppress(EdgeError):
        assert npz.read(path, FORMS)["weight"].shape == WEIGHT.shape


def test_single_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, WEIGHT)
    np.testing.assert_array_equal(npz.read_array(path, Form(("n", 3, 4))), WEIGHT)
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0", whole[:100], b""):
        path.write_bytes(content)
        with pytest.raises(EdgeError, match=r"a\.npy is not readable"):
            npz.read_array(path, Form(("n", 3, 4)))
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(EdgeError, match="is no array of numbers"):
        npz.read_array(path, Form(("n",)))
    np.save(path, WEIGHT)
    with pytest.raises(EdgeError, match=r"a\.npy has shape \(2, 3, 4\) of float32, \(n, 4\) of float32 is needed"):
        npz.read_array(path, Form(("n", 4)))


@pytest.mark.parametrize("name", ["header_of_brackets", "member_that_is_no_npy", "spoilt_lzma", "unknown_compression"])
def test_known_hostile_files(shared: Path, name: str) -> None:
    for reads in (lambda path: npz.read(path, FORMS), npz.read_all):
        with pytest.raises(EdgeError, match=r"\.npz is not readable: "):
            reads(shared / "cases" / "hostile" / f"heads_{name}.npz")


def test_an_array_is_empty_only_where_its_form_says_so(tmp_path: Path) -> None:
    path = tmp_path / "maps.npz"
    np.savez(path, none=np.zeros((2, 0, 4), np.float32))
    assert npz.read(path, {"none": Form((2, 0, 4))})["none"].shape == (2, 0, 4)
    with pytest.raises(EdgeError, match=r"none has shape \(2, 0, 4\)"):
        npz.read(path, {"none": Form((2, "n", 4))})
