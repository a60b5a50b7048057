"""Tensors that are no weights of a network are named, with what is wrong."""

from __future__ import annotations

import pytest
import torch

from pipnet_edge.converters.checkpoint import read as checkpoints

HEAD = "cls_layer.weight"


ODD = {
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.01, 0, torch.qint8),
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.flatten(1).to_sparse_csr(),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "integer": lambda t: t.to(torch.int32),
    "bool": lambda t: t > 0,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "unsigned": lambda t: t.to(torch.int32).to(torch.uint16),
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[1]]),
    "no axes": lambda t: t.sum(),
    "one axis": lambda t: t.flatten(),
    "three axes": lambda t: t[..., 0],
    "five axes": lambda t: t[..., None],
    "no rows": lambda t: t[:0],
    "expanded": lambda t: t[:1, :1].expand(100_000, 100_000, 1, 1),
    "expanded to nine axes": lambda t: t.sum().expand((2,) * 9),
    "other channels": lambda t: torch.randn(t.shape[0], 3, 1, 1),
    "other kernel": lambda t: torch.randn(*t.shape[:2], 3, 3),
    "not square": lambda t: torch.randn(*t.shape[:2], 1, 3),
    "even kernel": lambda t: torch.randn(*t.shape[:2], 2, 2),
}
WORDS = {
    **{"quantized": "is quantized", "sparse": "is sparse", "sparse rows": "is sparse", "meta": "is on the meta device"},
    **{"complex": "is of type complex64", "integer": "is of type int32", "bool": "is of type bool"},
    **{"float8": "is of type float8_e4m3fn", "unsigned": "is of type uint16", "nested": "is nested"},
    **{"no axes": "is ()", "one axis": "is (20,)", "three axes": "is (5, 4, 1)"},
    **{"five axes": "is (5, 4, 1, 1, 1)", "no rows": "is (0, 4, 1, 1)", "other channels": "is (5, 3, 1, 1)"},
    **{"other kernel": "is (5, 4, 3, 3)", "not square": "is (5, 4, 1, 3)", "even kernel": "is (5, 4, 2, 2)"},
    "expanded": "has the shape (100000, 100000, 1, 1), but 80 bytes in the file",
    "expanded to nine axes": "has the shape (2, 2, 2, 2, 2, 2, 2, 2, …)",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WORDS)
def test_tensors_that_are_no_weights_are_named_with_their_kind(saved, state, refusal, kind):
    line = refusal(saved(state | {HEAD: ODD[kind](state[HEAD])}))
    assert f"tensor '{HEAD}' {WORDS[kind]}" in line


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("conv1.weight", (4, 5, 7, 7)),
        ("layer1.0.conv1.weight", (4, 9, 3, 3)),
        ("layer2.0.downsample.0.weight", (4, 4, 5)),
        ("layer2.0.bn1.running_mean", (3,)),
        ("layer4.1.bn2.weight", (4, 1)),
        ("x_layer.bias", (4,)),
        ("x_layer.bias", ()),
    ],
)
def test_shapes_that_do_not_fit_are_named(saved, state, refusal, key, shape):
    assert f"tensor {key!r}" in refusal(saved(state | {key: torch.ones(shape)}))


def test_blocks_whose_channels_do_not_fit_are_named(saved, state, refusal):
    wide = {"layer1.0.conv2.weight": torch.ones(1, 4, 3, 3)}
    wide |= {f"layer1.0.bn2.{part}": torch.ones(1) for part in ("weight", "bias", "running_mean", "running_var")}
    assert "tensor 'layer1.0.conv2.weight' gives 1 channels, not 4" in refusal(saved(state | wide))


def test_negative_variances_and_infinity_are_named(saved, state, refusal):
    variance = {"bn1.running_var": -torch.ones(4)}
    assert "tensor 'bn1.running_var' holds negative variances" in refusal(saved(state | variance))
    assert f"tensor '{HEAD}' holds NaN" in refusal(saved(state | {HEAD: state[HEAD] / 0}))


def test_keys_with_escapes_are_shown_without(saved, state, refusal):
    assert r"'\x1b]0;owned\x07'" in refusal(saved(state | {"\x1b]0;owned\x07": torch.ones(1)}))


def test_at_most_1000_landmarks(saved, state, refusal):
    rows = {"cls_layer": 1001, "x_layer": 1001, "y_layer": 1001, "nb_x_layer": 1001, "nb_y_layer": 1001}
    heads = {f"{key}.weight": torch.ones(n, 4, 1, 1) for key, n in rows.items()}
    heads |= {f"{key}.bias": torch.ones(n) for key, n in rows.items()}
    assert "1001 landmarks; allowed: 2 to 1000" in refusal(saved(state | heads))


@pytest.mark.parametrize("size", [100_000, 4128, 250, 16, 0, -32])
def test_input_sizes_that_no_network_has(saved, state, refusal, size):
    path = saved(state)
    assert f"input size {size} is not a multiple of the net stride 32 up to 4096" in refusal(path, input_size=size)
    assert checkpoints.read(path, 4096).input_size == 4096
