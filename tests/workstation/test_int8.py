"""int8 as a user makes it: whole commands, real faces, every runtime, and everything that can go wrong on the way."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import drift, labels, metrics, parity
from pipnet_edge.benchmarks.judge import judge
from pipnet_edge.bundle import Bundle
from pipnet_edge.cli.app import main
from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.network import maps_of
from pipnet_edge.converters.mnn import int8
from pipnet_edge.converters.ncnn import model as ncnn_model
from pipnet_edge.converters.quantize import calibration
from pipnet_edge.converters.tflite import file as tflite_file
from pipnet_edge.decode import Decoder, Landmarks
from pipnet_edge.worker import call as calls

RUNTIMES = ("onnx", "ncnn", "mnn", "tflite")
LABELS = demo.FACES / "labels.txt"
NET = (demo.CHECKPOINT, "--data", "300w")
QUICK = ("--calibrate-count", 16, "--rounding", "nearest", "--ranges", "minmax")
HEADS = {f"heads.{name}": "heads" for name in ("score", "offset_x", "offset_y", "neighbor_x", "neighbor_y")}

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test finds the weights that another rounded. One thread, which a busy machine slows down least."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """Runs a command in this process, which has torch already: (exit status, stdout, stderr without the progress)."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipnet-edge", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capfd.readouterr()
        return int(done.value.code or 0), out, "\n".join(line for line in err.splitlines() if line[:1] != "[")

    yield run
    signal.signal(signal.SIGTERM, before)


def faces(folder: Path, count: int, source: Path = demo.CALIBRATION) -> Path:
    folder.mkdir()
    for path in sorted(source.glob("*.jpg"))[:count]:
        shutil.copy(path, folder)
    return folder


# --- What all four runtimes hold.


def onnx_weights(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Layer -> int8 weights (out, in / groups, height, width), layer -> steps (out,)."""
    model = onnx.load(folder / "onnx-int8" / "model.onnx")
    every = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    whole = {name: value for name, value in every.items() if name.endswith(".weight") and value.dtype == np.int8}
    return whole, {name: every[f"{name}/step"] for name in whole}


def multiset(weights: Any) -> list[tuple[tuple[int, ...], bytes]]:
    return sorted((weight.shape, weight.tobytes()) for weight in weights)


def test_all_runtimes_hold_the_same_integers(demo_bundle):
    whole, steps = onnx_weights(demo_bundle)
    assert len(whole) == 52
    assert all(np.abs(weight).reshape(len(weight), -1).max(axis=1).min() == 127 for weight in whole.values())
    heads, others = tflite_weights(demo_bundle)
    first = next(weight for weight in whole.values() if weight.shape[1] == 3)
    arranged = [in_pairs(weight) if weight is first else weight for weight in whole.values()]
    assert multiset(tflite_file.out_first(*pair) for pair in others) == multiset(arranged)
    assert [tensor.kind for _, tensor in heads] == [np.int8] * 2
    assert multiset(int8.int8_weights(demo_bundle / "mnn-int8" / "model.mnn").values()) == multiset(whole.values())

    folder = demo_bundle / "ncnn-int8"
    layers = ncnn_model.read_model(folder / "model.param", folder / "model.bin").layers
    deep = {name: weight for name, weight in whole.items() if weight.shape[1:] == (1, 3, 3)}
    plain = [weight.ravel() for name, weight in whole.items() if name not in deep]
    stored = [layer.arrays["weight"] for layer in layers if layer.kind == "Convolution"]
    assert multiset(weight for weight in stored if weight.dtype == np.int8) == multiset(plain)
    # The score's; the others are decode's.
    assert len([weight for weight in stored if weight.dtype != np.int8]) == 1
    # Depthwise layers compute in float there, with values on the same grids.
    in_float = [layer.arrays["weight"] for layer in layers if layer.kind == "ConvolutionDepthWise"]
    grids = [(deep[name] * steps[name][:, None, None, None]).ravel() for name in deep]
    for weight in in_float:
        same = [grid for grid in grids if grid.shape == weight.shape and np.allclose(grid, weight, rtol=1e-5, atol=0)]
        assert len(same) == 1
    assert len(in_float) == len(grids) == 17


def tflite_weights(bundle: Path, precision: str = "int8") -> tuple[list[Any], list[Any]]:
    """A TFLite file's convolutions and their weights: its heads, the score's first, and all others."""
    every = tflite_file.weights(tflite_file.read(bundle / f"tflite-{precision}" / "model.tflite"))
    heads = [pair for pair in every if pair[1].data.shape[0] in (68, 68 * 2 * 11)]
    return sorted(heads, key=lambda pair: len(pair[1].data)), [pair for pair in every if pair not in heads]


def in_pairs(weight: np.ndarray) -> np.ndarray:
    """A 3x3 weight of three channels as TFLite has it: over two pixels as one, whose first starts a pixel earlier."""
    out = len(weight)
    wider = np.concatenate([np.zeros((out, 3, 3, 1), np.int8), weight], axis=3)
    return np.ascontiguousarray(wider.reshape(out, 3, 3, 2, 2).transpose(0, 4, 1, 2, 3)).reshape(out, 6, 3, 2)


def test_heads_inside_are_those_beside_others_rounded(demo_bundle):
    """Whole numbers times steps lie near the weights: sequential rounding moves some further, to make up for others."""
    heads, _ = tflite_weights(demo_bundle)
    every = {t.name: t for t in onnx.load(demo_bundle / "onnx-int8" / "model.onnx").graph.initializer}
    offsets = bundles.read(demo_bundle).read_heads("onnx-int8")
    score = onnx.numpy_helper.to_array(every["heads.score.weight"]).reshape(68, 1280)
    for (convolution, tensor), weight in zip(heads, (score, offsets.weight.reshape(-1, 1280)), strict=True):
        stored = tflite_file.out_first(convolution, tensor)[:, :, 0, 0]
        assert (np.abs(stored).max(1) == 127).all()
        moved = np.abs(stored - weight / tensor.step[:, None])
        assert moved.max() <= 4
        assert moved.mean() <= 0.35
    (_, _), (convolution, _) = heads
    # Which take the mean error that is left.
    assert np.abs(tflite_file.bias(convolution).data - offsets.bias.ravel()).max() <= 0.01


def test_drift_on_faces_that_nobody_has_seen(demo_bundle):
    bundle = bundles.read(demo_bundle)
    crops = parity.crops_of(parity.images_in(demo.FACES), bundle.spec.input_size)
    truth = calls.infer(calls.here, demo_bundle, "onnx-fp32", 1, crops).landmarks
    found = {name: calls.infer(calls.here, demo_bundle, f"{name}-int8", 1, crops).landmarks for name in RUNTIMES}
    px = {name: distance(landmarks, truth, bundle) for name, landmarks in found.items()}
    for name, landmarks in found.items():
        assert 0.01 < px[name] <= 0.35
        assert (landmarks.cell != truth.cell).mean() <= 0.03
    for one, other in itertools.combinations(RUNTIMES, 2):
        assert distance(found[one], found[other], bundle) <= 1.5 * max(px[one], px[other])


def distance(a: Landmarks, b: Landmarks, bundle: Bundle) -> float:
    return float(metrics.measure(a, b, bundle.spec).px.mean())


def test_manifest_tells_how_variants_were_quantized(demo_bundle):
    bundle = bundles.read(demo_bundle)
    pictures = [path.read_bytes() for path in demo.CALIBRATION.glob("*.jpg")]
    assert bundle.calibration
    assert len(bundle.calibration.images) == len(pictures) == 117
    known = drift.overlap(sorted(demo.CALIBRATION.glob("*.jpg")), frozenset(bundle.calibration.images))
    assert len(known) == 117
    for variant in bundle.variants:
        how = variant.quantization
        assert (how is not None) == (variant.precision == "int8")
        for file in variant.files:
            file.verified(demo_bundle)
        if how:
            # TFLite has int8 weights in its heads too.
            kept = {} if variant.runtime == "tflite" else HEADS
            assert (how.ranges, how.rounding, how.kept, how.budget) == ("mse", "sequential", kept, None)
            assert how.mean == tuple(round(255 * m) / 255 for m in bundle.spec.mean)
            assert how.std == (1 / 255,) * 3


def size_of_heads(folder: Path, runtime: str, precision: str) -> int:
    """Bytes of weights: all in a TFLite file, elsewhere the score's in the model and the others beside it."""
    if runtime == "tflite":
        return sum(tensor.data.nbytes for _, tensor in tflite_weights(folder, precision)[0])
    beside = (folder / f"{runtime}-{precision}" / "heads.npz").stat().st_size
    return 4 * 68 * 1280 + beside


def test_sizes_without_the_heads(demo_bundle):
    bundle = bundles.read(demo_bundle)
    for runtime in RUNTIMES:
        heads = [size_of_heads(demo_bundle, runtime, precision) for precision in ("fp32", "int8")]
        assert 4 * 68 * 23 * 1280 <= heads[0] <= 8.1e6
        # int8 weights inside TFLite, half precision beside the others.
        assert heads[1] <= (0.26 if runtime == "tflite" else 0.55) * heads[0]
        sizes = [bundle.variant(f"{runtime}-{precision}").size for precision in ("fp32", "int8")]
        whole, less = (size - part for size, part in zip(sizes, heads, strict=True))
        # TFLite stores 12 bytes of step and zero point for every output calls.
        assert less <= 0.3 * whole


def test_the_same_seed_gives_the_same_files(tmp_path, cli, monkeypatch):
    """Also without the cache of the first time; another seed gives other faces. Small crops are quicker."""
    words = ("convert", *NET, "--calibrate", demo.CALIBRATION, *QUICK, "--input-size", 128, "--precision", "int8")
    for name, options in (
        ("one", ("--to", "onnx,ncnn")),
        ("two", ("--to", "ncnn,onnx")),
        ("other", ("--to", "onnx", "--seed", 1)),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{name}"))
        done = cli(*words, *options, "-o", tmp_path / name, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ok"]
        assert len(list((tmp_path / f"cache-{name}").rglob("*.pt"))) == 1
    one, two, other = (bundles.read(tmp_path / name) for name in ("one", "two", "other"))
    assert one.calibration == two.calibration
    for name in ("onnx-int8", "ncnn-int8"):
        assert one.variant(name).files == two.variant(name).files
    assert one.calibration
    assert other.calibration
    assert one.calibration.sha256 != other.calibration.sha256
    assert one.variant("onnx-int8").files != other.variant("onnx-int8").files


# --- What a user gets wrong.


def spoilt(folder: Path, kind: str) -> Path:
    faces(folder, 20)
    for path in sorted(folder.iterdir()):
        if kind == "black":
            path.write_bytes(cv2.imencode(".jpg", np.zeros((256, 256, 3), np.uint8))[1].tobytes())
        else:
            path.write_bytes(path.read_bytes()[:9000])
    return folder


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that the next tests get wrong."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    faces(folder / "fifteen", 15)
    spoilt(folder / "cut", "cut")
    spoilt(folder / "black", "black")
    lines = LABELS.read_text().splitlines()
    (folder / "short.txt").write_text("\n".join([*lines[:2], lines[2].rpartition(" ")[0], *lines[3:]]))
    (folder / "strangers.txt").write_text("\n".join(f"no{line}" for line in lines))
    names = sorted(path.name for path in demo.CALIBRATION.glob("*.jpg"))
    (folder / "98.txt").write_text("\n".join(name + " 0.25 0.75" * 98 for name in names))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int8"), "go together; given: --precision int8 and no --calibrate"),
        (("--precision", "fp32", "--calibrate", "fifteen"), "given: --precision fp32 --calibrate fifteen"),
        (("--precision", "fp32", "--max-drift", "0.5px"), "--max-drift 0.5px says nothing without --calibrate FOLDER"),
        (("--precision", "fp32", "--calibrate-labels", "98.txt"), "--calibrate-labels 98.txt says nothing without"),
        (("--calibrate", "empty"), "no image in empty"),
        (("--calibrate", "nothing"), "there is no image folder nothing"),
        (("--calibrate", "98.txt"), "there is no image folder 98.txt"),
        (("--calibrate", "fifteen"), "15 images to calibrate with; at least 16 are needed"),
        (("--calibrate", "cut"), ".jpg is not an image that OpenCV can read, or is cut off"),
        (("--calibrate", "black"), "shows nothing but one colour (as do 19 more of 20 calibration images)"),
        (("--calibrate", demo.FACES, "--calibrate-labels", "nothing"), "there is no label file nothing"),
        (
            ("--calibrate", demo.FACES, "--calibrate-labels", "short.txt"),
            "short.txt line 3: 135 coordinates; 136 are needed for 68 landmarks",
        ),
        (
            ("--calibrate", demo.FACES, "--calibrate-labels", "strangers.txt"),
            "strangers.txt: none of its 25 labels (no",
        ),
        (("--calibrate", demo.FACES, "--calibrate-count", 15), "15 calibration images; at least 16 are needed"),
        (("--calibrate", demo.FACES, "--ranges", "best"), "--ranges best; allowed: minmax, percentile, kl, mse"),
        (("--calibrate", demo.FACES, "--rounding", "up"), "--rounding up; allowed: sequential, nearest"),
        (("--calibrate", demo.FACES, "--max-drift", "0.5"), "budget '0.5'; allowed: a number and px or nme"),
        (("--calibrate", demo.FACES, "--max-drift", "-1px"), "budget '-1px'; allowed: a number and px or nme"),
        (("--calibrate", demo.FACES, "--max-drift", ""), "budget ''; allowed: a number and px or nme"),
        (("--calibrate", demo.FACES, "--max-drift", "1px"), "25 faces; a budget needs at least 80"),
        (("--calibrate", demo.CALIBRATION, "--max-drift", "0.02nme"), "a budget of 0.02nme needs labels"),
        (
            ("--calibrate", demo.CALIBRATION, "--calibrate-labels", "98.txt", "--max-drift", "1nme"),
            "needs labels of 68 landmarks, as the checkpoint has; --calibrate-labels has 98",
        ),
        (
            ("--calibrate", demo.FACES, "--to", "ncnn", "--precision", "int16x8"),
            "ncnn has no int16x8 variant",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(wrong, say, cache, monkeypatch, words, message):
    monkeypatch.chdir(wrong)
    before = sorted(wrong.rglob("*"))
    code, out, error = say("convert", *NET, "--to", "onnx", *words)
    assert code == 1
    assert message in error
    assert len(error.splitlines()) == 1
    assert out == ""
    assert sorted(wrong.rglob("*")) == before
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--calibrate", demo.FACES), "25 faces; a budget needs at least 80"),
        (("--calibrate", demo.CALIBRATION, "--faces", 24), "24 faces to measure on; 23 of the 117 faces are held"),
        (("--calibrate", demo.CALIBRATION, "--precision", "w8"), "--precision w8; allowed: int8, int8-full"),
        (("--calibrate", demo.CALIBRATION, "--ranges", "best"), "--ranges best; allowed: "),
        (("--calibrate", demo.CALIBRATION, "-o", "nowhere/s.png"), "there is no folder nowhere"),
        (("--calibrate", demo.CALIBRATION, "-o", "s.txt"), "cannot write a picture as s.txt; use .png or .jpg"),
    ],
)
def test_mistakes_with_sensitivity(tmp_path, say, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, error = say("sensitivity", *NET, *words)
    assert (code, out) == (1, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# --- A budget.


def test_layers_return_to_float_until_the_budget_holds(tmp_path, cli):
    """Measured again here, on the faces that were held out. Crops of 192 pixels are quicker."""
    limit = "0.22px"
    folder = faces(tmp_path / "faces", 80)
    options = ("--input-size", 192, "--to", "onnx", "--precision", "int8", "--max-drift", limit)
    done = cli("convert", *NET, "--calibrate", folder, *QUICK, *options, "-o", tmp_path / "b", "--json")
    assert done.returncode == 0, done.stderr
    bundle = bundles.read(tmp_path / "b")
    (variant,) = bundle.variants
    how = variant.quantization
    assert how
    spent = how.budget
    assert spent
    assert json.loads(done.stdout)["result"]["variants"][0]["quantization"]["budget"]["layers"] == list(spent.layers)
    assert (spent.limit, spent.images) == (limit, 16)
    assert spent.layers
    assert dict.fromkeys(spent.layers, "budget") | HEADS == how.kept
    assert spent.drift[0] > 0.3
    assert spent.drift[1] <= 0.22
    assert min(spent.milliseconds) > 0
    assert spent.size[0] < spent.size[1] == variant.size
    kept = {f"{name}.weight" for name in spent.layers}
    assert len(onnx_weights(tmp_path / "b")[0]) == 52 - len(kept)

    apart = calibration.split([(path, None) for path in folder.iterdir()], 16, 0)[1]
    crops = calibration.choose(apart, 192, len(apart)).crops
    network = checkpoints.load(demo.CHECKPOINT, checkpoints.Options(data="300w", input_size=192))
    truth = Decoder(network.spec)(maps_of(network, crops))
    assert judge(bundle, variant.name, crops, truth)["px"] == pytest.approx(spent.drift[1], rel=1e-3)
    assert bundle.calibration
    assert drift.overlap([path for path, _ in apart], frozenset(bundle.calibration.images)) == []


def test_a_budget_that_cannot_be_met(tmp_path, say, monkeypatch, tiny_net):
    """The smallest network, as five maps in ONNX, because every number of layers is tried. Its offsets are so large
    that heads in half precision would drift by pixels.
    """
    monkeypatch.chdir(tmp_path)
    names = ["outputs_cls", "outputs_x", "outputs_y", "outputs_nb_x", "outputs_nb_y"]
    image = torch.zeros(1, 3, 64, 64)
    torch.onnx.export(tiny_net(), (image,), "tiny.onnx", input_names=["img"], output_names=names, dynamo=False)
    Path("five.txt").write_text("0.2 0.2 0.8 0.3 0.5 0.5 0.3 0.8 0.7 0.9\n")
    before = sorted(tmp_path.iterdir())
    options = ("--calibrate", demo.CALIBRATION, *QUICK, "--to", "onnx", "--heads", "dense", "--precision", "int8")
    code, _, error = say("convert", "tiny.onnx", "--meanface", "five.txt", *options, "--max-drift", "0px")
    assert code == 3
    assert "onnx-int8 cannot be kept within 0px: with all 11 layers in float it still drifts 0." in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


# --- What is said of a bundle and of a network.


def test_drift_tells_that_faces_were_calibrated_with(tmp_path, demo_bundle, say):
    folder = faces(tmp_path / "faces", 4)
    shutil.copy(sorted(demo.FACES.glob("*.jpg"))[0], folder)
    words = ("drift", demo_bundle, "--images", folder, "--variant", "onnx-int8", "-o", tmp_path / "out")
    note = "4 of these images were used to calibrate, so quantized variants look better than they are: 001_03.jpg, "
    code, out, error = say(*words)
    assert (code, error) == (0, "")
    assert note in out
    code, out, _ = say(*words, "--json")
    assert [text[: len(note)] for text in json.loads(out)["result"]["notes"]] == [note]
    code, out, _ = say("drift", demo_bundle, "--images", demo.FACES, *words[4:], "--json")
    assert json.loads(out)["result"]["notes"] == []


def test_sensitivity(tmp_path, say):
    output = tmp_path / "s.png"
    words = ("sensitivity", *NET, "--calibrate", faces(tmp_path / "faces", 80), *QUICK, "--faces", 1, "-o", output)
    code, table, error = say(*words)
    assert (code, error) == (0, "")
    picture = cv2.imread(str(output))
    assert picture.shape[0] > 52 * 20
    assert picture.std() > 10
    code, out, _ = say(*words, "--json")
    rows = json.loads(out)["result"]["layers"]
    assert len(rows) == 52
    assert not {row["layer"] for row in rows} & HEADS.keys()
    # The rest is the heads'.
    assert sum(row["params"] for row in rows) == pytest.approx(0.5224, abs=1e-4)
    for row in rows:
        assert f"{row['layer'].removeprefix('backbone.')} " in table
        assert row["px_alone"] >= 0


def test_what_labels_leave_out_is_said(tmp_path, say):
    folder = faces(tmp_path / "faces", 25, demo.FACES)
    shutil.copy(next(demo.CALIBRATION.glob("001*.jpg")), folder)
    options = (*QUICK, "--input-size", 128, "--to", "onnx", "--precision", "int8", "-o", tmp_path / "b")
    code, out, error = say("convert", *NET, "--calibrate", folder, "--calibrate-labels", LABELS, *options)
    assert code == 0, error
    assert "1 images without a label: 001_03.jpg" in out
    known = bundles.read(tmp_path / "b").calibration
    assert known
    assert drift.overlap(labels.image_folder(folder).images, frozenset(known.images))
    assert drift.overlap([folder / "001_03.jpg"], frozenset(known.images)) == []


# --- Interrupted, and nowhere to write.


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_rounding(tmp_path, cache, sent):
    words = ["convert", *map(str, NET), "--calibrate", str(demo.CALIBRATION), "--to", "onnx", "--precision", "int8"]
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *words, "--calibrate-count", "16", "--ranges", "minmax"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stderr
    for line in run.stderr:
        if "round backbone.features.2." in line:
            break
    time.sleep(0.2)
    # A terminal's Ctrl-C reaches the whole group, a `kill` the command alone.
    os.killpg(run.pid, sent) if sent == signal.SIGINT else os.kill(run.pid, sent)
    stderr = run.stderr.read()
    assert run.wait(timeout=20) == 130
    lines = [line for line in stderr.splitlines() if line[:1] != "["]
    assert lines == ["pipnet-edge convert: interrupted; nothing half-written was left"]
    assert list(tmp_path.iterdir()) == []
    assert [path for path in (cache / "pipnet-edge").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("options", ["ro,size=1m", "size=1m"])
def test_a_cache_that_cannot_be_written(tmp_path, isolated, options):
    """Costs the next run some time, and this one nothing."""
    (tmp_path / "disk").mkdir()
    words = [*map(str, NET), "--calibrate", str(demo.CALIBRATION), *map(str, QUICK), "--input-size", "128"]
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "convert", *words, "--to", "onnx", "--precision", "int8"]
    mount = f"mount -t tmpfs -o {options} tmpfs disk"
    script = f'{mount} && XDG_CACHE_HOME=$PWD/disk "$@"; code=$?; find disk/pipnet-edge -type f; exit $code'
    run = [*isolated, "sh", "-c", script, "sh", *command, "--json"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"]
    assert len(bundles.read(tmp_path / "bundle").variants) == 1
