"""Bundles without offset heads give what whole ones give, in every runtime, and cost less by their heads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipnet_edge.benchmarks.accuracy import parity
from pipnet_edge.bundle import HEADS, Bundle, Calibration, File, Source, read
from pipnet_edge.converters import Quantize, cores, demo, golden
from pipnet_edge.converters.checkpoint import layers
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.destination import grids
from pipnet_edge.converters.faces import gather
from pipnet_edge.converters.quantize.prepare import Options, prepare
from pipnet_edge.converters.quantize.scheme import FULL
from pipnet_edge.converters.tflite import editor
from pipnet_edge.converters.tflite import file as tflite_file
from pipnet_edge.converters.variants import of_float, quantized
from pipnet_edge.decode import MAP_NAMES, Decoder, Features, Landmarks, Maps, Output, Winners
from pipnet_edge.runtimes import DESTINATIONS
from pipnet_edge.spec import ModelSpec
from pipnet_edge.targets.predicted import cost
from pipnet_edge.worker import call as calls

OFFSET_HEADS = {f"heads.{name}" for name in MAP_NAMES[1:]}
# What splits, in every runtime that has it, with the heads in a file beside the model or inside it; what stays whole.
FLOAT = [(runtime, "fp32") for runtime in ("onnx", "ncnn", "mnn", "tflite")]
METHODS = Options("minmax", "nearest")
INSIDE = [("tflite", "fp32"), ("tflite", "int8"), ("tflite", "int16x8")]
SPLIT = [*FLOAT, ("onnx", "int8"), *INSIDE[1:]]
WHOLE = [("onnx", "int8-full"), ("onnx", "w8")]
Make = Callable[[], nn.Module]


@pytest.fixture(scope="module")
def quantize(tiny_calibration) -> Quantize:
    return Quantize(dict.fromkeys(tiny_calibration.faces), 25, 0, METHODS.ranges, METHODS.rounding)


Variants = list[tuple[str, str]]
MakeBundle = Callable[[nn.Module, str, Variants], Bundle]


@pytest.fixture(scope="module")
def make(tiny_spec: ModelSpec, quantize: Quantize, tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """make(net, heads, variants): a bundle of these variants, written to disk and not yet checked."""

    def bundle_of(net: nn.Module, heads: str, variants: Variants) -> Bundle:
        folder, work = tmp_path_factory.mktemp("bundle"), tmp_path_factory.mktemp("work")
        network, is_sparse = Network(tiny_spec, net, 0), heads == "sparse"
        exported = cores.export(net, tiny_spec, work / "float", simplify=True, is_sparse=is_sparse)
        golden.write(folder / "golden.npz", network)
        rounded, calibration = None, None
        if any(precision != "fp32" for _, precision in variants):
            faces = gather(quantize, network).calibration
            # ONNX Runtime gets TFLite's grid too, so that what both compute can be compared.
            prepared = dict.fromkeys(grids(DESTINATIONS), prepare(network, faces, METHODS, [FULL])[FULL])
            rounded = cores.Cores(prepared, work, simplify=True, is_sparse=is_sparse)
            calibration = Calibration(faces.sha256, faces.images)
        made = tuple(
            of_float(exported, runtime, precision, folder)
            if precision == "fp32"
            else quantized(rounded, METHODS, runtime, precision, folder)
            for runtime, precision in variants
        )
        bundle = Bundle(
            spec=tiny_spec,
            source=Source("tiny.pth", "0" * 64, 1, (1, 1), (1, 1)),
            golden=File.of(folder, folder / "golden.npz"),
            variants=made,
            layers=layers.of(net, tiny_spec.size),
            calibration=calibration,
            folder=folder,
        )
        bundle.write_manifest()
        return bundle

    return bundle_of


def with_small_offsets(net: nn.Module) -> nn.Module:
    """Landmarks within a crop or two, as those of trained networks are, so that pixels mean something."""
    for name, head in net.heads.items():
        if name != "score":
            head.weight.div_(100)
            head.bias.div_(100)
    return net


def with_wide_head(net: nn.Module) -> nn.Module:
    """One head is a 3x3 convolution, so that the network cannot be split."""
    torch.manual_seed(0)
    rows = net.heads["offset_x"].out_channels
    net.heads["offset_x"] = nn.Conv2d(16, rows, 3, padding=1).requires_grad_(False)
    return net.eval()


@pytest.fixture(scope="module")
def split_bundle(make: MakeBundle, tiny_net: Make, one_thread: None) -> Bundle:
    return make(with_small_offsets(tiny_net()), "sparse", SPLIT + WHOLE)


@pytest.fixture(scope="module")
def whole_bundle(make: MakeBundle, tiny_net: Make, one_thread: None) -> Bundle:
    # Without TFLite's, which takes longest to make.
    return make(with_small_offsets(tiny_net()), "dense", [*FLOAT[:3], ("onnx", "int8")])


def names(variants: Variants) -> list[str]:
    return [f"{runtime}-{precision}" for runtime, precision in variants]


def outputs_of(bundle: Bundle, name: str, crops: np.ndarray) -> list[Output]:
    session = bundle.open_session(name, 1)
    found = [session.run(crop) for crop in crops]
    session.close()
    return found


def landmarks_of(bundle: Bundle, name: str, crops: np.ndarray) -> Landmarks:
    decode = bundle.decoder(name)
    found = [decode(output) for output in outputs_of(bundle, name, crops)]
    return Landmarks(*(np.stack([getattr(each, part) for each in found]) for part in ("points", "score", "cell")))


def test_which_variants_have_heads_of_their_own(split_bundle: Bundle, whole_bundle: Bundle) -> None:
    beside = names([each for each in SPLIT if each not in INSIDE])
    for bundle, sparse_ones, with_heads in ((split_bundle, names(SPLIT), beside), (whole_bundle, [], [])):
        for told in (bundle, read(bundle.folder)):
            assert [variant.name for variant in told.variants if variant.is_sparse] == sparse_ones
        assert [variant.name for variant in bundle.variants if variant.heads] == with_heads
        for variant in bundle.variants:
            assert (bundle.folder / variant.name / HEADS).is_file() == (variant.name in with_heads)
            assert (bundle.read_heads(variant.name) is None) == (variant.name not in with_heads)


def test_split_variants_pass_parity(split_bundle: Bundle) -> None:
    rows = parity.check(split_bundle, names(FLOAT))
    assert [row.failure for row in rows] == [None] * len(FLOAT)
    # The maps that were compared are all five, though the networks give one.
    assert all(set(row.maps or ()) == set(MAP_NAMES) for row in rows)


@pytest.mark.parametrize(("first", "second"), [("fp32", "fp32"), ("int8", "fp32"), ("fp32", "int8")])
def test_networks_with_their_heads_inside_are_compared_at_winning_cells(
    split_bundle: Bundle, tiny_faces: np.ndarray, first: str, second: str
) -> None:
    """With each other, where neither has maps of all cells; a limit of what this small network drifts by."""
    crops, folder = tiny_faces[:6], split_bundle.folder
    both = [calls.infer(calls.here, folder, f"tflite-{kind}", 1, crops, maps=True) for kind in (first, second)]
    assert all(isinstance(ran.maps, Winners) for ran in both)
    row = parity.Row("tflite-int8", "tflite-fp32", len(crops), 5)
    want, got = ((ran.landmarks, ran.maps) for ran in both)
    found = parity.compare(split_bundle.variant("tflite-int8"), row, 64, want, got)
    assert found.failure is None
    largest = max(largest for largest, _ in found.maps.values())
    assert (largest == 0) == (first == second)


@pytest.mark.parametrize("reference", ["tflite", "mnn"])
def test_pictures_are_compared_with_either_kind_of_reference(split_bundle: Bundle, reference: str) -> None:
    """The first fp32 variant, which has maps of all cells or not, against one that has and one that has not."""
    order = sorted(split_bundle.variants, key=lambda variant: variant.runtime != reference)
    pictures = parity.images_in(demo.FACES)[:3]
    rows = parity.check(replace(split_bundle, variants=tuple(order)), ["ncnn-fp32", "tflite-fp32"], images=pictures)
    assert [(row.reference, row.failure) for row in rows] == [(f"{reference}-fp32", None)] * 2
    assert all(set(row.maps or ()) == set(MAP_NAMES) for row in rows)


def changed(bundle: Bundle, name: str, file: str, change: Callable[[Path], None], folder: Path) -> Bundle:
    """A copy with a file of one variant changed, and a manifest that vouches for it."""
    shutil.copytree(bundle.folder, folder)
    path = folder / name / file
    change(path)
    variants = (
        replace(v, files=tuple(File.of(folder, folder / f.path) for f in v.files)) if v.name == name else v
        for v in bundle.variants
    )
    made = replace(bundle, folder=folder, variants=tuple(variants))
    made.write_manifest()
    return made


def test_swapped_outputs_fail_parity(whole_bundle: Bundle, tmp_path: Path) -> None:
    """x and y have the same shape: only the values tell that a model's outputs are named wrongly."""

    def swap(path: Path) -> None:
        others = {"offset_x": "offset_y", "offset_y": "offset_x"}
        lines = [" ".join(others.get(word, word) for word in line.split()) for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")

    (row,) = parity.check(changed(whole_bundle, "ncnn-fp32", "model.param", swap, tmp_path / "b"), ["ncnn-fp32"])
    assert row.failure
    assert row.worst_map in ("offset_x", "offset_y")


def test_swapped_heads_inside_fail_parity(split_bundle: Bundle, tmp_path: Path) -> None:
    """The same of a model that has no maps: rows of the convolution that gives the landmarks' own offsets."""

    def swap(path: Path) -> None:
        model = editor.load(path.read_bytes())
        (graph,) = model.subgraphs
        (weight,) = (tensor for tensor in graph.tensors if tuple(tensor.shape) == (30, 1, 1, 16))
        rows = np.frombuffer(bytes(model.buffers[weight.buffer].data), np.float32).reshape(5, 2, 3, 16).copy()
        rows[:, :, 0] = rows[:, ::-1, 0].copy()
        model.buffers[weight.buffer].data = np.frombuffer(rows.tobytes(), np.uint8)
        path.write_bytes(editor.dump(model))

    (row,) = parity.check(changed(split_bundle, "tflite-fp32", "model.tflite", swap, tmp_path / "b"), ["tflite-fp32"])
    assert row.failure
    assert row.worst_map in ("offset_x", "offset_y")


@pytest.mark.parametrize("name", [*names(FLOAT), "onnx-int8"])
def test_split_and_whole_variants_give_the_same_landmarks(
    split_bundle: Bundle, whole_bundle: Bundle, tiny_faces: np.ndarray, name: str
) -> None:
    crops, both = tiny_faces[:6], ((split_bundle, name), (whole_bundle, name.replace("tflite", "onnx")))
    kind = Winners if name in names(INSIDE) else Features
    assert [type(outputs_of(*each, crops[:1])[0]) for each in both] == [kind, Maps]
    ours, theirs = (landmarks_of(*each, crops) for each in both)
    np.testing.assert_array_equal(ours.cell, theirs.cell)
    np.testing.assert_allclose(ours.score, theirs.score, rtol=1e-5)
    # Half-precision heads beside int8 networks move landmarks a little.
    limit = 1e-4 if name.endswith("fp32") else 0.05
    assert np.abs(ours.points - theirs.points).max() * split_bundle.spec.input_size <= limit


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.5), ("int16x8", 0.35)])
def test_landmarks_of_quantized_networks_with_their_heads_inside(
    split_bundle: Bundle, tiny_faces: np.ndarray, precision: str, limit: float
) -> None:
    ours, exact = (landmarks_of(split_bundle, f"tflite-{each}", tiny_faces) for each in (precision, "fp32"))
    same = ours.cell == exact.cell
    assert same.mean() > 0.85
    off = np.linalg.norm(ours.points - exact.points, axis=-1)[same.all(axis=1)] * split_bundle.spec.input_size
    assert 0 < off.mean() < limit


def test_int8_features_are_what_the_heads_read(
    split_bundle: Bundle, whole_bundle: Bundle, tiny_faces: np.ndarray
) -> None:
    """The whole variant's heads have the same weights, but for half precision: so have its maps."""
    heads, both = split_bundle.read_heads("onnx-int8"), (split_bundle, whole_bundle)
    assert heads
    for found, maps in zip(*(outputs_of(each, "onnx-int8", tiny_faces[:3]) for each in both), strict=True):
        assert isinstance(found, Features)
        dense = heads.maps(found)
        for part in MAP_NAMES:
            want = getattr(maps, part)
            assert np.abs(getattr(dense, part) - want).max() <= 1e-3 * np.abs(want).max(), part


def test_int8_winners_are_the_same_in_tflite(split_bundle: Bundle, tiny_faces: np.ndarray) -> None:
    """Which has the same features inside, and makes offsets of them with weights and features in int8."""
    heads = split_bundle.read_heads("onnx-int8")
    assert heads
    both = (outputs_of(split_bundle, name, tiny_faces[:6]) for name in ("tflite-int8", "onnx-int8"))
    for ours, features in zip(*both, strict=True):
        cells = Decoder(split_bundle.spec, heads)(features).cell
        theirs = Winners.at(heads.maps(features), cells)
        assert ours.offsets.shape == theirs.offsets.shape == (5, 2, 3)
        for part, most in (("score", 0.01), ("offsets", 0.02)):
            got, want = getattr(ours, part), getattr(theirs, part)
            assert got.dtype == np.float32
            assert np.sqrt(np.mean((got - want) ** 2)) <= most * want.std()


def test_int8_heads_inside_lie_on_the_grid_that_rounding_chose(split_bundle: Bundle) -> None:
    """They are the very integers, and steps, of the variant whose heads are int8 layers like all others."""
    stored = tflite_file.weights(tflite_file.read(split_bundle.folder / "tflite-int8" / "model.tflite"))
    inside = {len(tensor.data): tensor for _, tensor in stored if tensor.data.shape[1:] == (1, 1, 16)}
    model = onnx.load(split_bundle.folder / "onnx-int8-full" / "model.onnx")
    every = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def of_a_landmark(head: str, part: str) -> np.ndarray:
        return every[f"heads.{head}.weight{part}"].reshape(5, -1, 1 if part else 16)

    def offsets(part: str) -> np.ndarray:
        axes = [[of_a_landmark(f"{kind}_{axis}", part) for kind in ("offset", "neighbor")] for axis in ("x", "y")]
        return np.stack([np.concatenate(axis, axis=1) for axis in axes], axis=1)

    for rows, wanted in ((5, lambda part: of_a_landmark("score", part)), (30, offsets)):
        assert inside[rows].kind == np.int8
        np.testing.assert_array_equal(inside[rows].data.ravel(), wanted("").ravel())
        np.testing.assert_allclose(inside[rows].scale, wanted("/step").ravel(), rtol=1e-6)


def test_what_int8_variants_keep_in_float(split_bundle: Bundle) -> None:
    """Heads inside have int8 weights, the score's too; with others decode computes them in float."""
    kept = {name: split_bundle.variant(name).quantization.kept for name in ("onnx-int8", "tflite-int8")}
    assert kept["onnx-int8"] == dict.fromkeys((*OFFSET_HEADS, "heads.score"), "heads")
    assert kept["tflite-int8"] == {}


def test_winners_travel_from_a_worker(split_bundle: Bundle, tiny_faces: np.ndarray) -> None:
    crops = tiny_faces[:4]
    found = calls.infer(calls.here, split_bundle.folder, "tflite-int8", 1, crops, maps=True)
    assert isinstance(found.maps, Winners)
    for index, output in enumerate(outputs_of(split_bundle, "tflite-int8", crops)):
        np.testing.assert_array_equal(found.maps.score[index], output.score)
        np.testing.assert_array_equal(found.maps.offsets[index], output.offsets)
    again = landmarks_of(split_bundle, "tflite-int8", crops)
    np.testing.assert_array_equal(found.landmarks.points, again.points)


def test_split_variants_cost_less_by_their_heads(split_bundle: Bundle) -> None:
    spec, layers = split_bundle.spec, {layer.name: layer for layer in split_bundle.layers}
    assert {name for name, layer in layers.items() if layer.is_offset_head} == OFFSET_HEADS
    by_hand = 2 * spec.num_lms * (1 + spec.num_nb) * 16
    whole = cost.of(split_bundle, split_bundle.variant("onnx-w8"))
    for name in names(SPLIT):
        found = cost.of(split_bundle, split_bundle.variant(name))
        assert whole.weights - found.weights == by_hand
        assert whole.macs - found.macs == by_hand * spec.grid**2
        assert len(whole.layers) - len(found.layers) == len(OFFSET_HEADS)
    # The score head, which int8 variants leave in float, is still there.
    in_float = cost.of(split_bundle, split_bundle.variant("onnx-int8")).part(in_float=True)
    assert in_float.macs == spec.num_lms * 16 * spec.grid**2
    full = cost.of(split_bundle, split_bundle.variant("onnx-int8-full"))
    assert (full.macs, full.part(in_float=True).macs) == (whole.macs, 0)


def test_a_network_that_cannot_be_split_can_be_converted_whole(
    make: MakeBundle, tiny_net: Make, one_thread: None
) -> None:
    net = with_small_offsets(with_wide_head(tiny_net()))
    bundle = make(net, "dense", [("onnx", "fp32"), ("onnx", "int8")])
    assert not any(variant.heads for variant in bundle.variants)
    assert [row.failure for row in parity.check(bundle, ["onnx-fp32"])] == [None]
    # Its wide head is counted, as it is in the network.
    heads = {layer.name: layer for layer in bundle.layers}["heads.offset_x"]
    assert heads.kernel == (3, 3)
    with_head = cost.of(bundle, bundle.variants[0])
    assert with_head.weights == sum(p.numel() for n, p in net.named_parameters() if n.endswith("weight"))


@pytest.mark.parametrize("order", [("int8", "int8-full"), ("int8-full", "int8")])
def test_int8_full_stays_whole_whatever_a_budget_keeps(
    tiny_net: Make, tiny_spec: ModelSpec, quantize: Quantize, tmp_path: Path, order: tuple[str, str], one_thread: None
) -> None:
    """Also with the heads in float, as int8 has them, and made before or after it."""
    folder, work = tmp_path / "bundle", tmp_path / "work"
    for each in (folder, work):
        each.mkdir()
    network = Network(tiny_spec, tiny_net(), 0)
    prepared = prepare(network, gather(quantize, network).calibration, METHODS, grids(["onnx"]))
    rounded = cores.Cores(prepared, work, simplify=True, is_sparse=True)
    kept = {"int8": (), "int8-full": ("heads.score", *OFFSET_HEADS)}
    made = {precision: quantized(rounded, METHODS, "onnx", precision, folder, kept[precision]) for precision in order}
    assert made["int8"].quantization.kept.keys() == made["int8-full"].quantization.kept.keys()
    assert made["int8"].heads
    assert not made["int8-full"].heads
