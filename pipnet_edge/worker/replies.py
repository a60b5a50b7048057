"""What a worker tells: events, then an answer. Jobs, and how all of this becomes lines: protocol.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipnet_edge.errors import CHECK_FAILED, USER_ERROR, EdgeError

STAGES = ("preprocess", "inference", "decode")
CHAIN = ("source", "detect", "crop", "landmarks", "smooth", "draw")
# No machine has more CPUs, and no number of bytes, milliseconds, megahertz or crops is larger.
CPU_LIMIT, LIMIT = 4096, 1 << 50

Fact = str | int | list[str]


def bounded(what: str, *numbers: float | None, most: int = LIMIT) -> None:
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
        bounded("a CPU", *cpus, most=CPU_LIMIT - 1)
        if not self.groups or not all(self.groups) or len(set(cpus)) < len(cpus):
            raise EdgeError("groups of CPUs are empty, or have one twice")


@dataclass(frozen=True)
class Peak:
    """The most memory that the worker has held, in bytes; None if the system does not tell."""

    peak_bytes: int | None

    def __post_init__(self) -> None:
        bounded("peak_bytes", self.peak_bytes)


@dataclass(frozen=True)
class Played:
    """peak_bytes as in Peak. fps: frames a second where reading, tracking and drawing overlap."""

    peak_bytes: int | None
    fps: float

    def __post_init__(self) -> None:
        bounded("peak_bytes", self.peak_bytes)
        bounded("fps", self.fps)


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
        bounded("a count", self.frames, self.passed_over, self.detections, self.faces, self.lost, self.seconds)


# --- Events: a worker writes them before its answer.


@dataclass(frozen=True)
class Loaded:
    """A network is loaded: the time that took (None under emulation), the runtime, and the type it computes in."""

    milliseconds: float | None
    version: str
    arithmetic: str

    def __post_init__(self) -> None:
        bounded("milliseconds", self.milliseconds)


@dataclass(frozen=True)
class Progress:
    """How many crops are done, and of how many."""

    done: int
    of: int

    def __post_init__(self) -> None:
        bounded("of", self.of)
        bounded("done", self.done, most=self.of)


@dataclass(frozen=True)
class First:
    """The first inference, in milliseconds, and the CPUs that the process may use."""

    milliseconds: float
    cpus: tuple[int, ...]

    def __post_init__(self) -> None:
        bounded("milliseconds", self.milliseconds)
        bounded("a CPU", *self.cpus, most=CPU_LIMIT - 1)


@dataclass(frozen=True)
class State:
    """A machine's state, as host.state tells it: mhz of each clock domain, celsius, firmware bits, load."""

    mhz: tuple[int, ...] = ()
    celsius: float | None = None
    throttled: int | None = None
    load: float | None = None

    def __post_init__(self) -> None:
        bounded("a machine's state", *self.mhz, self.throttled, self.load)


@dataclass(frozen=True)
class Samples:
    """Milliseconds of each frame since the last such event, by stage; the state `at` seconds after the first."""

    at: float
    stages: Mapping[str, tuple[float, ...]]
    state: State

    def __post_init__(self) -> None:
        if set(self.stages) != set(STAGES):
            raise EdgeError(f"samples of {', '.join(self.stages) or 'no stage'}; {', '.join(STAGES)} are needed")
        bounded("at", self.at)
        bounded("a sample", *(sample for samples in self.stages.values() for sample in samples))
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
        bounded("frames or faces", self.frames, self.passed_over, self.faces)


@dataclass(frozen=True)
class Frames:
    """Milliseconds of each frame of a clip since the last such event, by stage, 0 where it had none; state as above."""

    at: float
    stages: Mapping[str, tuple[float, ...]]
    state: State

    def __post_init__(self) -> None:
        if set(self.stages) != set(CHAIN):
            raise EdgeError(f"frames of {', '.join(self.stages) or 'no stage'}; {', '.join(CHAIN)} are needed")
        bounded("at", self.at)
        bounded("a stage", *(each for taken in self.stages.values() for each in taken))
        counts = {name: len(taken) for name, taken in self.stages.items()}
        if len(set(counts.values())) > 1:
            raise EdgeError(f"stages of {counts} frames; as many of each are needed")
        if not all(self.stages["source"]):
            raise EdgeError("a frame's source is 0; more is needed")


@dataclass(frozen=True)
class Error:
    """An EdgeError: its text and exit code."""

    message: str
    code: int

    def __post_init__(self) -> None:
        if self.code not in (USER_ERROR, CHECK_FAILED):
            raise EdgeError(f"an error has code {self.code!r:.60}; {USER_ERROR} and {CHECK_FAILED} are allowed")
