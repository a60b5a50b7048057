"""The lines of JSON between a command and a worker, wherever the worker runs. Only this file knows their keys.

A job is one line on the worker's stdin, which stays open. An empty line after it is a sign of life. The end of stdin
ends the worker and all that it started. The worker writes lines on stdout: events, then the answer or an error.

    {"protocol": 3, "do": "probe", "runtime": "ncnn"}
    {"event": "done", "version": "ncnn 1.0"}

Both ends read strictly (see pipnet_edge.strict): an extra field, a missing field, another type, a number out of its
bounds and a line of more than LONGEST bytes are refused.
tests/golden/worker holds example lines for workers in other languages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pipnet_edge import strict
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR, EdgeError

# 1: a job had no version and was all of stdin. 2: typed; a job is a line; facts have their own field. 3: find, track.
VERSION = 3
LONGEST = 1 << 20  # bytes of a line
STAGES = ("preprocess", "inference", "decode")
# No machine has more CPUs, and no number of bytes, milliseconds, megahertz or crops is larger.
CPU_LIMIT, LIMIT = 4096, 1 << 50

Fact = str | int | list[str]


def _bounded(what: str, *numbers: float | None, most: int = LIMIT) -> None:
    """Raises EdgeError for a number that is negative or more than `most`."""
    for number in numbers:
        if number is not None and not 0 <= number <= most:
            raise EdgeError(f"{what} is {number!r:.60}; 0 to {most} are allowed")


# --- Answers: every job ends with one.


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
    """Numbers of the CPUs that a process may use, one group for each kind of CPU, the fastest first."""

    groups: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        cpus = [cpu for group in self.groups for cpu in group]
        _bounded("a CPU", *cpus, most=CPU_LIMIT - 1)
        if not self.groups or not all(self.groups) or len(set(cpus)) < len(cpus):
            raise EdgeError("groups of CPUs are empty, or have one twice")


@dataclass(frozen=True)
class Peak:
    """The most memory that the worker has held, in bytes; None if the system does not tell."""

    peak_bytes: int | None

    def __post_init__(self) -> None:
        _bounded("peak_bytes", self.peak_bytes)


@dataclass(frozen=True)
class Counts:
    """Frames of a source; those passed over; those in which faces were looked for; ids given; faces lost; seconds.

    is_live: it is a camera or a stream. was_stopped: it was asked to end. trouble: in one line, what ended it early.
    """

    frames: int
    passed_over: int
    detections: int
    faces: int
    lost: int
    seconds: float
    is_live: bool
    was_stopped: bool
    trouble: str | None

    def __post_init__(self) -> None:
        _bounded("a count", self.frames, self.passed_over, self.detections, self.faces, self.lost, self.seconds)


# --- Jobs.

Answer = TypeVar("Answer", bound=Version | Machine | Groups | Peak | Counts)


@dataclass(frozen=True)
class Job(Generic[Answer]):
    """One thing that a worker can do. DO: the name of the job. ANSWER: the type of its answer."""

    DO: ClassVar[str]
    ANSWER: ClassVar[type]

    def __str__(self) -> str:
        """The job's name and its runtime or variant, for messages."""
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
    """Landmarks of crops, into the .npz file `out`: points (n, L, 2), score and cell (n, L).

    If the network gives features: features too (n, C), the mean of each channel over all cells. crops: a .npy file,
    (n, S, S, 3) uint8; None for the crops of the bundle's golden.npz. maps: write map_score … too, the fields of
    decode.Maps, or of decode.Winners if the network gives no more. cpus: as host.pin takes them; None for all.

    Of a detector's bundle: the faces in pictures (n, H, W, 3) of one of its sizes: count (n,), and for all pictures one
    after the other boxes (F, 4) and scores (F,). maps: map_boxes and map_logits, the fields of detect.decode.BoxMaps.
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
class Find(Job[Version]):
    """The faces in a picture, into the .npz file `out`: boxes (n, 4), scores (n,), and fit (n, 4), the boxes that their
    landmarks should fill, all float64.

    detector: a bundle, or a YuNet file. picture: a .npy file, (H, W, 3) uint8. None: the usual variant, threshold.
    """

    DO, ANSWER = "find", Version
    detector: str
    picture: str
    out: str
    threads: int
    variant: str | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Time(Job[Peak]):
    """The timing loop: `warmup` frames that do not count, then at least `seconds` and `count`. Others as in Infer."""

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
    """Frames on one thread, with marks between their stages for the program that counts instructions."""

    DO, ANSWER = "count", Version
    bundle: str
    variant: str
    frames: int
    crops: str | None = None


@dataclass(frozen=True)
class Cpus(Job[Groups]):
    """Which CPUs there are."""

    DO, ANSWER = "cpus", Groups


@dataclass(frozen=True)
class Track(Job[Counts]):
    """Faces kept in the frames of a source, until it ends or SIGTERM asks the worker to end.

    source, size, fps: as in video.source.Asked, with the descriptor stdin. video, lines: files, or "-" for the
    descriptor stdout. page: HOST:PORT. faces, every: as in video.track.Rules. raw: not smoothed. Others as in Infer.
    """

    DO, ANSWER = "track", Counts
    bundle: str
    variant: str
    threads: int
    source: str
    stdin: int | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None
    seconds: float | None = None
    video: str | None = None
    lines: str | None = None
    stdout: int | None = None
    page: str | None = None
    detector: str | None = None
    threshold: float | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    faces: int = 4
    every: int = 15
    raw: bool = False
    cpus: str | tuple[int, ...] | None = None


AnyJob = Probe | Facts | Infer | Find | Time | Count | Cpus | Track
JOBS: Mapping[str, type[AnyJob]] = {job.DO: job for job in (Probe, Facts, Infer, Find, Time, Count, Cpus, Track)}


# --- Events: a worker writes them before its answer.


@dataclass(frozen=True)
class Loaded:
    """A network is loaded: the time that took (None under emulation), the runtime, and the type it computes in."""

    milliseconds: float | None
    version: str
    arithmetic: str

    def __post_init__(self) -> None:
        _bounded("milliseconds", self.milliseconds)


@dataclass(frozen=True)
class Progress:
    """How many crops are done, and of how many."""

    done: int
    of: int

    def __post_init__(self) -> None:
        _bounded("of", self.of)
        _bounded("done", self.done, most=self.of)


@dataclass(frozen=True)
class First:
    """The first inference, in milliseconds, and the CPUs that the process may use."""

    milliseconds: float
    cpus: tuple[int, ...]

    def __post_init__(self) -> None:
        _bounded("milliseconds", self.milliseconds)
        _bounded("a CPU", *self.cpus, most=CPU_LIMIT - 1)


@dataclass(frozen=True)
class State:
    """A machine's state, as host.state tells it: mhz of each clock domain, celsius, firmware bits, load."""

    mhz: tuple[int, ...] = ()
    celsius: float | None = None
    throttled: int | None = None
    load: float | None = None

    def __post_init__(self) -> None:
        _bounded("a machine's state", *self.mhz, self.throttled, self.load)


@dataclass(frozen=True)
class Samples:
    """Milliseconds of each frame since the last such event, by stage; the state `at` seconds after the first."""

    at: float
    stages: Mapping[str, tuple[float, ...]]
    state: State

    def __post_init__(self) -> None:
        if set(self.stages) != set(STAGES):
            raise EdgeError(f"samples of {', '.join(self.stages) or 'no stage'}; {', '.join(STAGES)} are needed")
        _bounded("at", self.at)
        _bounded("a sample", *(sample for samples in self.stages.values() for sample in samples))
        counts = {name: len(samples) for name, samples in self.stages.items()}
        if counts["decode"] != counts["inference"] or counts["preprocess"] not in (0, counts["inference"]):
            raise EdgeError(f"samples of {counts} frames; as many of each stage are needed, or none of preprocess")
        if not all(self.stages["inference"]):
            raise EdgeError("a sample of inference is 0; more is needed")


@dataclass(frozen=True)
class Opened:
    """A source is open: what its frames are like, how many there will be if it knows, and the address of the page."""

    width: int
    height: int
    fps: float | None
    count: int | None
    page: str | None


@dataclass(frozen=True)
class Tracking:
    """A sign of life: how many frames are tracked, how many were passed over, and the faces in the last."""

    frames: int
    passed_over: int
    faces: int

    def __post_init__(self) -> None:
        _bounded("frames or faces", self.frames, self.passed_over, self.faces)


@dataclass(frozen=True)
class Error:
    """An EdgeError: its text and exit code."""

    message: str
    code: int

    def __post_init__(self) -> None:
        if self.code not in (USER_ERROR, CHECK_FAILED):
            raise EdgeError(f"an error has code {self.code!r:.60}; {USER_ERROR} and {CHECK_FAILED} are allowed")


Event = Loaded | Progress | First | Samples | Opened | Tracking
EVENTS: Mapping[str, type[Event | Error]] = {
    "loaded": Loaded,
    "progress": Progress,
    "first": First,
    "samples": Samples,
    "opened": Opened,
    "tracking": Tracking,
    "error": Error,
}
_NAMES = {kind: name for name, kind in EVENTS.items()}
DONE = "done"
# Every line of a worker begins with this.
EVENT = '{"event": '


# --- Lines.


def write_job(job: Job[Any]) -> str:
    """A job as a line."""
    return json.dumps({"protocol": VERSION, "do": job.DO, **asdict(job)}) + "\n"


def read_job(line: str) -> AnyJob:
    """The job in a line. Raises EdgeError for anything else, and for a job of another version."""
    data = strict.json_object(line, "the job")
    version, do = data.pop("protocol", None), data.pop("do", None)
    if type(version) is not int or version != VERSION:
        raise EdgeError(f"the job is of protocol {version!r:.60}, this worker speaks {VERSION}")
    if not isinstance(do, str) or do not in JOBS:
        raise EdgeError(f"no job {do!r:.60}; allowed: {', '.join(JOBS)}")
    return strict.read(JOBS[do], data, f"job {do}")


def write_event(event: Event | Error | Version | Machine | Groups | Peak | Counts) -> str:
    """An event, an answer or an error as a line."""
    return json.dumps({"event": _NAMES.get(type(event), DONE), **asdict(event)}) + "\n"  # type: ignore[arg-type]


def read_event(line: str, job: Job[Answer]) -> Event | Error | Answer:
    """The event, error or answer in a line of a worker that does `job`.

    The line is untrusted: raises EdgeError for anything else.
    """
    data = strict.json_object(line, "what the worker wrote")
    name = data.pop("event", None)
    if name == DONE:
        answer: Answer = strict.read(job.ANSWER, data, f"the worker's answer to {job.DO}")
        return answer
    if not isinstance(name, str) or name not in EVENTS:
        raise EdgeError(f"the worker told of {name!r:.60}; allowed: {', '.join((*EVENTS, DONE))}")
    return strict.read(EVENTS[name], data, f"the worker's event {name}")
