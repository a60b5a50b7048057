"""Manifests that are no regular files, and values of any size and depth in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge.bundle import MANIFEST, Bundle, read
from pipnet_edge.errors import USER_ERROR, EdgeError

Edit = Callable[[Path, tuple[str | int, ...], object], None]
VARIANT_FILE = ("variants", 0, "files", 0)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        read(folder)
    assert caught.value.code == USER_ERROR
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("target", ["/dev/zero", "fifo", "../outside.json", "manifest.json", "gone.json"])
def test_manifests_that_are_links(bundle: Bundle, tmp_path: Path, target: str) -> None:
    path = bundle.folder / MANIFEST
    path.rename(tmp_path / "outside.json")
    os.mkfifo(bundle.folder / "fifo")
    path.symlink_to(target)
    refused(bundle.folder, r"leaves the bundle|no regular file|a circle of links|there is no bundle at")
    path.unlink()
    (tmp_path / "outside.json").rename(bundle.folder / "kept.json")
    path.symlink_to("kept.json")
    assert read(bundle.folder) == bundle


def test_manifests_that_are_no_regular_files_are_not_waited_for(bundle: Bundle) -> None:
    path = bundle.folder / MANIFEST
    path.unlink()
    os.mkfifo(path)
    refused(bundle.folder, r"manifest\.json is no regular file$")
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10 << 30)
    refused(bundle.folder, r"manifest\.json has 10737418240 bytes; at most 4194304 are read$")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("spec", "input_size"),
            10**400,
            r"spec\.input_size is 1000+\.\.\.0+, a number up to 9223372036854775807 is needed$",
        ),
        (("spec", "input_size"), 10**2000, "is no JSON: it has a number of 2001 digits$"),
        (("spec", "input_size"), 4128, "input size 4128 is not a multiple of the net stride 32 up to 4096"),
        (("spec", "num_lms"), "9" * 500, r"spec\.num_lms is '9{58}9?'?, int is needed$"),
        ((*VARIANT_FILE, "size"), 10**12, "says null-fp32/golden.npz has 1000000000000 bytes; 0 to 1073741824 are"),
        ((*VARIANT_FILE, "size"), -1, "has -1 bytes"),
    ],
)
def test_numbers_of_any_size(
    bundle: Bundle, edit_manifest: Edit, place: tuple[str | int, ...], value: object, message: str
) -> None:
    edit_manifest(bundle.folder, place, value)
    refused(bundle.folder, message)
    with pytest.raises(EdgeError) as caught:
        read(bundle.folder)
    assert len(str(caught.value)) < 300 + len(str(bundle.folder))


def test_deep_values_where_others_are_needed(bundle: Bundle, edit_manifest: Edit) -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    for place in (("spec",), ("spec", "input_size"), ("variants",), ("version",)):
        text = (bundle.folder / MANIFEST).read_text()
        edit_manifest(bundle.folder, place, deep)
        refused(bundle.folder, "is needed|has 0 entries|version|nested too deeply")
        (bundle.folder / MANIFEST).write_text(text)
