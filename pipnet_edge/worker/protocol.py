"""What passes between a command and a worker, wherever that runs: lines of JSON. Nothing else knows their keys.

A job is one line on the worker's stdin, which stays open. An empty line after it is a sign of life, and the end of
stdin ends the worker and all that it started. The worker writes lines on stdout: events, then the answer or an error.

    {"protocol": 2, "do": "probe", "runtime": "ncnn"}
    {"event": "done", "version": "ncnn 1.0"}

Both ends read strictly (see pipnet_edge.strict): a field more, a field less or another type is refused. Lines that are
kept as examples for workers in other languages lie in tests/golden/worker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pipnet_edge import strict
from pipnet_edge.errors import EdgeError

# 1: jobs without a version, the whole of stdin. 2: typed, a job is a line; facts in a field of their own.
VERSION = 2
LONGEST = 1 << 22  # bytes of a line
STAGES = ("preprocess", "inference", "decode")

Fact = str | int | list[str]


# --- Answers: what a job ends with.


@dataclass(frozen=True)
class Version:
    """The runtime's name and version, after it has done the job."""

    version: str


@dataclass(frozen=True)
class Machine:
    """The machine's facts, as host.facts gives them, and which runtimes are installed there."""

    facts: Mapping[str, Fact]
    runtimes: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """Numbers of the CPUs that a process may use, those that are alike together, the fastest first."""

    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Peak:
    """The most memory that the worker has held, in bytes, where the system tells it."""

    peak_bytes: int | None


# --- Jobs.

Answer = TypeVar("Answer", bound=Version | Machine | Groups | Peak)


@dataclass(frozen=True)
class Job(Generic[Answer]):
    """What a worker is asked to do. DO: its name; ANSWER: what it ends with."""

    DO: ClassVar[str]
    ANSWER: ClassVar[type]

    def __str__(self) -> str:
        """Its name and what it is about, for messages."""
        return " ".join([self.DO, *(str(vars(self)[name]) for name in ("runtime", "variant") if name in vars(self))])


@dataclass(frozen=True)
class Probe(Job[Version]):
    """A tiny inference."""

    DO, ANSWER = "probe", Version
    runtime: str


@dataclass(frozen=True)
class Facts(Job[Machine]):
    """Facts of the machine, and the runtimes there."""

    DO, ANSWER = "facts", Machine


@dataclass(frozen=True)
class Infer(Job[Version]):
    """Landmarks of crops (n, S, S, 3) uint8 in a .npy file: points (n, L, 2), score, cell (n, L) into the .npz `out`.

    maps: also map_score …, those of decode.Maps, or of decode.Winners where the network gives no more. crops: None for
    those of the bundle's golden.npz. cpus: what host.pin takes, None for all.
    """

    DO, ANSWER = "infer", Version
    bundle: str
    variant: str
    threads: int
    out: str
    crops: str | None = None
    maps: bool = False
    cpus: str | tuple[int, ...] | None = None


@dataclass(frozen=True)
class Time(Job[Peak]):
    """The timing loop: `warmup` frames that do not count, then at least `seconds` and `count`. Others as for Infer."""

    DO, ANSWER = "time", Peak
    bundle: str
    variant: str
    threads: int
    warmup: int
    seconds: float
    count: int
    crops: str | None = None
    cpus: str | tuple[int, ...] | None = None


@dataclass(frozen=True)
class Count(Job[Version]):
    """Frames on one thread, with marks between their stages for whoever counts instructions."""

    DO, ANSWER = "count", Version
    bundle: str
    variant: str
    frames: int
    crops: str | None = None


@dataclass(frozen=True)
class Cpus(Job[Groups]):
    """Which CPUs there are."""

    DO, ANSWER = "cpus", Groups


AnyJob = Probe | Facts | Infer | Time | Count | Cpus
JOBS: Mapping[str, type[AnyJob]] = {job.DO: job for job in (Probe, Facts, Infer, Time, Count, Cpus)}


# --- Events: what a worker tells before its answer.


@dataclass(frozen=True)
class Loaded:
    """A network is ready: how long that took (None under emulation), the runtime, and what it computes in."""

    milliseconds: float | None
    version: str
    arithmetic: str


@dataclass(frozen=True)
class Progress:
    """So many crops of all are done."""

    done: int
    of: int


@dataclass(frozen=True)
class First:
    """The first inference, in milliseconds, and the CPUs that the process may use."""

    milliseconds: float
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class State:
    """A machine's state, as host.state tells it: mhz of each clock domain, celsius, firmware bits, load."""

    mhz: tuple[int, ...] = ()
    celsius: float | None = None
    throttled: int | None = None
    load: float | None = None


@dataclass(frozen=True)
class Samples:
    """Milliseconds of the frames since the last such event, by stage, and the state `at` seconds after the first."""

    at: float
    stages: Mapping[str, tuple[float, ...]]
    state: State

    def __post_init__(self) -> None:
        if set(self.stages) != set(STAGES):
            raise EdgeError(f"samples of {', '.join(self.stages) or 'no stage'}; {', '.join(STAGES)} are needed")


@dataclass(frozen=True)
class Error:
    """An EdgeError: its text and exit code."""

    message: str
    code: int


Event = Loaded | Progress | First | Samples
EVENTS: Mapping[str, type[Event | Error]] = {
    "loaded": Loaded,
    "progress": Progress,
    "first": First,
    "samples": Samples,
    "error": Error,
}
_NAMES = {kind: name for name, kind in EVENTS.items()}
DONE = "done"
# How every line of a worker begins.
EVENT = '{"event": '


# --- Lines.


def write_job(job: Job[Any]) -> str:
    """A job as a line."""
    return json.dumps({"protocol": VERSION, "do": job.DO, **asdict(job)}) + "\n"


def read_job(line: str) -> AnyJob:
    """The job in a line. Raises EdgeError for anything else, and for a job of another version."""
    data = _object(line, "the job")
    version, do = data.pop("protocol", None), data.pop("do", None)
    if type(version) is not int or version != VERSION:
        raise EdgeError(f"the job is of protocol {version!r:.60}, this worker speaks {VERSION}")
    if not isinstance(do, str) or do not in JOBS:
        raise EdgeError(f"no job {do!r:.60}; allowed: {', '.join(JOBS)}")
    return strict.read(JOBS[do], data, f"job {do}")


def write_event(event: Event | Error | Version | Machine | Groups | Peak) -> str:
    """An event, an answer or an error as a line."""
    return json.dumps({"event": _NAMES.get(type(event), DONE), **asdict(event)}) + "\n"  # type: ignore[arg-type]


def read_event(line: str, job: Job[Answer]) -> Event | Error | Answer:
    """What a line of a worker that does this job tells. Raises EdgeError for anything else: it is untrusted."""
    data = _object(line, "what the worker wrote")
    name = data.pop("event", None)
    if name == DONE:
        answer: Answer = strict.read(job.ANSWER, data, f"the worker's answer to {job.DO}")
        return answer
    if not isinstance(name, str) or name not in EVENTS:
        raise EdgeError(f"the worker told of {name!r:.60}; allowed: {', '.join((*EVENTS, DONE))}")
    return strict.read(EVENTS[name], data, f"the worker's event {name}")


def _object(line: str, what: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise EdgeError(f"{what} is no JSON: {' '.join(str(e).split())[:100]}") from None
    if not isinstance(data, dict):
        raise EdgeError(f"{what} is {data!r:.60}, an object is needed")
    return data
