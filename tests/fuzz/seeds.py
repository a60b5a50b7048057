"""Valid inputs to begin with: small files of the tests and the demo, and what the product's own code writes."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipnet_edge.benchmarks.accuracy import drift, metrics, parity
from pipnet_edge.benchmarks.speed.result import VERSION, Counted, Measured, Predicted, Result, Settings, State
from pipnet_edge.output import SCHEMA
from pipnet_edge.targets.devices import FOLDER
from pipnet_edge.targets.emulated.instructions import Count
from tests.fuzz.mutators import pictures

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
EXAMPLE = GOLDEN / "bundle" / "example"
FACE = (0.25, 0.25, 0.75, 0.25, 0.5, 0.5)
MACHINE_FILES = (
    "proc/cpuinfo",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "proc/meminfo",
    "proc/loadavg",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq",
    "sys/devices/system/cpu/cpu0/cpu_capacity",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
    "sys/class/thermal/thermal_zone0/type",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/devices/platform/soc/soc:firmware/get_throttled",
)
MACHINE = (
    "Raspberry Pi 4 Model B Rev 1.4\0",
    "raspberrypi,4-model-b\0brcm,bcm2711\0",
    "MemTotal:        3884340 kB\nMemFree: 1 kB",
    "0.52 0.58 0.59 1/467 3157",
    *("ondemand", "1500000", "1024", "1800000", "cpu-thermal", "48500", "50005"),
)


@cache
def manifests() -> list[bytes]:
    """The example bundles' manifests, and those of the tests that are accepted."""
    detector = json.loads((EXAMPLE.with_name("detector") / "manifest.json").read_text())
    example = json.loads((EXAMPLE / "manifest.json").read_text())
    name = example["variants"][0]["name"]
    how = {
        "variant": name,
        "threads": 2,
        "cpus": [0, 1],
        "ms": 12.5,
        "runtime": "null 1",
        "created": "2026-11-22T20:31",
    }
    small = {
        **example,
        "layers": example["layers"][:1],
        "variants": example["variants"][:1],
        "tuned": {"x, 4 cores": how},
    }
    return [json.dumps(document).encode() for document in (example, small, detector)]


@cache
def goldens() -> list[bytes]:
    """Without and with what calibration saw."""
    file, ranges = io.BytesIO(), np.zeros(3, np.float32)
    with np.load(EXAMPLE / "golden.npz") as arrays:
        np.savez_compressed(file, **arrays, feature_low=ranges, feature_high=ranges + 1, feature_limit=ranges[:1])
    return [(EXAMPLE / "golden.npz").read_bytes(), file.getvalue()]


@cache
def heads() -> list[bytes]:
    return [(EXAMPLE / "null-int8" / "heads.npz").read_bytes()]


def pictures_of_labels(folder: Path) -> None:
    """Black pictures of 400 x 300 pixels."""
    if folder.is_dir():
        return
    header = struct.pack(">IIBBBBB", 400, 300, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(401 * 300))), (b"IEND", b""))
    picture = pictures.PNG + b"".join(pictures.png_chunk(*part) for part in parts)
    for name in ("a.png", "b.png", "with space.jpg", "deep/c.png", "deep/a.bmp"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)


@cache
def labels() -> list[bytes]:
    """A file in each format: normalised, pixels, and WFLW's."""
    normalised = " ".join(map(str, FACE))
    pixels = " ".join(str(400 * value) for value in FACE)
    wflw = " ".join([*(str(100 + at % 50) for at in range(196)), "90", "90", "160", "160", *"010010", "deep/c.png"])
    named = [f"a.png {normalised}\nb.png {normalised}\n", f"a.png {pixels}\r\ndeep/c.png {pixels}\r\n"]
    commas = f"a.png,{pixels.replace(' ', ',')}\n"
    return [text.encode() for text in (*named, f"with space.jpg {normalised}", f"{wflw}\n{wflw}", commas)]


@cache
def pts() -> list[bytes]:
    points = "\n".join(f"{400 * x} {300 * y}" for x, y in zip(FACE[::2], FACE[1::2], strict=True))
    return [f"version: 1\nn_points:  3\n{{\n{points}\n}}\n".encode()]


@cache
def mean_faces() -> list[bytes]:
    face = " ".join(map(str, FACE))
    return [face.encode(), face.replace(" ", ",\n").encode(), f"\ufeff[{face.replace(' ', ', ')}]".encode()]


@cache
def devices() -> list[bytes]:
    """Two devices without most of their published timings, which are many."""
    kept = []
    for name in ("rpi4", "rk3588"):
        head, *anchors = (FOLDER / f"{name}.toml").read_text().split("[[anchors]]")
        text = "[[anchors]]".join((head, *anchors[:1])).replace(f'"{name}"', '"rpi4"', 1)
        kept.append(text.encode())
    return kept


def hosts() -> list[bytes]:
    return [b'{\n "rpi3": "pi@a",\n "rpi4": "pi@192.168.1.7"\n}\n', b"{}"]


@cache
def bench_results() -> list[bytes]:
    stages = {
        "preprocess": (0.5,) * 24,
        "inference": tuple(20 + at % 5 / 8 for at in range(24)),
        "decode": (0.25,) * 24,
    }
    states = (
        State(0.0, (1500,), 48.5, 0, 1.0),
        State(1.0, (1500,), None, None, None),
        State(2.0, (900,), 80.0, 4, 3.0),
    )
    told = ("ncnn 1.0", (0, 1), 40.0, 31.0, 97_000_000)
    parts = {"inference": Count(300_000_000, 150_000_000, 90_000_000), "decode": Count(2_000_000, 0, 0)}
    result = Result(
        version=VERSION,
        tool="0.1.0",
        created="2026-11-22T20:31:05+00:00",
        network="mobilenet_v2, 68 landmarks",
        bundle="ed070ab8e10f00",
        settings=Settings(),
        facts={"rpi4": {"board": "Raspberry Pi 4", "cores": "4", "governor": "ondemand"}},
        measured=(
            Measured("rpi4", "ncnn-int8", "int8", 10_500_000, 1, 0.117, *told, stages, states, None),
            Measured("rpi4", "mnn-fp16", "fp32", 9, 4, None, None, (), None, None, None, {}, (), "it died"),
        ),
        counted=(Counted("rpi4", "ncnn-int8", 9, "cortex-a72", "ncnn 1.0", 4, 0.125, 1, parts, None),),
        predicted=(Predicted("rpi4", "ncnn-int8", 9, 4, 51.5, 40.25, 70.75, "62 ms", "a page", 54.125, "a guess"),),
    )
    return [_envelope("bench", result.to_json())]


@cache
def results() -> list[bytes]:
    """What bench, drift and parity print."""
    chance = np.random.default_rng(0)
    sample = metrics.Sample(chance.uniform(0, 0.5, (12, 3)), np.zeros((12, 3), bool))
    face = ((0.1, 0.2), (0.9, 0.2), (0.5, 0.9))
    rows = [drift.Row("ncnn-int8", metrics.summarise(sample), mean_face=face), drift.Row("mnn-int8", failure="no way")]
    drifted = {"reference": "onnx-fp32", "notes": [], "rows": [row.to_json() for row in rows], "pictures": []}
    agreed = [
        parity.Row("ncnn-fp32", "torch", 4, 68, {"score": (1e-6, 1e-7)}, 0, 1e-5, 5e-5, "score"),
        parity.Row("mnn-int8", "torch", 4, 68, failure="crashed"),
        parity.Row("x", "torch", 4, 68, skipped="y"),
    ]
    parities = {"rows": [row.to_json() for row in agreed]}
    return [*bench_results(), _envelope("drift", drifted), _envelope("parity", parities)]


def _envelope(command: str, result: Any) -> bytes:
    return json.dumps({"schema": SCHEMA, "command": command, "ok": True, "result": result}, default=str).encode()


CHUNK = 32 + 2 * 3 * 4 * 8


def chunks() -> list[bytes]:
    """A file of drift's cache: a hash, and the numbers of two faces with three landmarks."""
    content = np.arange(24, dtype="<f8").tobytes()
    return [hashlib.sha256(content).digest() + content]


@cache
def talks() -> list[bytes]:
    """The recorded talks with workers: a job, and the lines that answered it."""
    return [path.read_bytes().strip() for path in sorted((GOLDEN / "worker").glob("*.jsonl"))]


@cache
def jobs() -> list[bytes]:
    return [talk.split(b"\n")[0] for talk in talks()]


def board_messages() -> list[bytes]:
    hello = {
        **{"folder": "/tmp/pipnet-edge-x", "python": "/usr/bin/python3", "version": "3.11.2", "machine": "aarch64"},
        **{"bits": 64, "venv": True, "ensurepip": True, "packages": ["numpy", "ncnn"]},
    }
    told: tuple[dict[str, Any], ...] = (
        {"far": "python", "found": "3.7 3.9"},
        {"far": "hello", **hello},
        {"far": "failed", "errno": "ENOSPC", "reason": "No space left on device", "path": "/tmp/x", "free": 4096},
        {"far": "placed", "lacking": [["model.param", "0" * 64, 1234]], "free": 123_456_789},
        {"far": "put"},
        {"far": "ended", "status": -9, "stderr": "Traceback\n  x\nKilled"},
        {"far": "taken", "bytes": 1234},
        {"far": "alive"},
    )
    return [json.dumps(message).encode() for message in told]


OPTION_NAMES = ("box", "limit", "metric", "budget", "mean", "cores", "threads", "host", "target", "size")


def options() -> list[bytes]:
    given = (
        *(
            "box 10,20,300,400",
            "box 0.25,0.25,0.5,0.5",
            "box -10,-20,1000,1000",
            "limit p50<=20",
            "limit memory <= 1e3",
        ),
        *("metric px_mean<=0.30", "metric flips<=1", "budget 0.5px", "budget .02NME", "mean 0.485,0.456,0.406"),
        *(
            "cores big",
            "cores 0,1,2",
            "threads 1,2,4",
            "host rpi4=pi@board",
            "target rpi4",
            "target local",
            "size a, b",
        ),
    )
    return [text.encode() for text in given]


@cache
def machines() -> list[bytes]:
    infos = sorted((ROOT / "tests" / "device" / "hosts").glob("*.txt"))
    return ["\n=== ".join((path.read_text()[:3000], *MACHINE)).encode() for path in infos]
