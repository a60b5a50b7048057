"""Any result is read as it was written, and what is no result is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge.benchmarks.speed import result as results
from pipnet_edge.benchmarks.speed.result import Counted, Measured, Predicted, Result, Settings, State
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Output
from pipnet_edge.output import envelope as wrapped
from pipnet_edge.targets.emulated.instructions import Count
from pipnet_edge.worker.protocol import STAGES

texts = st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=8).filter(str.isprintable)
names = texts.filter(bool)
positive = st.floats(1e-4, 1e6)
whole = st.integers(0, 2**50)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def tuples(strategy: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=most).map(tuple)


states = st.builds(State, st.floats(0, 1e6), tuples(whole), maybe(positive), maybe(whole), maybe(positive))


@st.composite
def runs(draw: st.DrawFn, target: str) -> Measured:
    count = draw(st.integers(0, 30))
    stages = draw(st.sets(st.sampled_from(STAGES)))
    samples = {name: tuple(draw(st.lists(positive, min_size=count, max_size=count))) for name in stages}
    return Measured(
        target,
        *(draw(names), draw(names), draw(whole), draw(st.integers(1, 64)), draw(maybe(positive)), draw(maybe(texts))),
        *(draw(tuples(whole)), draw(maybe(positive)), draw(maybe(positive)), draw(maybe(whole))),
        *(samples, draw(tuples(states)), draw(maybe(names))),
    )


@st.composite
def whole_results(draw: st.DrawFn) -> Result:
    targets = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    instructions = st.builds(Count, whole, whole, whole)
    stages = st.dictionaries(st.sampled_from(STAGES), instructions)
    counted = st.builds(
        Counted, names, names, whole, texts, maybe(texts), whole, maybe(positive), maybe(whole), stages, maybe(names)
    )
    numbers = [maybe(positive) for _ in range(3)]
    predicted = st.builds(
        Predicted, names, names, whole, whole, *numbers, maybe(texts), maybe(texts), maybe(positive), texts
    )
    return Result(
        *(results.VERSION, draw(texts), draw(texts), draw(texts), draw(texts)),
        Settings(draw(whole), draw(positive), draw(whole), draw(positive)),
        {target: draw(st.dictionaries(texts, texts, max_size=3)) for target in targets},
        draw(tuples(st.sampled_from(targets).flatmap(runs))),
        *(draw(tuples(counted)), draw(tuples(predicted))),
    )


def written(path: Path, found: Result) -> Path:
    """What `bench -o` writes."""
    data = found.to_json() | {"summary": results.summary(found)}
    path.write_text(json.dumps(wrapped("bench", Output(data))))
    return path


@given(found=whole_results())
def test_what_was_written_is_what_is_read(found: Result, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Through text, with the summary that a command adds, whatever the facts and however odd the samples."""
    path = written(tmp_path_factory.getbasetemp() / "result.json", found)
    assert results.read(path) == found
    for row in results.read_envelope(path)["result"]["summary"]["measured"]:
        assert row["kind"] == "measured"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no result "),
        ("", " is not a result: "),
        ("{", " is not a result: "),
        ("[" * 100_000, " is not a result: "),
        ("\udcff", " is not a result: "),
        ("[]", " is not a result: it is [], dict is needed"),
        ('{"schema": "pipnet-edge/1", "command": "\\u001b[2J", "result": null}', " holds no result of ?[2J"),
        ('{"schema": "pipnet-edge/2", "command": "bench", "result": {}}', " is not what a command of pipnet-edge"),
        ('{"schema": "pipnet-edge/1", "command": 3, "result": {}}', " is not what a command of pipnet-edge"),
        ('{"schema": "pipnet-edge/1", "command": "bench"}', " holds no result of bench"),
        ('{"schema": "pipnet-edge/1", "command": "bench", "result": []}', " holds no result of bench"),
        (
            '{"schema": "pipnet-edge/1", "command": "parity", "result": {}}',
            " is a result of parity; one of `pipnet-edge bench` is needed",
        ),
        ('{"schema": "pipnet-edge/1", "command": "bench", "result": {}}', " has version None, this program reads "),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(EdgeError) as caught:
        results.read(path)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert str(path) in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="is not a result: "):
        results.read(tmp_path)
