"""Results to report: of bench, of drift and of parity, and the files that they are in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipnet_edge.benchmarks.accuracy import drift as drifts
from pipnet_edge.benchmarks.accuracy import metrics, parity
from pipnet_edge.benchmarks.speed.result import VERSION, Counted, Measured, Predicted, Result, Settings
from pipnet_edge.targets.emulated.instructions import Count


@pytest.fixture(scope="session")
def run():
    """run(variant, threads, samples, …): one measured run; samples: milliseconds of inference."""

    def make(variant="ncnn-int8", threads=1, samples=None, failure=None, states=(), target="rpi4", px=0.117):
        if samples is None:
            samples = np.random.default_rng(len(variant) + threads).normal(20 / threads, 0.3, 60).round(4).tolist()
        stages = {"preprocess": (0.4,) * len(samples), "inference": tuple(samples), "decode": (0.2,) * len(samples)}
        told = ("ncnn 1.0", (0, 1), 40.0, 31.0, 97_000_000)
        return Measured(target, variant, "int8", 10_500_000, threads, px, *told, stages, tuple(states), failure)

    return make


@pytest.fixture(scope="session")
def counted():
    """counted(variant, target): one count of instructions."""

    def make(variant="ncnn-int8", target="rpi4"):
        parts = {"inference": Count(300_000_000, 150_000_000, 90_000_000), "decode": Count(2_000_000, 0, 0)}
        return Counted(target, variant, 10_500_000, "cortex-a72", "ncnn 1.0", 4, 0.118, 1, parts, None)

    return make


@pytest.fixture(scope="session")
def predicted():
    """predicted(variant, target): one prediction."""

    def make(variant="ncnn-int8", target="rpi3"):
        return Predicted(
            target, variant, 10_500_000, 4, 51.5, 40.25, 70.75, "near it: 62 ms", "a page", 54.125, "a guess"
        )

    return make


@pytest.fixture(scope="session")
def result():
    """result(measured, counts, guesses, facts, …): a whole result of bench."""

    def make(measured=(), counts=(), guesses=(), facts=None, **changes):
        known = (
            {"rpi4": {"board": "Raspberry Pi 4", "cores": "4", "governor": "performance"}} if facts is None else facts
        )
        fields = {
            "version": VERSION,
            "tool": "0.1.0",
            "created": "2026-11-22T20:31:05+00:00",
            "network": "mobilenet_v2, 68 landmarks",
            "bundle": "ed070ab8e10f00",
            "settings": Settings(),
            "facts": known,
            "measured": tuple(measured),
            "counted": tuple(counts),
            "predicted": tuple(guesses),
        }
        return Result(**{**fields, **changes})

    return make


@pytest.fixture
def save(tmp_path):
    """Writes an envelope as --json prints it."""

    def write(content, command="bench", name=None):
        path = tmp_path / f"{name or command}.json"
        data = content.to_json() if isinstance(content, Result) else content
        path.write_text(json.dumps({"schema": "pipnet-edge/1", "command": command, "ok": True, "result": data}))
        return path

    return write


@pytest.fixture(scope="session")
def drift_result():
    """drift_result(variant, value, …): what drift prints, by its own classes."""

    def make(variant="ncnn-int8", value=0.25, **changes):
        chance = np.random.default_rng(0)
        sample = metrics.Sample(chance.uniform(0, 2 * value, (12, 3)), np.zeros((12, 3), bool))
        face = ((0.1, 0.2), (0.9, 0.2), (0.5, 0.9))
        rows = [
            drifts.Row(variant, metrics.summarise(sample), mean_face=face),
            drifts.Row("mnn-int8", failure="no\nway"),
        ]
        return {
            "reference": "onnx-fp32",
            "notes": [],
            "rows": [row.to_json() for row in rows],
            "pictures": [],
        } | changes

    return make


@pytest.fixture(scope="session")
def parity_result():
    """parity_result(): what parity prints: a variant that agrees, one that failed, one that was skipped."""

    def make():
        good = parity.Row("ncnn-fp32", "torch", 4, 68, {"score": (1e-6, 1e-7)}, 0, 1e-5, 5e-5, "score")
        rows = [
            good,
            parity.Row("mnn-int8", "torch", 4, 68, failure="crashed"),
            parity.Row("x", "torch", 4, 68, skipped="y"),
        ]
        return {"rows": [row.to_json() for row in rows]}

    return make
