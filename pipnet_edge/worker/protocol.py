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
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker.replies import (
    CHAIN,
    LIMIT,
    STAGES,
    Counts,
    Error,
    First,
    Frames,
    Groups,
    Loaded,
    Machine,
    Opened,
    Peak,
    Played,
    Progress,
    Samples,
    State,
    Tracking,
    Version,
)

__all__ = [
    "CHAIN",
    "DONE",
    "EVENT",
    "EVENTS",
    "JOBS",
    "LIMIT",
    "LONGEST",
    "STAGES",
    "VERSION",
    "Answer",
    "AnyJob",
    "Chain",
    "Count",
    "CountChain",
    "Counts",
    "Cpus",
    "Error",
    "Event",
    "Facts",
    "Find",
    "First",
    "Frames",
    "Groups",
    "Infer",
    "Job",
    "Loaded",
    "Machine",
    "Opened",
    "Peak",
    "Played",
    "Probe",
    "Progress",
    "Samples",
    "State",
    "Time",
    "Track",
    "Tracking",
    "Version",
    "read_event",
    "read_job",
    "write_event",
    "write_job",
]

# 1: a job had no version and was all of stdin. 2: typed; a job is a line; facts have their own field. 3: find, track.
VERSION = 3
LONGEST = 1 << 20  # bytes of a line

# --- Jobs.

Answer = TypeVar("Answer", bound=Version | Machine | Groups | Peak | Counts | Played)


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


@dataclass(frozen=True)
class Chain(Job[Played]):
    """Faces tracked in a clip and drawn, timed: `warmup` frames that do not count, then whole passes through the clip,
    until there were at least `seconds` and `count` frames.

    detector and detector_variant: a bundle that finds faces. clip: a video file of so many `frames`. out: an .npz file
    of what the first pass found, with room for the most faces K that are tracked: id (frames, K), 0 where there is
    none; points (frames, K, L, 2), smoothed, and score (frames, K). Others as in Infer.
    """

    DO, ANSWER = "chain", Played
    bundle: str
    variant: str
    detector: str
    detector_variant: str
    threads: int
    clip: str
    frames: int
    out: str
    warmup: int
    seconds: float
    count: int
    cpus: str | tuple[int, ...] | None = None


@dataclass(frozen=True)
class CountChain(Job[Version]):
    """The clip's first `frames` frames and, from there on, as many again, as in Chain, on one thread, with marks.

    In the second half all starts anew, so that its first frame is detected in.
    """

    DO, ANSWER = "count-chain", Version
    bundle: str
    variant: str
    detector: str
    detector_variant: str
    clip: str
    frames: int


AnyJob = Probe | Facts | Infer | Find | Time | Count | Cpus | Track | Chain | CountChain
JOBS: Mapping[str, type[AnyJob]] = {
    job.DO: job for job in (Probe, Facts, Infer, Find, Time, Count, Cpus, Track, Chain, CountChain)
}


# --- Events: a worker writes them before its answer.

Event = Loaded | Progress | First | Samples | Opened | Tracking | Frames
EVENTS: Mapping[str, type[Event | Error]] = {
    "loaded": Loaded,
    "progress": Progress,
    "first": First,
    "samples": Samples,
    "opened": Opened,
    "tracking": Tracking,
    "frames": Frames,
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


def write_event(event: Event | Error | Version | Machine | Groups | Peak | Counts | Played) -> str:
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
