"""Do bench's timings agree with the runtime's own loop? `python -m pipnet_edge.benchmarks.studies.by_hand BUNDLE`.

Bench's worker (its inference stage) runs in turns with a loop that is written below by hand. The loop uses only numpy
and the runtime, on crops that are ready, with the same conversion of the input inside the runtime. The exit status is 3
if the medians differ by more than LIMIT.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import host
from pipnet_edge.benchmarks.speed.result import Settings
from pipnet_edge.bundle import Bundle, Variant
from pipnet_edge.cli import render
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.output import Output, Table
from pipnet_edge.worker import call as calls
from pipnet_edge.worker.protocol import Samples, Time, read_event, write_job

LIMIT = 0.03
TURN = 0.25
PRECISIONS = ("fp32", "int8")
# For both. By chance, C's allocator may return an output's memory after every frame; page faults then cost up to 5 % of
# a frame.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "100000000"}

# A loop is given job and crops (n, S, S, 3) uint8. It defines names (of the outputs) and run(crop), which gives the
# outputs.
BEFORE = """
import json, os, sys, time
import numpy as np
job = json.loads(sys.stdin.readline())
if job["cpus"]:
    os.sched_setaffinity(0, job["cpus"])
folder, threads, half = job["folder"] + "/", job["threads"], job["half"]
crops = np.load(job["crops"])
side = crops.shape[1]
mean, scale = [255 * m for m in job["mean"]], [1 / (255 * s) for s in job["std"]]
"""

LOOPS: Mapping[str, str] = {
    "onnx": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
options.log_severity_level = 3
if not {"avx512_vnni", "avx_vnni", "asimd"} & set(open("/proc/cpuinfo").read().split()):
    options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(folder + "model.onnx", options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
def run(crop):
    return session.run(names, {"crop": crop[None]})
""",
    "ncnn": """
import ncnn
net = ncnn.Net()
net.opt.use_vulkan_compute = False
net.opt.num_threads = threads
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
net.opt.use_bf16_storage = False
net.load_param(folder + "model.param")
net.load_model(folder + "model.bin")
names = net.output_names()
def run(crop):
    image = ncnn.Mat.from_pixels(crop, ncnn.Mat.PixelType.PIXEL_RGB, side, side)
    image.substract_mean_normalize(mean, scale)
    extractor = net.create_extractor()
    extractor.input("image", image)
    return [np.array(extractor.extract(name)[1]) for name in names]
""",
    "mnn": """
import MNN
interpreter = MNN.Interpreter(folder + "model.mnn")
precision = "low" if half else "high"
session = interpreter.createSession({"numThread": threads, "backend": "CPU", "precision": precision})
image = interpreter.getSessionInput(session, "image")
outputs = interpreter.getSessionOutputAll(session)
names = list(outputs)
def ready(like):
    shape = like.getShape()
    data = np.zeros(shape, np.float32)
    return MNN.Tensor(shape, MNN.Halide_Type_Float, data, MNN.Tensor_DimensionType_Caffe)
copies = [ready(outputs[name]) for name in names]
process = MNN.CVImageProcess({
    "filterType": MNN.CV_Filter_NEAREST,
    "sourceFormat": MNN.CV_ImageFormat_RGB,
    "destFormat": MNN.CV_ImageFormat_RGB,
    "mean": (*mean, 0.0),
    "normal": (*scale, 1.0),
})
def run(crop):
    process.convert(crop, side, side, 0, image)
    interpreter.runSession(session)
    for name, copy in zip(names, copies):
        outputs[name].copyToHostTensor(copy)
    return [np.array(copy.getNumpyData()) for copy in copies]
""",
    "tflite": """
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(folder + "model.tflite", num_threads=threads)
signature = interpreter.get_signature_runner()
names = list(signature.get_output_details())
def run(crop):
    found = signature(crop=crop[None])
    return [found[name] for name in names]
""",
}

AFTER = """
if job["out"]:
    found = [[np.array(array) for array in run(crop)] for crop in crops]
    np.savez(job["out"], **{name: np.stack(arrays) for name, arrays in zip(names, zip(*found))})
for index in range(job["warmup"]):
    run(crops[index % len(crops)])
times = []
begin = time.perf_counter()
while len(times) < job["count"] or time.perf_counter() - begin < job["seconds"]:
    crop = crops[len(times) % len(crops)]
    start = time.perf_counter()
    run(crop)
    times.append(time.perf_counter() - start)
print(json.dumps({"milliseconds": [1e3 * t for t in times], "modules": sorted(sys.modules)}))
"""


@dataclass(frozen=True)
class Row:
    """One variant: the median over rounds of both medians in ms, and the median of the rounds' ratios."""

    variant: str
    bench: float
    by_hand: float
    ratio: float

    @property
    def agrees(self) -> bool:
        return abs(self.ratio - 1) <= LIMIT


@dataclass(frozen=True)
class Task:
    """The task of both ways: a variant, its threads and CPUs, and for how long. folder: has the crops."""

    bundle: Bundle
    variant: Variant
    threads: int
    cpus: tuple[int, ...]
    settings: Settings
    folder: Path

    def start(self, way: str, command: Sequence[str], job: str) -> subprocess.Popen[str]:
        """Starts a process with the job. It writes into files of the folder, so that nobody has to read meanwhile."""
        with (self.folder / f"{way}.out").open("w") as out, (self.folder / f"{way}.err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-P", *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                env={**os.environ, **ALLOCATOR},
            )
        assert process.stdin is not None
        process.stdin.write(job)
        process.stdin.flush()  # stdin stays open: its end would end a worker
        return process

    def lines(self, way: str, process: subprocess.Popen[str]) -> list[str]:
        """The lines of JSON that the process wrote. Raises EdgeError when it failed."""
        status, errors = process.wait(), (self.folder / f"{way}.err").read_text(errors="replace")
        text = (self.folder / f"{way}.out").read_text(errors="replace")
        # Some runtimes greet on stdout.
        found = [line for line in text.splitlines() if line.startswith("{")]
        if status:
            told = json.loads(found[-1]).get("message") if found else None
            raise EdgeError(f"{self.variant.name} {way}: {told or calls.how_it_died(status, errors)}")
        return found

    def job(self) -> Time:
        """The job for bench's worker."""
        limits = self.settings.warmup, self.settings.seconds, self.settings.count
        crops = str(self.folder / "crops.npy")
        return Time(str(self.bundle.folder), self.variant.name, self.threads, *limits, crops, self.cpus)

    def start_bench(self) -> subprocess.Popen[str]:
        return self.start("bench", ["-m", "pipnet_edge.worker"], write_job(self.job()))

    def bench(self, process: subprocess.Popen[str]) -> list[float]:
        """Milliseconds of the inference stage."""
        job = self.job()
        events = [read_event(line, job) for line in self.lines("bench", process)]
        return [ms for event in events if isinstance(event, Samples) for ms in event.stages["inference"]]

    def start_by_hand(self, out: Path | None = None) -> subprocess.Popen[str]:
        # A quantized network has a scale of its own for its input.
        scaled = self.variant.quantization or self.bundle.spec
        job = {
            **asdict(self.job()),
            "folder": str(self.bundle.folder / self.variant.name),
            "half": self.variant.precision == "fp16",
            "mean": scaled.mean,
            "std": scaled.std,
            "out": str(out) if out else None,
        }
        command = ["-c", BEFORE + LOOPS[self.variant.runtime] + AFTER]
        return self.start("by hand", command, json.dumps(job) + "\n")

    def by_hand(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """{"milliseconds", "modules"}: the time of every frame, and the imported modules."""
        found: dict[str, Any] = json.loads(self.lines("by hand", process)[-1])
        return found


@contextlib.contextmanager
def task(bundle: Bundle, name: str, threads: int, crops: NDArray[np.uint8], settings: Settings) -> Iterator[Task]:
    """A variant over crops (n, S, S, 3) uint8 RGB, on the CPUs that bench would take."""
    cpus = host.big_cpus(threads)
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        np.save(Path(folder, "crops.npy"), crops)
        yield Task(bundle, bundle.variant(name), threads, cpus, settings, Path(folder))


def compare(bundle: Bundle, name: str, threads: int, rounds: int, settings: Settings) -> Row:
    """Times a variant both ways at once, in turns, in `rounds` pairs of processes."""
    crops, _ = bundle.read_golden()
    both = []
    for index in range(rounds):
        with task(bundle, name, threads, crops, settings) as given:
            ours, hand = given.start_bench(), given.start_by_hand()
            take_turns([ours, hand] if index % 2 else [hand, ours])
            both.append((np.median(given.bench(ours)), np.median(given.by_hand(hand)["milliseconds"])))
    first, second = np.array(both).T
    return Row(name, float(np.median(first)), float(np.median(second)), float(np.median(first / second)))


def take_turns(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Lets one process run at a time, TURN seconds each, until all have ended, so that both meet the same disturbances.

    A frame in which a process was stopped is long, but it is one of many.
    """
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        while running := [process for process in processes if process.poll() is None]:
            for process in running:
                process.send_signal(signal.SIGCONT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(TURN)
                process.send_signal(signal.SIGSTOP)
    finally:
        for process in processes:
            process.kill()


def table(rows: Sequence[Row]) -> Table:
    cells = [
        [row.variant, f"{row.bench:.3f}", f"{row.by_hand:.3f}", f"{row.ratio:.4f}", "ok" if row.agrees else "FAIL"]
        for row in rows
    ]
    return Table(["variant", ">bench ms", ">by hand ms", ">ratio", ""], cells)


def main() -> None:
    parser = argparse.ArgumentParser(prog="by_hand", description="Do bench's timings agree with a loop by hand?")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", action="append", help="a variant; fp32 and int8 of every runtime if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a round takes, both ways together")
    given = parser.parse_args()
    bundle = bundles.read(given.bundle)
    variants = [variant for variant in bundle.variants if variant.precision in PRECISIONS]
    if given.variant:
        variants = [bundle.variant(name) for name in given.variant]
    settings = Settings(seconds=given.seconds)
    progress = render.Progress()
    rows = []
    with progress.shown():
        for index, variant in enumerate(variants):
            progress.step(variant.name, index, len(variants))
            rows.append(compare(bundle, variant.name, given.threads, given.rounds, settings))
    failed = [row.variant for row in rows if not row.agrees]
    note = f"Medians of {given.rounds} rounds; ratio: the median of the rounds' ratios, at most {LIMIT:.0%} from 1."
    error = f"{', '.join(failed)}: bench and a loop by hand differ by more than {LIMIT:.0%}" if failed else None
    render.emit("by_hand", Output({}, (table(rows), "", note), error=error), as_json=False)
    sys.exit(CHECK_FAILED if failed else 0)


if __name__ == "__main__":
    main()
