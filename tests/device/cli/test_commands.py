"""Commands that go well: what they print, and one JSON envelope."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipnet_edge import host, runtimes
from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import Decoder
from pipnet_edge.defaults import choose

Run = Callable[..., subprocess.CompletedProcess[str]]
Envelope = Callable[..., dict[str, Any]]
RUNTIME_PACKAGES = [module for name in runtimes.DESTINATIONS for module in runtimes.RUNTIMES[name].modules]


def test_inspect(run: Run, envelope: Envelope, null_bundle: Bundle) -> None:
    result = run("inspect", null_bundle.folder)
    assert (result.returncode, result.stderr) == (0, "")
    for text in ("resnet18", "5 (five), 2 neighbours each", "96 x 96 px, net stride 32", "1.23 M", "null-fp16"):
        assert text in result.stdout
    found = envelope(run("inspect", null_bundle.folder, "--json"), "inspect")
    here = found.pop("here")
    assert found == json.loads(json.dumps({**null_bundle.to_json(), "damaged": {}}))
    assert here == json.loads(json.dumps(asdict(choose(null_bundle, None, None, host.default_threads()))))
    assert here["note"].startswith("null-fp32: ")
    assert f"run here: null-fp32, {here['threads']} thread" in result.stdout
    assert f"; {here['note']}\n" in result.stdout


def test_inspect_says_it_where_nothing_can_run(
    run: Run, envelope: Envelope, bundle: Bundle, without: Callable[..., dict[str, str]]
) -> None:
    first = bundle.variants[0]
    replace(bundle, variants=(replace(first, name="ncnn-fp32", runtime="ncnn"),)).write_manifest()
    env = without("ncnn")
    result = run("inspect", bundle.folder, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    assert "run here: none of this bundle's runtimes is installed: pip install one of ncnn\n" in result.stdout
    assert envelope(run("inspect", bundle.folder, "--json", env=env), "inspect")["here"] is None


def test_inspect_says_what_is_damaged(run: Run, bundle: Bundle) -> None:
    path = bundle.folder / "null-fp16" / "golden.npz"
    path.write_bytes(path.read_bytes()[:100])
    size = bundle.variant("null-fp16").size
    result = run("inspect", bundle.folder)
    fault = f"null-fp16/golden.npz was changed after it was written (100 bytes, not {size})"
    assert result.returncode == 1
    assert result.stderr == f"pipnet-edge inspect: {bundle.folder} is damaged: {fault}\n"
    assert f"damaged: {fault}\n" in result.stdout
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("null-fp")}
    assert rows["null-fp16"].endswith("  damaged")
    assert "damaged" not in rows["null-fp32"]
    path.unlink()
    (bundle.folder / "golden.npz").write_bytes(bytes((bundle.folder / "golden.npz").stat().st_size))
    result = run("inspect", bundle.folder, "--json")
    assert json.loads(result.stdout)["result"]["damaged"] == {
        "golden": ["golden.npz was changed after it was written (sha256 differs)"],
        "null-fp16": ["null-fp16/golden.npz is missing"],
    }
    assert "(and 1 more)" in json.loads(result.stdout)["error"]["message"]


def test_parity(run: Run, envelope: Envelope, null_bundle: Bundle) -> None:
    result = run("parity", cwd=null_bundle.folder.parent)  # ./bundle
    assert result.returncode == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()[2:4]] == [["null-fp32", "ok"], ["null-fp16", "ok"]]
    assert "against torch" in result.stdout
    assert [line for line in result.stderr.splitlines() if "Error" in line or "Traceback" in line] == []
    found = envelope(run("parity", null_bundle.folder, "--variant", "null-fp16", "--json"), "parity")
    (row,) = found["rows"]
    assert row["variant"] == "null-fp16"
    assert (row["flips"], row["px_mean"], row["px_max"], row["images"]) == (0, 0.0, 0.0, 3)
    assert "failure" not in row


def test_run(run: Run, envelope: Envelope, null_bundle: Bundle, image: Path, tmp_path: Path) -> None:
    arguments = ("run", null_bundle.folder, image, "--whole", "--variant", "null-fp32", "-o", tmp_path / "out.png")
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 face, 5 landmarks each, by null-fp32" in result.stdout
    found = envelope(run(*arguments, "--json"), "run")
    expected = Decoder(null_bundle.spec)(null_bundle.read_golden()[1])
    (face,) = found["faces"]
    np.testing.assert_allclose(face["points"], expected.points[0] * 96, atol=0.006)
    np.testing.assert_allclose(face["scores"], expected.score[0], atol=1e-4)
    assert found["landmarks"] == 5
    assert cv2.imread(str(tmp_path / "out.png")) is not None
    assert json.loads((tmp_path / "out.json").read_text()) == found


def test_run_in_the_default_places(run: Run, null_bundle: Bundle, image: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(null_bundle.folder)
    assert run("run", image, "--whole", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "face-landmarks.json", "face-landmarks.png"]


def test_run_with_boxes(run: Run, envelope: Envelope, null_bundle: Bundle, tmp_path: Path) -> None:
    crops = null_bundle.read_golden()[0]
    picture: NDArray[np.uint8] = np.zeros((400, 300, 3), dtype=np.uint8)
    picture[100:196, 40:136], picture[200:296, 150:246] = crops[0], crops[2]
    cv2.imwrite(str(tmp_path / "two.png"), picture[:, :, ::-1])
    boxes = ("--box", "48,108,80,80", "--box", "158,208,80,80", "--crop", "test")
    result = run("run", null_bundle.folder, "two.png", *boxes, "--json", cwd=tmp_path)
    found = envelope(result, "run")
    assert [face["rect"] for face in found["faces"]] == [[40, 100, 136, 196], [150, 200, 246, 296]]
    expected = Decoder(null_bundle.spec)(null_bundle.read_golden()[1]).points[[0, 2]] * 96 + [[[40, 100]], [[150, 200]]]
    np.testing.assert_allclose([face["points"] for face in found["faces"]], expected, atol=0.006)


def test_doctor_without_runtimes(run: Run, envelope: Envelope, without: Callable[..., dict[str, str]]) -> None:
    result = run("doctor", "--json", env=without(*RUNTIME_PACKAGES))
    found = envelope(result, "doctor")
    assert {name: r["result"] for name, r in found["runtimes"].items()} == dict.fromkeys(
        runtimes.DESTINATIONS, "absent"
    )
    assert found["machine"]["machine"]


def test_doctor_on_this_machine(run: Run, envelope: Envelope) -> None:
    found = envelope(run("doctor", "--json"), "doctor")["runtimes"]
    for name, result in found.items():
        assert result["result"] == ("absent" if runtimes.is_missing(name) else "PASS"), result["detail"]
