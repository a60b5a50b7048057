"""What a runtime can do is in its one row, and so is what a precision means: the rows against what leans on them."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge import precisions, runtimes
from pipnet_edge.benchmarks.report.speed_charts import SHAPES
from pipnet_edge.converters import Plan
from pipnet_edge.errors import EdgeError
from pipnet_edge.manifest import File, Variant
from pipnet_edge.precisions import PRECISIONS, Limit, Precision
from pipnet_edge.runtimes import DESTINATIONS, RUNTIMES, Runtime
from pipnet_edge.runtimes.probe import probe
from pipnet_edge.targets.predicted.model import PUBLISHED, latency

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("pipnet_edge", "converters", "targets", "benchmarks")
ROWS = [pytest.param(row, id=name) for name, row in RUNTIMES.items()]
# Where the rows themselves are.
TABLES = {Path("pipnet_edge/runtimes/__init__.py"), Path("pipnet_edge/precisions.py")}
# All that the world calls a runtime.
CALLED = {
    row.name: {word.lower() for word in (row.name, row.module, row.package, row.published or row.name, *row.modules)}
    for row in RUNTIMES.values()
    if row.name in DESTINATIONS
}

destinations = st.lists(st.sampled_from(DESTINATIONS), min_size=1)
precision_names = st.lists(st.sampled_from(sorted(PRECISIONS)), min_size=1)
features = st.lists(st.sampled_from([runtimes.ARM_HALF, "asimddp", "avx2"]))


def variant(runtime: str, precision: str) -> Variant:
    name = f"{runtime}-{precision}"
    return Variant(name, runtime, precision, (File(f"{name}/model", "0" * 64, 1),))


def installed_sources() -> Iterator[Path]:
    """Every module but the studies, relative to the root. Path.rglob does not follow the links between the folders."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_relative_to(ROOT / "benchmarks" / "studies"):
                yield path.relative_to(ROOT)


def displays(text: str) -> Iterator[tuple[int, set[str], bool]]:
    """Line, text constants and whether it has keys, of every dict (its keys), tuple, list and set in a source."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set):
            parts = node.keys if isinstance(node, ast.Dict) else node.elts
            words = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
            yield node.lineno, words, isinstance(node, ast.Dict)


def parallel_tables(text: str) -> list[int]:
    """Lines of displays that name two runtimes, and of dicts by two precisions."""
    found = []
    for line, words, has_keys in displays(text):
        named = [name for name, called in CALLED.items() if called & {word.lower() for word in words}]
        if len(named) > 1 or (has_keys and len(words & PRECISIONS.keys()) > 1):
            found.append(line)
    return found


# --- Rows and what they name.


@pytest.mark.parametrize("row", ROWS)
def test_a_row_s_adapter_is_there_and_whole(row: Runtime) -> None:
    """Read from its source, as its package need not be there."""
    spec = importlib.util.find_spec(f"pipnet_edge.runtimes.{row.module}")
    assert spec is not None
    assert spec.origin is not None
    names = set()
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert {"FILES", "TINY", "version", "Session", "tiny"} <= names


def test_every_adapter_has_a_row() -> None:
    files = {path.stem for path in (ROOT / "pipnet_edge/runtimes").glob("*.py")}
    assert files - {"__init__", "probe"} == {row.module for row in RUNTIMES.values()}


def test_destinations_and_their_rooms_agree() -> None:
    assert DESTINATIONS[:4] == ("onnx", "ncnn", "mnn", "tflite")
    assert set(RUNTIMES) - set(DESTINATIONS) == {"null"}
    for name in DESTINATIONS:
        assert (ROOT / "converters" / name / "__init__.py").is_file()


@pytest.mark.parametrize("row", ROWS)
def test_what_a_row_says_is_known_elsewhere(row: Runtime) -> None:
    assert set(row.precisions) <= set(PRECISIONS)
    assert not row.precisions or "fp32" in row.precisions
    assert set(row.lenders) <= set(PUBLISHED) - {row.published}
    # What is fitted is what the committed fits are of.
    assert (row.winograd is not None) == (row.published in {fit.runtime for fit in latency().fits})
    assert {fit.winograd for fit in latency().fits if fit.runtime == row.published} <= {row.winograd}
    assert row.on_32_bit is not None or row.on_32_bit_python is None


def test_pinned_wheels_are_the_versions_that_are_tested_together() -> None:
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = {row.package.lower(): row.wheel for row in RUNTIMES.values() if row.wheel}
    assert pinned
    assert pinned.items() <= dict(line.split("==") for line in lines if "==" in line).items()


@pytest.mark.parametrize("row", ROWS)
def test_the_probe_finds_a_runtime_at_work(row: Runtime) -> None:
    if runtimes.is_missing(row.name):
        pytest.skip(f"{row.package} is not installed")
    assert probe(row.name) == runtimes.adapter(row.name).version()


# --- One table of each.


def test_parallel_tables_are_found() -> None:
    assert parallel_tables('X = {"onnx": 1, "MNN": 2}') == [1]
    assert parallel_tables('\nX = ("ncnn", "ai_edge_litert")') == [2]
    assert parallel_tables('X = ["onnx", "onnxruntime", "onnxsim"]') == []
    assert parallel_tables('X = {"fp32": 1, "int8": 2}') == [1]
    # A choice of precisions says nothing of what they mean.
    assert parallel_tables('X = ("fp32", "int8")') == []


def test_there_are_no_other_tables_of_runtimes_or_precisions() -> None:
    sources = set(installed_sources())
    assert sources > TABLES
    found = {path.as_posix(): parallel_tables((ROOT / path).read_text()) for path in sorted(sources - TABLES)}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_tables_import_nothing_that_imports_them() -> None:
    above = ("pipnet_edge.manifest", "pipnet_edge.bundle")
    for module in (runtimes, precisions):
        assert module.__file__
        text = Path(module.__file__).read_text()
        assert not any(name in text for name in above)


# --- Precisions.


def test_the_precisions_are_these() -> None:
    assert [*PRECISIONS] == ["fp32", "fp16", "int8", "int8-full", "int16x8", "w8"]
    assert [name for name, row in PRECISIONS.items() if row.is_quantized] == ["int8", "int8-full", "int16x8", "w8"]
    assert [name for name, row in PRECISIONS.items() if row.is_half] == ["fp16"]
    assert [name for name, row in PRECISIONS.items() if row.widens] == ["w8"]
    assert SHAPES == {"fp32": "circle", "fp16": "square", "int8": "triangle"}


@pytest.mark.parametrize("row", PRECISIONS.values(), ids=PRECISIONS)
def test_a_precision_s_row_does_not_contradict_itself(row: Precision) -> None:
    assert row.weights in PRECISIONS
    assert row.weight_bytes == PRECISIONS[row.weights].weight_bytes
    assert isinstance(row.limit, Limit)
    assert row.predicted_as is None or PRECISIONS[row.predicted_as].predicted_as == row.predicted_as


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_is_some_runtime_s(name: str) -> None:
    assert any(name in row.precisions for row in RUNTIMES.values())


@pytest.mark.parametrize(
    ("runtime", "precision", "on_half", "elsewhere"),
    [
        ("onnx", "fp32", "fp32", "fp32"),
        ("ncnn", "fp16", "fp16", "fp32, fp16 weights"),
        ("mnn", "fp16", "fp16", "fp32, fp16 weights"),
        ("tflite", "fp16", "fp32, fp16 weights", "fp32, fp16 weights"),
        ("tflite", "w8", "fp32, int8 weights", "fp32, int8 weights"),
        ("ncnn", "int8", "int8, depthwise fp32", "int8, depthwise fp32"),
        ("ncnn", "int8-full", "int8-full", "int8-full"),
        ("mnn", "int8", "int8", "int8"),
        ("tflite", "int16x8", "int16x8", "int16x8"),
    ],
)
def test_what_is_really_computed_in(runtime: str, precision: str, on_half: str, elsewhere: str) -> None:
    assert runtimes.arithmetic(runtime, precision, [runtimes.ARM_HALF]) == on_half
    assert runtimes.arithmetic(runtime, precision, ["asimddp"]) == elsewhere


@given(destinations, precision_names, features)
def test_what_a_plan_makes_is_known_to_manifest_and_parity(to: list[str], names: list[str], has: list[str]) -> None:
    try:
        plan = Plan(tuple(to), tuple(names))
    except EdgeError as error:
        assert str(error) == f"{', '.join(to)} has no {', '.join(names)} variant"  # noqa: PT017
        assert not any(name in RUNTIMES[runtime].precisions for runtime in to for name in names)
        return
    assert plan.quantizes == any(PRECISIONS[precision].is_quantized for _, precision in plan.variants)
    for runtime, precision in plan.variants:
        assert variant(runtime, precision).name == f"{runtime}-{precision}"
        assert PRECISIONS[precision].limit.px_mean > 0
        assert runtimes.arithmetic(runtime, precision, has)


def test_unknown_names_are_refused_by_name() -> None:
    allowed = ", ".join(sorted(DESTINATIONS))
    for destination, precision, told in (
        ("coreml", "fp32", f"--to coreml; allowed: {allowed}"),
        ("null", "fp32", f"--to null; allowed: {allowed}"),
        ("onnx", "fp8", "--precision fp8; allowed: fp16, fp32, int16x8, int8, int8-full, w8"),
        ("onnx", "fp16", "onnx has no fp16 variant"),
    ):
        with pytest.raises(EdgeError) as caught:
            Plan((destination,), (precision,))
        assert str(caught.value) == told
