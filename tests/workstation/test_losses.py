"""Variants that do not pass cost a bundle only themselves; where too little passes, an older bundle stays."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import parity
from pipnet_edge.bundle import Bundle, File
from pipnet_edge.converters import Plan, convert, cores, demo, losses, variants
from pipnet_edge.converters.checkpoint.read import Options
from pipnet_edge.converters.graph import convolutions
from pipnet_edge.converters.losses import Losses, verified
from pipnet_edge.converters.quantize import prepare
from pipnet_edge.converters.quantize.prepare import Prepared
from pipnet_edge.converters.quantize.scheme import SAFE
from pipnet_edge.errors import CHECK_FAILED, EdgeError

pytestmark = pytest.mark.usefixtures("cache", "one_thread")

QUICK = ("--calibrate", demo.FACES, "--calibrate-count", 16, "--rounding", "nearest", "--ranges", "minmax")
NAMES = ["outputs_cls", "outputs_x", "outputs_y", "outputs_nb_x", "outputs_nb_y"]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_net: Callable[[], nn.Module]) -> tuple[object, ...]:
    """The smallest network, as five maps in ONNX. Its offsets are so large that half precision moves them by pixels."""
    monkeypatch.chdir(tmp_path)
    image = torch.zeros(1, 3, 64, 64)
    torch.onnx.export(tiny_net(), (image,), "tiny.onnx", input_names=["img"], output_names=NAMES, dynamo=False)
    Path("five.txt").write_text("0.2 0.2 0.8 0.3 0.5 0.5 0.3 0.8 0.7 0.9\n")
    return "tiny.onnx", "--meanface", "five.txt"


EXAMPLE = Path(__file__).resolve().parent.parent / "golden" / "bundle" / "example"


def older(place: Path) -> dict[str, bytes]:
    """A bundle that is at this place already."""
    shutil.copytree(EXAMPLE, place)
    return contents(place)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_holds_what_passed(tmp_path, say, net, cli):
    old = tmp_path / "b"
    old.mkdir()
    code, _, error = say("convert", *net, "--to", "onnx", "--precision", "fp32", "-o", old)
    assert code == 0, error
    before = bundles.read(old)
    words = ("convert", *net, "--to", "ncnn", "--precision", "fp32,fp16", "-o", old)
    code, out, error = say(*words)
    assert code == 3
    assert error == "pipnet-edge convert: without ncnn-fp16, which did not pass; the others are in " + str(old)
    (line,) = (line for line in out.splitlines() if line.startswith("without"))
    assert line.startswith("without ncnn-fp16: ")
    assert "px between landmarks on average (limit 0.25)" in line
    assert line.endswith("; ncnn-fp32 passed")
    made = bundles.read(old)
    assert [variant.name for variant in made.variants] == ["ncnn-fp32"] != [v.name for v in before.variants]
    assert sorted(path.name for path in old.iterdir()) == ["golden.npz", "manifest.json", "ncnn-fp32"]
    assert say("inspect", old)[0] == 0
    code, out, _ = say(*words, "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["error"]["code"]) == (3, False, 3)
    assert list(found["result"]["lost"]) == ["ncnn-fp16"]
    assert [variant["name"] for variant in found["result"]["variants"]] == ["ncnn-fp32"]


def test_a_converter_that_fails_costs_its_variant(tmp_path, say, net, monkeypatch):
    def of_float(exported, destination, precision, folder, real=variants.of_float):
        made = real(exported, destination, precision, folder)
        if destination == "ncnn":
            raise EdgeError("pnnx failed (SIGSEGV): it printed nothing")
        return made

    monkeypatch.setattr(variants, "of_float", of_float)
    code, out, _ = say("convert", *net, "--to", "ncnn,onnx", "--precision", "fp32", "-o", tmp_path / "b")
    assert code == 3
    assert "without ncnn-fp32: pnnx failed (SIGSEGV): it printed nothing\n" in out
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["golden.npz", "manifest.json", "onnx-fp32"]
    # A full disk would cost the others too.
    monkeypatch.setattr(losses, "is_full", lambda _: True)
    code, out, error = say("convert", *net, "--to", "ncnn,onnx", "--precision", "fp32", "-o", tmp_path / "c")
    assert (code, out) == (1, "")
    assert "pnnx failed" in error
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("precisions", "fails", "message"),
    [("fp16", {"fp16"}, "no variant passed"), ("fp32,fp16", {"fp32"}, "no fp32 variant passed")],
)
def test_too_little_for_a_bundle(tmp_path, say, net, monkeypatch, precisions, fails, message):
    before = older(tmp_path / "b")

    def verify(bundle, real=parity.verify):
        found = real(bundle)
        bad = EdgeError("9 px between landmarks on average (limit 1)", CHECK_FAILED)
        passed = next(iter(found.values()))
        return {v.name: bad if v.precision in fails else passed for v in bundle.variants}

    monkeypatch.setattr(parity, "verify", verify)
    code, out, error = say("convert", *net, "--to", "mnn", "--precision", precisions, "-o", tmp_path / "b")
    assert code == 3
    assert error == f"pipnet-edge convert: {message}, so nothing is written"
    lost = [line for line in out.splitlines() if line.startswith("without ")]
    assert lost == [f"without mnn-{name}: 9 px between landmarks on average (limit 1)" for name in fails]
    assert contents(tmp_path / "b") == before


def test_who_is_not_told_gets_the_first_loss_as_an_error(tmp_path, net):
    plan = Plan(("mnn",), ("fp32", "fp16"))
    with pytest.raises(EdgeError, match=r"^mnn-fp16: .*px between landmarks") as caught:
        convert(Path(net[0]), tmp_path / "b", plan, Options(meanface=Path("five.txt")), parity.verify)
    assert caught.value.code == 3
    assert not (tmp_path / "b").exists()


def test_float64_is_asked_where_fp32_fails_and_only_there(tmp_path):
    """Two float32 engines may differ without either being wrong."""
    given = bundles.read(EXAMPLE)
    asked, bad = [], EdgeError("1 px", CHECK_FAILED)
    told: dict[str, EdgeError] = {}

    def run(fails: str, until: int) -> Bundle:
        asked.clear()
        told.clear()
        bundle = replace(given, folder=tmp_path)

        def arbitrate() -> File:
            asked.append(fails)
            return replace(given.golden, sha256="1" * 64)

        def verify(found):
            wrong = len(asked) < until
            return {v.name: bad if v.name == fails and wrong else v.parity for v in found.variants}

        plan = Plan(("onnx",), ("fp32", "int8"))
        return verified(bundle, verify, arbitrate, Losses(plan, tmp_path, told.__setitem__))

    made = run("null-fp32", 1)
    assert (asked, told, made.golden.sha256) == (["null-fp32"], {}, "1" * 64)
    assert bundles.read(tmp_path).golden.sha256 == "1" * 64
    assert made.calibration
    made = run("null-int8", 9)
    assert (asked, list(told), made.golden) == ([], ["null-int8"], given.golden)
    assert [variant.name for variant in made.variants] == ["null-fp32"]
    # Nothing in it is quantized any more.
    assert made.calibration is None
    with pytest.raises(EdgeError, match="no fp32 variant passed"):
        run("null-fp32", 9)
    assert asked == ["null-fp32"]


def test_int8_without_an_int8_layer_is_not_written(tmp_path, tiny_prepared: Prepared):
    networks = cores.Cores({SAFE: tiny_prepared}, tmp_path, simplify=True, is_sparse=False)
    every = tuple(convolutions(tiny_prepared.float_))
    with pytest.raises(EdgeError, match="all of its layers stay in float, so it would be int8 by name only") as caught:
        variants.quantized(networks, prepare.Options("minmax", "nearest"), "onnx", "int8", tmp_path, every)
    assert caught.value.code == 3


def test_int8_that_drifts_is_searched_without_being_asked(tmp_path, say, net):
    """It is a network of random weights, so that no search would be enough."""
    faces = ("--calibrate", demo.CALIBRATION, *QUICK[2:])
    words = ("convert", *net, *faces, "--to", "onnx", "--heads", "dense", "-o", tmp_path / "b")
    code, out, error = say(*words)
    assert (code, error[:45]) == (3, "pipnet-edge convert: without onnx-int8, which")
    (line,) = (line for line in out.splitlines() if line.startswith("without"))
    assert re.match(
        r"without onnx-int8: drifts [\d.]+px \(limit 0.5px\), at best [\d.]+px with \d layers in float", line
    )
    assert line.endswith("px or none allows that; onnx-fp32 passed")
    assert [variant.name for variant in bundles.read(tmp_path / "b").variants] == ["onnx-fp32"]


def test_drift_that_nobody_judged_is_said(tmp_path, say, net):
    words = ("convert", *net, *QUICK, "--to", "onnx", "--heads", "dense", "--precision", "int8", "-o", tmp_path / "b")
    code, out, _ = say(*words)
    note = "how far quantized variants drift is not judged: 25 faces, at least 80 are needed for that"
    assert code in (0, 3)
    assert note in out.splitlines()
    assert "is not judged" not in say(*words, "--max-drift", "none")[1]
