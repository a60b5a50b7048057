"""docs/bundle-format.md is enough to read a detector's bundle: the device half, and the reader that was written from
that page alone (tests/golden/bundle/reader.py), both give what the vectors there say.
"""

from __future__ import annotations

import json
import runpy
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge.detect import spec as specs
from pipnet_edge.detect.decode import BoxMaps, decode
from pipnet_edge.errors import EdgeError
from pipnet_edge.manifest import DetectorManifest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VECTORS = GOLDEN / "bundle"
EXAMPLE = VECTORS / "detector"
MANIFEST = (EXAMPLE / "manifest.json").read_text()
EDITS = json.loads((VECTORS / "detectors.json").read_text())
EXPECTED = json.loads((VECTORS / "detector.json").read_text())
READER = SimpleNamespace(**runpy.run_path(str(VECTORS / "reader.py")))
FACES = SimpleNamespace(**runpy.run_path(str(GOLDEN / "detect" / "reader.py")))
REFUSALS = (EdgeError, ValueError, KeyError, OSError)
Size = tuple[int, int]


# --- The two readers, one face.


def files(folder: Path, variant: str, size: Size) -> list[str]:
    """The files that are open once a variant is: those that it refuses if they are changed."""

    def opens() -> bool:
        try:
            bundle.open_session(variant, 1, size).close()
        except EdgeError as e:
            return "was changed after it was written" not in str(e)
        return True

    bundles.read_detector(folder).open_session(variant, 1, size).close()
    with tempfile.TemporaryDirectory() as scratch:
        bundle, found = bundles.read_detector(shutil.copytree(folder, Path(scratch, "copy"))), []
        for path in (bundle.folder / file.path for file in bundle.variant(variant).files):
            content = path.read_bytes()
            path.write_bytes(content + b"x")
            found += [] if opens() else [path.relative_to(bundle.folder).as_posix()]
            path.write_bytes(content)
    return sorted(found)


def ours(folder: Path, size: Size) -> tuple[NDArray[np.uint8], list[Any]]:
    pictures, maps = bundles.read_detector(folder).read_golden(size)
    sized = bundles.read_detector(folder).spec.at(size)
    return pictures, [rows(decode(each, sized)) for each in maps]


def rows(faces: Any) -> list[Any]:
    return np.column_stack([faces.boxes, faces.scores]).tolist()


def theirs(folder: Path, size: Size) -> tuple[NDArray[np.uint8], list[Any]]:
    """The page on detection has the second half."""
    arrays, spec = READER.detector_golden(folder, size), json.loads((folder / "manifest.json").read_text())["spec"]
    pictures = arrays.pop("pictures")
    each = ({name: values[index] for name, values in arrays.items()} for index in range(len(pictures)))
    return pictures, [[[*box, score] for box, score in FACES.faces(spec, size, maps)] for maps in each]


OURS = SimpleNamespace(detector=bundles.read_detector, landmarks=bundles.read, golden=ours, files=files)
THEIRS = SimpleNamespace(
    detector=READER.detector, landmarks=READER.manifest, golden=theirs, files=READER.detector_files
)


@pytest.fixture(params=[OURS, THEIRS], ids=["device half", "independent reader"])
def reader(request: pytest.FixtureRequest) -> Any:
    return request.param


def edited(edit: dict[str, Any], folder: Path, text: str = MANIFEST) -> Path:
    """A folder with the example's manifest after an edit."""
    manifest = json.loads(text)
    *way, last = edit.get("set") or edit["remove"]
    place = manifest
    for step in way:
        place = place[step]
    if "set" in edit:
        place[last] = edit["value"]
    else:
        del place[last]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def why(edit: Any) -> str:
    return edit["why"] if isinstance(edit, dict) else ""


# --- Manifests.


def test_the_page_lists_the_fields_of_a_detector_s_manifest() -> None:
    names = ("DetectorSpec", "Level", "Prior", "Margins")
    kinds = {name: getattr(specs, name) for name in names} | {"FacesParity": bundles.FacesParity}
    for name, kind in kinds.items():
        assert READER.TABLES[name].keys() == {field.name for field in fields(kind)}, name
    top = {field.name for field in fields(DetectorManifest)} | {"format", "version", "kind"}
    assert READER.TABLES[READER.TOP].keys() == top


@pytest.mark.parametrize("edit", EDITS["accepted"], ids=why)
def test_manifests_that_are_accepted(reader: Any, edit: Any, tmp_path: Path) -> None:
    reader.detector(edited(edit, tmp_path))


@pytest.mark.parametrize("edit", EDITS["refused"], ids=why)
def test_manifests_that_are_refused(reader: Any, edit: Any, tmp_path: Path) -> None:
    with pytest.raises(REFUSALS):
        reader.detector(edited(edit, tmp_path))


@pytest.mark.parametrize("edit", EDITS["opened"], ids=why)
def test_files_that_are_refused_when_they_are_opened(reader: Any, edit: Any, tmp_path: Path) -> None:
    folder, size = shutil.copytree(EXAMPLE, tmp_path / "bundle"), tuple(edit["size"])
    reader.detector(edited(edit, folder))
    with pytest.raises(REFUSALS):
        reader.golden(folder, size) if edit["open"] == "golden" else reader.files(folder, edit["open"], size)


def test_a_bundle_of_the_other_kind(reader: Any, tmp_path: Path) -> None:
    with pytest.raises(REFUSALS):
        reader.landmarks(EXAMPLE)
    with pytest.raises(REFUSALS):
        reader.detector(VECTORS / "example")
    # Nor is one that only says so.
    folder = edited({"set": ["kind"], "value": "detector"}, tmp_path, (VECTORS / "example/manifest.json").read_text())
    with pytest.raises(REFUSALS):
        reader.detector(folder)
    with pytest.raises(REFUSALS):
        reader.landmarks(edited({"set": ["kind"], "value": "landmarks"}, tmp_path))


# --- What the example holds.


@pytest.mark.parametrize("size", [(48, 32), (32, 32)], ids=specs.named)
def test_the_golden_pictures_and_their_faces(reader: Any, size: Size) -> None:
    expected = EXPECTED["faces"][specs.named(size)]
    pictures, found = reader.golden(EXAMPLE, size)
    assert pictures.shape == (len(expected), size[1], size[0], 3)
    assert [len(faces) for faces in found] == [len(faces) for faces in expected]
    for faces, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.reshape(faces, (-1, 5)), np.reshape(wanted, (-1, 5)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", EXPECTED["files"])
def test_the_files_of_each_size(reader: Any, variant: str) -> None:
    for size, expected in EXPECTED["files"][variant].items():
        width, height = map(int, size.split("x"))
        assert reader.files(EXAMPLE, variant, (width, height)) == expected


def test_files_of_the_size_go_before_those_of_all_sizes(reader: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "bundle")
    general = json.loads(MANIFEST)["variants"][1]["files"][0] | {"path": "null-fp32/./golden.npz"}
    shutil.copy(folder / "null-int8/golden.npz", folder / "null-fp32")
    files = [*json.loads(MANIFEST)["variants"][0]["files"], general]
    edited({"set": ["variants", 0, "files"], "value": files}, folder)
    assert reader.files(folder, "null-fp32", (48, 32)) == ["null-fp32/48x32/golden.npz"]
    assert reader.files(folder, "null-fp32", (64, 32)) == ["null-fp32/golden.npz"]


def test_a_variant_gives_the_golden_maps() -> None:
    bundle = bundles.read_detector(EXAMPLE)
    for size in bundle.spec.input_sizes:
        pictures, maps = bundle.read_golden(size)
        session = bundle.open_session("null-fp32", 1, size)
        for picture, wanted in zip(pictures, maps, strict=True):
            found = session.run(picture)
            assert isinstance(found, BoxMaps)
            np.testing.assert_array_equal(found.boxes, wanted.boxes)
            np.testing.assert_array_equal(found.logits, wanted.logits)
        session.close()


def test_which_bundle_it_is() -> None:
    assert bundles.read_detector(EXAMPLE).sha256 == EXPECTED["sha256"]


def test_every_optional_field_of_the_example_is_in_use() -> None:
    manifest = json.loads(MANIFEST)
    assert all(manifest[name] for name in ("calibration", "tuned", "layers"))
    assert all(variant["parity"] and variant["tools"] for variant in manifest["variants"])
    assert manifest["variants"][1]["quantization"]["budget"]
