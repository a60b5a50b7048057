"""Hard swishes with a factor for every channel in ncnn's files, and the constants that hold the factors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.converters.ncnn.int8 import join_swishes
from pipnet_edge.converters.ncnn.model import Model, read_model, run, write_model
from pipnet_edge.errors import EdgeError

pytest.importorskip("ncnn")

# As pnnx writes two of them, one behind the other. Of the first one's input there is a copy more.
PARAM = """7767517
15 18
Input                    in0                      0 1 in0
Split                    splitncnn_0              1 3 in0 1 2 3
BinaryOp                 add_0                    1 1 1 4 0=0 1=1 2=3.0
Clip                     clamp_0                  1 1 4 5 0=0.0 1=6.0
MemoryData               first.sixth              0 1 6 0=1 1=1 2=3
BinaryOp                 mul_0                    2 1 6 2 7 0=2
BinaryOp                 mul_1                    2 1 5 7 8 0=2
Split                    splitncnn_1              1 2 8 9 10
BinaryOp                 add_1                    1 1 9 11 0=0 1=1 2=3.0
Clip                     clamp_1                  1 1 11 12 0=0.0 1=6.0
MemoryData               second.sixth             0 1 13 0=1 1=1 2=3
BinaryOp                 mul_2                    2 1 13 10 14 0=2
BinaryOp                 mul_3                    2 1 12 14 15 0=2
BinaryOp                 add_2                    2 1 15 3 16 0=0
Noop                     last                     1 1 16 out0
"""
FACTORS = np.array([0.5, 1.0, 3.0, 0.7, 1.3, 0.2], "<f4")


def read(folder: Path, param: str = PARAM, data: bytes = (FACTORS / np.float32(6)).tobytes()) -> Model:
    (folder / "model.param").write_text(param)
    (folder / "model.bin").write_bytes(data)
    return read_model(folder / "model.param", folder / "model.bin")


def given(model: Model) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(0)
    images = [4 * random.standard_normal((3, 9, 9)).astype(np.float32) for _ in range(3)]
    return [values["out0"] for values in run(model, images, ["out0"])]


def test_constants_come_back_byte_for_byte(tmp_path: Path) -> None:
    model = read(tmp_path)
    np.testing.assert_array_equal(model["second.sixth"].arrays["data"], FACTORS[3:] / np.float32(6))
    write_model(model, tmp_path / "again.param", tmp_path / "again.bin")
    for kind in ("param", "bin"):
        assert (tmp_path / f"again.{kind}").read_bytes() == (tmp_path / f"model.{kind}").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0=1 1=1 2=3", "0=1 1=2 2=3", r"line 13: the \.bin ends within the data of 'second\.sixth': 36 bytes"),
        ("0=1 1=1 2=3", "0=1 1=1 2=99999999999", r"line 7: the \.bin ends within the data of 'first\.sixth'"),
        ("0=1 1=1 2=3", "0=1 1=1 2=3 11=2", r"line 13: the \.bin ends within the data of 'second\.sixth': 36 bytes"),
        ("0=1 1=1 2=3", "0=1 1=1 2=2", "model.bin has 24 bytes, .* asks for 20"),
        ("0=1 1=1 2=3", "0=1 1=1 2=-3", r"line 7: layer 'first\.sixth' is no constant of \[1, 1, 1, -3\] numbers"),
        ("0=1 1=1 2=3", "0=1 1=1 2=3 21=0", r"line 7: layer 'first\.sixth' is no constant of .* in float32"),
        ("0=1 1=1 2=3", "0=1 1=1 2=x", r"line 7: .*parameter 2=x is no whole number"),
        ("0 1 6 0=1", "1 1 1 6 0=1", r"line 7: has no output, or only Input and MemoryData have no input"),
    ],
)
def test_constants_that_the_file_does_not_have_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PARAM
    with pytest.raises(EdgeError, match=message):
        read(tmp_path, PARAM.replace(old, new, 1))


def test_they_become_a_hard_swish_and_a_product(tmp_path: Path) -> None:
    model = read(tmp_path)
    joined = join_swishes(model)
    assert [(layer.kind, layer.inputs, layer.outputs) for layer in joined.layers] == [
        ("Input", (), ("in0",)),
        ("Split", ("in0",), ("1", "3")),
        ("HardSwish", ("1",), ("4",)),
        ("MemoryData", (), ("6",)),
        ("BinaryOp", ("4", "6"), ("8",)),
        ("HardSwish", ("8",), ("11",)),
        ("MemoryData", (), ("13",)),
        ("BinaryOp", ("11", "13"), ("15",)),
        ("BinaryOp", ("15", "3"), ("16",)),
        ("Noop", ("16",), ("out0",)),
    ]
    for got, wanted in zip(given(joined), given(model), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2=3.0", "2=2.0"),
        ("4 0=0 1=1", "4 0=1 1=1"),
        ("1=6.0", "1=5.0"),
        ("0=0.0", "0=-1.0"),
        ("2 1 6 2 7 0=2", "2 1 6 2 7 0=0"),
        ("2 1 5 7 8 0=2", "2 1 5 7 8 0=0"),
    ],
)
def test_what_only_looks_like_one_stays(tmp_path: Path, old: str, new: str) -> None:
    assert old in PARAM
    model = read(tmp_path, PARAM.replace(old, new, 1))
    joined = join_swishes(model)
    kinds = [layer.kind for layer in joined.layers]
    assert (kinds.count("HardSwish"), kinds.count("Clip")) == (1, 1)
    for got, wanted in zip(given(joined), given(model), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_what_others_read_too_stays(tmp_path: Path) -> None:
    copies = "Split                    copies                   1 2 5 5a 5b\n"
    param = PARAM.replace("MemoryData               first", f"{copies}MemoryData               first")
    param = param.replace("2 1 5 7 8", "2 1 5a 7 8").replace("2 1 15 3 16", "2 1 15 5b 16")
    param = param.replace("15 18", "16 19").replace("1 3 in0 1 2 3", "1 2 in0 1 2")
    joined = join_swishes(read(tmp_path, param))
    assert [layer.kind for layer in joined.layers].count("HardSwish") == 1
    assert np.isfinite(given(joined)).all()
