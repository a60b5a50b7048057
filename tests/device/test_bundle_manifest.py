"""Manifests are untrusted when read: every way in which one is not as it was written is refused."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipnet_edge import bundle as bundles
from pipnet_edge.bundle import GOLDEN, MANIFEST, Bundle, Tuned, Variant, read
from pipnet_edge.errors import USER_ERROR, EdgeError

Edit = Callable[[Path, tuple[str | int, ...], object], None]
VARIANT_FILE = ("variants", 0, "files", 0)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        read(folder)
    assert caught.value.code == USER_ERROR
    assert "\n" not in str(caught.value)


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
        b'{"format": ' + b"1" * 5000 + b"}",
        pytest.param(b"[" * 200_000 + b"]" * 200_000, id="deep list"),
        pytest.param(b'{"format":' * 100_000 + b"1" + b"}" * 100_000, id="deep object"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    refused(tmp_path, r"manifest\.json is no JSON|is not a pipnet-edge-bundle manifest")


@pytest.mark.parametrize("content", ["[]", '["pipnet-edge-bundle"]', '"pipnet-edge-bundle"', "null", "1", "NaN", "{}"])
def test_manifests_that_are_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    refused(tmp_path, "is not a pipnet-edge-bundle manifest")


@pytest.mark.parametrize("value", ["pipnet-edge", "", None, ["pipnet-edge-bundle"]])
def test_wrong_format(bundle: Bundle, edit_manifest: Edit, value: object) -> None:
    edit_manifest(bundle.folder, ("format",), value)
    refused(bundle.folder, "is not a pipnet-edge-bundle manifest")


@pytest.mark.parametrize("value", ["3", None, [3], True, 3.5, 3.0])
def test_unknown_versions(bundle: Bundle, edit_manifest: Edit, value: object) -> None:
    edit_manifest(bundle.folder, ("version",), value)
    refused(bundle.folder, "has version .*, this program reads version 4$")


def test_other_versions_say_how_to_get_one_that_is_read(bundle: Bundle, edit_manifest: Edit) -> None:
    for value, how in ((0, "an older pipnet-edge; convert the checkpoint again"), (99, "a newer pipnet-edge")):
        edit_manifest(bundle.folder, ("version",), value)
        refused(bundle.folder, f"has version {value}, this program reads version 4: it was made by {how}$")


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


def test_a_variant_is_checked_when_built_too() -> None:
    with pytest.raises(EdgeError, match="has no files"):
        Variant("null-fp32", "null", "fp32", ())
    assert bundles.VERSION == 4


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
