"""docs/bundle-format.md is enough to read a bundle: the device half, and a reader that was written from that page alone
(tests/golden/bundle/reader.py), both give what the vectors there say.
"""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import decode as decoding
from pipnet_edge import preprocess
from pipnet_edge.errors import EdgeError
from pipnet_edge.manifest import Manifest
from pipnet_edge.spec import MeanFace, ModelSpec, mean_faces, neighbour_table

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VECTORS = GOLDEN / "bundle"
EXAMPLE = VECTORS / "example"
MANIFEST = (EXAMPLE / "manifest.json").read_text()
Arrays = dict[str, NDArray[Any]]
REFUSALS = (EdgeError, ValueError, KeyError, OSError)


def vectors(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def array(value: Any) -> NDArray[np.float32]:
    return np.array(value["data"], np.float32).reshape(value["shape"])


# --- The two readers, one face.


READER = SimpleNamespace(**runpy.run_path(str(VECTORS / "reader.py")))


def golden(folder: Path) -> Arrays:
    crops, maps = bundles.read(folder).read_golden()
    return {"crops": crops, **vars(maps)}


def heads(folder: Path, variant: str) -> Arrays | None:
    bundle = bundles.read(folder)
    bundle.open_session(variant, 1).close()
    found = bundle.read_heads(variant)
    return vars(found) if found else None


def decode(about: dict[str, Any], outputs: Arrays, heads: Arrays | None) -> tuple[Any, Any, Any]:
    given = {name: about[name] for name in ("num_lms", "num_nb", "net_stride", "input_size", "clamp")}
    spec = ModelSpec("any", mean_face=face(about["points"]), **given)
    found = decoding.outputs(outputs, spec).from_outputs(outputs, spec)
    landmarks = decoding.Decoder(spec, decoding.Heads(**heads) if heads else None)(found)
    return landmarks.points, landmarks.score, landmarks.cell


def face(points: Any) -> MeanFace:
    return MeanFace("any", tuple((x, y) for x, y in points))


def rect(policy: str, box: Any, width: int, height: int) -> list[int]:
    found = preprocess.crop_rect(box, width, height, policy)
    return [found.left, found.top, found.right, found.bottom]


OURS = SimpleNamespace(
    manifest=bundles.read,
    golden=golden,
    heads=heads,
    table=lambda points, count: neighbour_table(face(points), count).tolist(),
    decode=decode,
    rect=rect,
    cut=lambda picture, rect, side: preprocess.cut(picture, preprocess.Rect(*rect), side),
    to_picture=lambda rect, points: preprocess.Rect(*rect).to_picture(points),
)


@pytest.fixture(params=[OURS, READER], ids=["device half", "independent reader"])
def reader(request: pytest.FixtureRequest) -> Any:
    return request.param


# --- The page and the code name the same fields.


def test_the_page_lists_the_fields_of_a_manifest() -> None:
    hints = {READER.TOP: Manifest, "Spec": ModelSpec, "MeanFace": MeanFace}
    names = ("File", "Source", "Calibration", "Layer", "Variant", "Parity", "Quantization", "Budget", "Tuned")
    for name, kind in {**hints, **{name: getattr(bundles, name) for name in names}}.items():
        expected = {field.name for field in fields(kind)} | (
            {"format", "version", "kind"} if name == READER.TOP else set()
        )
        assert READER.TABLES[name].keys() == expected, name


# --- Manifests and paths.


def edited(edit: dict[str, Any]) -> str:
    """The text of the example's manifest after an edit, as the page describes them."""
    if "find" in edit:
        assert MANIFEST.count(edit["find"]) == 1
        return MANIFEST.replace(edit["find"], edit["put"])
    manifest = json.loads(MANIFEST)
    *way, last = edit.get("set") or edit["remove"]
    place = manifest
    for step in way:
        place = place[step]
    if "set" in edit:
        place[last] = edit["value"]
    else:
        del place[last]
    return json.dumps(manifest)


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[str], Path]:
    """manifest(text): a bundle of which there is nothing but this manifest."""

    def write(text: str) -> Path:
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
        return tmp_path

    return write


EDITS = vectors("manifests")


def why(edit: Any) -> str:
    return edit["why"] if isinstance(edit, dict) else ""


@pytest.mark.parametrize("edit", EDITS["accepted"], ids=why)
def test_manifests_that_are_accepted(reader: Any, edit: Any, manifest: Callable[[str], Path]) -> None:
    reader.manifest(manifest(edited(edit)))


@pytest.mark.parametrize("edit", EDITS["refused"], ids=why)
def test_manifests_that_are_refused(reader: Any, edit: Any, manifest: Callable[[str], Path]) -> None:
    with pytest.raises(REFUSALS):
        reader.manifest(manifest(edited(edit)))


@pytest.mark.parametrize("text", EDITS["texts"])
def test_texts_that_are_no_manifest(reader: Any, text: str, manifest: Callable[[str], Path]) -> None:
    with pytest.raises(REFUSALS):
        reader.manifest(manifest(text))


@pytest.mark.parametrize("edit", EDITS["opened"], ids=why)
def test_files_that_are_refused_when_they_are_opened(reader: Any, edit: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "bundle")
    (folder / "manifest.json").write_text(edited(edit))
    reader.manifest(folder)
    with pytest.raises(REFUSALS):
        reader.golden(folder) if edit["open"] == "golden" else reader.heads(folder, edit["open"])


@pytest.mark.parametrize("place", [["golden", "path"], ["variants", 1, "files", 0, "path"]], ids=["golden", "variant"])
def test_paths(reader: Any, place: list[Any], manifest: Callable[[str], Path]) -> None:
    paths = vectors("paths")
    for path in paths["accepted"]:
        reader.manifest(manifest(edited({"set": place, "value": path})))
    for path in paths["refused"]:
        folder = manifest(edited({"set": place, "value": path}))
        with pytest.raises(REFUSALS):
            reader.manifest(folder)


# --- What a bundle holds.


def test_the_example_is_read_and_decoded(reader: Any) -> None:
    expected = vectors("example")
    reader.manifest(EXAMPLE)
    spec = json.loads(MANIFEST)["spec"]
    found = reader.golden(EXAMPLE)
    assert found["crops"].shape == (2, 48, 48, 3)
    for index in range(2):
        maps = {name: values[index] for name, values in found.items() if name != "crops"}
        points, score, cell = reader.decode({**spec, "points": spec["mean_face"]["points"]}, maps, None)
        np.testing.assert_allclose(points, array(expected["golden"]["points"])[index], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(score, array(expected["golden"]["score"])[index])
        np.testing.assert_array_equal(cell, array(expected["golden"]["cell"])[index])
    assert reader.heads(EXAMPLE, "null-fp32") is None
    opened = reader.heads(EXAMPLE, "null-int8")
    for name, values in expected["heads"].items():
        assert opened[name].dtype == np.float32
        np.testing.assert_array_equal(opened[name], array(values))


def test_which_bundle_it_is() -> None:
    assert bundles.read(EXAMPLE).sha256 == vectors("example")["sha256"]


def test_every_optional_field_of_the_example_is_in_use() -> None:
    def absent(value: Any) -> bool:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return value in ({}, []) or any(map(absent, inner))

    manifest = json.loads(MANIFEST)
    assert not absent(manifest)
    assert None not in (manifest["calibration"], manifest["variants"][1]["quantization"]["budget"])


# --- Neighbours and decode.


@pytest.mark.parametrize("case", vectors("neighbours"), ids=lambda case: case["name"])
def test_neighbour_tables(reader: Any, case: Any) -> None:
    assert reader.table(case["points"], case["num_nb"]) == case["table"]
    assert READER.neighbours(case["points"], case["num_nb"]) == case["neighbours"]


CASES = {case["name"]: case for case in vectors("decode")["cases"]}


def decoded(reader: Any, case: Any, outputs: Arrays) -> tuple[Any, Any, Any]:
    heads = {name: array(values) for name, values in case["heads"].items()} if case["heads"] else None
    found: tuple[Any, Any, Any] = reader.decode(case["spec"], outputs, heads)
    return found


@pytest.mark.parametrize("name", CASES)
def test_decode(reader: Any, name: str) -> None:
    case = CASES[name]
    outputs = {output: array(values) for output, values in case["outputs"].items()}
    points, score, cell = decoded(reader, case, outputs)
    np.testing.assert_allclose(points, array(case["points"]), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(score, array(case["score"]))
    np.testing.assert_array_equal(cell, array(case["cell"]))


@pytest.mark.parametrize("spoilt", vectors("decode")["refused"], ids=lambda s: f"{s['case']}: {s['output']}")
def test_outputs_that_are_refused(reader: Any, spoilt: Any) -> None:
    case, name = CASES[spoilt["case"]], spoilt["output"]
    outputs = {output: array(values) for output, values in case["outputs"].items()}
    if "set" in spoilt:
        outputs[name].flat[spoilt["set"]] = float(spoilt["value"])
    elif "drop" in spoilt:
        outputs[name] = outputs[name].ravel()[: -spoilt["drop"]]
    else:
        del outputs[name]
    with pytest.raises(REFUSALS):
        decoded(reader, case, outputs)


def test_features_need_heads(reader: Any) -> None:
    case = CASES["features and heads"]
    outputs = {output: array(values) for output, values in case["outputs"].items()}
    with pytest.raises(REFUSALS):
        reader.decode(case["spec"], outputs, None)


INDEX = json.loads((GOLDEN / "index.json").read_text())


@pytest.mark.parametrize("name", INDEX)
def test_the_original_s_landmarks(reader: Any, name: str) -> None:
    """tests/golden's larger cases: maps, table and landmarks of PIPNet's own code."""
    about = INDEX[name]
    points = mean_faces()[about["data"].lower().removeprefix("data_").replace("_", "-")].points
    theirs = {"score": "cls", "offset_x": "x", "offset_y": "y", "neighbor_x": "nb_x", "neighbor_y": "nb_y"}
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        outputs = {ours: arrays[key] for ours, key in theirs.items()}
        expected, scores = arrays["merged"], arrays["max_cls"]
        table = (arrays["reverse_index1"] * about["num_nb"] + arrays["reverse_index2"]).reshape(len(points), -1)
    assert reader.table(points, about["num_nb"]) == table.tolist()
    found, score, _ = reader.decode({**about, "points": points, "clamp": False}, outputs, None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * max(1.0, np.abs(expected).max()))
    np.testing.assert_array_equal(score, scores)


# --- Crops.


@pytest.mark.parametrize("case", vectors("crops")["crops"], ids=lambda case: f"{case['policy']} {case['box']}")
def test_crops(reader: Any, case: Any) -> None:
    if case["rect"]:
        assert reader.rect(case["policy"], case["box"], *case["picture"]) == case["rect"]
    else:
        with pytest.raises(REFUSALS):
            reader.rect(case["policy"], case["box"], *case["picture"])


def test_landmarks_go_back_to_the_picture(reader: Any) -> None:
    for case in vectors("crops")["landmarks"]:
        found = reader.to_picture(case["rect"], array(case["points"]))
        np.testing.assert_allclose(found, array(case["pixels"]), rtol=1e-6)


@pytest.mark.parametrize("case", vectors("resize"), ids=lambda case: f"{case['rect']} to {case['side']}")
def test_resizing(reader: Any, case: Any) -> None:
    picture, expected = array(case["picture"]).astype(np.uint8), array(case["crop"])
    found = reader.cut(picture, case["rect"], case["side"])
    assert np.abs(found.astype(np.float64) - expected).max() <= 1
