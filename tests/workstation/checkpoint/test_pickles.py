"""Pickles are loaded by torch with weights_only=True: no code runs, and none takes much memory."""

from __future__ import annotations

import os
import pickle
import resource

import pytest
from torch import nn
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION, get_safe_globals

from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.archive import LARGEST_PICKLE

LEGACY = b"".join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}))


class Runs:
    """Makes a folder when it is loaded by a pickle that calls what is named in it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Config:
    """Of a training script. Loading it would import this file."""

    def __setstate__(self, state):
        raise AssertionError


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_a_file_runs(tmp_path, saved, state, is_of, refusal, legacy):
    folder = tmp_path / "made"
    path = saved({"state_dict": state, "hook": Runs(folder)}, _use_new_zipfile_serialization=not legacy)
    assert "holds 'posix.mkdir', which may run code when it is loaded; save the state_dict() alone" in refusal(path)
    assert not folder.exists()
    checkpoints.read(path, trust_pickle=True)
    assert folder.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_classes_of_the_user_are_named(saved, state, refusal, legacy):
    for thing, name in ((Config(), f"{__name__}.Config"), (nn.Linear(2, 2), "torch.nn.modules.linear.Linear")):
        path = saved({"state_dict": state, "thing": thing}, _use_new_zipfile_serialization=not legacy)
        line = refusal(path)
        assert f"holds {name!r}" in line
        assert "--trust-pickle" in line


def test_what_the_process_may_do_is_left_as_it_was(saved, state, refusal):
    before = set(get_safe_globals()), resource.getrlimit(resource.RLIMIT_DATA)
    checkpoints.read(saved(state))
    refusal(saved({"state_dict": state, "thing": Config()}))
    assert (set(get_safe_globals()), resource.getrlimit(resource.RLIMIT_DATA)) == before


@pytest.mark.parametrize("legacy", [False, True])
def test_other_protocols_are_named(saved, state, refusal, legacy):
    path = saved(state, pickle_protocol=4, _use_new_zipfile_serialization=not legacy)
    assert "was pickled with protocol 4" in refusal(path)


def called(function, argument):
    """The steps that call a function with one number."""
    return function + b"\n" + pickle.dumps((argument,), 2)[2:-1] + b"R"


MANY = 300_000
HARMFUL = {
    "marks": b"(" * MANY + b".",
    "nested tuples": b"(" * MANY + b"t" * MANY + b".",
    "nested lists": b"]" * MANY + b"a" * (MANY - 1) + b".",
    "nested tuples as a key": b"N" + b"\x85" * MANY + b"q\x00}h\x00h\x00s.",
    "each tuple twice in the next, as a key": b"N" + b"q\x00h\x00\x86" * 40 + b"q\x00}h\x00h\x00s.",
    "a key of many, many times": b"(" + b"N" * 10_000 + b"tq\x00}" + b"h\x00Ns" * 300_000 + b".",
    "wide tuples as a key": b"N" + (b"q\x00(" + b"h\x00" * 1000 + b"t") * 5 + b"q\x00}h\x00h\x00s.",
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
    "many steps": b"N" * 2_500_000 + b".",
    "gigabytes of zeros": b"\x80\x02" + called(b"c__builtin__\nbytearray", 10**10) + b".",
    "gigabytes of nothing": b"\x80\x02" + called(b"ctorch\nFloatTensor", 10**10) + b".",
    "twice as long 40 times": b"\x80\x02X\1\0\0\0a" + b"q\x00c_codecs\nencode\nh\x00X\3\0\0\0hex\x86R" * 40 + b".",
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
    assert "has tuples in tuples as no checkpoint has" in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize("steps", HASTY, ids=range(len(HASTY)))
def test_pickles_that_take_what_is_not_there(tmp_path, refusal, steps):
    (tmp_path / "net.pth").write_bytes(LEGACY + steps + b"." + pickle.dumps([], 2))
    assert len(refusal(tmp_path / "net.pth")) < 400


def test_a_pickle_larger_than_allowed(saved, state, refusal):
    path = saved({"log": bytes(LARGEST_PICKLE), "state_dict": state})
    assert "bytes beside its tensors; allowed: 64,000,000" in refusal(path)
