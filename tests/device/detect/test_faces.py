"""Faces of a detector's variants against those of the float network: pairs, losses, and the limits of a precision."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy import faces
from pipnet_edge.benchmarks.accuracy.faces import Row, check, compare, paired, verify
from pipnet_edge.benchmarks.limits import Limit, parse
from pipnet_edge.bundle import DetectorBundle, FacesParity, read_detector
from pipnet_edge.detect.boxes import Faces, overlaps
from pipnet_edge.detect.decode import BoxMaps
from pipnet_edge.errors import CHECK_FAILED, EdgeError

SIZE = (192, 128)
Detected = tuple[float, float, float, float, float]
Make = Callable[..., DetectorBundle]


def of(rows: Sequence[Detected]) -> Faces:
    """Faces from x, y, width, height, score."""
    array = np.array(rows, float).reshape(-1, 5)
    return Faces(array[:, :4], array[:, 4])


# --- Pairs.

sides = st.floats(1, 60)
boxes = st.lists(st.tuples(st.floats(-20, 60), st.floats(-20, 60), sides, sides, st.floats(0, 1)), max_size=8)


@given(boxes, boxes, st.booleans())
def test_pairs_overlap_and_have_each_face_once(one: list[Detected], other: list[Detected], same: bool) -> None:
    first, second = of(one), of([*one[1:], *other] if same else other)
    pairs = paired(first, second)
    assert len({i for i, *_ in pairs}) == len({j for _, j, _ in pairs}) == len(pairs)
    for i, j, overlap in pairs:
        assert overlap >= 0.5
        np.testing.assert_allclose(overlap, overlaps(first.boxes[i], second.boxes[j : j + 1])[0])
    # Those left over have nobody.
    rest = sorted({*range(len(second))} - {j for _, j, _ in pairs})
    for i in {*range(len(first))} - {i for i, *_ in pairs}:
        assert (overlaps(first.boxes[i], second.boxes[rest]) < 0.5).all()


@given(boxes)
def test_faces_are_their_own_pairs(rows: list[Detected]) -> None:
    pairs = paired(of(rows), of(rows))
    assert len(pairs) == len(rows)
    assert all(overlap == pytest.approx(1) for *_, overlap in pairs)


def test_the_best_score_chooses_first() -> None:
    one = of([(0, 0, 20, 20, 0.9), (2, 0, 20, 20, 0.8)])
    assert [(i, j) for i, j, _ in paired(one, of([(1, 0, 20, 20, 0.7)]))] == [(0, 0)]
    assert [(i, j) for i, j, _ in paired(one, of([(2, 0, 20, 20, 0.7), (0, 0, 20, 20, 0.6)]))] == [(0, 1), (1, 0)]
    assert paired(of([]), one) == paired(one, of([])) == []


def test_half_an_overlap_is_enough() -> None:
    # Sides count the pixels at both ends: 100 x 100 with 100 x 50.
    one = of([(0, 0, 99, 99, 0.9)])
    assert len(paired(one, of([(0, 0, 99, 49, 0.9)]))) == 1
    assert len(paired(one, of([(0, 0, 99, 48, 0.9)]))) == 0


# --- Comparison.

MAPS = BoxMaps(np.full((4, 4), 0.5, np.float32), np.full((4, 2), 2.0, np.float32))


def compared(bundle: DetectorBundle, variant: str, want: Sequence[Faces], got: Sequence[Faces], by: float = 0) -> Row:
    """As `check` compares what was found in one picture each; maps differ by so much."""
    moved = replace(MAPS, logits=MAPS.logits + np.float32(by))
    row = Row(variant, "torch", len(want))
    pairs = [{SIZE: (list(found), [maps] * len(found))} for found, maps in ((want, MAPS), (got, moved))]
    return compare(bundle.variant(variant), row, *pairs)


def test_equal_faces(null_detector: DetectorBundle) -> None:
    found = [of([(0, 0, 20, 20, 0.9), (50, 0, 20, 20, 0.8)]), of([])]
    row = compared(null_detector, "null-fp32", found, found)
    assert row.failure is None
    assert row.parity == FacesParity("torch", 2, 2, 0, 0, 1.0, 1.0, 0.0, 0.0)
    assert (row.map_share, row.value("lost"), row.value("new")) == (0.0, 0.0, 0.0)


def test_pictures_without_faces(null_detector: DetectorBundle) -> None:
    row = compared(null_detector, "null-fp32", [of([])], [of([])])
    assert row.failure is None
    assert row.parity == FacesParity("torch", 1, 0, 0, 0, 1.0, 1.0, 0.0, 0.0)
    assert row.value("lost") == 0.0


def test_lost_and_new_faces(null_detector: DetectorBundle) -> None:
    want = [of([(0, 0, 20, 20, 0.9), (50, 0, 20, 20, 0.8)])]
    got = [of([(0, 2, 20, 20, 0.7), (100, 0, 20, 20, 0.6), (120, 90, 9, 9, 0.6)])]
    row = compared(null_detector, "null-fp16", want, got)
    assert row.parity is not None
    assert (row.parity.faces, row.parity.lost, row.parity.new) == (2, 1, 2)
    overlap = 21 * 19 / (2 * 21 * 21 - 21 * 19)
    assert (row.parity.iou_mean, row.parity.iou_min) == (pytest.approx(overlap), pytest.approx(overlap))
    assert row.parity.score_max == pytest.approx(0.2)
    assert (row.value("lost"), row.value("new")) == (50.0, 100.0)
    assert (
        row.failure == "0.5 of the faces lost (limit 0.05), 1 of so many new (limit 0.05), overlap 0.826 (limit 0.98)"
    )


def test_maps_that_differ(null_detector: DetectorBundle) -> None:
    """The share is of the magnitude of all maps of a kind; fp16 may differ by 5 %, fp32 by 1e-4."""
    found = [of([(0, 0, 20, 20, 0.9)])]
    for by, variant, fails in ((0.0001, "null-fp32", False), (0.001, "null-fp32", True), (0.09, "null-fp16", False)):
        row = compared(null_detector, variant, found, found, by)
        assert row.map_share == pytest.approx(by / 2, rel=1e-2)
        assert row.parity is not None
        assert row.parity.map_max == pytest.approx(by, rel=1e-2)
        assert (row.failure is not None) == fails
    failure = compared(null_detector, "null-fp16", found, found, 0.2).failure
    assert failure == "0.1 of a map's magnitude (limit 0.05)"


# --- Whole checks, with workers.


def test_variants_that_are_right(null_detector: DetectorBundle) -> None:
    seen: list[tuple[str, int, int]] = []
    rows = check(null_detector, progress=lambda *step: seen.append(step))
    assert seen == [("null-fp32", 0, 2), ("null-fp16", 1, 2)]
    for row in rows:
        assert (row.reference, row.images, row.failure, row.skipped) == ("torch", 3, None, None)
        assert row.parity is not None
        assert row.parity.iou_min == pytest.approx(1.0)
        assert replace(row.parity, iou_mean=1, iou_min=1) == FacesParity("torch", 3, 3, 0, 0, 1, 1, 0, 0)
        assert set(row.to_json()) == {"variant", "reference", "images", "parity", "map_share"}
    assert verify(null_detector) == {row.variant: row.parity for row in rows}


@pytest.fixture(scope="module")
def drifting(
    make_detector: Make, scenes: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> DetectorBundle:
    """null-fp16 loses one of three faces, moves one, and finds one that is none."""
    left, right = (15.0, 5.0, 66.0, 100.0, 0.875), (111.0, 5.0, 66.0, 100.0, 0.75)
    half = (((15.0, 7.0, 66.0, 100.0, 0.75),), (left, right), ())
    return make_detector(tmp_path_factory.mktemp("drifting") / "bundle", scenes, ((left, right), (left,), ()), half)


def test_a_variant_that_finds_others(drifting: DetectorBundle) -> None:
    right, wrong = check(drifting)
    assert right.failure is None
    assert wrong.parity is not None
    assert (wrong.parity.faces, wrong.parity.lost, wrong.parity.new) == (3, 1, 1)
    assert wrong.parity.score_max == pytest.approx(0.125)
    assert wrong.parity.iou_min == pytest.approx(99 * 67 / (2 * 101 * 67 - 99 * 67))
    assert re.match("0.33.* of the faces lost", (wrong.failure or "").split(", ")[1])
    measured = verify(drifting)
    assert measured["null-fp32"] == right.parity
    assert isinstance(measured["null-fp16"], EdgeError)
    assert (str(measured["null-fp16"]), measured["null-fp16"].code) == (wrong.failure, CHECK_FAILED)


def test_fewer_golden_pictures(drifting: DetectorBundle) -> None:
    (row,) = check(drifting, ["null-fp16"], most=1)
    assert row.parity is not None
    assert (row.images, row.parity.images, row.parity.faces, row.parity.lost) == (1, 1, 2, 1)


def test_over_pictures_of_any_size(drifting: DetectorBundle, scenes: NDArray[np.uint8], tmp_path: Path) -> None:
    for index, scene in enumerate(scenes):
        large = scene.repeat(1 + index, axis=0).repeat(1 + index, axis=1)
        cv2.imwrite(str(tmp_path / f"{index}.png"), large[:, :, ::-1])
    images = sorted(tmp_path.glob("*.png"))
    first, second = check(drifting, images=images)
    assert (first.reference, first.images, first.failure) == ("null-fp32", 3, None)
    assert second.parity is not None
    assert (second.parity.faces, second.parity.lost, second.parity.new) == (3, 1, 1)
    (alone,) = check(drifting, ["null-fp16"], images=images, most=1)
    assert (alone.reference, alone.images, alone.value("lost")) == ("null-fp32", 1, 50.0)


def test_pictures_are_compared_in_parts(
    drifting: DetectorBundle, scenes: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "AT_ONCE", 2)
    for index in range(5):
        cv2.imwrite(str(tmp_path / f"{index}.png"), scenes[index % 3][:, :, ::-1])
    (row,) = check(drifting, ["null-fp16"], images=sorted(tmp_path.glob("*.png")))
    assert row.parity is not None
    assert (row.images, row.parity.faces, row.parity.lost, row.parity.new) == (5, 6, 2, 2)


def test_what_cannot_run_fails_alone(drifting: DetectorBundle, tmp_path: Path) -> None:
    spoilt = read_detector(shutil.copytree(drifting.folder, tmp_path / "bundle"))
    (spoilt.folder / "null-fp16" / "golden.npz").unlink()
    right, wrong = check(spoilt)
    assert right.failure is None
    assert wrong.failure == f"bundle {spoilt.folder} lacks null-fp16/golden.npz"
    assert (wrong.parity, wrong.value("lost")) == (None, None)


def test_runtimes_that_are_not_here(null_detector: DetectorBundle) -> None:
    first, second = null_detector.variants
    absent = replace(second, name="ncnn-fp16", runtime="ncnn")

    def call(job: object, listen: object = None) -> object:
        return Machine()

    class Machine:
        runtimes = ()

    with pytest.raises(EdgeError, match="none of this bundle's runtimes is installed: null, ncnn"):
        check(replace(null_detector, variants=(first, absent)), call=call)  # type: ignore[arg-type]


def test_a_comparison_over_pictures_needs_a_float_variant(null_detector: DetectorBundle, tmp_path: Path) -> None:
    only = replace(null_detector, variants=null_detector.variants[1:])
    with pytest.raises(EdgeError, match="needs an fp32 variant as reference, and its runtime installed"):
        check(only, images=[tmp_path / "x.png"])


# --- Limits.


def row(lost: int, new: int, of: int = 200, failure: str | None = None) -> Row:
    return Row("null-fp16", "torch", 9, FacesParity("torch", 9, of, lost, new, 1.0, 1.0, 0.0, 0.0), failure=failure)


@pytest.mark.parametrize(
    ("given", "limit", "message"),
    [
        (row(2, 0), "lost<=1", None),
        (row(3, 0), "lost<=1", "null-fp16: lost is 1.5 % (limit 1)"),
        (row(0, 0), "lost<=0", None),
        (row(0, 1), "new<=0.4", "null-fp16: new is 0.5 % (limit 0.4)"),
        (row(0, 1, of=0), "new<=1", "null-fp16: new is 100 % (limit 1)"),
        (row(9, 9, failure="over"), "lost<=100", "null-fp16: over"),
        (Row("null-fp16", "torch", 9, skipped="absent"), "lost<=0", None),
    ],
)
def test_limits(given: Row, limit: str, message: str | None) -> None:
    error = faces.broken([row(0, 0), given], [parse(limit, faces.UNITS)])
    assert (str(error), error.code) == (message, CHECK_FAILED) if error else message is None


def test_limits_that_a_detector_has_not() -> None:
    with pytest.raises(EdgeError, match=r"no metric 'nme'; allowed: lost \[%\], new \[%\]"):
        parse("nme<=1", faces.UNITS)
    assert faces.broken([row(9, 9)], ()) is None
    assert faces.broken((), [Limit("lost", 0)]) is None
