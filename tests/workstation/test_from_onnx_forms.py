"""The forms in which people export: other layouts, batches, precisions, names and places of weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from pipnet_edge.converters.checkpoint import from_onnx
from pipnet_edge.errors import EdgeError

pytestmark = pytest.mark.usefixtures("quiet")

Write = Callable[..., Path]
Check = Callable[..., None]
OURS = ["score", "offset_x", "offset_y", "neighbor_x", "neighbor_y"]
NUMBERED = [f"output{i}" for i in range(5)]
HALF = 2e-3  # of each map's largest magnitude, between float32 and half precision


def image(size: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 3, size, size), dtype=np.float32))


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.float32)


def load(path: Path) -> onnx.ModelProto:
    return onnx.load_model_from_string(path.read_bytes())


def store(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def expected(path: Path, outputs: Sequence[str] = OURS, size: int = 8) -> list[Any]:
    """What ONNX Runtime computes from a file of the usual form."""
    values: list[Any] = onnxruntime.InferenceSession(path.read_bytes()).run(outputs, {"image": image(size).numpy()})
    return values


# --- Weights in other files.


def external(path: Path, tiny_onnx: Write, **options: Any) -> Path:
    model = load(tiny_onnx(path, "features = Conv (image, w)", {"w": (4, 3, 1, 1)}))
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, **{"location": "net.onnx.data"} | options)
    return path


@pytest.mark.parametrize("options", [{}, {"all_tensors_to_one_file": False}, {"location": "weights.bin"}])
def test_weights_in_other_files(tmp_path: Path, options: dict[str, Any], tiny_onnx: Write, assert_same: Check) -> None:
    """As torch's exporter of today writes them."""
    whole = tiny_onnx(tmp_path / "whole.onnx", "features = Conv (image, w)", {"w": (4, 3, 1, 1)})
    path = external(tmp_path / "net.onnx", tiny_onnx, **options)
    assert len(list(tmp_path.iterdir())) > len(["whole.onnx", "net.onnx"])
    assert_same(from_onnx.read(path).net(image(8)), expected(whole))


def entries(**values: object) -> Callable[[onnx.ModelProto], None]:
    """Changes what the first tensor states about its place."""

    def change(model: onnx.ModelProto) -> None:
        stated = model.graph.initializer[0].external_data
        kept = {entry.key: entry.value for entry in stated} | {key: str(value) for key, value in values.items()}
        del stated[:]
        for key, value in kept.items():
            stated.add(key=key, value=value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entries(location="gone.bin"), "its tensor 'w' lies in another file, 'gone.bin', which is not there"),
        (entries(location="../secret"), "'../secret'; allowed: a file in the same folder"),
        (entries(location="inner/../../secret"), "allowed: a file in the same folder"),
        (entries(location="/etc/passwd"), "'/etc/passwd'; allowed: a file in the same folder"),
        (entries(location=""), "''; allowed: a file in the same folder"),
        (entries(location="link"), "'link', a link out of the folder"),
        (entries(location="folder"), "'folder', which is not there"),
        (entries(location="a" * 5000), "which is not there"),
        (entries(location="\x1b[2J"), r"lies in another file, '\\x1b\[2J', which is not there"),
        (entries(offset=10**15), "needed are 48 bytes"),
        (entries(offset=-1), "needed are 48 bytes"),
        (entries(length=10**15), "is 1000000000000000 bytes at 0 of its data file net.onnx.data, which has"),
        (entries(length="many"), "says no plain place in its data file net.onnx.data"),
    ],
)
def test_data_files_that_do_not_fit(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str, tiny_onnx: Write
) -> None:
    (tmp_path / "secret").write_bytes(b"\x00" * 1000)
    folder = tmp_path / "inside"
    (folder / "folder").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    path = external(folder / "net.onnx", tiny_onnx)
    model = load(path)
    change(model)
    store(model, path)
    with pytest.raises(EdgeError, match=message) as refused:
        from_onnx.read(path)
    assert str(refused.value).isprintable()


# --- Layouts, batches and precisions.


def turned(model: onnx.ModelProto, inputs: bool, outputs: bool) -> None:
    """Channels last: a Transpose after the input, or before each output."""
    graph = model.graph
    if inputs:
        graph.node.insert(0, helper.make_node("Transpose", ["image_last"], ["image"], perm=[0, 3, 1, 2]))
        graph.input[0].CopyFrom(helper.make_tensor_value_info("image_last", TensorProto.FLOAT, [1, 8, 8, 3]))
    for output in graph.output if outputs else ():
        for node in graph.node:
            node.output[:] = [f"{name}_first" if name == output.name else name for name in node.output]
        graph.node.append(helper.make_node("Transpose", [f"{output.name}_first"], [output.name], perm=[0, 2, 3, 1]))


@pytest.mark.parametrize(("inputs", "outputs"), [(True, False), (False, True), (True, True)])
def test_channels_last(tmp_path: Path, inputs: bool, outputs: bool, tiny_onnx: Write, assert_same: Check) -> None:
    path = tiny_onnx(tmp_path / "net.onnx")
    want, model = expected(path), load(path)
    turned(model, inputs, outputs)
    read = from_onnx.read(store(model, path))
    assert (read.num_lms, read.num_nb, read.net_stride, read.input_size) == (3, 2, 1, 8)
    assert_same(read.net(image(8)), want)
    assert torch.permute not in [node.target for node in read.net.graph.nodes]  # type: ignore[union-attr]


@pytest.mark.parametrize("batch", [4, -1, 0])
def test_other_batches(tmp_path: Path, batch: int, tiny_onnx: Write, assert_same: Check) -> None:
    """Also where a constant shape holds the batch, as views in torch leave it."""
    nodes = "p = GlobalAveragePool (image)\nv = Reshape (p, to)\nw = Reshape (v, back)\nfeatures = Mul (image, w)"
    path = tmp_path / "net.onnx"
    shapes = [{"to": np.array([b, 3]), "back": np.array([b, 3, 1, 1])} for b in (1, batch if batch > 0 else -1)]
    want = expected(tiny_onnx(path, nodes, shapes[0]))
    model = load(tiny_onnx(path, nodes, shapes[1], shape=(max(batch, 1), 3, 8, 8)))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    assert_same(from_onnx.read(store(model, path)).net(image(8)), want)


@pytest.mark.parametrize("keeps_io", [False, True])
def test_half_precision(tmp_path: Path, keeps_io: bool, tiny_onnx: Write) -> None:
    path = tiny_onnx(tmp_path / "net.onnx", "c = Conv (image, w)\nfeatures = Relu (c)", {"w": (4, 3, 1, 1)})
    want, model = expected(path), load(path)
    graph = model.graph
    for tensor in graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    if keeps_io:
        graph.node[0].input[0] = "half"
        graph.node.insert(0, helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16))
        for output in graph.output:
            for node in graph.node:
                node.output[:] = [f"{name}_half" if name == output.name else name for name in node.output]
            graph.node.append(helper.make_node("Cast", [f"{output.name}_half"], [output.name], to=TensorProto.FLOAT))
    for value in () if keeps_io else (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    read = from_onnx.read(store(model, path))
    assert read.notes == ("read as float32; its own numbers are of half precision",)
    for got, map_ in zip(read.net(image(8)), want, strict=True):
        assert got.dtype == torch.float32
        assert np.abs(got.numpy() - map_).max() <= HALF * np.abs(map_).max()


# --- Outputs.


def test_unknown_names_are_taken_in_their_order(tmp_path: Path, tiny_onnx: Write, assert_same: Check) -> None:
    path = tiny_onnx(tmp_path / "net.onnx", outputs=NUMBERED)
    read = from_onnx.read(path)
    assert_same(read.net(image(8)), expected(path, NUMBERED))
    (note,) = read.notes
    assert note.startswith("outputs without known names, taken in their order: output0 is score, output1 is offset_x, ")
    assert note.endswith("; if not, give --outputs")
    asked = [NUMBERED[i] for i in (2, 1, 0, 4, 3)]
    read = from_onnx.read(path, outputs=asked)
    assert read.notes == ()
    assert_same(read.net(image(8)), expected(path, asked))


@pytest.mark.parametrize(
    ("maps", "outputs", "message"),
    [
        ((3, 3, 3, 6, 9), (), r"its outputs are output0 \(1, 3, 8, 8\), .*; needed are a PIPNet's five maps, or name"),
        ((6, 3, 3, 6, 3), (), "needed are a PIPNet's five maps"),
        ((3, 3, 3, 4, 4), (), "needed are a PIPNet's five maps"),
        ((3, 3, 3, 6), (), "needed are a PIPNet's five maps"),
        (
            (3, 3, 3, 6, 6),
            ("output0", "output1", "score"),
            "it has no output 'score'; its outputs are output0, output1",
        ),
        ((3, 3, 3, 6, 6), ("output3", "output1", "output2"), r"its maps are score \(1, 6, 8, 8\)"),
    ],
)
def test_unknown_names_that_do_not_fit(
    tmp_path: Path, maps: Sequence[int], outputs: Sequence[str], message: str, tiny_onnx: Write
) -> None:
    path = tiny_onnx(tmp_path / "net.onnx", outputs=NUMBERED[: len(maps)], maps=maps)
    with pytest.raises(EdgeError, match=message):
        from_onnx.read(path, outputs=outputs)


@pytest.mark.parametrize("names", [OURS, NUMBERED])
def test_other_outputs_are_left_aside(tmp_path: Path, names: list[str], tiny_onnx: Write, assert_same: Check) -> None:
    """A pose of an operator that nobody has to know."""
    path = tiny_onnx(tmp_path / "net.onnx", outputs=names)
    want, model = expected(path, names), load(path)
    model.graph.node.append(helper.make_node("ReduceL2", ["features"], ["pose"], axes=[2, 3], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("pose", TensorProto.FLOAT, [None, None]))
    read = from_onnx.read(store(model, path))
    assert read.notes[-1] == "outputs left aside: pose"
    assert_same(read.net(image(8)), want)


@pytest.mark.parametrize("names", [OURS[:3], NUMBERED[:3]])
def test_three_maps(tmp_path: Path, names: list[str], tiny_onnx: Write) -> None:
    path = tiny_onnx(tmp_path / "net.onnx", outputs=names, maps=(3, 3, 3))
    read = from_onnx.read(path)
    assert (read.num_lms, read.num_nb) == (3, 0)
    for got, want in zip(read.net(image(8)), expected(path, names), strict=True):
        assert np.abs(got.numpy() - want).max() <= 1e-5


def test_the_command_line_names_outputs_and_says_notes(
    tmp_path: Path, tiny_onnx: Write, cli: Callable[..., Any]
) -> None:
    pool = "features = MaxPool <kernel_shape=[16,16], strides=[16,16]> (image)"
    path = tiny_onnx(tmp_path / "net.onnx", pool, shape=(1, 3, 64, 64), outputs=NUMBERED)
    found = cli("inspect", path)
    assert found.returncode == 0
    assert "output3 is neighbor_x" in found.stdout
    options = ("--outputs", ",".join(NUMBERED), "--mean", "0,0,0", "--std", "1,1,1")
    result = json.loads(cli("inspect", path, *options, "--json").stdout)["result"]
    assert (result["notes"], result["mean"], result["std"]) == ([], [0, 0, 0], [1, 1, 1])
    refused = cli("inspect", path, "--outputs", "output0,output1")
    assert refused.returncode == 1
    assert "--outputs output0,output1; five names are needed, SCORE,X,Y,NB_X,NB_Y, or the first three" in refused.stderr


def test_convert_says_the_notes(tmp_path: Path, tiny_onnx: Write, cli: Callable[..., Any]) -> None:
    pool = "features = MaxPool <kernel_shape=[16,16], strides=[16,16]> (image)"
    path = tiny_onnx(tmp_path / "net.onnx", pool, shape=(1, 3, 64, 64), outputs=NUMBERED)
    (tmp_path / "three.txt").write_text("0.2 0.3 0.8 0.3 0.5 0.7")
    words = ("convert", path, "--meanface", tmp_path / "three.txt", "--to", "onnx", "--precision", "fp32")
    done = cli(*words, "-o", tmp_path / "bundle", "--json")
    assert done.returncode == 0, done.stderr
    note, untrained = json.loads(done.stdout)["result"]["notes"]
    assert "output4 is neighbor_y" in note
    assert untrained.startswith("no presence threshold: ")


# --- Normalization in the graph.

MEAN, STD = floats(0.485, 0.456, 0.406), floats(0.229, 0.224, 0.225)
PLAIN = "with --mean 0,0,0 --std 1,1,1 nothing is done twice"
PIXELS = "with --mean 0,0,0 --std 0.00392157,0.00392157,0.00392157 nothing is done twice"


@pytest.mark.parametrize(
    ("nodes", "weights", "note"),
    [
        (
            "s = Sub (image, m)\nd = Div (s, d3)",
            {"m": MEAN.reshape(1, 3, 1, 1), "d3": STD.reshape(3, 1, 1)},
            f"(x - 0.485,0.456,0.406) / 0.229,0.224,0.225, as for pixels in [0, 1]; {PLAIN}",
        ),
        (
            "a = Mul (image, k)\nb = Sub (a, m)\nd = Mul (b, r)",
            {"k": floats(1 / 255), "m": MEAN.reshape(3, 1, 1), "r": floats(5, 4, 2).reshape(3, 1, 1)},
            f"(x - 123.7,116.3,103.5) / 51,63.75,127.5, as for pixels in [0, 255]; {PIXELS}",
        ),
        ("d = Div (image, k)", {"k": floats(255)}, f"(x - 0,0,0) / 255,255,255, as for pixels in [0, 255]; {PIXELS}"),
        (
            "t = Transpose <perm=[0,2,3,1]> (image)\ns = Sub (t, m)\nd = Transpose <perm=[0,3,1,2]> (s)",
            {"m": MEAN},
            f"(x - 0.485,0.456,0.406) / 1,1,1, as for pixels in [0, 1]; {PLAIN}",
        ),
        (
            "k = Constant <value = float[1] {2.0}> ()\ni = Identity (image)\nm = Mul (i, k)\nd = Sub (m, one)",
            {"one": floats(1)},
            f"(x - 0.5,0.5,0.5) / 0.5,0.5,0.5, as for pixels in [0, 1]; {PLAIN}",
        ),
        ("r = Relu (image)\nd = Mul (r, k)", {"k": floats(2)}, None),
        ("d = Add (image, m)", {"m": (1, 3, 8, 8)}, None),
    ],
    ids=["imagenet", "pixels", "255", "last", "constant", "later", "by place"],
)
def test_normalization_in_the_graph_is_said(
    tmp_path: Path, nodes: str, weights: dict[str, Any], note: str | None, tiny_onnx: Write
) -> None:
    path = tiny_onnx(
        tmp_path / "net.onnx", f"{nodes}\nc = Conv (d, w)\nfeatures = Relu (c)", {**weights, "w": (4, 3, 1, 1)}
    )
    assert from_onnx.read(path).notes == (() if note is None else (f"its graph normalises by itself, {note}",))
