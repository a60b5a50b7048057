"""This project beside what people use instead, on the same faces, machine and run, in turns.

    python benchmarks/studies/head_to_head/run.py net.pth --data 300w --calibrate faces/ [--threads 1,2] [-o out.json]

Needs the workstation half and Pillow, and fetches torchlm (without its dependencies) into a scratch folder. Every
contender is a process of its own (contender.py), kept to as many CPUs as it may use threads. They take turns. A ratio
is the median over rounds of the ratios within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import converters, host
from pipnet_edge.benchmarks.accuracy import parity
from pipnet_edge.cli import render
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.output import Output, Table
from pipnet_edge.preprocess import Rect, cut, read_picture

HERE = Path(__file__).parent
TORCHLM = "torchlm==0.1.6.10"
FACES = 8
BASELINE = "torchlm"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibrate", type=Path, required=True, help="a folder of face crops")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--unverified", action="store_true", help="of a network that is hardly trained, time alone")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs = prepare(given, Path(folder))
        counts = [int(word) for word in given.threads.split(",")]
        rows = [row for count in counts for row in compete(jobs, count, given.rounds, given.frames)]
    columns = ["contender", ">threads", ">ms", ">x torchlm", ">x best plain float", ">px"]
    table = Table(columns, [[r["name"], str(r["threads"]), *map(_number, _figures(r))] for r in rows])
    render.emit("head_to_head", Output({}, (table,)), False)
    if given.output:
        found = {"checkpoint": given.checkpoint.name, "machine": host.facts(), "verified": not given.unverified}
        found |= {"rounds": given.rounds, "frames": given.frames, "rows": rows}
        given.output.write_text(json.dumps(found, indent=1) + "\n")


def _figures(row: Mapping[str, Any]) -> tuple[float, ...]:
    return row["ms"], row["faster_than_torchlm"], row["faster_than_plain"], row["px"]


def _number(value: float) -> str:
    return f"{value:.2f}"


def prepare(given: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """A job for every contender: converts the checkpoint for each and lays out the pictures."""
    import torch

    from pipnet_edge.benchmarks.accuracy import labels
    from pipnet_edge.benchmarks.studies import variations
    from pipnet_edge.converters import core as export
    from pipnet_edge.converters.checkpoint import read as checkpoints

    options = checkpoints.Options(data=given.data)
    network = checkpoints.load(given.checkpoint, options)
    images = labels.image_folder(given.calibrate).images
    quantize = converters.Quantize({(path, None): None for path in images})
    verify = variations.unchecked if given.unverified else parity.verify
    plan = converters.Plan(("onnx", "ncnn", "mnn", "tflite"), ("fp32", "int8"))
    best = converters.convert(given.checkpoint, work / "ours", plan, options, verify, _say, quantize=quantize)
    plan = converters.Plan(("ncnn", "mnn"), ("fp32",), "dense")
    dense = converters.convert(given.checkpoint, work / "dense", plan, options, parity.verify, _say)
    (work / "core").mkdir()
    core = export.export(network.net, network.spec, work / "core")
    torch.save(network.net, work / "net.pt")
    _plain_tflite(work, network.spec.input_size)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(work / "torchlm"), TORCHLM]
    subprocess.run(command, check=True)
    pictures, rect = _pictures(images[:FACES], network.spec.input_size)
    np.save(work / "pictures.npy", pictures)
    spec = network.spec
    common = {
        **{"spec": asdict(spec), "side": spec.input_size, "num_lms": spec.num_lms, "num_nb": spec.num_nb},
        **{"net_stride": spec.net_stride, "data": given.data, "pictures": str(work / "pictures.npy"), "rect": rect},
    }
    jobs: dict[str, dict[str, Any]] = {
        "torchlm": {"kind": "torchlm", "torchlm": str(work / "torchlm"), "core": str(core.path)},
        "torch": {"kind": "torch", "net": str(work / "net.pt")},
    }
    models = {"onnx": core.path, "ncnn": dense.folder / "ncnn-fp32", "mnn": dense.folder / "mnn-fp32", "tflite": work}
    jobs |= {f"plain {r}": {"kind": "plain", "runtime": r, "model": str(path)} for r, path in models.items()}
    jobs |= {f"ours {v.name}": {"kind": "ours", "bundle": str(best.folder), "variant": v.name} for v in best.variants}
    return {name: {**common, **job} for name, job in jobs.items()}


def _plain_tflite(work: Path, side: int) -> None:
    """The float network as litert-torch makes it by default: image (1, 3, S, S) to the five maps."""
    script = f"""
import torch, litert_torch
class Named(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, image):
        return dict(zip({MAP_NAMES!r}, self.net(image)))
net = torch.load({str(work / "net.pt")!r}, weights_only=False).eval()
image = torch.zeros(1, 3, {side}, {side})
litert_torch.convert(Named(net), sample_kwargs={{"image": image}}).export({str(work)!r} + "/model.tflite")
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def _pictures(paths: Sequence[Path], side: int) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """Pictures (n, 2S, 2S, 3) uint8 RGB with a face in the middle, 1.5 times as large as the crop; its rectangle."""
    large, margin = side * 3 // 2, side // 4
    faces = [cut(picture, Rect.whole(picture), large) for picture in map(read_picture, paths)]
    pictures = np.stack([np.pad(face, ((margin, margin), (margin, margin), (0, 0))) for face in faces])
    return pictures, (margin, margin, margin + large, margin + large)


def compete(jobs: Mapping[str, Mapping[str, Any]], threads: int, rounds: int, frames: int) -> list[dict[str, Any]]:
    """One row per contender: median milliseconds, px, ratios (above 1: faster than torchlm, than the best plain)."""
    cpus = host.allowed_cpus()[:threads]
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(_started({**job, "threads": threads, "cpus": cpus})) for name, job in jobs.items()
        }
        landmarks = {name: np.array(json.loads(_line(process))) for name, process in running.items()}
        times: dict[str, list[float]] = {name: [] for name in running}
        for turn in range(rounds + 1):
            for name, process in running.items():
                assert process.stdin is not None
                process.stdin.write(f"{frames if turn else 8}\n")
                process.stdin.flush()
                taken = float(np.median(json.loads(_line(process))))
                if turn:  # the first turn only warms up
                    times[name].append(taken)
    plain = min((name for name in times if name.startswith("plain")), key=lambda name: np.median(times[name]))
    side = next(iter(jobs.values()))["side"]
    reference = landmarks["plain onnx"]
    return [
        {
            **{"name": name, "threads": threads, "ms": float(np.median(taken)), "rounds": taken},
            "faster_than_torchlm": float(np.median(np.divide(times[BASELINE], taken))),
            "faster_than_plain": float(np.median(np.divide(times[plain], taken))),
            # Landmarks are in pixels of the face, which is 1.5 times as large as the crop.
            "px": float(np.linalg.norm(landmarks[name] - reference, axis=-1).mean() * side / (side * 3 // 2)),
        }
        for name, taken in times.items()
    ]


@contextlib.contextmanager
def _started(job: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / "contender.py"), json.dumps(job)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a contender ended with status {process.wait()}; what it said is above")
    return line


def _say(what: str, done: int, total: int, part: str = "") -> None:
    print(f"[{done + 1}/{total}] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
