"""How cost grows with landmarks, input size, threads, faces: `python -m pipnet_edge.benchmarks.studies.growth -o OUT`.

Makes the networks (variations.py, in several processes at the same time), then times each as bench does. Each round
has one short run per network, so that a disturbance meets all networks. growth_page.py shows the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.speed import bench
from pipnet_edge.benchmarks.speed.result import Measured, Settings, facts_of
from pipnet_edge.benchmarks.studies import growth_page
from pipnet_edge.benchmarks.studies.growth_page import LANDMARKS, SIDE, Faces, Growth, Run
from pipnet_edge.cli import render
from pipnet_edge.errors import EdgeError
from pipnet_edge.worker.call import here
from pipnet_edge.worker.protocol import STAGES, Facts

# Number of landmarks -> a data set that has as many.
DATA = {19: "aflw", 29: "cofw", 68: "300w", 98: "wflw", 106: "lapa"}
SIDES = (128, 192, 256, 320, 384)
# Fewer points, for the curves that would take too long to convert at all points.
FEW_LANDMARKS, FEW_SIDES = (19, 68, 106), (128, 256, 384)
HEADS = ("sparse", "dense")
FACES = (1, 2, 4, 8)
RUNTIME, BATCHING = "tflite", "onnx"
BATCHED = "batched.onnx"  # its name in variations.py
ROUND = Settings(warmup=5, seconds=0.3, count=15)
MAKERS = 2


@dataclass(frozen=True)
class Network:
    """A bundle to make: a point of the curves over landmarks or input size."""

    backbone: str
    heads: str
    landmarks: int
    side: int
    precisions: tuple[str, ...]
    runtime: str = RUNTIME

    @property
    def name(self) -> str:
        sort = f"{self.backbone}-{self.landmarks}-{self.side}-{self.heads}"
        return f"{sort}-{self.runtime}-{'-'.join(self.precisions)}"

    def job(self, folder: Path) -> dict[str, Any]:
        """The job for variations.py."""
        return {
            **{"backbone": self.backbone, "data": DATA[self.landmarks], "side": self.side, "heads": self.heads},
            **{"to": self.runtime, "precisions": self.precisions, "out": str(folder / self.name)},
        }


def networks() -> list[Network]:
    """Every network with sparse and dense heads: MobileNetV2 in int8 at all points, the others at few."""
    shapes = [(count, SIDE) for count in DATA] + [(LANDMARKS, side) for side in SIDES if side != SIDE]
    few = [shape for shape in shapes if shape[0] in FEW_LANDMARKS and shape[1] in FEW_SIDES]
    sorts = (("mobilenet_v2", "int8", shapes), ("mobilenet_v2", "fp32", few), ("resnet18", "int8", few))
    return [
        Network(backbone, heads, *shape, (precision,))
        for backbone, precision, chosen in sorts
        for heads in HEADS
        for shape in chosen
    ]


# The networks that get several faces: the fastest, and one that a runtime takes for any number of crops.
FACED = (
    Network("mobilenet_v2", "sparse", LANDMARKS, SIDE, ("int8",)),
    Network("mobilenet_v2", "dense", LANDMARKS, SIDE, ("int8",), BATCHING),
)
Step = Callable[[str, int, int], None]
# A network, its precision, and the number of threads.
Point = tuple[Network, str, int]


def make(wanted: Sequence[Network], folder: Path, step: Step) -> None:
    """Makes the bundles that `folder` lacks, MAKERS at a time. Raises EdgeError when one cannot be made."""
    left = [network for network in wanted if not (folder / network.name).exists()]
    jobs = [network.job(folder) for network in left]
    makers = min(MAKERS, len(jobs))
    made: list[str] = []

    def follow(maker: subprocess.Popen[str]) -> None:
        assert maker.stdout is not None
        for line in maker.stdout:
            made.append(Path(json.loads(line)).name)
            step(f"made {made[-1]}", len(made) - 1, len(jobs))

    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="pipnet-edge-") as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
        running = [stack.enter_context(_maker(jobs[i::makers], environment)) for i in range(makers)]
        with ThreadPoolExecutor(MAKERS) as pool:
            list(pool.map(follow, running))
    lacking = [network.name for network in left if network.name not in made]
    if lacking:
        raise EdgeError(f"could not make {', '.join(lacking)}; what went wrong is above")


@contextlib.contextmanager
def _maker(jobs: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-m", "pipnet_edge.benchmarks.studies.variations"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin is not None
        try:
            with process.stdin as stdin:
                json.dump(jobs, stdin)
            yield process
        finally:
            process.kill()


def measure(
    wanted: Sequence[Network], folder: Path, rounds: int, threads: Sequence[int], step: Step
) -> tuple[Run, ...]:
    """Times every network on one thread, and those in the middle of the curves with every number of threads."""
    points = [
        (network, precision, count)
        for network in wanted
        for precision in network.precisions
        for count in threads
        if count == 1 or (network.landmarks, network.side) == (LANDMARKS, SIDE)
    ]
    taken: dict[Point, list[Measured]] = {point: [] for point in points}
    for turn in range(rounds):
        # Forwards and backwards, so that no point always follows the same one.
        for point in points if turn % 2 else reversed(points):
            network, precision, count = point
            step(f"round {turn + 1}: {network.name}", turn, rounds)
            bundle = bundles.read(folder / network.name)
            crops, _ = bundle.read_golden()
            taken[point].append(bench.measure(bundle, f"{network.runtime}-{precision}", count, crops, ROUND))
    return tuple(_run(point, found) for point, found in taken.items())


def _run(point: Point, rounds: Sequence[Measured]) -> Run:
    network, precision, threads = point
    stages = {name: tuple(_median(run.stage(name)) for run in rounds) for name in STAGES}
    stages["frame"] = tuple(_median(run.frames) for run in rounds)
    shape = network.landmarks, network.side, threads
    return Run(network.backbone, precision, network.heads, *shape, rounds[0].runtime, stages)


def _median(samples: NDArray[np.float64]) -> float:
    return round(float(np.median(samples)), 4)


def locate(network: Network, folder: Path, threads: Sequence[int], rounds: int) -> Iterator[Faces]:
    """Times the ways of growth_faces on all variants of a network."""
    command = [sys.executable, "-P", "-m", "pipnet_edge.benchmarks.studies.growth_faces"]
    for variant in (f"{network.runtime}-{precision}" for precision in network.precisions):
        bundle = folder / network.name
        batched = str(bundle / variant / BATCHED) if network.runtime == BATCHING else None
        job = {"bundle": str(bundle), "variant": variant, "batched": batched}
        given = json.dumps({**job, "faces": FACES, "threads": threads, "rounds": rounds})
        done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(done.stdout):
            yield Faces(variant, row["way"], row["faces"], row["threads"], tuple(row["ms"]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="growth", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the result; growth_page shows it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", type=Path, help="a folder for the networks, which are not made again if there")
    given = parser.parse_args()
    progress = render.Progress()
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress.shown())
        kept = given.networks or stack.enter_context(tempfile.TemporaryDirectory(prefix="pipnet-edge-"))
        growth = grow(networks(), FACED, Path(kept), given.rounds, progress.step)
    growth_page.write(growth, given.output)
    print(growth_page.markdown(growth))


def grow(wanted: Sequence[Network], faced: Sequence[Network], folder: Path, rounds: int, step: Step) -> Growth:
    """Makes and measures: the curves over `wanted`, the ways with several faces over `faced`."""
    make(list(dict.fromkeys((*wanted, *faced))), folder, step)
    facts = here(Facts()).facts
    cores = facts.get("cores")
    threads = bench.Plan().thread_counts(cores if isinstance(cores, int) else 1)
    runs = measure(wanted, folder, rounds, threads, step)
    faces = [row for network in faced for row in locate(network, folder, (1, threads[-1]), 3 * rounds)]
    return Growth(facts_of(facts), rounds, runs, tuple(faces))


if __name__ == "__main__":
    main()
