"""ONNX files that are no PIPNet's are refused in one line that says why; what comes near to it is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from pipnet_edge.converters.checkpoint import from_onnx, onnx_form
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR, EdgeError

pytestmark = pytest.mark.usefixtures("quiet")

Write = Callable[..., Path]
Check = Callable[..., None]
OURS = ["score", "offset_x", "offset_y", "neighbor_x", "neighbor_y"]
NEIGHBOURS = 2
HALVED = "h = MaxPool <kernel_shape=[2,2], strides=[2,2]> (image)"


def image(size: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 3, size, size), dtype=np.float32))


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float32)


def refused(path: Path, message: str, input_size: int | None = None, code: int = USER_ERROR) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        from_onnx.read(path, input_size)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_unreadable_files(tmp_path: Path, tiny_onnx: Write) -> None:
    whole = tiny_onnx(tmp_path / "net.onnx").read_bytes()
    path = tmp_path / "broken.onnx"
    refused(path, "cannot be read: No such file")
    for data in (b"", b"PK not a protobuf", whole[: len(whole) // 2], whole[:-3], b"\x00" * 100):
        path.write_bytes(data)
        refused(path, "not a readable ONNX file: ")


@pytest.mark.parametrize(
    ("shape", "input_size", "message"),
    [
        ((1, 3, 8, 8), 16, r"float \(1, 3, 8, 8\), --input-size is 16; allowed: 8"),
        (
            ("b", 3, "h", "w"),
            None,
            r"float \(\?, 3, \?, \?\), of any size: give the one it was trained for as --input-size",
        ),
        (("b", 3, "h", "w"), 0, "up to 4096, not 0"),
        (("b", 3, "h", "w"), 5000, "up to 4096, not 5000"),
        ((1, 3, 8, 16), None, r"\(1, 3, 8, 16\); needed is float \(1, 3, S, S\) or \(1, S, S, 3\), S up to 4096"),
        ((1, 16, 8, 3), None, r"\(1, 16, 8, 3\); needed is float \(1, 3, S, S\)"),
        ((1, 4, 8, 8), None, r"\(1, 4, 8, 8\); needed is float \(1, 3, S, S\)"),
        ((1, 3, 4097, 4097), None, r"\(1, 3, 4097, 4097\); needed is float \(1, 3, S, S\)"),
        ((65, 3, 8, 8), None, r"\(65, 3, 8, 8\); allowed: a batch of up to 64 images"),
        ((3, 8, 8), None, r"\(3, 8, 8\); needed is float \(1, 3, S, S\)"),
    ],
)
def test_input_shapes(
    tmp_path: Path, shape: tuple[int | str, ...], input_size: int | None, message: str, tiny_onnx: Write
) -> None:
    refused(tiny_onnx(tmp_path / "net.onnx", shape=shape), message, input_size)


def test_open_sizes(tmp_path: Path, tiny_onnx: Write) -> None:
    for shape in (("b", 3, "h", "w"), (1, 3, 8, "w"), (1, "c", "h", 8)):
        path = tiny_onnx(tmp_path / "net.onnx", shape=shape)
        assert from_onnx.read(path, 8).input_size == 8
        if 8 in shape:
            assert from_onnx.read(path).input_size == 8


def test_a_size_that_the_graph_does_not_fit(tmp_path: Path, tiny_onnx: Write) -> None:
    nodes = "r = Reshape (image, s)\nfeatures = Reshape (r, t)"
    path = tiny_onnx(tmp_path / "net.onnx", nodes, {"s": ints(1, 192), "t": ints(1, 3, 8, 8)}, shape=("b", 3, "h", "w"))
    assert from_onnx.read(path, 8).net_stride == 1
    refused(path, "ONNX Runtime cannot run it: .*Reshape", 16)


def test_what_onnxsim_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_onnx: Write) -> None:
    def simplify(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("onnxsim.simplify", simplify)
    model = onnx.load_model_from_string(tiny_onnx(tmp_path / "net.onnx").read_bytes())
    given = onnx_form.image_input(model.graph, None)
    with pytest.raises(EdgeError, match=r"onnxsim cannot simplify it for an input of \(1, 3, 8, 8\): first line$"):
        onnx_form.simplified(model, given, OURS, is_last=False)


def test_a_weight_of_another_length(tmp_path: Path, tiny_onnx: Write) -> None:
    model = onnx.load_model_from_string(tiny_onnx(tmp_path / "net.onnx").read_bytes())
    model.graph.initializer[0].dims[0] = 2
    path = tmp_path / "short.onnx"
    path.write_bytes(model.SerializeToString())
    refused(path, "its tensor 'score_weight' does not hold what it says: cannot reshape array of size 9")


def test_input_kinds(tmp_path: Path, tiny_onnx: Write) -> None:
    path = tmp_path / "net.onnx"
    refused(
        tiny_onnx(path, kind=TensorProto.UINT8),
        r"its input is uint8 \(1, 3, 8, 8\); needed is float \(1, 3, S, S\)",
    )
    refused(tiny_onnx(path, opset=8), "its opset is 8; allowed: 9 and newer")
    model = onnx.load_model_from_string(tiny_onnx(path).read_bytes())
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (1, 3, 8, 8)))
    path.write_bytes(model.SerializeToString())
    refused(path, "its inputs are image, mask; allowed: one image")


def test_outputs_are_bound_by_name(tmp_path: Path, tiny_onnx: Write, assert_same: Check) -> None:
    """Whatever their order: swapping x and y would pass every check of shapes."""
    for names in itertools.islice(itertools.permutations(OURS), 0, None, 17):
        path = tiny_onnx(tmp_path / "net.onnx", outputs=names, maps=[6 if "neighbor" in name else 3 for name in names])
        want = onnxruntime.InferenceSession(path.read_bytes()).run(OURS, {"image": image(8).numpy()})
        assert_same(from_onnx.read(path).net(image(8)), want)
    path = tiny_onnx(tmp_path / "net.onnx", outputs=["a.cls", "a/x", "a:y", "neighbour_x", "a.neighbour_y"])
    assert from_onnx.read(path).num_nb == NEIGHBOURS


@pytest.mark.parametrize(
    "names",
    [
        ["score", "offset_x", "offset_y", "neighbor_x", "nb_z"],
        ["score", "offset_x", "x", "neighbor_x", "neighbor_y"],
        OURS[:4],
        ["score", "landmarks"],
    ],
)
def test_other_output_names(tmp_path: Path, names: list[str], tiny_onnx: Write) -> None:
    path = tiny_onnx(tmp_path / "net.onnx", outputs=names, maps=[3] * len(names))
    accepted = (
        "score, cls, outputs_cls; offset_x, x, outputs_x; .*; neighbor_y, neighbour_y, nb_y, outputs_nb_y; or name"
    )
    refused(path, f"its outputs are {', '.join(names)}; needed is exactly one of each of: {accepted}")


def test_decoding_inside_the_file(tmp_path: Path, tiny_onnx: Write) -> None:
    path = tmp_path / "net.onnx"
    advice = "export the network without decoding, with its five maps as outputs"
    refused(
        tiny_onnx(path, outputs=["landmarks"], maps=[6]),
        rf"already decodes \(its only outputs are landmarks\); {advice}",
    )
    refused(tiny_onnx(path, outputs=["lms", "conf"], maps=[6, 3]), rf"its only outputs are lms, conf\); {advice}")
    argmax = "r = Relu (image)\na = ArgMax <axis=1> (r)\nc = Cast <to=1> (a)\nfeatures = Add (c, r)"
    refused(tiny_onnx(path, argmax), rf"already decodes \(a node ArgMax\); {advice}")
    top = "r = Relu (image)\nfeatures, indices = TopK (r, k)"
    refused(tiny_onnx(path, top, {"k": ints(8)}), rf"already decodes \(a node TopK\); {advice}")
    assert from_onnx.read(tiny_onnx(path, "features = Relu (image)\nunused = ArgMax <axis=1> (features)")).num_lms == 3


@pytest.mark.parametrize(
    ("nodes", "maps", "shapes"),
    [
        ("features = Relu (image)", (3, 3, 4, 6, 6), r"offset_y \(1, 4, 8, 8\)"),
        ("features = Relu (image)", (3, 3, 3, 6, 9), r"neighbor_y \(1, 9, 8, 8\)"),
        ("features = Relu (image)", (3, 3, 3, 7, 7), r"neighbor_x \(1, 7, 8, 8\)"),
        ("features = MaxPool <kernel_shape=[1,2], strides=[1,2]> (image)", (3, 3, 3, 6, 6), r"score \(1, 3, 8, 4\)"),
        ("features = MaxPool <kernel_shape=[3,3], strides=[2,2]> (image)", (3, 3, 3, 6, 6), r"H divides the input's 8"),
        ("features = MaxPool <kernel_shape=[3,3]> (image)", (3, 3, 3, 6, 6), r"score \(1, 3, 6, 6\)"),
    ],
)
def test_map_shapes(tmp_path: Path, nodes: str, maps: tuple[int, ...], shapes: str, tiny_onnx: Write) -> None:
    refused(tiny_onnx(tmp_path / "net.onnx", nodes, maps=maps), shapes)


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        ("features = Selu (image)", {}, "Selu node 'features' has no counterpart here; supported: Add, AveragePool,"),
        ("a, b = Split <axis=2> (image)\nfeatures = Concat <axis=2> (b, a)", {}, "Split node 'a' has no counterpart"),
        (
            'm = MaxPool <kernel_shape=[3,3]> (image)\nfeatures = Pad <mode="reflect"> (m, p)',
            {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)},
            "has mode reflect; allowed: constant",
        ),
        (
            "features = Pad (image, p)",
            {"p": ints(0, 1, 0, 0, 0, 0, 0, 0)},
            "Pad node 'features' pads by .*; allowed: 2 and 3",
        ),
        ("m = ReduceMean <axes=[1]> (image)\nfeatures = Mul (m, image)", {}, r"over the axes \[1\]; allowed: 2 and 3"),
        (
            "k = Sigmoid (image)\nfeatures = Conv (image, k)",
            {},
            "Conv node 'features' computes its input 1; allowed: a constant",
        ),
        (
            f'{HALVED}\nfeatures = ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (h, w)',
            {"w": (3, 3, 2, 2)},
            "ConvTranspose node 'features' has auto_pad SAME_UPPER; allowed: NOTSET",
        ),
        (
            f"{HALVED}\nfeatures = ConvTranspose <output_shape=[8,8], strides=[2,2]> (h, w)",
            {"w": (3, 3, 2, 2)},
            r"has output_shape \[8, 8\]; allowed: None",
        ),
        (
            "features, m, v = BatchNormalization <training_mode=1> (image, g, g, g, g)",
            {"g": floats(1, 1, 1)},
            "has training_mode 1; allowed: 0",
        ),
        (
            "f = Flatten (image)\ng = Gemm <transA=1> (f, w)\nfeatures = Reshape (g, s)",
            {"w": (1, 1), "s": ints(1, 3, 8, 8)},
            "Gemm node 'g' has transA 1; allowed: 0",
        ),
        (
            "m = MatMul (image, w)\nfeatures = Relu (m)",
            {"w": (8, 8)},
            r"MatMul node 'm' is applied to shape \(1, 3, 8, 8\); allowed: image data of rank 2",
        ),
        (
            "m, i = MaxPool <kernel_shape=[1,1]> (image)\nc = Cast <to=1> (i)\nfeatures = Mul (c, m)",
            {},
            "its graph uses 'i'; allowed: dense weights and the first output of each node",
        ),
        (
            "q = Cast <to=10> (image)\nh = Relu (q)\nfeatures = Cast <to=1> (h)",
            {},
            "Cast node .* has no counterpart here",
        ),
        (
            "f = Flatten (image)\nm = MatMul (f, w)\nfeatures = Reshape (m, s)",
            {"w": (1, 192, 3), "s": ints(1, 3, 1, 1)},
            "MatMul node 'm' has an input 1 of another rank; allowed: a constant of rank 2",
        ),
        (
            "m = MaxPool <kernel_shape=[3,3]> (image)\nfeatures = MaxPool <kernel_shape=[3,3], pads=[2,2,2,2]> (m)",
            {},
            "MaxPool node 'features' cannot be built in torch: pad should be at most half of effective kernel size",
        ),
        (
            'features = Conv <auto_pad="SAME_UPPER", dilations=[2,2]> (image, w)',
            {"w": (3, 3, 3, 3)},
            "ONNX Runtime cannot run it: .*Dilation not supported",
        ),
        (
            "q = QuantizeLinear (image, s, z)\nfeatures = DequantizeLinear (q, s, z)",
            {"s": floats(0.1)[0], "z": np.uint8(3)},
            r"it is quantized already \(a node QuantizeLinear\); needed is the float network",
        ),
    ],
)
def test_operators_without_a_counterpart(
    tmp_path: Path, nodes: str, weights: dict[str, Any], message: str, tiny_onnx: Write
) -> None:
    refused(tiny_onnx(tmp_path / "net.onnx", nodes, weights), message)


def test_maps_that_differ_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_onnx: Write) -> None:
    path = tiny_onnx(tmp_path / "net.onnx")
    monkeypatch.setitem(from_onnx.OPS, "Relu", lambda op: op.elementwise(nn.LeakyReLU(0.001)))
    pattern = r"output 'score' differs by [\d.e-]+ between torch and ONNX Runtime; allowed: [\d.e-]+"
    refused(path, pattern, code=CHECK_FAILED)
    monkeypatch.setitem(from_onnx.OPS, "Relu", lambda op: op.net.call(torch.mul, op.data(), float("nan")))
    refused(path, "output 'score' differs by nan", code=CHECK_FAILED)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_fail(tmp_path: Path, value: float, tiny_onnx: Write) -> None:
    path = tiny_onnx(tmp_path / "net.onnx", "features = Mul (image, w)", {"w": floats(1, value, 1).reshape(3, 1, 1)})
    refused(path, "output 'score' is NaN or infinite in ONNX Runtime itself", code=CHECK_FAILED)
