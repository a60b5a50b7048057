"""Where the network lies in a file: found by its keys, whatever is around it."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import pathlib
import types

import numpy as np
import pytest
import torch
from torch import nn

from pipnet_edge.converters.checkpoint import read as checkpoints


class Config:
    def __init__(self, lr):
        self.lr, self.milestones = lr, {3, 5}


class Module(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.kept = state

    def state_dict(self, *_, **__):
        return self.kept


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


WRAPPERS = {
    **{name: (lambda s, name=name: {name: s}) for name in ("state_dict", "model", "net", "ema", "params", "pipnet")},
    "nested": lambda s: {"model": {"state_dict": s}},
    "deep": lambda s: {"a": {"b": [({"c": s}, 3)]}},
    "tuple": lambda s: (s, {"epoch": 3}),
    "list": lambda s: [s],
    "number as key": lambda s: {0: s},
    "ordered": collections.OrderedDict,
    "defaultdict": lambda s: collections.defaultdict(list, s),
    "namespace": lambda s: argparse.Namespace(model=s, lr=0.1),
    "simple namespace": lambda s: [types.SimpleNamespace(nets={"a": s}, lr=0.1)],
    "one object under two names": lambda s: {"state_dict": s, "model": s},
    "copies of the same tensors": lambda s: {"state_dict": s, "model": dict(s)},
}
PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "module.module.", "model.", "net.", "pipnet.student.")


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers(saved, state, is_of, wrap):
    found = checkpoints.read(saved(wrap(state)))
    assert is_of(found, state)
    assert found.notes == ()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(saved, state, is_of, prefix):
    assert is_of(checkpoints.read(saved(prefixed(state, prefix))), state)
    assert is_of(checkpoints.read(saved({"state_dict": prefixed(state, prefix)})), state)


PLAIN = {
    "numpy scalar": np.float64(3.2),
    "numpy array": np.zeros(4, np.float32),
    "numpy array of objects": np.array([{"a": 1}, None], dtype=object),
    "numpy texts": np.array(["a", "b"]),
    "numpy dtype": np.dtype("f4"),
    "numpy records": np.zeros(2, [("a", "i4"), ("b", object)]),
    "path": pathlib.PurePosixPath("/data/faces"),
    "this system's path": pathlib.Path("faces"),
    "namespace": argparse.Namespace(lr=0.1, folder=pathlib.Path("x")),
    "another system's path": pathlib.PureWindowsPath("C:/faces"),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "counter": collections.Counter("abc"),
    "deque": collections.deque([1, 2], maxlen=3),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "date": datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
    "set": {1, 2},
    "frozenset": frozenset({"a"}),
    "complex": 1j,
    "decimal": decimal.Decimal("0.1"),
    "bytes": [b"\x00\xff", b""],
    "bytearray": bytearray(b"ab"),
    "large number": 2**1000,
    "keys of all kinds": {(1, 2): 3, None: 4, 2.5: 5, b"x": 6, 2**70: 7, True: 8},
    "range": range(3),
    "dtype": torch.float16,
    "device": torch.device("cpu"),
    "random state": torch.get_rng_state(),
    "integers": torch.arange(3),
    "sparse": torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_plain_data_beside_the_weights_does_not_matter(saved, state, is_of, data):
    path = saved({"before": data, "state_dict": state, "after": [data, {"deeper": data}]})
    assert is_of(checkpoints.read(path), state)


@pytest.mark.parametrize("legacy", [False, True])
def test_all_plain_data_at_once_in_both_formats(saved, state, is_of, legacy):
    path = saved(PLAIN | {"state_dict": state}, _use_new_zipfile_serialization=not legacy)
    assert is_of(checkpoints.read(path), state)


def test_data_among_the_weights(saved, state, is_of):
    assert is_of(checkpoints.read(saved({**state, "epoch": 59, "lr": np.float64(0.1)})), state)


def test_an_optimizer_beside_the_weights(saved, state, is_of):
    parameters = [nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizer = torch.optim.Adam(parameters)
    sum((p**2).sum() for p in parameters).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    kept = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    assert is_of(checkpoints.read(saved({**kept, "model": state})), state)


def test_thops_counters_are_left_aside_with_a_note(saved, state, is_of):
    counters = {"total_ops": torch.zeros(1, dtype=torch.float64), "layer1.0.total_params": torch.zeros(1)}
    found = checkpoints.read(saved(state | counters))
    assert is_of(found, state)
    assert found.notes == ("left aside: thop's total_ops and total_params, 2 tensors",)


def test_tensors_outside_of_the_prefix_are_left_aside_with_a_note(saved, state, is_of):
    found = checkpoints.read(saved(prefixed(state, "module.") | {"n_averaged": torch.tensor(3)}))
    assert is_of(found, state)
    assert found.notes == ("left aside: 1 tensor outside of module.*, such as 'n_averaged'",)


def test_a_tensor_that_the_network_lacks_is_refused(saved, state, refusal):
    path = saved(state | {"criterion.weight": torch.ones(3)})
    assert "resnet18 does not use 1 of the checkpoint's tensors: 'criterion.weight'" in refusal(path)


TWO = {
    "raw and EMA": (lambda a, b: {"state_dict": a, "ema": b}, "'ema', 'state_dict'", "state_dict", "ema"),
    "bare and EMA": (lambda a, b: a | {"ema": b}, "'.', 'ema'", ".", "ema"),
    "tuple": (lambda a, b: (a, b), "'0', '1'", "0", "1"),
    "prefixes": (
        lambda a, b: {"state_dict": prefixed(a, "student.") | prefixed(b, "teacher.module.")},
        "'state_dict.student', 'state_dict.teacher.module'",
        "state_dict.student",
        "state_dict.teacher.module",
    ),
}


@pytest.mark.parametrize(("wrap", "names", "first", "second"), TWO.values(), ids=TWO)
def test_of_two_networks_one_is_chosen_by_name(saved, state, other_state, is_of, refusal, wrap, names, first, second):
    path = saved(wrap(state, other_state))
    assert refusal(path) == f"{path} holds 2 networks: {names}; choose one with --weights NAME"
    assert is_of(checkpoints.read(path, weights=first), state)
    assert is_of(checkpoints.read(path, weights=second), other_state)
    assert refusal(path, weights="raw") == f"{path} has no network 'raw'; --weights may be {names}"


def test_many_networks_are_named_in_one_short_line(saved, state, refusal):
    ensemble = [{key: value + index for key, value in state.items()} for index in range(30)]
    assert len(refusal(saved(ensemble))) < 1000


def test_the_command_line_chooses_and_notes(saved, state, other_state, say):
    counted = other_state | {"total_ops": torch.zeros(1)}
    path = saved({"state_dict": state, "ema": counted})
    status, out, err = say("inspect", path, "--weights", "ema", "--json")
    assert (status, err) == (0, "")
    assert '"left aside: thop' in out
    status, out, _ = say("inspect", path, "--weights", "ema")
    assert "left aside: thop's total_ops and total_params, 1 tensor" in out
    status, out, err = say("inspect", path)
    assert (status, out) == (1, "")
    assert "choose one with --weights NAME" in err


def without(state):
    return {key: value for key, value in state.items() if "_layer" not in key}


def nest(what, depth):
    return nest({"a": what}, depth - 1) if depth else what


WITHOUT = {
    "a classifier": (lambda s: {"fc.weight": torch.ones(3, 4), **without(s)}, "(it has a classifier's state_dict)"),
    "no heads": (without, "no PIPNet head 'cls_layer.weight' (it has keys such as 'conv1.weight'"),
    "one head less": (
        lambda s: {key: value for key, value in s.items() if key != "x_layer.weight"},
        "no PIPNet head 'x_layer.weight'",
    ),
    "one head less under a prefix": (
        lambda s: {f"module.{key}": value for key, value in s.items() if key != "nb_y_layer.weight"},
        "no PIPNet head 'nb_y_layer.weight'",
    ),
    "part of a name": (lambda s: prefixed(s, "my_"), "no PIPNet head 'cls_layer.weight'"),
    "a list": (lambda s: list(s.values()), "holds a list, not a state_dict"),
    "plain data": (lambda _: {"epoch": 3, "lr": 0.1}, "holds a dict of epoch, lr, not a state_dict"),
    "nothing": (lambda _: {}, "holds a dict of nothing, not a state_dict"),
    "None": (lambda _: None, "holds a NoneType"),
    "a tensor": (lambda _: torch.ones(3), "holds a tensor, not a state_dict"),
    "too deep": (lambda s: nest(s, 12), "holds a dict of a, not a state_dict"),
    "an escape": (lambda s: {"\x1b[2J": torch.ones(1)}, r"keys such as '\x1b[2J'"),
}


@pytest.mark.parametrize(("wrap", "message"), WITHOUT.values(), ids=WITHOUT)
def test_files_without_a_network_say_what_they_hold(saved, state, refusal, wrap, message):
    assert message in refusal(saved(wrap(state)))


def test_trusted_files_are_searched_the_same(saved, state, other_state, is_of, refusal):
    path = saved({"model": Module(state), "ema": other_state, "config": Config(0.1)})
    assert "choose one with --weights" in refusal(path, trust_pickle=True)
    assert is_of(checkpoints.read(path, trust_pickle=True, weights="model"), state)
    assert is_of(checkpoints.read(path, trust_pickle=True, weights="ema"), other_state)
    sparse = state | {"cls_layer.weight": state["cls_layer.weight"].to_sparse()}
    assert "tensor 'cls_layer.weight' is sparse" in refusal(saved({"net": sparse}), trust_pickle=True)


def test_a_network_that_was_saved_twice_is_one(saved, state, is_of):
    both = {name: {key: value.detach() for key, value in state.items()} for name in ("state_dict", "model")}
    assert is_of(checkpoints.read(saved(both)), state)
    assert is_of(checkpoints.read(saved(both, _use_new_zipfile_serialization=False)), state)


@pytest.mark.parametrize("size", [1000, 250_000])
def test_tensors_that_share_their_bytes_take_no_more_than_the_file_has(saved, state, refusal, size):
    shared = torch.zeros(size)
    many = {f"extra.{index}": shared[:] for index in range(100_000_000 // size // 100)}
    assert "its tensors take" in refusal(saved(state | many))
