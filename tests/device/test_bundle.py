"""What was written is read, what tells two bundles apart, and files that are not those that were written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipnet_edge.bundle import GOLDEN, MANIFEST, Bundle, Calibration, File, Parity, Quantization, Source, Tuned, read
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import EdgeError

Edit = Callable[[Path, tuple[str | int, ...], object], None]
VARIANT_FILE = ("variants", 0, "files", 0)


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
    assert manifest.keys() - {"format", "version", "kind", "tuned"} == fields_changed
    assert manifest["variants"][0].keys() - {"name", "runtime", "precision"} == of_a_variant.keys()


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


def test_files_that_are_devices_or_of_another_size_are_not_hashed(bundle: Bundle, edit_manifest: Edit) -> None:
    path = bundle.folder / GOLDEN
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(EdgeError, match=r"golden\.npz in bundle .* is no regular file$"):
        read(bundle.folder).read_golden()
    path.unlink()
    with path.open("wb") as file:
        file.truncate(100 << 30)
    with pytest.raises(EdgeError, match=r"was changed after it was written \(107374182400 bytes, not \d+\)"):
        read(bundle.folder).read_golden()


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
