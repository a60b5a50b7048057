"""Drift metrics: hand-computed values, the definitions written out slowly, invariances, intervals and refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipnet_edge.benchmarks.accuracy import drift as drifts
from pipnet_edge.benchmarks.accuracy import metrics as drift
from pipnet_edge.benchmarks.accuracy.metrics import (
    METRICS,
    Estimate,
    Sample,
    measure,
    summarise,
)
from pipnet_edge.benchmarks.limits import Limit
from pipnet_edge.decode import Landmarks
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR, EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec, mean_faces

Array = NDArray[np.float64]
FACE = MeanFace("three", ((0.2, 0.2), (0.8, 0.2), (0.5, 0.8)), (0, 1))
SPEC = ModelSpec("resnet18", 3, 2, 32, 256, FACE)


def landmarks(points: Array, cell: NDArray[np.intp] | None = None) -> Landmarks:
    cell = np.zeros(points.shape[:2], dtype=np.intp) if cell is None else cell
    return Landmarks(points.astype(np.float32), np.zeros(points.shape[:2], dtype=np.float32), cell)


def once(sample: Sample) -> Array:
    return np.ones((1, len(sample.px)))


def value(name: str, sample: Sample) -> float:
    return float(METRICS[name].of(sample, once(sample))[0])


TRUTH = np.array([[[0.0, 0.0], [0.5, 0.0], [0.25, 0.5]], [[0.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
MOVED = TRUTH + np.array([[[0.0, 0.0], [0.03, 0.04], [0.0, 0.0]], [[0.0, 0.3], [0.0, 0.0], [0.3, 0.0]]])


def test_by_hand() -> None:
    cell = np.array([[0, 1, 0], [0, 0, 0]])
    sample = measure(landmarks(MOVED, cell), landmarks(TRUTH), SPEC, TRUTH)
    # Image 0: one landmark of three off by 0.05, pair 0.5 apart. Image 1: two off by 0.3, pair 1 apart.
    np.testing.assert_allclose(sample.nme, [0.05 / 3 / 0.5, 0.6 / 3], rtol=1e-6)
    np.testing.assert_allclose(sample.px, [[0, 12.8, 0], [76.8, 0, 76.8]], rtol=1e-6)
    expected = {
        "nme": 100 * (1 / 30 + 0.2) / 2,
        "fr": 50,
        "px_mean": (12.8 + 2 * 76.8) / 6,
        "px_p50": 12.8 / 2,  # 0, 0, 0, 12.8, 76.8, 76.8
        "px_p95": 76.8,
        "px_max": 76.8,
        "flips": 100 / 6,
        "noise": 2 * 76.8 / 5,
    }
    for name, number in expected.items():
        assert value(name, sample) == pytest.approx(number, rel=1e-6), name
    # One image's curve is 1 from its NME on, the other's 0 up to 0.1; Simpson is a step (1e-4) off at most.
    assert value("auc", sample) == pytest.approx((0.1 - 1 / 30) / 0.1 / 2, abs=1e-3)
    table = summarise(sample).landmarks
    assert table.flips.tolist() == [0, 50, 0]
    assert table.px_mean.tolist() == pytest.approx([38.4, 6.4, 38.4], rel=1e-6)
    assert table.px_p95.tolist() == pytest.approx([0.95 * 76.8, 0.95 * 12.8, 0.95 * 76.8], rel=1e-6)
    assert sample.worst(1).tolist() == [1]


def test_without_an_nme_pair_the_divisor_is_one() -> None:
    sample = measure(landmarks(MOVED), landmarks(TRUTH), replace(SPEC, mean_face=replace(FACE, nme_pair=None)), TRUTH)
    np.testing.assert_allclose(sample.nme, [0.05 / 3, 0.2], rtol=1e-6)


def slow_fr_and_auc(nmes: Array) -> tuple[float, float]:
    """The reference's definition: a curve of 1001 points, composite Simpson's rule interval by interval."""
    grid = np.arange(0, 0.1 + 0.0001, 0.0001)
    curve = [sum(nme <= x for nme in nmes) / len(nmes) for x in grid]
    area = sum(0.0001 / 3 * (curve[i] + 4 * curve[i + 1] + curve[i + 2]) for i in range(0, len(grid) - 2, 2))
    return 1 - curve[-1], area / 0.1


NME = st.one_of(st.floats(0, 0.2), st.sampled_from([0.0, 0.1, 0.05, 0.0999, 0.1001]))
NMES = arrays(np.float64, st.integers(1, 12), elements=NME)


@given(NMES)
@settings(max_examples=40)
def test_fr_and_auc_follow_the_definition(nmes: Array) -> None:
    sample = Sample(np.zeros((len(nmes), 2)), np.zeros((len(nmes), 2), dtype=bool), nmes, nmes)
    fr, auc = slow_fr_and_auc(nmes)
    assert value("fr", sample) == pytest.approx(100 * fr, abs=1e-9)
    assert value("auc", sample) == pytest.approx(auc, abs=1e-12)
    assert value("nme", sample) == pytest.approx(100 * nmes.mean())
    assert 0 <= value("auc", sample) <= 1


def samples(images: int, lms: int, seed: int, scale: float = 1.0) -> Sample:
    rng = np.random.default_rng(seed)
    px = scale * rng.gamma(1.5, 1.0, (images, lms))
    reference = rng.gamma(4.0, 0.012, images)
    return Sample(px, rng.random((images, lms)) < 0.3, reference + 0.002 * scale * rng.random(images), reference)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000), st.data())
@settings(max_examples=80)
def test_a_weight_is_a_repetition(images: int, lms: int, seed: int, data: st.DataObject) -> None:
    """Every metric with image i counted w[i] times equals the metric of images repeated so, by its plain definition."""
    sample = samples(images, lms, seed)
    drawn = data.draw(st.lists(st.integers(0, images - 1), min_size=images, max_size=images))
    weight = np.bincount(drawn, minlength=images)[None].astype(np.float64)
    px, flipped, nmes = sample.px[drawn], sample.flipped[drawn], np.asarray(sample.nme)[drawn]
    fr, auc = slow_fr_and_auc(nmes)
    plain = {
        "nme": 100 * nmes.mean(),
        "fr": 100 * fr,
        "auc": auc,
        "px_mean": px.mean(),
        "px_p50": np.percentile(px, 50),
        "px_p95": np.percentile(px, 95),
        "px_max": px.max(),
        "flips": 100 * flipped.mean(),
        "noise": px[~flipped].mean() if not flipped.all() else np.nan,
    }
    assert plain.keys() == METRICS.keys()
    for name, expected in plain.items():
        assert METRICS[name].of(sample, weight)[0] == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True), name


def test_quantiles_do_not_depend_on_the_memory_limit() -> None:
    sample = samples(30, 20, 0)
    weight = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, 9000).astype(np.float64)  # two chunks
    several = drift.px_p95(sample, weight)
    assert np.array_equal(several[-3:], drift.px_p95(sample, weight[-3:]))


COORDINATES = arrays(np.float64, (4, 3, 2), elements=st.floats(0, 1, width=32))


@given(COORDINATES, COORDINATES, st.permutations(range(4)))
def test_invariances(variant: Array, reference: Array, order: list[int]) -> None:
    truth = np.broadcast_to(TRUTH[:1], (4, 3, 2))
    cells = (np.arange(12).reshape(4, 3) % 2, np.zeros((4, 3), dtype=np.intp))
    sample = measure(landmarks(variant, cells[0]), landmarks(reference, cells[1]), SPEC, truth)
    # The order of the images does not matter; nor which of the two is called the reference, for the drift.
    shuffled = measure(
        landmarks(variant[order], cells[0][order]), landmarks(reference[order], cells[1][order]), SPEC, truth
    )
    swapped = measure(landmarks(reference, cells[1]), landmarks(variant, cells[0]), SPEC)
    # Moving everything does not matter, nor does a scale, to the NME.
    far = measure(landmarks(2 * variant + 1), landmarks(2 * reference + 1), SPEC, 2 * truth + 1)
    for name, metric in METRICS.items():
        assert value(name, shuffled) == pytest.approx(value(name, sample), abs=1e-9)
        if not metric.labels:
            assert value(name, swapped) == value(name, sample)
    assert value("nme", far) == pytest.approx(value("nme", sample), rel=1e-4, abs=1e-3)
    # Nothing drifts from itself.
    same = summarise(measure(landmarks(variant), landmarks(variant), SPEC, truth))
    assert {estimate.value for estimate in same.drift.values()} == {0.0}


# --- Intervals.


def compare(a: Sample, b: Sample, seed: int = 0) -> dict[str, Estimate]:
    """Variant a's metrics minus variant b's, paired by image: a difference is real where its Estimate is clear.

    Raises EdgeError unless both were measured on the same images against the same reference.
    """
    if a.px.shape != b.px.shape:
        raise EdgeError(f"two variants are compared on the same images; these have {len(a.px)} and {len(b.px)}")
    nme_a, nme_b = (None if s.reference_nme is None else s.reference_nme.tolist() for s in (a, b))
    if nme_a != nme_b:
        raise EdgeError("two variants are compared on the same labels and against the same reference; these differ")
    first, second = drift._replicates(a, seed), drift._replicates(b, seed)
    return {name: drift._estimate(first[name] - second[name]) for name in first}


def clear(estimate: Estimate) -> bool:
    """Whether the interval leaves 0 out, so that a difference may be claimed."""
    return estimate.low is not None and estimate.high is not None and (estimate.low > 0 or estimate.high < 0)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    hits = {"px_mean": 0, "px_p50": 0, "flips": 0, "nme": 0}
    trials = 60
    for trial in range(trials):
        # Drift is exponential around 1 px, a tenth flips, and the variant's NME is 0.002 above the reference's.
        reference = rng.gamma(4.0, 0.012, 80)
        variant = reference + rng.normal(0.002, 0.004, 80)
        sample = Sample(rng.exponential(1.0, (80, 5)), rng.random((80, 5)) < 0.1, variant, reference)
        found = summarise(sample, seed=trial).drift
        for name, true in (("px_mean", 1.0), ("px_p50", np.log(2)), ("flips", 10.0), ("nme", 0.2)):
            low, high = found[name].low, found[name].high
            assert low is not None
            assert high is not None
            assert low <= found[name].value <= high
            hits[name] += low <= true <= high
    assert min(hits.values()) >= 0.85 * trials, hits


def test_a_difference_is_claimed_only_where_it_is_clear() -> None:
    a = samples(80, 5, 1)
    worse = replace(a, px=a.px * 1.05)
    jitter = [np.random.default_rng(seed).normal(0, 0.2, a.px.shape) for seed in range(60)]
    claims = sum(clear(compare(replace(a, px=a.px + noise), a)["px_mean"]) for noise in jitter)
    assert claims <= 9  # of 60, at 95 %
    gap = compare(worse, a)["px_mean"]
    assert clear(gap)
    assert gap.value == pytest.approx(0.05 * a.px.mean())
    # Paired: the interval is far narrower than that of either variant, which overlap.
    own = [summarise(sample).drift["px_mean"] for sample in (worse, a)]
    assert own[0].low < own[1].high
    assert {estimate.value for estimate in compare(a, a).values()} == {0.0}
    assert not any(clear(estimate) for estimate in compare(a, a).values())


def test_the_same_seed_gives_the_same_intervals() -> None:
    sample = samples(40, 6, 3)
    assert summarise(sample, 7).to_json() == summarise(sample, 7).to_json()
    assert summarise(sample, 7).to_json() != summarise(sample, 8).to_json()


def test_few_images_and_maxima_have_no_interval() -> None:
    few, enough = summarise(samples(9, 4, 0)), summarise(samples(10, 4, 0))
    assert {estimate.low for estimate in few.drift.values()} == {None}
    assert [name for name, estimate in enough.drift.items() if estimate.low is None] == ["px_max"]
    assert not clear(Estimate(5.0))


# --- What is not a number.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_wherever_it_stands(bad: float) -> None:
    broken = TRUTH.copy()
    broken[1, 2, 0] = bad
    for who, code, given_ in (
        ("variant", CHECK_FAILED, (landmarks(broken), landmarks(TRUTH), SPEC, TRUTH)),
        ("reference", USER_ERROR, (landmarks(TRUTH), landmarks(broken), SPEC, TRUTH)),
        ("labels", USER_ERROR, (landmarks(TRUTH), landmarks(TRUTH), SPEC, broken)),
    ):
        with pytest.raises(EdgeError) as e:
            measure(*given_)
        assert str(e.value) == f"{who}: NaN or infinity in the landmarks of 1 of 2 images, first in image 1"
        assert e.value.code == code


def test_noise_without_a_single_kept_cell_is_not_a_number_and_breaks_its_limit() -> None:
    sample = Sample(np.ones((20, 2)), np.ones((20, 2), dtype=bool))
    summary = summarise(sample)
    assert np.isnan(summary.drift["noise"].value)
    assert summary.drift["noise"].to_json() == {"value": None}
    verdicts = drifts.judged([drifts.Row("v", summary)], [Limit("noise", 1e9), Limit("flips", 100)])
    assert [verdict.is_kept for verdict in verdicts] == [False, True]
    assert verdicts[0].to_json()["value"] is None


@pytest.mark.parametrize(
    ("variant", "reference", "truth", "message"),
    [
        (TRUTH[:1], TRUTH, None, "variant: landmarks of shape (1, 3, 2); (2, 3, 2) is needed"),
        (TRUTH[0], TRUTH[0], None, "variant: landmarks of shape (3, 2); (3, 3, 2) is needed"),
        (TRUTH[:0], TRUTH[:0], None, "variant: landmarks of shape (0, 3, 2); ('images', 3, 2) is needed"),
        (TRUTH, TRUTH, TRUTH[:, :2], "labels: landmarks of shape (2, 2, 2); (2, 3, 2) is needed"),
        (TRUTH, TRUTH, TRUTH * [[[1]], [[0]]], "labels: landmarks (0, 1) coincide in image 1, so it has no NME"),
    ],
)
def test_shapes_that_do_not_fit(variant: Array, reference: Array, truth: Array | None, message: str) -> None:
    with pytest.raises(EdgeError) as e:
        measure(landmarks(variant), landmarks(reference), SPEC, truth)
    assert str(e.value) == message


def test_cells_that_do_not_fit() -> None:
    with pytest.raises(EdgeError) as e:
        measure(landmarks(TRUTH, np.zeros((2, 2), dtype=np.intp)), landmarks(TRUTH), SPEC)
    assert str(e.value) == "winning cells of shape (2, 2) and (2, 3); (2, 3) is needed"


def test_variants_of_other_images_are_not_compared() -> None:
    with pytest.raises(EdgeError, match="compared on the same images; these have 4 and 5"):
        compare(samples(4, 3, 0), samples(5, 3, 0))
    for other in (samples(4, 3, 1), Sample(*(getattr(samples(4, 3, 0), name) for name in ("px", "flipped")))):
        with pytest.raises(EdgeError, match="compared on the same labels and against the same reference; these differ"):
            compare(samples(4, 3, 0), other)


# --- Limits and JSON.


def test_check_bounds_the_magnitude() -> None:
    sample = samples(20, 3, 0)
    better = replace(sample, nme=np.asarray(sample.reference_nme) - 0.001)
    summary = summarise(better)
    assert summary.drift["nme"].value == pytest.approx(-0.1)
    limits = [Limit("nme", 0.05), Limit("nme", 0.2), Limit("px_max", 0.0), Limit("px_mean", 1e3)]
    verdicts = drifts.judged([drifts.Row("v", summary), drifts.Row("w", failure="lost")], limits)
    assert [verdict.is_kept for verdict in verdicts] == [False, True, False, True] + [False] * 4
    assert verdicts[0].to_json() == {
        "variant": "v", "metric": "nme", "most": 0.05, "value": pytest.approx(-0.1), "kept": False
    }  # fmt: skip
    assert str(drifts.broken_limits([drifts.Row("v", summary)], verdicts[:4])) == (
        "v: --limit nme<=0.05 is broken by -0.1 (and 1 more)"
    )
    assert drifts.broken_limits([drifts.Row("v", summary)], verdicts[1:2]) is None
    drifts.check_limits(limits, has_labels=True)
    drifts.check_limits([Limit("noise", 1)], has_labels=False)
    with pytest.raises(EdgeError) as e:
        drifts.check_limits(limits, has_labels=False)
    assert str(e.value) == (
        "--limit nme<=0.05 needs labels; without --labels: px_mean, px_p50, px_p95, px_max, flips, noise"
    )


def test_json() -> None:
    data = json.loads(json.dumps(summarise(samples(20, 3, 0)).to_json(), allow_nan=False))
    assert list(data) == ["images", "drift", "variant", "reference", "landmarks"]
    assert list(data["drift"]) == list(METRICS)
    assert list(data["variant"]) == list(data["reference"]) == ["nme", "fr", "auc"]
    assert data["drift"]["nme"]["value"] == pytest.approx(
        data["variant"]["nme"]["value"] - data["reference"]["nme"]["value"]
    )
    assert data["drift"]["px_mean"].keys() == {"value", "low", "high"}
    assert data["landmarks"][2].keys() == {"landmark", "px_mean", "px_p95", "flips"}
    unlabelled = summarise(Sample(np.ones((20, 3)), np.zeros((20, 3), dtype=bool))).to_json()
    assert unlabelled["variant"] == unlabelled["reference"] == {}


def test_every_metric_says_its_unit() -> None:
    for name, metric in METRICS.items():
        assert metric.unit in (metric.of.__doc__ or ""), name
        assert metric.of.__name__ == name


def test_every_mean_face_can_be_measured() -> None:
    """LaPa too, where the reference's test.py stops."""
    for name, face in mean_faces().items():
        points = np.asarray(face.points)[None].repeat(2, axis=0)
        spec = ModelSpec("resnet18", len(face.points), 10, 32, 256, face)
        sample = measure(landmarks(points + 0.01), landmarks(points), spec, points)
        norm = 1 if face.nme_pair is None else np.hypot(*(points[0, face.nme_pair[0]] - points[0, face.nme_pair[1]]))
        assert value("nme", sample) == pytest.approx(100 * np.hypot(0.01, 0.01) / norm, rel=1e-4), name
