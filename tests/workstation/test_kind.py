"""A file is told by its content, whatever its name says."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pipnet_edge.converters.checkpoint import kind, read
from pipnet_edge.converters.checkpoint.kind import Kind
from pipnet_edge.converters.demo import CHECKPOINT
from pipnet_edge.errors import EdgeError


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def tar(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(Path(__file__), "a.py")


def packed(buffer: io.BytesIO) -> None:
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net.pth", "x")


def exported(buffer: io.BytesIO) -> None:
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), buffer)


def scripted(buffer: io.BytesIO) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)  # type: ignore[no-untyped-call]


STATE = {"a": torch.zeros(2)}
FILES = {
    "zip": (saved(lambda b: torch.save(STATE, b)), Kind.TORCH),
    "pickle": (saved(lambda b: torch.save(STATE, b, _use_new_zipfile_serialization=False)), Kind.TORCH),
    "cut": (saved(lambda b: torch.save(STATE, b))[:-100], Kind.TORCH),
    "safetensors": (save(STATE), Kind.SAFETENSORS),
    "script": (saved(scripted), Kind.TORCHSCRIPT),
    "export": (saved(exported), Kind.EXPORTED),
    "npz": (saved(lambda b: np.savez(b, a=np.zeros(2))), Kind.NUMPY),
    "npy": (saved(lambda b: np.save(b, np.zeros(2))), Kind.NUMPY),
    "packed": (saved(packed), Kind.ZIP),
    "gzip": (gzip.compress(b"x"), Kind.GZIP),
    "tar": (saved(tar), Kind.TAR),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + b"\x00" * 20, Kind.TFLITE),
    "ncnn": (b"7767517\n75 83\n", Kind.NCNN),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", Kind.LFS),
    "html": (b"\r\n<!DOCTYPE html><html></html>", Kind.HTML),
    "picture": (b"\xff\xd8\xff\xe0\x00\x10JFIF", Kind.PICTURE),
    "empty": (b"", Kind.EMPTY),
    "text": (b"hello", None),
    "colon": (b":)", None),
    "zeros": (b"\x00" * 100, None),
}


@pytest.mark.parametrize("name", FILES)
def test_kinds(tmp_path: Path, name: str) -> None:
    data, expected = FILES[name]
    path = tmp_path / "net.pth"
    path.write_bytes(data)
    assert kind.of(path) is expected
    if expected not in (None, Kind.TORCH, Kind.SAFETENSORS):
        for suffix in (".pth", ".onnx"):
            path = tmp_path / f"net{suffix}"
            path.write_bytes(data)
            with pytest.raises(EdgeError) as refused:
                read.read(path)
            assert str(refused.value).startswith(f"{path} is {expected}; ")
            assert len(str(refused.value).splitlines()) == 1


def test_onnx(tmp_path: Path, tiny_onnx: Callable[..., Path]) -> None:
    pool = "features = MaxPool <kernel_shape=[16,16], strides=[16,16]> (image)"
    path = tiny_onnx(tmp_path / "net.ONNX", pool, shape=(1, 3, 32, 32))
    assert kind.of(path) is Kind.ONNX
    assert read.read(path).backbone == "onnx"
    path = path.rename(tmp_path / "net.pth")
    with pytest.raises(EdgeError, match=r"net\.pth is an ONNX file; give it a name that ends in \.onnx$"):
        read.read(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # truncated, but known
    assert kind.of(path) is Kind.ONNX
    assert kind.of(CHECKPOINT) is Kind.TORCH


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="cannot be read: Is a directory"):
        kind.of(tmp_path)
