"""Which variant is taken on which CPU if nobody says, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipnet_edge import fastest, host, runtimes
from pipnet_edge.bundle import Bundle, Tuned
from pipnet_edge.defaults import Choice, choose, others
from pipnet_edge.errors import EdgeError
from pipnet_edge.fastest import ARM, ARM_DOT, CPUS, TABLE, X86, X86_DOT
from pipnet_edge.manifest import File, Variant
from pipnet_edge.precisions import PRECISIONS

EPYC = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni")
ALDER_LAKE = ("avx", "avx2", "fma", "f16c", "avx_vnni")
SKYLAKE_X = ("avx", "avx2", "fma", "f16c", "avx512f")
ZEN3 = ("avx", "avx2", "fma", "f16c")
SANDY_BRIDGE = ("avx",)
PI4, PI5, ARMV7 = ("asimd",), ("asimd", "asimdhp", "asimddp"), ("neon",)
NAMES = [f"{runtime}-{precision}" for runtime in runtimes.DESTINATIONS for precision in ("fp32", "fp16", "int8")]
NAMES.remove("onnx-fp16")
FILES = (File("model", "0" * 64, 1),)


def variants(*names: str) -> list[Variant]:
    return [Variant(name, *name.split("-", 1), FILES) for name in names]


def order(
    network: str,
    features: Sequence[str],
    names: Sequence[str] = NAMES,
    packages: Mapping[str, str | None] | None = None,
) -> list[str]:
    return [variant.name for variant, _ in fastest.ordered(network, variants(*names), features, packages or {})]


def why(network: str, features: Sequence[str], *names: str) -> str:
    return fastest.ordered(network, variants(*(names or NAMES)), features, {})[0][1]


@pytest.mark.parametrize(
    ("network", "features", "first"),
    [
        ("resnet18", EPYC, "tflite-int8"),
        ("mobilenet_v2", EPYC, "tflite-int8"),
        ("mobilenet_v3", EPYC, "tflite-int8"),
        ("faceboxes_v2", EPYC, "tflite-int8"),
        ("resnet18", ALDER_LAKE, "tflite-int8"),
        ("resnet18", ZEN3, "onnx-int8"),
        ("mobilenet_v2", ZEN3, "onnx-int8"),
        ("mobilenet_v3", ZEN3, "onnx-fp32"),
        ("faceboxes_v2", ZEN3, "onnx-int8"),
        ("resnet101", SKYLAKE_X, "onnx-int8"),
        ("resnet18", PI5, "tflite-int8"),
        ("mobilenet_v3", PI5, "tflite-int8"),
        ("resnet18", PI4, "ncnn-int8"),
        ("mobilenet_v2", PI4, "tflite-int8"),
        ("mobilenet_v3", PI4, "tflite-fp32"),
        ("mobilenet_v2", ARMV7, "tflite-int8"),
        ("resnet18", SANDY_BRIDGE, "onnx-fp32"),
        ("resnet18", (), "onnx-fp32"),
    ],
)
def test_the_first_of_all(network: str, features: Sequence[str], first: str) -> None:
    assert order(network, features)[0] == first


@pytest.mark.parametrize(
    ("network", "features", "first"),
    [
        ("resnet18", EPYC, "mnn-fp32"),
        ("mobilenet_v2", EPYC, "tflite-fp32"),
        ("resnet18", ZEN3, "mnn-fp32"),
        ("mobilenet_v2", ZEN3, "tflite-fp32"),
        ("mobilenet_v2", PI5, "ncnn-fp16"),
        ("resnet18", PI5, "ncnn-fp16"),
        ("mobilenet_v2", PI4, "tflite-fp32"),
    ],
)
def test_without_int8_it_is_the_best_float(network: str, features: Sequence[str], first: str) -> None:
    assert order(network, features, [name for name in NAMES if "int8" not in name])[0] == first


def test_all_that_is_given_comes_out_once() -> None:
    for features in (EPYC, ZEN3, PI4, PI5, ()):
        for network in ("resnet18", "mobilenet_v2", "mobilenet_v3", "faceboxes_v2", "of another's"):
            assert sorted(order(network, features)) == sorted(NAMES)


def test_small_weights_that_become_float_take_the_time_of_float() -> None:
    names = ("mnn-int8", "ncnn-fp16", "ncnn-fp32", "tflite-w8", "tflite-fp32")
    assert order("mobilenet_v2", EPYC, names) == ["tflite-w8", "tflite-fp32", "ncnn-fp16", "ncnn-fp32", "mnn-int8"]
    # Only where half precision is computed in, it has a time of its own.
    assert order("resnet18", PI5, ("ncnn-fp32", "tflite-fp16", "ncnn-fp16"))[0] == "ncnn-fp16"
    assert order("resnet18", PI4, ("tflite-fp16", "mnn-fp16", "ncnn-fp16"))[0] == "ncnn-fp16"


def test_what_has_no_time_follows_by_its_kind() -> None:
    odd = ("tflite-int16x8", "mnn-fp16", "onnx-int8-full", "tflite-int8-full")
    assert order("mobilenet_v2", PI5, odd) == ["onnx-int8-full", "tflite-int8-full", "mnn-fp16", "tflite-int16x8"]
    assert order("mobilenet_v3", PI4, odd) == ["mnn-fp16", "onnx-int8-full", "tflite-int8-full", "tflite-int16x8"]
    assert order("mobilenet_v3", ZEN3, ("tflite-int8", "ncnn-int8", "mnn-fp32", "onnx-int8")) == [
        *("onnx-int8", "mnn-fp32", "tflite-int8", "ncnn-int8")
    ]
    assert order("resnet18", (), odd) == ["mnn-fp16", "onnx-int8-full", "tflite-int8-full", "tflite-int16x8"]


def test_int8_is_last_in_the_package_that_is_slow_at_it() -> None:
    names = ("tflite-int8", "tflite-int16x8", "tflite-fp32", "ncnn-fp32", "ncnn-int8")
    old = {"tflite": "tflite-runtime 2.14.0", "ncnn": "ncnn 1.0"}
    assert order("mobilenet_v2", ARMV7, names, {"tflite": "ai-edge-litert 2.3.0"})[0] == "tflite-int8"
    assert order("mobilenet_v2", ARMV7, names, old) == [
        *("tflite-fp32", "ncnn-int8", "ncnn-fp32", "tflite-int8", "tflite-int16x8")
    ]
    (_, reason), *_ = fastest.ordered("mobilenet_v2", variants("tflite-int8"), ARMV7, old)
    assert reason == "tflite-int8: slow in tflite-runtime"


def test_the_reasons() -> None:
    assert why("resnet18", EPYC) == "tflite-int8: fastest measured on x86 with int8 dot products"
    assert why("resnet50", EPYC) == "tflite-int8: fastest measured on x86 with int8 dot products for resnet18"
    assert why("resnet18", ZEN3, "tflite-int8", "mnn-fp32") == (
        "mnn-fp32: fastest of those here, measured on x86 without int8 dot products"
    )
    assert why("resnet18", ALDER_LAKE) == (
        "tflite-int8: fastest measured on x86 with int8 dot products, not measured on x86 with AVX-VNNI alone"
    )
    assert why("mobilenet_v3", PI5) == (
        "tflite-int8: fastest by published times for mobilenet_v2, not measured on Arm with int8 dot products"
    )
    assert why("resnet18", PI4, "onnx-fp32", "mnn-int8") == "mnn-int8: not measured on Arm without int8 dot products"
    assert why("resnet18", SANDY_BRIDGE) == why("resnet18", ()) == "onnx-fp32: not measured on this kind of CPU"


def test_every_class_has_times_and_every_row_a_class() -> None:
    assert {cpu.like or cpu.name for cpu in CPUS} == {row.cpu for row in TABLE} == {X86_DOT, X86, ARM_DOT, ARM}
    assert {feature for cpu in CPUS for feature in cpu.features} <= set(host.ISA_FEATURES)
    assert len({(row.cpu, row.network) for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row.source
        assert row.is_ours == (row.cpu in (X86_DOT, X86)), "no board has been measured"
        for name, time in row.times.items():
            runtime, _, precision = name.partition("-")
            assert precision in runtimes.RUNTIMES[runtime].precisions
            assert precision in PRECISIONS
            assert time > 0


def test_the_documented_table_is_the_one_that_counts() -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    for row in TABLE:
        least = min(row.times.values())
        times = ", ".join(f"{name} {t / least:.2f}" for name, t in sorted(row.times.items(), key=lambda item: item[1]))
        assert f"| {row.cpu} | {row.network} | {times} |\n" in page


# --- Who follows it.


@pytest.fixture
def eight(bundle: Bundle) -> Bundle:
    """A bundle of MobileNetV2 for all runtimes, in name."""
    first = bundle.variants[0]
    names = (f"{runtime}-{precision}" for runtime in runtimes.DESTINATIONS for precision in ("fp32", "int8"))
    rows = tuple(replace(first, name=n, runtime=n.partition("-")[0], precision=n.partition("-")[2]) for n in names)
    made = replace(bundle, spec=replace(bundle.spec, backbone="mobilenet_v2"), variants=rows)
    made.write_manifest()
    return made


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """machine(features, "ncnn", …): a CPU with these features on which only these runtimes are installed."""

    def put(features: Sequence[str], *installed: str) -> None:
        monkeypatch.setattr(host, "features", lambda: tuple(features))
        monkeypatch.setattr(runtimes, "is_missing", lambda name: name not in (installed or runtimes.RUNTIMES))

    return put


def test_choose_takes_the_first_that_is_installed(eight: Bundle, machine: Callable[..., None]) -> None:
    machine(EPYC)
    assert choose(eight, None, None, 3) == Choice(
        "tflite-int8", 3, note="tflite-int8: fastest measured on x86 with int8 dot products"
    )
    machine(ZEN3, "tflite", "mnn")
    assert choose(eight, None, 1, 3).variant == "tflite-fp32"
    assert "fastest of those here" in str(choose(eight, None, 1, 3).note)
    machine(ZEN3, "mnn")
    assert choose(eight, None, 1, 3).variant == "mnn-fp32"
    machine(EPYC, "null")
    with pytest.raises(EdgeError, match="none of this bundle's runtimes is installed: pip install one of MNN, ai-edge"):
        choose(eight, None, 1, 3)


def test_the_threads_that_were_asked_for_stay(eight: Bundle, machine: Callable[..., None]) -> None:
    machine(EPYC)
    assert choose(eight, None, 1, 3).threads == 1
    assert choose(eight, "mnn-int8", 1, 3) == Choice("mnn-int8", 1)


def test_the_only_one_says_so(bundle: Bundle, machine: Callable[..., None]) -> None:
    machine(EPYC)
    one = replace(bundle, variants=bundle.variants[:1])
    assert choose(one, None, None, 3) == Choice("null-fp32", 3, note="null-fp32: no other one is installed")


def test_what_was_tuned_wins(eight: Bundle, machine: Callable[..., None]) -> None:
    name = host.name(host.facts())
    if name is None:
        pytest.skip("needs a machine that tells its board or CPU")
    machine(EPYC)
    made = replace(eight, tuned={name: Tuned("mnn-int8", 1, (), 1.5, "MNN 3", "2026-01-02T03:04:05+00:00")})
    assert choose(made, None, None, 3) == Choice("mnn-int8", 1, (), f"as tuned for {name}")
    machine(EPYC, "ncnn", "onnx")
    note = choose(made, None, None, 3).note
    assert note == (
        f"not as tuned for {name}: the runtime of mnn-int8 is not installed; "
        "onnx-int8: fastest of those here, measured on x86 with int8 dot products"
    )


def test_a_runtime_that_does_not_start_gives_way_in_the_same_order(eight: Bundle, machine: Callable[..., None]) -> None:
    machine(EPYC)
    chosen = choose(eight, None, None, 2)
    left = [choice.variant for choice in others(eight, chosen, None, 2)]
    assert left == ["onnx-int8", "ncnn-int8", "mnn-fp32"]
    machine(EPYC, "mnn", "tflite")
    assert [choice.variant for choice in others(eight, chosen, None, 2)] == ["mnn-fp32"]
