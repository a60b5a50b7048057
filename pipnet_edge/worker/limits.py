"""How long a worker may take, how much it may tell, and how much memory it may have: bounds that no good one meets."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipnet_edge.worker.protocol import LIMIT, Chain, Count, CountChain, Find, Infer, Job, Time, Track

# Seconds: for what has to answer soon, to load a network, and for each frame. The slowest boards take less.
SOON, LOAD, FRAME = 60.0, 120.0, 10.0
# Lines, and characters of all lines: of any job, of the samples of a second, of a frame. 1 << 18 is 8000 frames.
LINES, LINES_A_SECOND, LINES_A_FRAME = 1 << 12, 8, 2
TEXT, TEXT_A_SECOND, TEXT_A_FRAME = 1 << 24, 1 << 18, 64
# Bytes of memory: of any worker and of each CPU (its threads' stacks), and how many times the model and the crops.
MEMORY, MEMORY_A_CPU, MODELS, CROPS = 2 << 30, 32 << 20, 20, 16
MOST_MEMORY = 1 << 40


@dataclass(frozen=True)
class Limits:
    """seconds: from the start of a worker to its end. lines: of all that it tells; text: their characters.

    silence: for work without an end, the seconds from each line to the next; `seconds` are those to the first then.
    """

    seconds: float
    lines: int = LINES
    text: int = TEXT
    silence: float | None = None


# Of jobs that have to answer soon.
ANSWERS = Limits(SOON)


def of(job: Job[Any], slowness: float = 1.0) -> Limits:
    """The limits of a job. slowness: how many times as long as a board the machine takes.

    Raises OSError or ValueError for a job whose crops cannot be read.
    """
    if isinstance(job, Track):
        return Limits(LOAD * slowness, LIMIT, LIMIT, FRAME * slowness)
    if isinstance(job, Time):
        frames, seconds = job.warmup + job.count, job.seconds
    elif isinstance(job, Infer):
        frames, seconds = _count(job.crops), 0.0
    elif isinstance(job, Chain):
        # The last pass begins before the others were enough; as many frames again are timed with threads.
        frames, seconds = job.warmup + 2 * (job.count + job.frames), 2 * job.seconds
    elif isinstance(job, CountChain):
        frames, seconds = 2 * job.frames, 0.0
    elif isinstance(job, Count):
        frames, seconds = job.frames, 0.0
    elif isinstance(job, Find):
        frames, seconds = 1, 0.0
    else:
        return replace(ANSWERS, seconds=SOON * slowness)
    return Limits(
        seconds + (LOAD + FRAME * frames) * slowness,
        LINES + int(LINES_A_SECOND * seconds) + LINES_A_FRAME * frames,
        TEXT + int(TEXT_A_SECOND * seconds) + TEXT_A_FRAME * frames,
    )


def memory(model: int, crops: str | None = None) -> int:
    """The bytes that a worker may have of its own. model: bytes of the variant's files. crops: their .npy file."""
    given = Path(crops).stat().st_size if crops else 0
    return min(MEMORY + MEMORY_A_CPU * (os.cpu_count() or 1) + MODELS * model + CROPS * given, MOST_MEMORY)


def _count(crops: str | None) -> int:
    """How many crops a .npy file has; 0 for the golden crops, which are few."""
    if crops is None:
        return 0
    import numpy as np

    return int(np.load(crops, mmap_mode="r", allow_pickle=False).shape[0])
