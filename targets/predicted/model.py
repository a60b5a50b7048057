"""Predicted latency: two terms, arithmetic and memory traffic, scaled by published timings of the runtime.

    T = a * operations / (peak of a core * threads) + b * bytes / memory bandwidth

Operations count 3x3 stride-1 convolutions with Winograd's smaller number if the runtime uses it. a and b come from
latency.toml, which fit.py writes: one pair for each runtime, precision and kind of core. The interval comes from
devices that were left out of a fit. A prediction is never a measurement.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pipnet_edge import strict
from pipnet_edge.bundle import Held
from pipnet_edge.errors import EdgeError
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.runtimes import RUNTIMES, Runtime
from pipnet_edge.targets.devices import CORE_TYPES, Anchor, Cores, Device
from pipnet_edge.targets.predicted import cost as costs
from pipnet_edge.targets.predicted.cost import BYTES, Cost
from pipnet_edge.targets.predicted.networks import INPUT_PX, NETWORKS

LATENCY = Path(__file__).with_name("latency.toml")
ANY_ARM = "arm"
# Runtimes by their names in published timings, those with their own fits first.
PUBLISHED: Mapping[str, Runtime] = {
    row.published: row for row in sorted(RUNTIMES.values(), key=lambda row: row.winograd is None) if row.published
}
# A borrowed interval is widened: published timings of two runtimes on one board differ by up to twice.
BORROWED = (0.6, 2.0)


@dataclass(frozen=True)
class Fit:
    """One row of latency.toml.

    precision: "float" (fp32 and fp16) or "int8". kind: a kind of cores, or "arm" for all Arm cores together. a and b:
    the model's factors. rows and devices: how many they were fitted to. error: mean |predicted / published - 1| over
    left-out devices. low and high: the range of published / predicted that covers `share` of their timings.
    """

    runtime: str
    precision: str
    kind: str
    winograd: bool
    a: float
    b: float
    rows: int
    devices: int
    error: float
    low: float
    high: float

    def ms(self, cost: Cost, precision: str, peak: float, threads: int, memory_gb_s: float) -> float:
        """The model: milliseconds on `threads` cores of `peak` 1e9 operations a second each."""
        arithmetic, traffic = terms(cost, precision, self.winograd, peak * threads, memory_gb_s)
        return self.a * arithmetic + self.b * traffic


@dataclass(frozen=True)
class Latency:
    """latency.toml: its version, the share of timings that an interval covers, and the fits."""

    version: int
    share: float
    fits: tuple[Fit, ...]


@dataclass(frozen=True)
class Prediction:
    """ms: to run the network. low and high: its interval. anchor: the nearest published timing, if the device has any.

    anchored: the anchor's ms times the model's ratio of the two networks. It is None unless the anchor has the same
    runtime, precision and threads, and a network that is known here. note: remarks, in sentences.
    """

    ms: float
    low: float
    high: float
    anchor: Anchor | None
    anchored: float | None
    note: str


def terms(cost: Cost, precision: str, winograd: bool, peak: float, memory_gb_s: float) -> tuple[float, float]:
    """Milliseconds of arithmetic at `peak` 1e9 operations a second, and of memory traffic at memory_gb_s."""
    return cost.operations(winograd) / (peak * 1e6), cost.bytes(precision, winograd) / (memory_gb_s * 1e6)


@lru_cache
def latency() -> Latency:
    """The fits that come with the package."""
    return strict.read(Latency, tomllib.loads(LATENCY.read_text(encoding="utf-8")), LATENCY.name)


def predict_variant(device: Device, bundle: Held, name: str, threads: int) -> Prediction:
    """Predicts one inference of a bundle's variant from its layers.

    Raises EdgeError as `predict` does, for an unknown variant, and for a precision without published speeds.
    """
    variant = bundle.variant(name)
    asked = PRECISIONS[variant.precision]
    if asked.predicted_as is None:
        allowed = ", ".join(row.name for row in PRECISIONS.values() if row.predicted_as)
        raise EdgeError(f"{name} cannot be predicted: no speed of {asked.name} was published; allowed: {allowed}")
    precision, runtime = asked.predicted_as, RUNTIMES[variant.runtime].published or variant.runtime
    found = predict(device, costs.of(bundle, variant), runtime, precision, threads)
    told = f"Its {asked.weights} weights are made float when it is loaded: predicted as fp32." if asked.widens else ""
    return replace(found, note=" ".join(filter(None, (told, found.note))))


def predict(device: Device, cost: Cost, runtime: str, precision: str, threads: int) -> Prediction:
    """Predicts one inference (crop to maps) of a network at fp32, fp16 or int8 (except layers kept in float).

    More threads than the fastest cluster has cores do not make it faster. Raises EdgeError for a runtime, precision or
    thread count that cannot be predicted.
    """
    if runtime not in PUBLISHED:
        raise EdgeError(f"runtime {runtime!r:.60} cannot be predicted; allowed: {', '.join(PUBLISHED)}")
    if precision not in BYTES:
        raise EdgeError(f"precision {precision!r:.60} cannot be predicted; allowed: {', '.join(BYTES)}")
    if not 1 <= threads <= device.core_count:
        raise EdgeError(f"{threads} threads cannot be predicted for {device.name}; allowed: 1 to {device.core_count}")
    cluster = device.cores[0]
    used = min(threads, cluster.count)
    no_half = _no_half(runtime, cluster) if precision == "fp16" else ""
    ran = "fp32" if no_half else precision
    ms, low, high = _times(device, cost, runtime, ran, used)
    anchor = nearest(device, cost, runtime, ran, used)
    anchored = None
    if anchor and (anchor.runtime, anchor.precision, anchor.threads) == (runtime, ran, used):
        network = NETWORKS.get(anchor.network) if anchor.input_px == INPUT_PX else None
        anchored = anchor.ms * ms / _times(device, network(), runtime, ran, used)[0] if network else None
    fit = _fit(runtime, ran, CORE_TYPES[cluster.type].kind)
    notes = (
        f"Predicted for the {used} {cluster.type} cores alone." if threads > used else "",
        f"{no_half} has no fp16 arithmetic: predicted as fp32." if no_half else "",
        f"Too few published timings of {runtime}: predicted by those of {fit.runtime}."
        if fit.runtime != runtime
        else "",
        f"Predicted by timings on all Arm cores ({fit.devices} devices)." if fit.kind == ANY_ARM else "",
    )
    return Prediction(ms, low, high, anchor, anchored, " ".join(filter(None, notes)))


def _no_half(runtime: str, cluster: Cores) -> str:
    """The cores or the runtime, whichever has no half-precision arithmetic; empty if both have it."""
    if not CORE_TYPES[cluster.type].has_fp16:
        return cluster.type
    return "" if PUBLISHED[runtime].half_arithmetic else runtime


def _times(device: Device, cost: Cost, runtime: str, precision: str, threads: int) -> tuple[float, float, float]:
    """(ms, low, high) on the fastest cluster; layers that an int8 variant keeps in float take the time of fp32."""
    parts = {precision: cost}
    if precision == "int8":
        parts = {precision: cost.part(in_float=False), "fp32": cost.part(in_float=True)}
    cluster, ms, low, high = device.cores[0], 0.0, 0.0, 0.0
    for ran, part in parts.items():
        fit = _fit(runtime, ran, CORE_TYPES[cluster.type].kind)
        time = fit.ms(part, ran, cluster.peak(ran), threads, device.memory_gb_s)
        wider = (1.0, 1.0) if fit.runtime == runtime else BORROWED
        ms, low, high = ms + time, low + time * fit.low * wider[0], high + time * fit.high * wider[1]
    return ms, low, high


def _fit(runtime: str, precision: str, kind: str) -> Fit:
    """The first fit that exists: the runtime's own for the kind, its own for all Arm cores, those of its lenders."""
    fits = {(fit.runtime, fit.precision, fit.kind): fit for fit in latency().fits}
    name = "int8" if precision == "int8" else "float"
    on_x86 = kind == "x86"
    kinds = (kind,) if on_x86 else (kind, ANY_ARM)
    # On x86 the runtimes are equally fast in float. In int8 ncnn's kernels are several times slower than the others.
    lenders = () if on_x86 and name == "int8" else PUBLISHED[runtime].lenders
    for key in ((lender, name, k) for lender in (runtime, *lenders) for k in kinds):
        if key in fits:
            return fits[key]
    raise EdgeError(f"{precision} of {runtime} on {kind} cores cannot be predicted: nothing alike was published")


def nearest(device: Device, cost: Cost, runtime: str, precision: str, threads: int) -> Anchor | None:
    """The most similar published timing: by runtime, then precision, then threads, then the network's size."""

    def distance(anchor: Anchor) -> tuple[bool, bool, float, float]:
        return (
            anchor.runtime != runtime,
            anchor.precision != precision,
            abs(math.log(anchor.threads / threads)),
            abs(math.log(anchor.gmac * 1e9 / max(cost.macs, 1))),
        )

    return min(device.anchors, key=distance, default=None)
