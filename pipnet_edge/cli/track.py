"""Landmarks in everything that moves."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import DEFAULT_BUNDLE, ChosenThreads, ChosenVariant, DetectorPath, Threshold, floats
from pipnet_edge.cli.render import INTERRUPTED, Progress
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.output import Output
from pipnet_edge.strict import printable
from pipnet_edge.words import counted

if TYPE_CHECKING:
    from pipnet_edge.bundle import Bundle
    from pipnet_edge.defaults import Choice
    from pipnet_edge.video.source import Asked
    from pipnet_edge.worker.protocol import Counts, Event, Track

LOCAL, STDOUT = "127.0.0.1", Path("-")
# Seconds of a source that may be asked for: ten years.
LONGEST = 3e8


@command
def track(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] SOURCE",
            help="A video, a folder of frames, a camera (0, /dev/video0 or picamera2), an rtsp or http URL, or - for a "
            "video on stdin; after the bundle if not ./bundle.",
        ),
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(help="A face in the first frames: x,y,width,height in pixels. Then nothing is detected. Repeat."),
    ] = None,
    detector: DetectorPath = None,
    threshold: Threshold = None,
    faces: Annotated[int, typer.Option(min=1, help="At most so many faces are kept.")] = 4,
    every: Annotated[
        int, typer.Option(min=1, help="While fewer are kept, others are looked for every so many frames.")
    ] = 15,
    raw: Annotated[bool, typer.Option("--raw", help="Do not smooth the landmarks.")] = False,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="The size of frames that a camera is asked for.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second: what a camera is asked for, or what a folder has (30).")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop after so many seconds of the source.")] = None,
    variant: ChosenVariant = None,
    threads: ChosenThreads = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The video to write; SOURCE-landmarks.mp4 if there is no other output."),
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Write the landmarks of each frame as a line of JSON; - for stdout.")
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Show the newest frame on a page, at 127.0.0.1 by default."),
    ] = None,
) -> Output:
    """Find and keep the faces in a video, a camera or a stream: an annotated video, JSON lines, a live page."""
    from pipnet_edge import bundle as bundles
    from pipnet_edge.defaults import choose, others
    from pipnet_edge.detect import detector as detectors
    from pipnet_edge.detect.spec import check_threshold
    from pipnet_edge.host import default_threads
    from pipnet_edge.video.source import STDIN, Asked
    from pipnet_edge.video.track import Rules
    from pipnet_edge.worker.protocol import Track

    if len(paths) > 2:
        raise EdgeError(f"{len(paths)} arguments; give [BUNDLE] SOURCE")
    folder, source = (Path(paths[0]), paths[1]) if len(paths) == 2 else (DEFAULT_BUNDLE, paths[0])
    if folder.is_file():
        raise EdgeError(f"{folder} is no bundle; BUNDLE comes first, then SOURCE")
    asked = Asked(source, size=_size(size), fps=fps)
    if seconds is not None and not 0 < seconds <= LONGEST:
        raise EdgeError(f"--seconds {seconds:g}; allowed: above 0, at most {LONGEST:g}")
    boxes = tuple(floats("box", text, 4) for text in box or ())
    if boxes and (detector or threshold is not None):
        raise EdgeError("--box and a detector; where there is a box, nothing is detected")
    if threshold is not None:
        check_threshold(threshold)
    if output is None and jsonl is None and serve is None:
        output = Path(f"{_stem(asked)}-landmarks.mp4")
    _check_outputs([path for path in (output, jsonl) if path and path != STDOUT], source)
    bundle = bundles.read(folder)
    Rules.of(bundle.spec, faces, every)  # before any work, it says what is wrong
    many = default_threads()
    chosen = choose(bundle, variant, many if threads == 0 else threads, many)
    job = Track(
        bundle=str(folder),
        variant=chosen.variant,
        threads=chosen.threads,
        source=source,
        stdin=_descriptor(0, "stdin") if source == STDIN else None,
        size=asked.size,
        fps=fps,
        seconds=seconds,
        video=str(output) if output else None,
        lines=str(jsonl) if jsonl else None,
        stdout=_descriptor(1, "stdout") if jsonl == STDOUT else None,
        page=_page(serve),
        detector=None if boxes else str(detectors.path_of(detector)),
        threshold=threshold,
        boxes=boxes,  # type: ignore[arg-type]
        faces=faces,
        every=every,
        raw=raw,
        cpus=chosen.cpus or None,
    )
    told = _Told(Progress(), asked.shown, seconds)
    # What another worker has read of stdin is gone.
    may_change = variant is None and source != STDIN
    choices = [chosen, *(others(bundle, chosen, threads, many) if may_change else ())]
    with told.progress.shown():
        return _tracked(bundle, job, choices, told)


def _tracked(bundle: Bundle, job: Track, choices: Sequence[Choice], told: _Told) -> Output:
    """Does the job with the first of the choices whose runtime starts; its note says why it is not the first of all.

    Raises the first runtime's EdgeError, with the variant's name, if none starts, and for all that is no fault of a
    runtime.
    """
    from pipnet_edge.video.watch import watch
    from pipnet_edge.worker.call import Died, works

    failed = list[tuple[str, EdgeError]]()
    for choice in choices:
        job = replace(job, variant=choice.variant, threads=choice.threads, cpus=choice.cpus or None)
        try:
            counts = watch(job, told.hear)
        except EdgeError as e:
            has_started = bool(told.version) or e.code == INTERRUPTED
            if has_started or (not isinstance(e, Died) and works(bundle.variant(choice.variant).runtime)):
                raise
            failed.append((choice.variant, e))
            continue
        note = "; ".join(f"not {name}: {error}" for name, error in failed) or choice.note
        return _output(job, counts, told, note)
    name, first = failed[0]
    raise EdgeError(f"{name}: {first}", first.code) from first


class _Told:
    """What the worker has told so far, shown as it comes."""

    def __init__(self, progress: Progress, source: str, seconds: float | None) -> None:
        self.progress, self.source = progress, source
        self.version, self.page = "", ""
        self.width = self.height = 0
        self.fps: float | None = None
        self._seconds = seconds
        self._total: int | None = None
        self._start = time.monotonic()

    def hear(self, event: Event) -> None:
        from pipnet_edge.worker.protocol import Loaded, Opened, Tracking

        if isinstance(event, Loaded):
            self.version = event.version
        elif isinstance(event, Opened):
            self.width, self.height, self.fps = event.width, event.height, event.fps
            self._start, self._total = time.monotonic(), event.count
            if event.count and event.fps and self._seconds:
                self._total = min(event.count, math.ceil(self._seconds * event.fps))
            if event.page:
                self.page = printable(event.page)
                print(f"live page at {self.page}", file=sys.stderr, flush=True)
        elif isinstance(event, Tracking):
            seconds = max(time.monotonic() - self._start, 1e-3)
            part = f"{event.frames / seconds:.1f} frames a second, {counted(event.faces, 'face')}"
            if event.passed_over:
                part += f", {event.passed_over} frames passed over"
            # What a file says of itself may be wrong.
            total = self._total if self._total and event.frames < self._total else None
            if total and event.frames:
                part += f", {(total - event.frames) * seconds / event.frames:.0f} s left"
            self.progress.step(self.source, event.frames, total, part)


def _output(job: Track, counts: Counts, told: _Told, note: str | None) -> Output:
    found = {
        **asdict(counts),
        "source": told.source,
        "width": told.width,
        "height": told.height,
        "fps": told.fps,
        "variant": job.variant,
        "version": told.version,
        "threads": job.threads,
        "cpus": list(job.cpus or ()),
        "note": note,
        "video": job.video,
        "lines": job.lines,
        "page": told.page or None,
    }
    rate = counts.frames / counts.seconds if counts.seconds else 0.0
    lines = [
        f"{counted(counts.frames, 'frame')} of {told.width}x{told.height} pixels in {counts.seconds:.1f} s "
        f"({rate:.1f} a second), "
        f"{counted(counts.faces, 'face')}, {counts.lost} lost, looked for in {counted(counts.detections, 'frame')}, "
        f"by {job.variant} ({told.version}), {counted(job.threads, 'thread')}",
        *([f"{counted(counts.passed_over, 'frame')} passed over, for newer ones"] if counts.passed_over else []),
        *([note] if note else []),
        *([f"video      {job.video}"] if job.video and Path(job.video).exists() else []),
        *([f"landmarks  {job.lines}"] if job.lines and Path(job.lines).exists() else []),
    ]
    if job.stdout is not None:  # the landmarks are there
        print("\n".join(lines), file=sys.stderr)
        lines = []
    # A camera has no other end; of a file, the rest is missing.
    was_cut = counts.was_stopped and not counts.is_live and not counts.trouble
    code = USER_ERROR if counts.trouble else INTERRUPTED if was_cut else 0
    return Output(
        found,
        lines,
        code,
        counts.trouble or (f"interrupted after {counted(counts.frames, 'frame')}" if was_cut else None),
    )


def _descriptor(number: int, name: str) -> int:
    """A descriptor that a worker can have too: its own 0 and 1 are others. Raises EdgeError if there is none."""
    try:
        return os.dup(number)
    except OSError:
        raise EdgeError(f"{name} is closed") from None


def _size(text: str | None) -> tuple[int, int] | None:
    """WxH as numbers. Raises EdgeError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text, re.ASCII)
    if not found:
        raise EdgeError(f"--size {text}; a width and height in pixels are needed, such as 640x480")
    return int(found[1]), int(found[2])


def _page(text: str | None) -> str | None:
    """[HOST:]PORT as HOST:PORT. Raises EdgeError for what has no port."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) >= 1 << 16:
        raise EdgeError(f"--serve {text}; a port from 0 to 65535 is needed, such as 8080, or HOST:PORT")
    return f"{host or LOCAL}:{port}"


def _stem(asked: Asked) -> str:
    """What the video is called if no name is given."""
    if asked.is_camera:
        return "camera"
    if asked.name == "-":
        return "stdin"
    return "stream" if asked.scheme else Path(asked.name).resolve().stem


def _check_outputs(paths: list[Path], source: str) -> None:
    """Raises EdgeError, before any work, for a file that is what is read, and for one that is written twice."""
    for index, path in enumerate(paths):
        others = [(other, "it is written to already") for other in paths[:index]]
        for other, why in [*others, (Path(source), "it is what is read; give another name")]:
            if path.absolute() == other.absolute() or (path.exists() and other.exists() and path.samefile(other)):
                raise EdgeError(f"cannot write {path}: {why}")
        if path.absolute().parent == Path(source).absolute():
            raise EdgeError(f"cannot write {path} into the folder that is read")
