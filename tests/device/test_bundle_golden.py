"""golden.npz is untrusted when read: arrays of other shapes and types, pickles, and what is no npz at all."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.bundle import GOLDEN, Bundle, File, read
from pipnet_edge.decode import MAP_NAMES, Decoder, map_shapes
from pipnet_edge.errors import EdgeError

SetGolden = Callable[[Path, bytes], None]


def arrays_of(bundle: Bundle) -> dict[str, NDArray[Any]]:
    with np.load(bundle.folder / GOLDEN) as arrays:
        return dict(arrays)


def npz(arrays: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("name", ["crops", *MAP_NAMES])
def test_golden_arrays_of_wrong_shape(bundle: Bundle, set_golden: SetGolden, name: str) -> None:
    arrays = arrays_of(bundle)
    value = arrays[name]
    for wrong in (value[..., :-1], value[0], value[:-1], value[None], value.reshape(-1), value.ravel()[0]):
        set_golden(bundle.folder, npz(arrays | {name: wrong}))
        with pytest.raises(EdgeError, match="has shape"):
            read(bundle.folder).read_golden()
    set_golden(bundle.folder, npz({key: array for key, array in arrays.items() if key != name}))
    with pytest.raises(EdgeError, match="is not readable.*" + name):
        read(bundle.folder).read_golden()


@pytest.mark.parametrize("name", ["crops", *MAP_NAMES])
def test_golden_arrays_of_wrong_type(bundle: Bundle, set_golden: SetGolden, name: str) -> None:
    arrays = arrays_of(bundle)
    for dtype in ("U4", "float64", "int32", "complex64", "bool"):
        set_golden(bundle.folder, npz(arrays | {name: np.zeros(arrays[name].shape, dtype)}))
        with pytest.raises(EdgeError, match=name):
            read(bundle.folder).read_golden()


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_arrays_are_refused_and_not_run(bundle: Bundle, set_golden: SetGolden, tmp_path: Path) -> None:
    trap = np.empty(3, dtype=object)
    trap[:] = [Trap(tmp_path / "sprung")] * 3
    arrays = arrays_of(bundle)
    for name in ("crops", "score"):
        set_golden(bundle.folder, npz(arrays | {name: trap}))
        with pytest.raises(EdgeError, match="is not readable"):
            read(bundle.folder).read_golden()
        shutil.copy(bundle.folder / GOLDEN, bundle.folder / "null-fp32" / "golden.npz")
        listed = File.of(bundle.folder, bundle.folder / "null-fp32" / "golden.npz")
        poisoned = replace(bundle.variants[0], files=(listed,))
        with pytest.raises(EdgeError, match=r"golden\.npz is not readable"):
            replace(bundle, variants=(poisoned,)).open_session("null-fp32", 1)
    set_golden(bundle.folder, pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(EdgeError, match="is not readable"):
        read(bundle.folder).read_golden()
    assert not (tmp_path / "sprung").exists()


def test_golden_files_that_are_no_npz(bundle: Bundle, set_golden: SetGolden) -> None:
    whole = (bundle.folder / GOLDEN).read_bytes()
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF  # the zip's checksum finds it
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY", b"not an array", whole[:1000], single.getvalue(), bytes(middle)):
        set_golden(bundle.folder, content)
        with pytest.raises(EdgeError, match="is not readable"):
            read(bundle.folder).read_golden()


def test_golden_without_crops_is_refused_by_decode_at_the_latest(bundle: Bundle, set_golden: SetGolden) -> None:
    empty = {name: np.zeros((0, *shape), np.float32) for name, shape in map_shapes(bundle.spec).items()}
    set_golden(bundle.folder, npz({"crops": np.zeros((0, 96, 96, 3), np.uint8), **empty}))
    with pytest.raises(EdgeError):
        Decoder(bundle.spec)(read(bundle.folder).read_golden()[1])
