"""The loops by hand of benchmarks/studies/by_hand.py do the same work as the adapters; times are not looked at here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipnet_edge import bundle as bundles
from pipnet_edge import runtimes
from pipnet_edge.benchmarks.speed.result import Settings
from pipnet_edge.benchmarks.studies import by_hand
from pipnet_edge.decode import outputs as decode_outputs
from pipnet_edge.errors import EdgeError
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.worker import call as calls

ONCE = Settings(warmup=1, seconds=0, count=2)


VARIANTS = [
    (runtime, precision)
    for runtime in runtimes.DESTINATIONS
    for precision in runtimes.RUNTIMES[runtime].precisions
    if precision == "int8" or not PRECISIONS[precision].is_quantized
]


@pytest.mark.parametrize(("runtime", "precision"), VARIANTS)
def test_a_loop_by_hand_gives_the_adapter_s_landmarks(
    demo_bundle: Path, tmp_path: Path, runtime: str, precision: str
) -> None:
    name = f"{runtime}-{precision}"
    bundle = bundles.read(demo_bundle)
    crops = bundle.read_golden()[0][:2]
    ours = calls.infer(calls.here, bundle.folder, name, 1, crops).landmarks
    with by_hand.task(bundle, name, 1, crops, ONCE) as task:
        found = task.by_hand(task.start_by_hand(tmp_path / "outputs.npz"))
    assert len(found["milliseconds"]) == 2
    assert min(found["milliseconds"]) > 0
    assert [module for module in found["modules"] if module.startswith("pipnet_edge")] == []
    with np.load(tmp_path / "outputs.npz") as arrays:
        outputs = dict(arrays)
    if runtime == "tflite" and "features" in outputs:
        outputs["features"] = np.moveaxis(outputs["features"], -1, 2)
    decode, spec = bundle.decoder(name), bundle.spec
    for index in range(2):
        maps = decode_outputs(outputs, spec).from_outputs({key: array[index] for key, array in outputs.items()}, spec)
        landmarks = decode(maps)
        # Bit for bit: with another option, number of threads or input the sums would be others.
        np.testing.assert_array_equal(landmarks.points, ours.points[index])
        np.testing.assert_array_equal(landmarks.score, ours.score[index])
        np.testing.assert_array_equal(landmarks.cell, ours.cell[index])


def test_every_runtime_has_a_loop() -> None:
    assert set(by_hand.LOOPS) == set(runtimes.DESTINATIONS)


def test_a_comparison_takes_both_ways_in_every_round(demo_bundle: Path) -> None:
    bundle = bundles.read(demo_bundle)
    row = by_hand.compare(bundle, "ncnn-fp32", 1, 2, ONCE)
    assert row.variant == "ncnn-fp32"
    assert min(row.bench, row.by_hand, row.ratio) > 0


def test_what_differs_by_more_than_the_limit_does_not_agree() -> None:
    row = by_hand.Row("ncnn-fp32", 10.0, 10.0, 1.0)
    assert [replace(row, ratio=ratio).agrees for ratio in (0.96, 0.98, 1.02, 1.04)] == [False, True, True, False]


def test_a_loop_that_fails_says_how(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = bundles.read(demo_bundle)
    crops = bundle.read_golden()[0]
    with by_hand.task(bundle, "onnx-fp32", 1, crops, ONCE) as task:
        lost = replace(task, bundle=replace(bundle, folder=tmp_path))
        with pytest.raises(EdgeError, match=r"^onnx-fp32 by hand: the runtime ended with status 1: .*model\.onnx"):
            lost.by_hand(lost.start_by_hand())
        with pytest.raises(EdgeError, match=r"^onnx-fp32 bench: .*manifest\.json"):
            lost.bench(lost.start_bench())
