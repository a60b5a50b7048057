"""Bundles are untrusted when read: every way in which a folder is not the bundle that was written is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge.bundle import (
    GOLDEN,
    HEADS,
    MANIFEST,
    Bundle,
    Calibration,
    File,
    Parity,
    Quantization,
    Source,
    Tuned,
    Variant,
    read,
    replacing,
)
from pipnet_edge.decode import MAP_NAMES, Decoder, Features, Heads, Maps, map_shapes
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.worker import call as calls

Edit = Callable[[Path, tuple[str | int, ...], object], None]
SetGolden = Callable[[Path, bytes], None]
VARIANT_FILE = ("variants", 0, "files", 0)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        read(folder)
    assert caught.value.code == USER_ERROR
    assert "\n" not in str(caught.value)


# --- What was written is read.


def test_round_trip(bundle: Bundle) -> None:
    again = read(bundle.folder)
    assert again == bundle
    text = (bundle.folder / MANIFEST).read_text()
    again.write_manifest()
    assert (bundle.folder / MANIFEST).read_text() == text
    assert json.loads(text) == json.loads(json.dumps(again.to_json()))


def test_parity_tools_and_source_travel(bundle: Bundle) -> None:
    measured = Parity("torch", images=4, px_mean=0.001, px_max=0.25, flips=0)
    source = Source("ä.pth", "f" * 64, 7, (3, 2), (30, 20))
    first = replace(bundle.variants[0], parity=measured, tools={"numpy": "2.4"})
    written = replace(bundle, variants=(first, *bundle.variants[1:]), source=source)
    written.write_manifest()
    again = read(bundle.folder)
    assert again == written
    assert again.variants[0].parity == measured
    assert again.variants[1].parity is None


def test_sessions_replay_the_golden_maps(null_bundle: Bundle) -> None:
    crops, maps = null_bundle.read_golden()
    assert crops.dtype == np.uint8
    assert crops.shape == (3, 96, 96, 3)
    session = null_bundle.open_session("null-fp16", threads=2)
    for index, crop in enumerate(crops):
        found = session.run(crop)
        for name in MAP_NAMES:
            np.testing.assert_array_equal(getattr(found, name), getattr(maps, name)[index])
    with pytest.raises(EdgeError, match="this crop is none of them"):
        session.run(np.zeros_like(crops[0]))
    session.close()


def test_a_bundle_may_be_moved(bundle: Bundle, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    bundle.folder.rename(moved)
    read(moved).read_golden()
    read(moved).open_session("null-fp32", 1).close()


def test_files_are_hashed(bundle: Bundle) -> None:
    path = bundle.folder / "x.bin"
    path.write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2's example
    assert File.of(bundle.folder, path) == File("x.bin", sha256, 3)
    assert bundle.variants[0].size == (bundle.folder / "null-fp32/golden.npz").stat().st_size


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_variants_are_found_by_name(null_bundle: Bundle, precision: str) -> None:
    assert null_bundle.variant(f"null-{precision}").precision == precision
    with pytest.raises(EdgeError, match="has no variant 'ncnn-fp32', only null-fp32, null-fp16"):
        null_bundle.open_session("ncnn-fp32", 1)


# --- What tells two bundles apart.


def test_tuning_changes_how_a_bundle_is_run_but_not_what_it_is(bundle: Bundle) -> None:
    sha256 = bundle.sha256
    assert re.fullmatch("[0-9a-f]{64}", sha256)
    fast = Tuned("null-fp16", 2, (4, 5), 1.5, "numpy 2", "2026-01-02T03:04:05+00:00")
    for tuned in ({"board": fast}, {"board": replace(fast, ms=2.5), "another": fast}, {}):
        made = replace(bundle, tuned=tuned)
        made.write_manifest()
        assert made.sha256 == read(bundle.folder).sha256 == sha256


def test_a_bundle_is_the_same_wherever_it_lies_and_however_it_is_written(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy" / MANIFEST).read_text())
    (tmp_path / "copy" / MANIFEST).write_text(json.dumps(dict(reversed(manifest.items()))))
    assert read(tmp_path / "copy").sha256 == bundle.sha256


def test_anything_else_makes_another_bundle(bundle: Bundle) -> None:
    """Every number, name and list in the manifest, one at a time."""
    manifest, known = json.loads((bundle.folder / MANIFEST).read_text()), {bundle.sha256}
    first = bundle.variants[0]
    how = Quantization("minmax", "nearest", {"heads.score": "heads"}, (0.5,) * 3, (0.25,) * 3)
    of_a_variant: dict[str, Any] = {
        "files": (replace(first.files[0], sha256="3" * 64),),
        "tools": {"numpy": "3"},
        "parity": Parity("torch", 5, 0.1, 0.2, 0),
        "quantization": how,
        "is_sparse": True,
    }
    changed = [
        replace(bundle, spec=replace(bundle.spec, clamp=True)),
        replace(bundle, spec=replace(bundle.spec, mean=(0.5, 0.5, 0.5))),
        replace(bundle, source=replace(bundle.source, file="other.pth")),
        replace(bundle, golden=replace(bundle.golden, sha256="1" * 64)),
        replace(bundle, layers=bundle.layers[:-1]),
        replace(bundle, layers=(*bundle.layers[:-1], replace(bundle.layers[-1], is_offset_head=True))),
        replace(bundle, variants=bundle.variants[::-1]),
        replace(bundle, variants=bundle.variants[:1]),
        replace(bundle, calibration=Calibration("2" * 64, ())),
        *(
            replace(bundle, variants=(replace(first, **{name: value}), *bundle.variants[1:]))
            for name, value in of_a_variant.items()
        ),
    ]
    for made in changed:
        made.write_manifest()
        assert read(bundle.folder).sha256 == made.sha256
        known.add(made.sha256)
    assert len(known) == 1 + len(changed)
    # Every field of a manifest was changed, and of a variant all but the three that follow from each other.
    fields_changed = {"spec", "source", "golden", "calibration", "layers", "variants"}
    assert manifest.keys() - {"format", "version", "tuned"} == fields_changed
    assert manifest["variants"][0].keys() - {"name", "runtime", "precision"} == of_a_variant.keys()


# --- No manifest, or not one of ours.


def test_no_manifest(tmp_path: Path) -> None:
    refused(tmp_path, "manifest.json")
    refused(tmp_path / "missing", "missing.*manifest.json")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "file.*manifest.json")
    (tmp_path / MANIFEST).mkdir()
    refused(tmp_path, "manifest.json is not readable")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{} {}",
        b"{'format': 1}",
        b"\xff\xfe{\x00}\x00",
        b"\x80",
        b"PK\x03\x04",
        b"1" * 5000,
        pytest.param(b"[" * 200_000 + b"]" * 200_000, id="deep list"),
        pytest.param(b'{"format":' * 100_000 + b"1" + b"}" * 100_000, id="deep object"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    refused(tmp_path, "is not readable|is not a pipnet-edge-bundle manifest")


@pytest.mark.parametrize("content", ["[]", '["pipnet-edge-bundle"]', '"pipnet-edge-bundle"', "null", "1", "NaN", "{}"])
def test_manifests_that_are_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    refused(tmp_path, "is not a pipnet-edge-bundle manifest")


@pytest.mark.parametrize("value", ["pipnet-edge", "", None, ["pipnet-edge-bundle"]])
def test_wrong_format(bundle: Bundle, edit_manifest: Edit, value: object) -> None:
    edit_manifest(bundle.folder, ("format",), value)
    refused(bundle.folder, "is not a pipnet-edge-bundle manifest")


@pytest.mark.parametrize("value", [0, 1, bundles.VERSION + 1, "3", None, [3], True, 3.5])
def test_unknown_versions(bundle: Bundle, edit_manifest: Edit, value: object) -> None:
    edit_manifest(bundle.folder, ("version",), value)
    refused(bundle.folder, "has version .*, this program reads version 3")


# --- Layers.


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((), [], "has no layers"),
        ((0, "groups"), 0, "layer 'backbone' has a number that is not from 1 to 1048576"),
        ((0, "groups"), 2, "layer 'backbone' has not one input whose channels 2 groups divide"),
        ((0, "inputs"), [], "layer 'backbone' has not one input"),
        ((0, "inputs", 0, 1), 1 << 21, "layer 'backbone' has a number"),
        ((0, "inputs", 0), [3, 96], r"layers\[0\].inputs\[0\] has 2 entries, 3 are needed"),
        ((1, "output", 2), -1, "layer 'heads.score' has a number"),
        ((1, "stride", 0), 0, "layer 'heads.score' has a number"),
        ((1, "kernel", 1), 1.5, "is 1.5, int is needed"),
    ],
)
def test_layers_that_cannot_be(
    bundle: Bundle, edit_manifest: Edit, place: tuple[str | int, ...], value: object, message: str
) -> None:
    edit_manifest(bundle.folder, ("layers", *place), value)
    refused(bundle.folder, message)


def test_numbers_of_a_layer_stand_on_one_line(bundle: Bundle) -> None:
    first = replace(bundle.variants[0], tools={"[\n1,\n2]": "[\n 3\n]"})
    odd = replace(bundle, variants=(first, *bundle.variants[1:]))
    odd.write_manifest()
    lines = (bundle.folder / MANIFEST).read_text().splitlines()
    assert "    [3, 96, 96]" in lines
    assert '   "stride": [32, 32],' in lines
    # Numbers in text are left alone.
    written = json.loads("\n".join(lines))
    assert written == json.loads(json.dumps(odd.to_json()))


# --- Paths.


@pytest.mark.parametrize("place", [("golden", "path"), (*VARIANT_FILE, "path")])
@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "//server/share",
        "../golden.npz",
        "null-fp32/../../golden.npz",
        "..",
        "null-fp32/..",
        "null-fp32\\golden.npz",
        "..\\golden.npz",
        "\\\\server\\share",
        "C:/golden.npz",
        "c:golden.npz",
        "golden.npz:stream",
        "",
        ".",
        "./",
    ],
)
def test_paths_that_leave_the_bundle(
    bundle: Bundle, edit_manifest: Edit, place: tuple[str | int, ...], path: str
) -> None:
    edit_manifest(bundle.folder, place, path)
    refused(bundle.folder, "manifest names the path '.*', which leaves the bundle")


@pytest.mark.parametrize("path", ["golden\0.npz", "golden\n.npz", "x" * 5000, "a/" * 3000 + "b", "\ud800"])
def test_odd_paths_are_missing_files(bundle: Bundle, edit_manifest: Edit, path: str) -> None:
    edit_manifest(bundle.folder, ("golden", "path"), path)
    with pytest.raises(EdgeError) as caught:
        read(bundle.folder).read_golden()
    assert "\n" not in str(caught.value)


def test_links_that_leave_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside.npz"
    (bundle.folder / GOLDEN).rename(outside)
    (bundle.folder / GOLDEN).symlink_to(outside)
    with pytest.raises(EdgeError, match=r"golden\.npz in bundle .* is a link that leaves the bundle"):
        read(bundle.folder).read_golden()
    (bundle.folder / "null-fp32").rename(tmp_path / "moved")
    (bundle.folder / "null-fp32").symlink_to(tmp_path / "moved")
    with pytest.raises(EdgeError, match="is a link that leaves the bundle"):
        read(bundle.folder).open_session("null-fp32", 1)
    outside.unlink()
    with pytest.raises(EdgeError, match=r"lacks golden\.npz"):
        read(bundle.folder).read_golden()


def test_links_inside_the_bundle_and_to_the_bundle_are_followed(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.folder / GOLDEN).rename(bundle.folder / "kept.npz")
    (bundle.folder / GOLDEN).symlink_to("kept.npz")
    (tmp_path / "link").symlink_to(bundle.folder)
    assert len(read(tmp_path / "link").read_golden()[0]) == 3


# --- Files that are not those that were written.


def flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def appended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flipped_byte, appended, emptied])
def test_changed_files(bundle: Bundle, spoil: Callable[[Path], None]) -> None:
    spoil(bundle.folder / GOLDEN)
    with pytest.raises(EdgeError, match=r"golden\.npz in bundle .* was changed after it was written"):
        read(bundle.folder).read_golden()
    read(bundle.folder).open_session("null-fp32", 1).close()
    spoil(bundle.folder / "null-fp32" / "golden.npz")
    with pytest.raises(EdgeError, match=r"null-fp32/golden\.npz in bundle .* was changed"):
        read(bundle.folder).open_session("null-fp32", 1)
    read(bundle.folder).open_session("null-fp16", 1).close()


@pytest.mark.parametrize(("field", "value"), [("size", 1), ("size", -1), ("sha256", "0" * 64), ("sha256", "")])
def test_changed_manifests(bundle: Bundle, edit_manifest: Edit, field: str, value: object) -> None:
    edit_manifest(bundle.folder, ("golden", field), value)
    edit_manifest(bundle.folder, (*VARIANT_FILE, field), value)
    for use in (Bundle.read_golden, lambda b: b.open_session("null-fp32", 1)):
        with pytest.raises(EdgeError):
            use(read(bundle.folder))


def test_missing_files(bundle: Bundle) -> None:
    (bundle.folder / GOLDEN).unlink()
    with pytest.raises(EdgeError, match=r"lacks golden\.npz"):
        read(bundle.folder).read_golden()
    (bundle.folder / GOLDEN).mkdir()
    with pytest.raises(EdgeError, match=r"lacks golden\.npz"):
        read(bundle.folder).read_golden()
    shutil.rmtree(bundle.folder / "null-fp16")
    with pytest.raises(EdgeError, match=r"lacks null-fp16/golden\.npz"):
        read(bundle.folder).open_session("null-fp16", 1)


def test_a_file_that_the_runtime_loads_but_the_manifest_does_not_list(bundle: Bundle, edit_manifest: Edit) -> None:
    """Nobody vouches for null-fp32/golden.npz here, and it may even lie outside."""
    (bundle.folder / "null-fp32" / "notes.txt").write_text("decoy")
    listed = File.of(bundle.folder, bundle.folder / "null-fp32" / "notes.txt")
    edit_manifest(
        bundle.folder, ("variants", 0, "files"), [{"path": listed.path, "sha256": listed.sha256, "size": listed.size}]
    )
    with pytest.raises(EdgeError):
        read(bundle.folder).open_session("null-fp32", 1)


def test_files_in_two_folders(bundle: Bundle, edit_manifest: Edit) -> None:
    manifest = json.loads((bundle.folder / MANIFEST).read_text())
    files = [variant["files"][0] for variant in manifest["variants"]]
    edit_manifest(bundle.folder, ("variants", 0, "files"), files)
    with pytest.raises(EdgeError, match="variant 'null-fp32' has files in more than one folder"):
        read(bundle.folder).open_session("null-fp32", 1)


# --- Variants.


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime", "", "os", "../null"])
def test_unknown_runtimes(bundle: Bundle, edit_manifest: Edit, runtime: str) -> None:
    edit_manifest(bundle.folder, ("variants", 0, "runtime"), runtime)
    edit_manifest(bundle.folder, ("variants", 0, "name"), f"{runtime}-fp32")
    refused(bundle.folder, f"is for '{runtime}'; known: onnx, ncnn, mnn, tflite")


@pytest.mark.parametrize("name", ["null-fp16", "null", "NULL-fp32", "ncnn-fp32", "", "null-fp32 "])
def test_wrongly_named_variants(bundle: Bundle, edit_manifest: Edit, name: str) -> None:
    variant = json.loads((bundle.folder / MANIFEST).read_text())["variants"][0]
    edit_manifest(bundle.folder, ("variants",), [variant | {"name": name}])
    refused(bundle.folder, f"variant '{name}' should be named null-fp32")


@pytest.mark.parametrize("precision", ["fp7", "", "float", None, 32])
def test_unknown_precisions(bundle: Bundle, edit_manifest: Edit, precision: object) -> None:
    edit_manifest(bundle.folder, ("variants", 0, "precision"), precision)
    edit_manifest(bundle.folder, ("variants", 0, "name"), f"null-{precision}")
    refused(bundle.folder, "precision|valid manifest")


def test_variants_twice_none_and_empty(bundle: Bundle, edit_manifest: Edit) -> None:
    variants = json.loads((bundle.folder / MANIFEST).read_text())["variants"]
    edit_manifest(bundle.folder, ("variants",), [variants[0], variants[0]])
    refused(bundle.folder, "variant")
    edit_manifest(bundle.folder, ("variants",), [])
    refused(bundle.folder, "variant")
    edit_manifest(bundle.folder, ("variants",), [variants[0] | {"files": []}])
    refused(bundle.folder, "variant 'null-fp32' has no files")


@pytest.mark.parametrize("key", ["spec", "source", "golden", "variants", "format", "version"])
def test_missing_manifest_fields(bundle: Bundle, key: str) -> None:
    manifest = json.loads((bundle.folder / MANIFEST).read_text())
    del manifest[key]
    (bundle.folder / MANIFEST).write_text(json.dumps(manifest))
    refused(bundle.folder, f"{key}|not a pipnet-edge-bundle manifest")


# --- Whatever the manifest says: a Bundle whose fields have their types, or an EdgeError.


def has_type(value: object, kind: Any) -> bool:  # noqa: PLR0911
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(has_type(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        return len(kinds) == len(value) and all(map(has_type, value, kinds))
    if origin is Mapping:
        return isinstance(value, dict) and all(
            has_type(k, arguments[0]) and has_type(v, arguments[1]) for k, v in value.items()
        )
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return type(value) is kind and all(has_type(getattr(value, f.name), hints[f.name]) for f in fields(kind))
    return isinstance(value, Path) if kind is Path else type(value) is kind


def places(tree: Any, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [here, *(place for step, below in steps for place in places(below, (*here, step)))]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text()
    | st.sampled_from(["null-fp32", "fp32", "fp16", "null", "golden.npz", "..", "/", "test", "0" * 64]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)


@given(data=st.data())
@settings(max_examples=400)
def test_any_manifest_reads_or_is_refused(
    data: st.DataObject, null_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    board = Tuned("null-fp32", 2, (4, 5), 1.5, "numpy 2", "2026-01-02T03:04:05+00:00")
    manifest: Any = json.loads(json.dumps(replace(null_bundle, tuned={"board": board}).to_json()))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(manifest)))
        if not place:
            continue
        parent: Any = manifest
        for step in place[:-1]:
            parent = parent[step]
        match data.draw(st.sampled_from(["replace", "remove", "add", "copy"])):
            case "replace":
                parent[place[-1]] = data.draw(JSON)
            case "remove":
                del parent[place[-1]]
            case "add" if isinstance(parent, dict):
                parent[data.draw(st.text(max_size=6))] = data.draw(JSON)
            case _ if isinstance(parent, list):
                parent.append(parent[place[-1]])
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    try:
        found = read(folder)
    except EdgeError as e:
        message = str(e)
    else:
        message = ""
        assert has_type(found, Bundle)
        for file in (found.golden, *(file for variant in found.variants for file in variant.files)):
            assert "\0" in file.path or (folder / file.path).resolve().is_relative_to(folder.resolve())
        json.dumps(found.to_json(), allow_nan=False)  # what `inspect --json` prints
    assert "\n" not in message


def test_the_unchanged_manifest_has_the_types(null_bundle: Bundle) -> None:
    found = read(null_bundle.folder)
    assert has_type(found, Bundle)
    assert not has_type(replace(found, source={1: 2}), Bundle)  # type: ignore[dict-item]
    assert not has_type(replace(found, spec=replace(found.spec, clamp=0)), Bundle)  # type: ignore[arg-type]


# --- golden.npz.


def arrays_of(bundle: Bundle) -> dict[str, NDArray[Any]]:
    with np.load(bundle.folder / GOLDEN) as arrays:
        return dict(arrays)


def npz(arrays: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("name", ["crops", *MAP_NAMES])
def test_golden_arrays_of_wrong_shape(bundle: Bundle, set_golden: SetGolden, name: str) -> None:
    arrays = arrays_of(bundle)
    value = arrays[name]
    for wrong in (value[..., :-1], value[0], value[:-1], value[None], value.reshape(-1), value.ravel()[0]):
        set_golden(bundle.folder, npz(arrays | {name: wrong}))
        with pytest.raises(EdgeError, match="has shape"):
            read(bundle.folder).read_golden()
    set_golden(bundle.folder, npz({key: array for key, array in arrays.items() if key != name}))
    with pytest.raises(EdgeError, match="is not readable.*" + name):
        read(bundle.folder).read_golden()


@pytest.mark.parametrize("name", ["crops", *MAP_NAMES])
def test_golden_arrays_of_wrong_type(bundle: Bundle, set_golden: SetGolden, name: str) -> None:
    arrays = arrays_of(bundle)
    for dtype in ("U4", "float64", "int32", "complex64", "bool"):
        set_golden(bundle.folder, npz(arrays | {name: np.zeros(arrays[name].shape, dtype)}))
        with pytest.raises(EdgeError, match=name):
            read(bundle.folder).read_golden()


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_arrays_are_refused_and_not_run(bundle: Bundle, set_golden: SetGolden, tmp_path: Path) -> None:
    trap = np.empty(3, dtype=object)
    trap[:] = [Trap(tmp_path / "sprung")] * 3
    arrays = arrays_of(bundle)
    for name in ("crops", "score"):
        set_golden(bundle.folder, npz(arrays | {name: trap}))
        with pytest.raises(EdgeError, match="is not readable"):
            read(bundle.folder).read_golden()
        shutil.copy(bundle.folder / GOLDEN, bundle.folder / "null-fp32" / "golden.npz")
        listed = File.of(bundle.folder, bundle.folder / "null-fp32" / "golden.npz")
        poisoned = replace(bundle.variants[0], files=(listed,))
        with pytest.raises(EdgeError, match="null cannot load"):
            replace(bundle, variants=(poisoned,)).open_session("null-fp32", 1)
    set_golden(bundle.folder, pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(EdgeError, match="is not readable"):
        read(bundle.folder).read_golden()
    assert not (tmp_path / "sprung").exists()


def test_golden_files_that_are_no_npz(bundle: Bundle, set_golden: SetGolden) -> None:
    whole = (bundle.folder / GOLDEN).read_bytes()
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF  # the zip's checksum finds it
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY", b"not an array", whole[:1000], single.getvalue(), bytes(middle)):
        set_golden(bundle.folder, content)
        with pytest.raises(EdgeError, match="is not readable"):
            read(bundle.folder).read_golden()


def test_golden_without_crops_is_refused_by_decode_at_the_latest(bundle: Bundle, set_golden: SetGolden) -> None:
    empty = {name: np.zeros((0, *shape), np.float32) for name, shape in map_shapes(bundle.spec).items()}
    set_golden(bundle.folder, npz({"crops": np.zeros((0, 96, 96, 3), np.uint8), **empty}))
    with pytest.raises(EdgeError):
        Decoder(bundle.spec)(read(bundle.folder).read_golden()[1])


# --- replacing.


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_replacing_makes_a_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "bundle"
    with replacing(target) as folder:
        assert list(folder.iterdir()) == []
        assert not target.exists()
        (folder / "x").write_text("1")
    assert tree(tmp_path) == {"deep/er/bundle/x": b"1"}
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]


def test_replacing_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with replacing(tmp_path / "bundle") as folder:
        (folder / "x").write_text("1")
    assert tree(tmp_path) == {"bundle/x": b"1"}


def test_replacing_gives_the_usual_permissions(tmp_path: Path) -> None:
    with replacing(tmp_path / "bundle") as folder:
        (folder / "x").write_text("1")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_replacing_replaces_a_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a relative place, as on the command line
    before = tree(bundle.folder)
    with replacing(Path("bundle")) as folder:
        (folder / "x").write_text("1")
        assert tree(bundle.folder) == before
        os.chdir("/")
    assert tree(bundle.folder) == {"x": b"1"}
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_replacing_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    folder, file, dangling = tmp_path / "photos", tmp_path / "notes", tmp_path / "dangling"
    folder.mkdir()
    (folder / "cat.jpg").write_text("cat")
    (folder / "deep").mkdir()
    file.write_text("notes")
    dangling.symlink_to(tmp_path / "nowhere")
    names = sorted(p.name for p in tmp_path.iterdir())
    message = r"exists and is not a bundle|cannot write into"
    for place in (folder, file, dangling, file / "below"):
        with pytest.raises(EdgeError, match=message), replacing(place):
            pytest.fail("the work began")
    assert tree(tmp_path) == {"photos/cat.jpg": b"cat", "notes": b"notes"}
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, EdgeError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("exists", [False, True])
def test_replacing_leaves_nothing_when_the_work_fails(
    make_bundle: Callable[..., Bundle], tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    target = tmp_path / "bundle"
    if exists:
        make_bundle(target)
    before = tree(tmp_path)

    def work() -> None:
        with replacing(target) as folder:
            (folder / "x").write_text("1")
            (folder / "sub").mkdir()
            raise error("stop")

    with pytest.raises(error, match="stop"):
        work()
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["bundle"] if exists else [])


def test_replacing_keeps_the_old_bundle_when_the_last_rename_fails(bundle: Bundle, tmp_path: Path) -> None:
    before = tree(tmp_path)
    with pytest.raises(OSError, match="No such file"), replacing(bundle.folder) as folder:
        folder.rmdir()
    assert tree(tmp_path) == before
    assert read(bundle.folder) == bundle
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_variant_is_checked_when_built_too() -> None:
    with pytest.raises(EdgeError, match="has no files"):
        Variant("null-fp32", "null", "fp32", ())
    assert bundles.VERSION == 3


def test_replacing_takes_back_the_folders_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "b" / "bundle"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with replacing(tmp_path / "a" / "b" / "bundle") as new:
        (new / MANIFEST).touch()
    assert (tmp_path / "a" / "b" / "bundle" / MANIFEST).is_file()


# --- heads.npz, of variants whose network lacks the offset heads.

SetHeads = Callable[[bytes], Bundle]
SHAPE = (5, 2, 3)  # of the bundle's spec


@pytest.fixture
def set_heads(bundle: Bundle) -> SetHeads:
    """set_heads(content): the bundle, read again, whose null-fp32 has a heads.npz in its folder."""

    def write(content: bytes) -> Bundle:
        path = bundle.folder / "null-fp32" / HEADS
        path.write_bytes(content)
        first, *rest = bundle.variants
        files = (*(file for file in first.files if not file.path.endswith(HEADS)), File.of(bundle.folder, path))
        replace(bundle, variants=(replace(first, files=files), *rest)).write_manifest()
        return read(bundle.folder)

    return write


def head_arrays(channels: int = 7, kind: type = np.float32) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((*SHAPE, channels)), random.standard_normal(SHAPE)
    return {"weight": weight.astype(kind), "bias": bias.astype(np.float32)}


def test_variants_without_heads_decode_maps(bundle: Bundle) -> None:
    assert bundle.variant("null-fp32").heads is None
    assert bundle.read_heads("null-fp32") is None
    _, maps = bundle.read_golden()
    np.testing.assert_array_equal(bundle.decoder("null-fp32")(maps).points, Decoder(bundle.spec)(maps).points)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_sparse_variants_say_so(bundle: Bundle, edit_manifest: Edit, is_sparse: bool) -> None:
    """With heads inside the model there is no file that would tell."""
    first, second = bundle.variants
    replace(bundle, variants=(replace(first, is_sparse=is_sparse), second)).write_manifest()
    assert json.loads((bundle.folder / MANIFEST).read_text())["variants"][0]["is_sparse"] is is_sparse
    again = read(bundle.folder)
    assert [variant.is_sparse for variant in again.variants] == [is_sparse, False]
    assert [variant.heads for variant in again.variants] == [None, None]
    assert again.read_heads("null-fp32") is None
    for value in (1, "true", None, []):
        edit_manifest(bundle.folder, ("variants", 0, "is_sparse"), value)
        refused(bundle.folder, "bool is needed")


def test_heads_are_read_and_the_variant_is_opened(set_heads: SetHeads) -> None:
    arrays = head_arrays()
    bundle = set_heads(npz(arrays))
    file = bundle.variant("null-fp32").heads
    assert file
    assert file.path == f"null-fp32/{HEADS}"
    heads = bundle.read_heads("null-fp32")
    assert heads
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(heads, name), array)
    crops, maps = bundle.read_golden()
    session = bundle.open_session("null-fp32", 1)
    found = session.run(crops[0])
    session.close()
    assert isinstance(found, Maps)
    np.testing.assert_array_equal(found.score, maps.score[0])
    features = Features(maps.score, np.random.default_rng(1).standard_normal((3, 7, 3, 3), dtype=np.float32))
    points = bundle.decoder("null-fp32")(features).points
    np.testing.assert_allclose(points, Decoder(bundle.spec)(Heads(**arrays).maps(features)).points, atol=1e-5)
    # The other variant has none.
    assert bundle.read_heads("null-fp16") is None


def test_heads_beside_a_model_that_has_its_own_change_nothing(set_heads: SetHeads) -> None:
    bundle = set_heads(npz(head_arrays()))
    crops, maps = bundle.read_golden()
    found = calls.infer(calls.here, bundle.folder, "null-fp32", 1, crops, maps=True)
    np.testing.assert_array_equal(found.landmarks.points, Decoder(bundle.spec)(maps).points)
    for name in MAP_NAMES:
        np.testing.assert_array_equal(getattr(found.maps, name), getattr(maps, name))


def test_heads_in_half_precision_are_widened_exactly(set_heads: SetHeads) -> None:
    arrays = head_arrays(kind=np.float16)
    smallest, largest = np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max
    arrays["weight"][0, 0, 0, :2] = smallest, largest
    heads = set_heads(npz(arrays)).read_heads("null-fp32")
    assert heads
    assert heads.weight.dtype == heads.bias.dtype == np.float32
    assert heads.weight[0, 0, 0, :2].tolist() == [2.0**-24, 65504.0]
    np.testing.assert_array_equal(heads.weight, arrays["weight"].astype(np.float32))
    np.testing.assert_array_equal(heads.bias, arrays["bias"])


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("weight", np.zeros((*SHAPE, 7), np.float64)),
        ("weight", np.zeros((*SHAPE, 7), np.int8)),
        ("weight", np.zeros((*SHAPE, 7), ">f4")),
        ("weight", np.zeros((*SHAPE, 7), ">f2")),
        ("weight", np.zeros((*SHAPE, 0), np.float32)),
        ("weight", np.zeros(SHAPE, np.float32)),
        ("weight", np.zeros((*SHAPE, 7, 1), np.float32)),
        ("weight", np.zeros((4, 2, 3, 7), np.float32)),
        ("weight", np.zeros((5, 2, 2, 7), np.float32)),
        ("weight", np.zeros((5, 3, 2, 7), np.float32)),
        ("weight", np.float32(1)),
        ("bias", np.zeros(SHAPE, np.float16)),
        ("bias", np.zeros(SHAPE, np.float64)),
        ("bias", np.zeros((5, 3, 2), np.float32)),
        ("bias", np.zeros((*SHAPE, 1), np.float32)),
        ("bias", np.zeros(30, np.float32)),
        ("bias", np.float32(1)),
    ],
)
def test_heads_of_wrong_shapes_and_types(set_heads: SetHeads, name: str, array: NDArray[Any]) -> None:
    bundle = set_heads(npz(head_arrays() | {name: np.asarray(array)}))
    for read_them in (bundle.read_heads, bundle.decoder):
        with pytest.raises(EdgeError, match=rf"heads\.npz: {name} has shape .* is needed") as refusal:
            read_them("null-fp32")
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_heads_with_a_missing_array(set_heads: SetHeads, name: str) -> None:
    arrays = head_arrays()
    del arrays[name]
    with pytest.raises(EdgeError, match=rf"heads\.npz is not readable: .*{name}"):
        set_heads(npz(arrays)).read_heads("null-fp32")


def test_unreadable_heads(set_heads: SetHeads) -> None:
    whole = npz(head_arrays())
    packed, single, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, **head_arrays())  # type: ignore[arg-type]
    np.save(single, np.zeros((*SHAPE, 7), np.float32))
    np.savez(objects, **(head_arrays() | {"weight": np.array([{}])}))  # type: ignore[arg-type]
    spoilt = [bytearray(content) for content in (whole, packed.getvalue())]
    for content in spoilt:
        content[150:250] = bytes(100)
    cut = [whole[:size] for size in range(0, len(whole), 97)]
    for content in (*cut, b"not an array", single.getvalue(), objects.getvalue(), *map(bytes, spoilt)):
        bundle = set_heads(content)
        with pytest.raises(EdgeError, match=r"heads\.npz is not readable"):
            bundle.read_heads("null-fp32")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_heads_with_nan_are_no_decoder(set_heads: SetHeads, value: float) -> None:
    arrays = head_arrays()
    arrays["weight"][4, 1, 2, 6] = value
    with pytest.raises(EdgeError, match="NaN or infinity"):
        set_heads(npz(arrays)).decoder("null-fp32")


def test_changed_and_missing_heads_are_refused(set_heads: SetHeads) -> None:
    bundle = set_heads(npz(head_arrays()))
    path = bundle.folder / "null-fp32" / HEADS
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    works: list[Callable[[], object]] = [
        lambda: bundle.read_heads("null-fp32"),
        lambda: bundle.decoder("null-fp32"),
        lambda: bundle.open_session("null-fp32", 1),
    ]
    for work in works:
        with pytest.raises(EdgeError, match="was changed after it was written"):
            work()
    path.unlink()
    for work in works:
        with pytest.raises(EdgeError, match=f"lacks null-fp32/{HEADS}"):
            work()


def test_heads_lie_beside_the_model(bundle: Bundle) -> None:
    """Heads of another folder may belong to another variant."""
    path = bundle.folder / "null-fp16" / HEADS
    path.write_bytes(npz(head_arrays()))
    first, *rest = bundle.variants
    files = (*first.files, File.of(bundle.folder, path))
    replace(bundle, variants=(replace(first, files=files), *rest)).write_manifest()
    with pytest.raises(EdgeError, match="has files in more than one folder"):
        read(bundle.folder).open_session("null-fp32", 1)
