"""Fits the latency model to published timings: `python -m pipnet_edge.benchmarks.fit_latency [--write]`, in a checkout.

speeds.csv holds the timings, each with the address it was published at: those on one cluster of cores of a known type
and clock with 1, 2 or 4 threads, of networks whose layers networks.py knows. ms is the smallest published, else the
mean; ghz is the cores' clock; note says what was assumed of a row. Left out are an RK3588 published at half the speed
of all others, a board that ran 4 threads on 2 cores, and ncnn's int8 before 2021, when its kernels were rewritten.
gb_per_s is twice a one-core memcpy from github.com/ThomasKaiser/sbc-bench where `memory` says measured. Else it is
assumed: as the boards measured with such memory have it (2.7 for DDR3 and LPDDR3, 7 for LPDDR4), 20 for phones,
modules and PCs, 100 for servers.

a and b minimise the squared log of predicted / published. The error of a fit is that of devices it has not seen: each
in turn is left out, predicted from the others, and compared.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.targets.cost import Cost
from pipnet_edge.targets.devices import CORE_TYPES
from pipnet_edge.targets.networks import NETWORKS
from pipnet_edge.targets.predict import ANY_ARM, LATENCY, Fit, terms

SPEEDS = Path(__file__).with_name("speeds.csv")
# ncnn and MNN take Winograd's way through 3x3 convolutions; XNNPACK, which TFLite runs on, does not.
WINOGRAD: Mapping[str, bool] = {"ncnn": True, "mnn": True, "tflite": False}
KINDS = ("in-order", "a57-a75", "a76", "x86")
# An interval covers this share of the timings of left-out devices; a fit needs so many devices to leave one out.
SHARE, LEAST_DEVICES = 0.9, 3
# The directions of (a, b) tried: a quarter circle in steps of a tenth of a degree.
ANGLES = np.linspace(0, np.pi / 2, 901)
# The networks PIPNet is built on, by their names in speeds.csv: the error promised is theirs.
PROMISED = ("resnet18", "mobilenet_v2_ncnn", "mobilenet_v3_ncnn")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Timings:
    """Rows of speeds.csv as columns (n,): device and network names, the model's two terms and published times in ms."""

    device: NDArray[np.str_]
    network: NDArray[np.str_]
    arithmetic: Floats
    traffic: Floats
    ms: Floats

    def where(self, chosen: NDArray[np.bool_]) -> Timings:
        return Timings(
            self.device[chosen], self.network[chosen], self.arithmetic[chosen], self.traffic[chosen], self.ms[chosen]
        )


@lru_cache
def cost(network: str) -> Cost:
    return NETWORKS[network]()


def read() -> list[dict[str, str]]:
    """The rows of speeds.csv, text as it stands."""
    with SPEEDS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def timings(rows: Iterable[Mapping[str, str]], winograd: bool) -> Timings:
    """Rows of one runtime, in their order."""
    rows = list(rows)
    pairs = [_terms(row, winograd) for row in rows]
    return Timings(
        np.array([row["device"].split(" (")[0] for row in rows]),
        np.array([row["network"] for row in rows]),
        np.array([arithmetic for arithmetic, _ in pairs]),
        np.array([traffic for _, traffic in pairs]),
        np.array([float(row["ms"]) for row in rows]),
    )


def _terms(row: Mapping[str, str], winograd: bool) -> tuple[float, float]:
    precision = row["precision"]
    peak = float(getattr(CORE_TYPES[row["core"]], precision)) * float(row["ghz"]) * int(row["threads"])
    return terms(cost(row["network"]), precision, winograd, peak, float(row["gb_per_s"]))


def factors(data: Timings) -> tuple[float, float]:
    """(a, b), neither negative, with the least mean squared log of predicted / published.

    Along each direction of (a, b) the best length is a mean of logs, so that only directions are searched.
    """
    a, b = np.cos(ANGLES)[:, None], np.sin(ANGLES)[:, None]
    logs = np.log(data.ms) - np.log(a * data.arithmetic + b * data.traffic)
    best = int(np.argmin(logs.var(axis=1)))
    length = np.exp(logs[best].mean())
    return float(length * a[best, 0]), float(length * b[best, 0])


def left_out(data: Timings) -> Floats:
    """Predicted times (n,) in ms, each device's from a fit to all others."""
    predicted = np.empty_like(data.ms)
    for device in np.unique(data.device):
        own = data.device == device
        a, b = factors(data.where(~own))
        predicted[own] = a * data.arithmetic[own] + b * data.traffic[own]
    return predicted


def selections(rows: list[dict[str, str]]) -> Iterator[tuple[str, str, str, list[dict[str, str]]]]:
    """(runtime, "float" or "int8", kind of cores, their rows), wherever there are LEAST_DEVICES."""
    for runtime in WINOGRAD:
        for precision in ("float", "int8"):
            for kind in (*KINDS, ANY_ARM):
                chosen = [row for row in rows if row["runtime"] == runtime and _is(row, precision, kind)]
                if len({row["device"] for row in chosen}) >= LEAST_DEVICES:
                    yield runtime, precision, kind, chosen


def _is(row: Mapping[str, str], precision: str, kind: str) -> bool:
    own = CORE_TYPES[row["core"]].kind
    same_kind = own != "x86" if kind == ANY_ARM else own == kind
    return same_kind and (row["precision"] == "int8") == (precision == "int8")


def fits(rows: list[dict[str, str]]) -> list[Fit]:
    """All fits that rows allow, numbers rounded as they are written."""
    found = []
    for runtime, precision, kind, chosen in selections(rows):
        winograd = WINOGRAD[runtime]
        data = timings(chosen, winograd)
        a, b = factors(data)
        ratio = data.ms / left_out(data)
        low, high = np.quantile(ratio, ((1 - SHARE) / 2, (1 + SHARE) / 2))
        counts = len(data.ms), len(np.unique(data.device))
        error = float(np.mean(np.abs(1 / ratio - 1)))
        numbers = [round(float(x), 3) for x in (error, min(low, 1.0), max(high, 1.0))]
        found.append(Fit(runtime, precision, kind, winograd, round(a, 3), round(b, 3), *counts, *numbers))
    return found


def promised_error(rows: list[dict[str, str]]) -> tuple[float, int]:
    """ncnn float on Arm, each kind of core by its own fit: mean left-out error over PROMISED, and how many rows."""
    errors: list[float] = []
    for runtime, precision, kind, chosen in selections(rows):
        if (runtime, precision) == ("ncnn", "float") and kind not in ("x86", ANY_ARM):
            data = timings(chosen, True)
            own = np.isin(data.network, PROMISED)
            errors += np.abs(left_out(data) / data.ms - 1)[own].tolist()
    return float(np.mean(errors)), len(errors)


def to_toml(found: list[Fit]) -> str:
    """The text of latency.toml."""
    lines = [
        "# Written by `python -m pipnet_edge.benchmarks.fit_latency --write`; what it means stands in predict.py.",
        *("version = 1", f"share = {SHARE}"),
    ]
    for fit in found:
        lines += ["", "[[fits]]", *(f"{name} = {_toml(value)}" for name, value in vars(fit).items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def main() -> None:
    rows = read()
    found = fits(rows)
    print("runtime  precision  cores     a      b      rows  devices  left-out error  published/predicted (90 %)")
    for fit in found:
        print(
            f"{fit.runtime:8} {fit.precision:10} {fit.kind:8} {fit.a:6.2f} {fit.b:6.2f} {fit.rows:6} {fit.devices:8}"
            f"  {fit.error:13.1%}  {fit.low:.2f} to {fit.high:.2f}"
        )
    for text, chosen in (
        ("all rows", rows),
        ("memory speed measured", [row for row in rows if row["memory"] == "measured"]),
    ):
        error, count = promised_error(chosen)
        print(f"ncnn float, ResNet18, MobileNetV2 and V3, {text}: {error:.1%} over {count} rows")
    if sys.argv[1:] == ["--write"]:
        LATENCY.write_text(to_toml(found), encoding="utf-8")


if __name__ == "__main__":
    main()
