"""ncnn's .param, .bin and calibration tables: read, refused, written back, and loaded by ncnn."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.converters.ncnn import int8_layers
from pipnet_edge.converters.ncnn.int8_layers import (
    heads,
    match_weights,
    observe,
    quantizable,
    quantize,
)
from pipnet_edge.converters.ncnn.model import (
    INT8,
    Array,
    Layer,
    Model,
    number,
    read_model,
    run,
    write_model,
)
from pipnet_edge.errors import EdgeError

pytest.importorskip("ncnn")

# As pnnx writes it: every kind of layer with weights, one without a bias, arrays, a blob copied for three readers.
PARAM = """7767517
9 11
Input                    in0                      0 1 in0
Convolution              convclip_0               1 1 in0 1 0=8 1=3 -23310=2,0.0,6.0 11=3 14=1 3=2 4=1 5=1 6=216 9=3
ConvolutionDepthWise     convdw_0                 1 1 1 2 0=8 1=3 11=3 14=1 3=1 4=1 5=0 6=72 7=8
Deconvolution            deconvrelu_0             1 1 2 3 0=5 1=4 11=4 14=1 18=0 19=0 3=2 4=1 5=1 6=640 9=1
Split                    splitncnn_0              1 3 3 4 5 6
Pooling                  gap_0                    1 1 6 7 0=1 4=1
InnerProduct             fcrelu_0                 1 1 7 8 0=5 1=1 2=25 9=1
BinaryOp                 mul_0                    2 1 5 8 out0 0=2
Convolution              conv_1                   1 1 4 out1 0=2 1=1 5=1 6=10
"""
WEIGHTS_AND_BIASES = (216 + 8, 72, 640 + 5, 25 + 5, 10 + 2)
SIZE = sum(4 + 4 * count for count in WEIGHTS_AND_BIASES)


def written(folder: Path, param: str = PARAM, cut: int = SIZE, extra: bytes = b"") -> tuple[Path, Path]:
    random = np.random.default_rng(3)
    data = b"".join(bytes(4) + random.standard_normal(n).astype("<f4").tobytes() for n in WEIGHTS_AND_BIASES)
    files = folder / "model.param", folder / "model.bin"
    files[0].write_text(param)
    files[1].write_bytes(data[:cut] + extra)
    return files


def again(model: Model, folder: Path) -> tuple[Path, Path]:
    files = folder / "again.param", folder / "again.bin"
    write_model(model, *files)
    return files


def pictures(count: int) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(7)
    return [random.standard_normal((3, 22, 22)).astype(np.float32) for _ in range(count)]


def test_files_come_back_byte_for_byte(tmp_path: Path) -> None:
    files = written(tmp_path)
    model = read_model(*files)
    assert [path.read_bytes() for path in again(model, tmp_path)] == [path.read_bytes() for path in files]
    assert model["convdw_0"].arrays["weight"].shape == (72,)
    assert "bias" not in model["convdw_0"].arrays
    assert model["convclip_0"].floats(10) == (0.0, 6.0)
    assert model["conv_1"].floats(10) == ()
    assert model["conv_1"].integer(3, 1) == 1
    assert [layer.name for layer in model.readers("3")] == ["conv_1", "mul_0", "gap_0"]
    assert (model.origin("5"), model.maker("5").name) == ("3", "deconvrelu_0")
    assert (model.outputs(), model.is_output("3"), model.is_output("out0")) == (["out0", "out1"], False, True)
    assert heads(model) == {"conv_1"}
    shapes = {name: values.shape for name, values in next(run(model, pictures(1), ["1", "8", "out0", "out1"])).items()}
    assert shapes == {"1": (8, 11, 11), "8": (5,), "out0": (5, 22, 22), "out1": (2, 22, 22)}


@pytest.mark.parametrize("centre", [True, False])
def test_int8_comes_back(tmp_path: Path, centre: bool) -> None:
    model = read_model(*written(tmp_path))
    int8 = quantize(model, dict.fromkeys(quantizable(model), 3.0), (), centre=centre)
    assert int8["convdw_0"].integer(5) == centre, "a centred input needs a bias"
    back = read_model(*again(int8, tmp_path))
    for layer in int8.layers:
        assert back[layer.name].params == layer.params
        assert list(back[layer.name].arrays) == [k for k in ("weight", "bias") if k in layer.arrays] + [
            k for k in ("weight_scales", "input_scale", "output_scale") if k in layer.arrays
        ]
        for name, values in layer.arrays.items():
            assert back[layer.name].arrays[name].dtype == values.dtype
            assert np.array_equal(back[layer.name].arrays[name], values)
    assert np.isfinite(next(run(back, pictures(1), ["out1"]))["out1"]).all()


def test_a_layer_read_by_a_head_is_none_though_it_makes_an_output() -> None:
    arrays = {"weight": np.ones(9, np.float32)}
    conv = Layer("Convolution", "features", ("in0",), ("a",), {0: "3", 1: "1", 6: "9"}, arrays)
    copies = Layer("Split", "copies", ("a",), ("out0", "b"))
    head = replace(conv, name="head", inputs=("b",), outputs=("out1",))
    model = Model((Layer("Input", "in0", (), ("in0",)), conv, copies, head))
    assert (model.outputs(), model.is_output("a"), heads(model)) == (["out0", "out1"], True, {"head"})
    int8 = quantize(model, dict.fromkeys(["in0", "a"], 1.0))
    assert [layer.integer(8) for layer in int8.layers] == [0, 2, 0, 0]


def test_half_precision_weights_stay(tmp_path: Path) -> None:
    model = read_model(*written(tmp_path))
    halves = [
        replace(layer, arrays={**layer.arrays, "weight": layer.arrays["weight"].astype(np.float16)})
        for layer in model.layers
        if layer.arrays
    ]
    named = {layer.name: layer for layer in halves}
    back = read_model(*again(Model(tuple(named.get(layer.name, layer) for layer in model.layers)), tmp_path))
    assert {layer.arrays["weight"].dtype for layer in back.layers if layer.arrays} == {np.dtype(np.float16)}
    (exact,), (half,) = (list(run(m, pictures(1), ["out1"])) for m in (model, back))
    assert 0 < np.abs(exact["out1"] - half["out1"]).max() < 0.01 * np.abs(exact["out1"]).max()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("7767517", "7767518", "first line is not 7767517"),
        ("\n9 11\n", "\n9 12\n", "line 2: announces '9 12'"),
        ("BinaryOp ", "GRU      ", "line 10: layers of kind 'GRU' are not known"),
        ("1 1 in0 1 0=8", "1 2 in0 1 0=8", "line 4: does not name 3 blobs"),
        ("0=8 1=3 -2", "0=x 1=3 -2", "line 4: .*parameter 0=x is no whole number"),
        ("9=3", "9", "line 4: '9' is not a new parameter"),
        ("6=216 9=3", "6=216 6=216", "line 4: '6=216' is not a new parameter"),
        ("6=216", "6=217", "cannot have 217 weights for 8 outputs"),
        ("6=216", "6=224", "line 5: weights of 'convdw_0' are stored as 0x"),
        ("1 1 2 3 0=5", "1 1 1 3 0=5", "'deconvrelu_0': blob '1' is read twice"),
        ("1 1 1 2 0=8", "1 1 9 2 0=8", "'convdw_0': blob '9' is read before"),
        ("gap_0   ", "conv_1  ", "'conv_1': its name or an output's is used twice"),
        ("6=216 9=3", "6=216 9=3 19=1", "takes its weights from a blob"),
        ("6=72 7=8", "6=72 7=0", "cannot have 8 outputs in 0 groups"),
        ("6=72 7=8", "6=72 7=3", "cannot have 8 outputs in 3 groups"),
        ("6=216 9=3", "6=216 9=3 8=7", "cannot have the int8 parameter 8=7"),
        ("0 1 in0", "0 0", "line 3: has no output"),
        ("Pooling ", "Pooling x y z\n", "line 8: is not `kind name inputs outputs …`"),
    ],
)
def test_malformed_param(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PARAM
    with pytest.raises(EdgeError, match=message) as error:
        read_model(*written(tmp_path, PARAM.replace(old, new, 1)))
    assert "\n" not in str(error.value)


def test_malformed_bin(tmp_path: Path) -> None:
    with pytest.raises(
        EdgeError, match=r"line 4: the \.bin ends within the bias of 'convclip_0': 900 bytes .* has 899"
    ):
        read_model(*written(tmp_path, cut=899))
    with pytest.raises(EdgeError, match=r"line 4: the \.bin ends within the weight of 'convclip_0'"):
        read_model(*written(tmp_path, cut=0))
    with pytest.raises(EdgeError, match=f"has {SIZE + 4} bytes, .* asks for {SIZE}"):
        read_model(*written(tmp_path, extra=bytes(4)))
    with pytest.raises(EdgeError, match="not a readable ncnn model"):
        read_model(tmp_path / "missing.param", tmp_path / "missing.bin")
    (tmp_path / "binary.param").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EdgeError, match="not a readable ncnn model"):
        read_model(tmp_path / "binary.param", tmp_path / "model.bin")


def test_a_model_that_ncnn_refuses(tmp_path: Path) -> None:
    model = read_model(*written(tmp_path))
    with pytest.raises(EdgeError, match="ncnn failed to compute blob 'nowhere'"):
        next(run(model, pictures(1), ["nowhere"]))
    twice = Model((model.layers[0], replace(model.layers[0], name="in1", outputs=("in1",))))
    with pytest.raises(EdgeError, match="has 2 inputs"):
        next(run(twice, pictures(1), ["in0"]))


def test_float_parameters_survive_ncnns_parser() -> None:
    # ncnn reads at most 15 characters and knows a float by its point or exponent.
    for value in (-127.0, 129.0, 1 / 3, -6.789012e-12, 3e38, -1.23456789):
        text = number(value)
        assert len(text) <= 15
        assert "." in text
        assert np.float32(text) == np.float32(value)


# --- Calibration tables of ncnn's own quantizer, which an int8 model can be compared with.


@dataclass(frozen=True)
class Table:
    """ncnn's calibration table. Keys are names of layers; int8 value = round(value * scale).

    weights: one scale per output channel (per group, if depthwise), float32. inputs: the scale of the layer's input.
    """

    weights: Mapping[str, Array]
    inputs: Mapping[str, float]


def read_table(path: Path) -> Table:
    """A calibration table as ncnn2table writes it: lines `name_param_0 scale …` for weights, `name scale` for inputs.

    Raises EdgeError that names the file and the line: for unreadable files, lines of another form, scales that are not
    above 0, tables for recurrent or attention layers (`_param_1` and on), and layers named twice.
    """
    weights: dict[str, Array] = {}
    inputs: dict[str, float] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise EdgeError(f"{path} is not a readable calibration table: {e}") from e
    for row, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, *values = line.split()
        name, is_weight, index = key.partition("_param_")
        try:
            scales = np.array(values, np.float32)
        except ValueError:
            scales = np.empty(0, np.float32)
        good = len(scales) and bool((np.isfinite(scales) & (scales > 0)).all())
        if not good or (index != "0" if is_weight else len(scales) != 1) or name in (weights if is_weight else inputs):
            raise EdgeError(
                f"{path}, line {row}: {line[:40]!r} is not `name_param_0 scale …` or `name scale`, once a layer"
            )
        if is_weight:
            weights[name] = scales
        else:
            inputs[name] = float(scales[0])
    return Table(weights, inputs)


def write_table(table: Table, path: Path) -> None:
    """Writes a calibration table that ncnn2int8 reads, with nine digits: float32 comes back bit for bit."""
    rows = [(f"{name}_param_0", scales) for name, scales in table.weights.items()]
    rows += [(name, np.array([scale], np.float32)) for name, scale in table.inputs.items()]
    text = "".join(f"{key} {' '.join(f'{scale:.9g}' for scale in scales)}\n" for key, scales in rows)
    path.write_text(text, "utf-8")


def by_table(model: Model, table: Table) -> Model:
    """An int8 copy of a float model with a calibration table's scales, as ncnn2int8 makes it.

    Layers without an input scale in the table stay in float, and nothing is centred. Raises EdgeError for layers that
    the model does not have, and for layers without weight scales or with a wrong number of them.
    """
    names = quantizable(model)
    for name in table.inputs:
        if name not in names or name not in table.weights:
            raise EdgeError(f"calibration table: {name!r} is no quantizable layer of the model or has no weight scales")
    ranges = {name: int8_layers.LIMIT / scale for name, scale in table.inputs.items()}
    return quantize(model, ranges, names.keys() - ranges.keys(), centre=False, weight_scales=table.weights)


def table_of(model: Model) -> Table:
    """An int8 model's calibration table, for ncnn2int8. Raises EdgeError for a centred one, which no table can hold."""
    layers = [layer for layer in model.layers if layer.integer(INT8) and layer.kind in int8_layers.INT8_KINDS]
    centred = [layer.name for layer in layers if int8_layers._pad(layer)]
    if centred:
        raise EdgeError(f"ncnn layer {centred[0]!r} reads a centred blob, which a calibration table cannot express")
    return Table(
        {layer.name: layer.arrays["weight_scales"] for layer in layers},
        {layer.name: float(layer.arrays["input_scale"][0]) for layer in layers},
    )


@pytest.mark.parametrize(
    "line", ["l1", "l1 x", "l1 1 2", "l1 -1", "l1 nan", "l1_param_1 1 2", "l1_param_0", "l0 4", "l0_param_0 1 2"]
)
def test_malformed_tables(tmp_path: Path, line: str) -> None:
    path = tmp_path / "model.table"
    path.write_text(f"l0_param_0 1 2\nl0 3\n{line}\n")
    with pytest.raises(EdgeError, match=r"model\.table, line 3"):
        read_table(path)


def test_tables(tmp_path: Path) -> None:
    # As ncnn2table writes them: six digits, a space at the end of each line.
    path = tmp_path / "model.table"
    path.write_text("convclip_0_param_0 " + "200.500000 " * 8 + "\nconvclip_0 48.250000 \n")
    table = read_table(path)
    int8 = by_table(read_model(*written(tmp_path)), table)
    assert int8["convclip_0"].arrays["input_scale"].tolist() == [48.25]
    assert int8["convclip_0"].arrays["weight_scales"].tolist() == [200.5] * 8
    assert "weight_scales" not in int8["convdw_0"].arrays
    odd = Table({"a": np.array([1 / 3, 2e-7, 12345678.9], np.float32)}, {"a": float(np.float32(0.1))})
    write_table(odd, path)
    assert path.read_text().splitlines()[1] == "a 0.100000001"
    assert np.array_equal(read_table(path).weights["a"], odd.weights["a"])
    assert read_table(path).inputs == odd.inputs
    with pytest.raises(EdgeError, match="'a' is no quantizable layer"):
        by_table(read_model(*written(tmp_path)), odd)
    with pytest.raises(EdgeError, match="not a readable calibration table"):
        read_table(tmp_path / "missing.table")


def test_a_table_says_all_of_a_symmetric_model(tmp_path: Path) -> None:
    model = read_model(*written(tmp_path))
    ranges = observe(model, pictures(2))
    int8 = quantize(model, ranges, centre=False)
    write_table(table_of(int8), tmp_path / "model.table")
    same = by_table(model, read_table(tmp_path / "model.table"))
    for layer in int8.layers:
        assert same[layer.name].params == layer.params
        assert all(np.array_equal(same[layer.name].arrays[k], v) for k, v in layer.arrays.items())
    with pytest.raises(EdgeError, match="centred blob, which a calibration table cannot"):
        table_of(quantize(model, ranges))


def test_observed_ranges(tmp_path: Path) -> None:
    model, images = read_model(*written(tmp_path)), pictures(3)
    ranges = observe(model, iter(images))
    assert list(ranges) == ["1", "3", "7", "in0"]
    assert ranges["in0"] == (min(image.min() for image in images), max(image.max() for image in images))
    # 11 x 11 values a channel: ncnn aligns channels, and what is in the gaps must not count.
    layer = model["convclip_0"]
    windows = [
        np.lib.stride_tricks.sliding_window_view(np.pad(i, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2)) for i in images
    ]
    sums = np.einsum("nchwyx,ocyx->nohw", np.array(windows)[:, :, ::2, ::2], layer.arrays["weight"].reshape(8, 3, 3, 3))
    values = np.clip(sums + layer.arrays["bias"][:, None, None], 0, 6)
    assert ranges["1"] == pytest.approx((values.min(), values.max()), abs=1e-4)
    with pytest.raises(EdgeError, match="no images"):
        observe(model, [])


def test_layers_are_matched_by_their_weights(tmp_path: Path) -> None:
    model = read_model(*written(tmp_path))
    weights = {f"net.{name}": model[name].arrays["weight"].reshape(1, -1).copy() for name in quantizable(model)}
    assert match_weights(model, weights) == {name: f"net.{name}" for name in quantizable(model)}
    with pytest.raises(EdgeError, match=r"'conv_1' holds the weights of net\.conv_1 and twin"):
        match_weights(model, {**weights, "twin": weights["net.conv_1"]})
    with pytest.raises(EdgeError, match="'convclip_0' holds the weights of none"):
        match_weights(model, {"net.conv_1": weights["net.conv_1"]})


def test_a_model_made_by_pnnx(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pnnx = shutil.which("pnnx", path=str(Path(sys.executable).parent)) or shutil.which("pnnx")
    assert pnnx, "pnnx belongs to the convert extra"
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6()),
        *(nn.Conv2d(16, 24, 1), nn.Hardswish(), nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(24, 8, 4, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 4, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)),
    ).eval()
    torch.jit.trace(net, torch.zeros(1, 3, 22, 22)).save(str(tmp_path / "m.pt"))
    command = [pnnx, "m.pt", "inputshape=[1,3,22,22]", "fp16=0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    files = tmp_path / "m.ncnn.param", tmp_path / "m.ncnn.bin"
    model = read_model(*files)
    assert [path.read_bytes() for path in again(model, tmp_path)] == [path.read_bytes() for path in files]

    weights = {name: p.detach().numpy() for name, p in net.named_parameters() if name.endswith("weight")}
    matched = match_weights(model, weights)
    assert set(matched.values()) == set(weights) - {"8.weight"}, "all but the transposed convolution"

    images = pictures(4)
    int8 = quantize(model, observe(model, images))
    for image, found in zip(images, run(int8, images, int8.outputs()), strict=True):
        expected = net(torch.from_numpy(image[None])).detach().numpy().ravel()
        assert np.abs(next(iter(found.values())) - expected).max() < 0.02 * np.abs(expected).max()
