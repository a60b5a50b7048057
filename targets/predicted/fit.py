"""Fits the latency model to published timings: `python -m pipnet_edge.targets.predicted.fit [--write]`, in a checkout.

speeds.csv holds the timings, each with its address. They are of one cluster of cores of a known type and clock with 1,
2 or 4 threads, and of networks whose layers networks.py knows. ms is the smallest published time; if only the mean is
published, it is the mean. ghz is the cores' clock. note says what was assumed for a row. Three kinds of rows are left
out: an RK3588 at half the speed of all others, a board that ran 4 threads on 2 cores, and ncnn's int8 before 2021, when
its kernels were rewritten. gb_per_s is twice a one-core memcpy from github.com/ThomasKaiser/sbc-bench if `memory` says
measured. If not, it is assumed: the value of measured boards with such memory (2.7 for DDR3 and LPDDR3, 7 for LPDDR4),
20 for phones, modules and PCs, 100 for servers.

For a runtime and precision, b / a is the same on all kinds of cores. Each kind has its own scale. It is drawn to the
mean of all kinds as if by one more device, so that few devices do not say too much. Both minimise the squared log of
predicted / published. The error of a fit is the error on devices that it has not seen: each device in turn is left out
of the whole fit, predicted from the others, and compared.
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

from pipnet_edge.targets.devices import CORE_TYPES
from pipnet_edge.targets.predicted.cost import Cost
from pipnet_edge.targets.predicted.model import ANY_ARM, LATENCY, PUBLISHED, Fit, terms
from pipnet_edge.targets.predicted.networks import NETWORKS

SPEEDS = Path(__file__).with_name("speeds.csv")
# The runtimes that are fitted, and whether they use Winograd's algorithm.
WINOGRAD: Mapping[str, bool] = {name: row.winograd for name, row in PUBLISHED.items() if row.winograd is not None}
KINDS = ("in-order", "a57-a75", "a76", "x86")
# An interval covers SHARE of the timings of left-out devices. A fit needs LEAST_DEVICES so that one can be left out.
SHARE, LEAST_DEVICES = 0.9, 3
# The directions of (a, b) to try: a quarter circle in steps of a tenth of a degree.
ANGLES = np.linspace(0, np.pi / 2, 901)
# A kind's scale is drawn to the mean of all kinds as if by this number of devices.
PULL = 1
# PIPNet's backbones by their names in speeds.csv: the promised error is for these networks.
PROMISED = {"resnet18": "ResNet18", "mobilenet_v2_ncnn": "MobileNetV2", "mobilenet_v3_ncnn": "MobileNetV3"}
REQUIRED = 0.2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Timings:
    """Rows of speeds.csv as columns (n,): names of device, kind of cores and network, the model's terms and ms."""

    device: NDArray[np.str_]
    kind: NDArray[np.str_]
    network: NDArray[np.str_]
    arithmetic: Floats
    traffic: Floats
    ms: Floats

    def where(self, chosen: NDArray[np.bool_]) -> Timings:
        return Timings(**{name: column[chosen] for name, column in vars(self).items()})


@lru_cache
def cost(network: str) -> Cost:
    return NETWORKS[network]()


def read() -> list[dict[str, str]]:
    """The rows of speeds.csv as text."""
    with SPEEDS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def timings(rows: Iterable[Mapping[str, str]], runtime: str, precision: str, as_one: bool = False) -> Timings:
    """The rows of a runtime at "float" or "int8", in their order. as_one: all Arm cores are one kind, ANY_ARM."""
    rows = [r for r in rows if r["runtime"] == runtime and (r["precision"] == "int8") == (precision == "int8")]
    pairs = [_terms(row, WINOGRAD[runtime]) for row in rows]
    kinds = [CORE_TYPES[row["core"]].kind for row in rows]
    return Timings(
        # The same board at another clock is the same device.
        np.array([row["device"].split(" (")[0] for row in rows]),
        np.array([ANY_ARM if as_one and kind != "x86" else kind for kind in kinds]),
        np.array([row["network"] for row in rows]),
        np.array([arithmetic for arithmetic, _ in pairs]),
        np.array([traffic for _, traffic in pairs]),
        np.array([float(row["ms"]) for row in rows]),
    )


def _terms(row: Mapping[str, str], winograd: bool) -> tuple[float, float]:
    precision = row["precision"]
    peak = float(getattr(CORE_TYPES[row["core"]], precision)) * float(row["ghz"]) * int(row["threads"])
    return terms(cost(row["network"]), precision, winograd, peak, float(row["gb_per_s"]))


def factors(data: Timings) -> dict[str, tuple[float, float]]:
    """Kind of cores -> its (a, b), not negative, with the least mean squared log of predicted / published.

    For each direction of (a, b), a kind's best length is a mean of logs, so only directions are searched.
    """
    a, b = np.cos(ANGLES)[:, None], np.sin(ANGLES)[:, None]
    logs = np.log(data.ms) - np.log(a * data.arithmetic + b * data.traffic)
    kinds = {str(kind): data.kind == kind for kind in np.unique(data.kind)}
    best = int(np.argmin(sum(logs[:, own].var(axis=1) * own.sum() for own in kinds.values())))
    lengths = {kind: float(logs[best, own].mean()) for kind, own in kinds.items()}
    mean, found = float(np.mean(list(lengths.values()))), {}
    for kind, own in kinds.items():
        devices = len(np.unique(data.device[own]))
        length = np.exp(mean + (lengths[kind] - mean) * devices / (devices + PULL))
        found[kind] = float(length * a[best, 0]), float(length * b[best, 0])
    return found


def predicted(data: Timings, found: Mapping[str, tuple[float, float]]) -> Floats:
    """Times (n,) in ms from the factors of the kinds; nan for a kind that has none."""
    a, b = np.array([found.get(kind, (np.nan, np.nan)) for kind in data.kind]).T
    return np.asarray(a * data.arithmetic + b * data.traffic)


def left_out(data: Timings) -> Floats:
    """Predicted times (n,) in ms; those of each device come from a fit to all others."""
    times = np.empty_like(data.ms)
    for device in np.unique(data.device):
        own = data.device == device
        times[own] = predicted(data.where(own), factors(data.where(~own)))
    return times


def selections(rows: list[dict[str, str]]) -> Iterator[tuple[str, str, str, Timings]]:
    """(runtime, "float" or "int8", kind of cores, timings of all kinds) for kinds with at least LEAST_DEVICES."""
    for runtime in WINOGRAD:
        for precision in ("float", "int8"):
            for kind in (*KINDS, ANY_ARM):
                data = timings(rows, runtime, precision, as_one=kind == ANY_ARM)
                if len(np.unique(data.device[data.kind == kind])) >= LEAST_DEVICES:
                    yield runtime, precision, kind, data


def fits(rows: list[dict[str, str]]) -> list[Fit]:
    """All fits that the rows allow, with numbers rounded as in latency.toml."""
    found = []
    for runtime, precision, kind, data in selections(rows):
        own = data.kind == kind
        a, b = factors(data)[kind]
        ratio = (data.ms / left_out(data))[own]
        low, high = np.quantile(ratio, ((1 - SHARE) / 2, (1 + SHARE) / 2))
        counts = len(ratio), len(np.unique(data.device[own]))
        error = float(np.mean(np.abs(1 / ratio - 1)))
        numbers = [round(float(x), 3) for x in (error, min(low, 1.0), max(high, 1.0))]
        found.append(Fit(runtime, precision, kind, WINOGRAD[runtime], round(a, 3), round(b, 3), *counts, *numbers))
    return found


def promised_errors(rows: list[dict[str, str]]) -> dict[str, tuple[float, int]]:
    """For ncnn float on the networks of PROMISED: part of the rows -> (its mean left-out error, number of rows)."""
    data = timings(rows, "ncnn", "float")
    errors = np.abs(left_out(data) / data.ms - 1)
    chosen = np.isin(data.network, list(PROMISED))
    parts = {"all": chosen}
    parts |= {name: chosen & (data.network == network) for network, name in PROMISED.items()}
    parts |= {"Arm": chosen & (data.kind != "x86")} | {kind: chosen & (data.kind == kind) for kind in KINDS}
    return {name: (float(errors[part].mean()), int(part.sum())) for name, part in parts.items()}


def to_toml(found: list[Fit]) -> str:
    """The text of latency.toml."""
    lines = [
        "# Written by `python -m pipnet_edge.targets.predicted.fit --write`; model.py explains it.",
        # 1: the first.
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
    print("Errors are of devices that were left out of the fit.\n")
    print("runtime  precision  cores         a       b  rows  devices  error  published/predicted (90 %)")
    for fit in found:
        print(
            f"{fit.runtime:8} {fit.precision:10} {fit.kind:8} {fit.a:6.2f}  {fit.b:6.2f} {fit.rows:5} {fit.devices:8}"
            f" {fit.error:6.1%}  {fit.low:.2f} to {fit.high:.2f}"
        )
    print(
        "\nncnn float, ResNet18, MobileNetV2 and MobileNetV3 on 1, 2 and 4 threads\n\nrows                  error  rows"
    )
    errors = promised_errors(rows)
    for name, (error, count) in errors.items():
        print(f"{name:20} {error:6.1%} {count:5}")
    error = errors["all"][0]
    print(
        f"\nrequired: at most {REQUIRED:.0%} over all rows; {'met' if error <= REQUIRED else 'missed'} with {error:.1%}"
    )
    if sys.argv[1:] == ["--write"]:
        LATENCY.write_text(to_toml(found), encoding="utf-8")


if __name__ == "__main__":
    main()
