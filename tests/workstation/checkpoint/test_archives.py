"""Files as torch and others write them, whole, damaged or made to harm: read before memory is taken."""

from __future__ import annotations

import collections
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from pipnet_edge.converters.checkpoint import read as checkpoints

HEAD = "cls_layer.weight"


def remade(path, change, method=zipfile.ZIP_STORED):
    """The archive with other content: change(name, content) gives it, None for none."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in parts.items():
            if (content := change(name, content)) is not None:
                archive.writestr(name, content)
    return path


# --- What is read.


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_in_both_formats(saved, state, is_of, dtype, legacy):
    exact = {key: value.to(torch.bfloat16).float() for key, value in state.items()}
    path = saved({k: v.to(dtype) for k, v in exact.items()}, _use_new_zipfile_serialization=not legacy)
    assert is_of(checkpoints.read(path), exact)


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_one_storage(saved, state, is_of, legacy):
    flat = torch.cat([value.flatten().float() for value in state.values()])
    ends = np.cumsum([value.numel() for value in state.values()])
    views = {
        key: flat[end - value.numel() : end].view(value.shape)
        for (key, value), end in zip(state.items(), ends, strict=True)
    }
    turned = torch.randn(4, 5).t()[..., None, None]
    views[HEAD] = turned
    assert not turned.is_contiguous()
    found = checkpoints.read(saved(views, _use_new_zipfile_serialization=not legacy))
    assert is_of(found, state | {HEAD: turned})


def test_parameters_and_tensors_with_attributes(saved, state, is_of):
    parameters = {key: torch.nn.Parameter(value.float()) for key, value in state.items()}
    parameters[HEAD].tag = "head"
    state["x_layer.weight"].tag = "kept by torch"
    parameters["x_layer.weight"] = state["x_layer.weight"]
    assert is_of(checkpoints.read(saved(parameters)), state)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_safetensors_by_content(tmp_path, state, is_of, name):
    save_file(state, tmp_path / name, metadata={"format": "pt"})
    assert is_of(checkpoints.read(tmp_path / name), state)
    half = {key: value.half() for key, value in state.items()}
    save_file(half, tmp_path / name)
    assert is_of(checkpoints.read(tmp_path / name), {key: value.float() for key, value in half.items()})


def test_python_2_made_ordered_dicts_of_pairs(saved, state, is_of):
    class Pairs:
        def __reduce__(self):
            return collections.OrderedDict, ([[key, value] for key, value in state.items()],)

    assert is_of(checkpoints.read(saved(Pairs())), state)


def test_archives_that_were_packed_again_lie_at_odd_places(saved, state, is_of):
    def kept(name, content):
        return content if name.endswith(("data.pkl", "byteorder")) or "/data/" in name else content + b"\n" * 3

    assert is_of(checkpoints.read(remade(saved(state), kept)), state)


def test_checksums_that_were_left_out(saved, state, is_of):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(state)
    finally:
        torch.serialization.set_crc32_options(True)
    assert is_of(checkpoints.read(path), state)


# --- Files that are damaged or made to harm.


def test_a_deflated_archive_is_refused_by_its_headers(saved, state, refusal):
    path = saved(state | {"big": torch.zeros(10_000_000)})
    remade(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    assert "is compressed inside" in refusal(path)


def test_parts_that_overlap_are_refused(tmp_path, refusal):
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}, 2))
        archive.writestr("net/data/000", bytes(100_000))
        archive.filelist += [archive.getinfo("net/data/000")] * 100
    # Each entry of the directory gets a name of its own, so that all are read.
    first, *parts = path.read_bytes().split(b"net/data/000")
    names = (b"net/data/%03d" % index for index in range(len(parts)))
    path.write_bytes(first + b"".join(name + part for name, part in zip(names, parts, strict=True)))
    assert "its parts are larger than the file" in refusal(path)


@pytest.mark.parametrize("is_64", [False, True])
def test_a_directory_of_a_million_entries(tmp_path, refusal, is_64):
    entry = b"PK\1\2" + bytes(24) + struct.pack("<H", 8) + bytes(16) + b"data.pkl"
    local, directory = b"PK\3\4" + bytes(22) + struct.pack("<HH", 8, 0) + b"data.pkl", entry * 1_000_000
    end_64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, len(directory), len(local))
    end_64 += struct.pack("<4sIQI", b"PK\6\7", 0, len(local + directory), 1)
    size = 16 if is_64 else len(directory)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, size, len(local), 0)
    path = tmp_path / "net.pth"
    path.write_bytes(local + directory + (end_64 if is_64 else b"") + end)
    assert "is not a PyTorch checkpoint, or a truncated one" in refusal(path)


def test_damaged_numbers_are_noticed(saved, state, refusal):
    path = saved(state)
    content = bytearray(path.read_bytes())
    content[content.find(state[HEAD].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    assert f"{path} is damaged: its part 'net/data/" in refusal(path)


def test_a_part_that_is_missing(saved, state, refusal):
    path = remade(saved(state), lambda name, content: None if name.endswith("/data/0") else content)
    assert "is not a PyTorch checkpoint, or a truncated one" in refusal(path)


def test_archives_of_big_endian_machines(saved, state, refusal):
    path = remade(saved(state), lambda name, content: b"big" if name.endswith("byteorder") else content)
    assert "big-endian" in refusal(path)


LARGER = (b"K\x05K\x04K\x01K\x01t", b"K\xffK\xffK\xffK\xfft")  # the shape of a head as the pickle says it


def test_a_tensor_larger_than_its_part(saved, state, refusal):
    path = remade(saved(state), lambda _, content: content.replace(*LARGER))
    assert "is not a PyTorch checkpoint, or a truncated one" in refusal(path)


LEGACY = b"".join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}))


def legacy_file(path, root, storages):
    """A file as torch wrote them before 1.6; storages: what is said of each, its count of numbers and its bytes."""
    keys = pickle.dumps(list(storages), 2)
    path.write_bytes(
        LEGACY + root + keys + b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    )
    return path


def legacy_root(numel):
    """The pickle of {"cls_layer.weight": a tensor of one axis with so many numbers in the storage "0"}."""
    count = pickle.dumps(numel, 2)[2:-1]
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu" + count + b"NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0(" + count + b"t(K\1t\x89NtR"
    return b"\x80\2}X\x10\0\0\0cls_layer.weight" + tensor + b"s."


def test_a_legacy_file_made_by_hand(tmp_path, refusal):
    path = legacy_file(tmp_path / "net.pth", legacy_root(4), {"0": (4, bytes(16))})
    assert "no PIPNet head 'x_layer.weight' (it has keys such as 'cls_layer.weight')" in refusal(path)


@pytest.mark.parametrize("count", [10**12, 2**62, -1, -(2**62)])
def test_a_legacy_storage_of_terabytes(tmp_path, refusal, count):
    path = legacy_file(tmp_path / "net.pth", legacy_root(10**12), {"0": (count, bytes(16))})
    assert "is not a PyTorch checkpoint, or a truncated one" in refusal(path)


def test_a_legacy_tensor_larger_than_its_storage(tmp_path, refusal, state, saved):
    path = saved(state, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(*LARGER))
    assert "is not a PyTorch checkpoint, or a truncated one" in refusal(path)


@pytest.mark.parametrize("size", [3, 1000, 20_000, -1])
def test_truncated_legacy_files(saved, state, refusal, size):
    path = saved(state, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:size])
    assert "is not a PyTorch checkpoint, or a truncated one" in refusal(path)


SAFE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "about",
    [
        SAFE | {"shape": [1000], "data_offsets": [0, 4000]},
        *(SAFE | {"data_offsets": offsets} for offsets in ([8, 0], [-8, 0], [0, 4])),
        *(SAFE | {"shape": shape} for shape in ([2] * 100_000, [2**63], [-1, 2], [1e300], [10**6, 10**6])),
        *({"dtype": "F32"}, SAFE | {"dtype": "F3"}, 3, []),
    ],
)
def test_safetensors_headers_that_lie(tmp_path, refusal, about):
    header = json.dumps({HEAD: about}).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    line = refusal(path)
    assert "is not a safetensors file, or a truncated one: " in line
    assert len(line) < 600


@pytest.mark.parametrize("length", [2**40, 100, 0])
def test_safetensors_with_headers_of_another_length(tmp_path, refusal, length):
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":3}')
    assert "is not a" in refusal(path)
