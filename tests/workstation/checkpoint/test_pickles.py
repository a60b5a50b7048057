"""Pickles are read as data: no code runs, and none takes much memory or time."""

from __future__ import annotations

import io
import os
import pickle

import pytest

from pipnet_edge.converters.checkpoint import pickled
from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.archive import LARGEST_PICKLE, MAGIC, VERSION

LEGACY = b"".join(pickle.dumps(part, 2) for part in (MAGIC, VERSION, {"little_endian": True}))


class Runs:
    """Makes a folder when it is loaded by a pickle that calls what is named in it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_code_of_a_file_runs(tmp_path, saved, state, is_of, protocol):
    folder = tmp_path / "made"
    path = saved({"state_dict": state, "hook": Runs(folder)}, pickle_protocol=protocol)
    assert is_of(checkpoints.read(path), state)
    assert not folder.exists()
    checkpoints.read(path, trust_pickle=True)
    assert folder.exists()


MANY = 300_000
HARMFUL = {
    "marks": b"(" * MANY + b".",
    "nested tuples": b"(" * MANY + b"t" * MANY + b".",
    "nested lists": b"]" * MANY + b"a" * (MANY - 1) + b".",
    "nested tuples as a key": b"N" + b"\x85" * MANY + b"q\x00}h\x00h\x00s.",
    "nested objects": b"cos\nsystem\n" + b")R" * MANY + b".",
    "nested states": b"cos\nsystem\n)R" * 100_000 + b"b" * 99_999 + b".",
    "nested parameters": b"ctorch._utils\n_rebuild_parameter\n" * 10_000 + b"N" + b"\x85R" * 10_000 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "each tuple twice in the next": b"N" + b"2\x86" * 100 + b".",
    "the last place in the memory": b"Nr\xff\xff\xff\xff.",
    "exabytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "exabytes to write on": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a long number": b"\x8b\xff\xff\xff\x7f.",
    "a number of many digits": b"I" + b"9" * 5000 + b"\n.",
    "a long text": b"X\xff\xff\xff\xff.",
    "too many steps": b"N" * 2_500_000 + b".",
}
# Steps that take what is not there, or something else than there is.
HASTY = (
    *(b"Na", b"(a", b"}Na", b"K\1K\2s", b"0", b"2", b"(1", b"1", b"t", b"u", b"}(Nu", b"o", b"(o", b"R", b"Q", b"h\0"),
    *(b"\x81", b"\x92", b"\x93", b"\x82\5", b"Pabc\n", b"\x97\x98", b"g1\n", b"\x85", b"\x87", b"\x94", b"\xff"),
)


@pytest.mark.parametrize("content", HARMFUL.values(), ids=HARMFUL)
def test_pickles_made_to_harm(tmp_path, refusal, content):
    (tmp_path / "net.pth").write_bytes(LEGACY + content + pickle.dumps([], 2))
    assert len(refusal(tmp_path / "net.pth")) < 400


def test_storages_that_a_legacy_file_names_by_no_text(tmp_path, refusal):
    keys = b"]N" + b"\x85" * 100_000 + b"a."
    (tmp_path / "net.pth").write_bytes(LEGACY + pickle.dumps({}, 2) + keys)
    assert "is not a PyTorch checkpoint" in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize("steps", HASTY, ids=range(len(HASTY)))
def test_pickles_that_take_what_is_not_there(tmp_path, refusal, steps):
    (tmp_path / "net.pth").write_bytes(LEGACY + steps + b"." + pickle.dumps([], 2))
    assert len(refusal(tmp_path / "net.pth")) < 400


def test_a_pickle_larger_than_allowed(saved, state, refusal):
    path = saved({"log": bytes(LARGEST_PICKLE), "state_dict": state})
    assert "bytes beside its tensors; allowed: 64,000,000" in refusal(path)


def test_plain_data_comes_as_it_is():
    plain = {"a": [1, -1.5, "x", None, True, (1, 2, 3, 4), {}], "0": 2**80}
    for protocol in range(6):
        assert pickled.read(io.BytesIO(pickle.dumps(plain, protocol)), "it") == plain
    made = pickled.read(io.BytesIO(pickle.dumps({1, 2}, 2)), "it")
    assert isinstance(made, pickled.Made)
    assert made.kind == "__builtin__.set"
