"""heads.npz, of variants whose network lacks the offset heads: read, decoded with, and refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.bundle import HEADS, Bundle, File, read
from pipnet_edge.decode import MAP_NAMES, Decoder, Features, Heads, Maps
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker import call as calls

SetHeads = Callable[[bytes], Bundle]
SHAPE = (5, 2, 3)  # of the bundle's spec


def npz(arrays: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


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
