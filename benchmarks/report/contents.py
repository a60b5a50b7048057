"""The contents of a report: results of bench, parity and drift, read from the commands' output with --json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pipnet_edge import strict
from pipnet_edge.benchmarks.speed.result import (
    Counted,
    Facts,
    Measured,
    Predicted,
    Result,
    of_envelope,
    read_envelope,
    warnings,
)
from pipnet_edge.errors import EdgeError

COMMANDS = ("bench", "parity", "drift")
MEASURED, EMULATED, PREDICTED = "measured", "emulated", "predicted"
MEANING = {
    MEASURED: "run on the machine itself",
    EMULATED: "counted or compared under an emulator of the target's core; never a time",
    PREDICTED: "a model's word, nothing was run",
}
ABSURD = 1e18


@dataclass(frozen=True)
class Target:
    """One target of one result of bench. name: the target's, with the file's if several files have this target."""

    name: str
    facts: Facts
    measured: tuple[Measured, ...]
    counted: tuple[Counted, ...]
    predicted: tuple[Predicted, ...]

    def warnings(self, run: Measured) -> tuple[str, ...]:
        return warnings(run, self.facts)


@dataclass(frozen=True)
class ParityRow:
    """A row of parity, as benchmarks.accuracy.parity.Row prints it."""

    variant: str
    reference: str
    images: int
    landmarks: int
    flips: int | None
    px_mean: float | None
    px_max: float | None
    failure: str | None
    skipped: str | None


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval over images, as far as it has them."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Landmark:
    """One landmark's drift over all images: px_mean and px_p95 in pixels of the crop, flips in %."""

    px_mean: float
    px_p95: float
    flips: float


@dataclass(frozen=True)
class DriftRow:
    """A row of drift: metrics by name, and per landmark its drift and its position on the mean face, if given."""

    variant: str
    images: int
    drift: Mapping[str, Estimate]
    landmarks: tuple[Landmark, ...]
    mean_face: tuple[tuple[float, float], ...]
    failure: str | None


@dataclass(frozen=True)
class Parity:
    """One result of parity. source: its file's name. target and kind: where it ran; if not given, this machine."""

    source: str
    target: str | None
    kind: str
    rows: tuple[ParityRow, ...]


@dataclass(frozen=True)
class Drift:
    """One result of drift. source: its file's name."""

    source: str
    reference: str
    notes: tuple[str, ...]
    rows: tuple[DriftRow, ...]


@dataclass(frozen=True)
class Report:
    """Results side by side. network: that of all results of bench, None without any. created: the times at which these
    were made, in ISO 8601. made: one line on the origin of each."""

    network: str | None
    made: tuple[str, ...]
    created: tuple[str, ...]
    targets: tuple[Target, ...]
    parity: tuple[Parity, ...]
    drift: tuple[Drift, ...]


def make(paths: Sequence[Path]) -> Report:
    """Reads results. Raises EdgeError for a file that is none of COMMANDS', and for results of different networks."""
    if not paths:
        raise EdgeError(f"a report needs at least one result of {', '.join(COMMANDS)}")
    results: list[tuple[str, Result]] = []
    parities: list[Parity] = []
    drifts: list[Drift] = []
    for path in dict.fromkeys(paths):
        envelope = read_envelope(path)
        command = envelope["command"]
        if not envelope["result"]:
            raise EdgeError(f"{path} holds no result: that {command:.40} failed")
        try:
            _refuse_absurd(envelope["result"], path)
        except RecursionError:
            raise EdgeError(f"{path} is nested deeper than any result") from None
        if command == "bench":
            results.append((path.stem, of_envelope(envelope, path)))
        elif command == "parity":
            parities.append(_parity(envelope["result"], path))
        elif command == "drift":
            drifts.append(_drift(envelope["result"], path))
        else:
            raise EdgeError(f"{path} is a result of {command!r:.40}; a report takes those of {', '.join(COMMANDS)}")
    networks = tuple(dict.fromkeys(result.network for _, result in results))
    if len(networks) > 1:
        raise EdgeError(f"these are results of different networks, each needs its own report: {'; '.join(networks)}")
    return Report(
        network=networks[0] if networks else None,
        made=tuple(_origin(name, result) for name, result in results),
        created=tuple(result.created for _, result in results),
        targets=_targets(results),
        parity=tuple(parities),
        drift=tuple(drifts),
    )


def _refuse_absurd(value: object, path: Path) -> None:
    """Raises EdgeError for a number that no measurement gives and that no drawing can show."""
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            _refuse_absurd(inner, path)
    elif isinstance(value, int | float) and not abs(value) <= ABSURD:
        raise EdgeError(f"{path} holds the number {value!s:.40}, which nothing measures")


def _origin(name: str, result: Result) -> str:
    settings = result.settings
    how = f"{settings.warmup} frames to warm up, then at least {settings.seconds:g} s and {settings.count} frames"
    parts = [f"{name}: {moment(result.created)}", f"pipnet-edge {result.tool}", f"bundle {result.bundle[:12]}"]
    return ", ".join([*parts, *([how] if result.measured else [])])


def moment(created: str) -> str:
    """A time in ISO 8601 as text for people, to the minute; other text stays as it is."""
    try:
        return f"{datetime.fromisoformat(created):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return created


def _targets(results: Sequence[tuple[str, Result]]) -> tuple[Target, ...]:
    found: list[tuple[str, str, Result]] = []
    for source, result in results:
        runs: tuple[Measured | Counted | Predicted, ...] = (*result.measured, *result.counted, *result.predicted)
        names = dict.fromkeys([*result.facts, *(run.target for run in runs)])
        found += [(name, source, result) for name in names]
    often = [name for name, _, _ in found]
    return tuple(
        Target(
            name=f"{name} ({source})" if often.count(name) > 1 else name,
            facts=result.facts.get(name, {}),
            measured=tuple(run for run in result.measured if run.target == name),
            counted=tuple(run for run in result.counted if run.target == name),
            predicted=tuple(run for run in result.predicted if run.target == name),
        )
        for name, source, result in found
    )


def _parity(result: Mapping[str, Any], path: Path) -> Parity:
    head = _read(Parity, {"kind": MEASURED, **result, "source": path.name, "rows": []}, str(path))
    if head.kind not in (MEASURED, EMULATED):
        raise EdgeError(f"{path} is of the kind {head.kind!r:.40}; parity is {MEASURED} or {EMULATED}")
    return replace(head, rows=tuple(_read(ParityRow, row, where) for row, where in _rows(result, path)))


def _drift(result: Mapping[str, Any], path: Path) -> Drift:
    rows = []
    for row, where in _rows(result, path):
        summary = row.get("summary")
        metrics = _mapping(summary.get("drift"), where) if isinstance(summary, dict) else {}
        landmarks = summary.get("landmarks", []) if isinstance(summary, dict) else []
        if not isinstance(landmarks, list):
            raise EdgeError(f"{where}.landmarks is {landmarks!r:.60}, list is needed")
        flat = {
            "variant": row.get("variant"),
            "images": summary.get("images") if isinstance(summary, dict) else 0,
            "drift": {name: _known(Estimate, value, where) for name, value in metrics.items()},
            "landmarks": [_known(Landmark, value, where) for value in landmarks],
            "mean_face": row.get("mean_face", []),
            "failure": row.get("failure"),
        }
        found = _read(DriftRow, flat, where)
        if found.mean_face and len(found.mean_face) != len(found.landmarks):
            raise EdgeError(f"{where} has {len(found.mean_face)} points and {len(found.landmarks)} landmarks")
        rows.append(found)
    head = {"source": path.name, "reference": result.get("reference"), "notes": result.get("notes", []), "rows": []}
    return replace(strict.read(Drift, head, str(path)), rows=tuple(rows))


Row = TypeVar("Row")


def _read(kind: type[Row], row: object, where: str) -> Row:
    return strict.read(kind, _known(kind, row, where), where)


def _known(kind: type[Any], row: object, where: str) -> dict[str, Any]:
    """A class's fields from a JSON object: absent ones are None, texts are on one line."""
    given = _mapping(row, where)
    return {field.name: _plain(given.get(field.name)) for field in fields(kind)}


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _rows(result: Mapping[str, Any], path: Path) -> list[tuple[dict[str, Any], str]]:
    rows = result.get("rows")
    if not isinstance(rows, list):
        raise EdgeError(f"{path} has no rows")
    return [(_mapping(row, f"{path}: rows[{i}]"), f"{path}: rows[{i}]") for i, row in enumerate(rows)]


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EdgeError(f"{where} is {value!r:.60}, dict is needed")
    return value
