"""The parsers that run in the command's own process, and read no foreign bytes in C but numpy's arrays."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pipnet_edge import bundle as bundles
from pipnet_edge import host, preprocess
from pipnet_edge.benchmarks import limits, report
from pipnet_edge.benchmarks.accuracy import chunks, labels, metrics
from pipnet_edge.benchmarks.speed import result
from pipnet_edge.cli import bench, options, run
from pipnet_edge.converters.checkpoint import mean_face as mean_faces
from pipnet_edge.converters.quantize import budget
from pipnet_edge.errors import EdgeError
from pipnet_edge.manifest import File
from pipnet_edge.targets import place
from pipnet_edge.targets.devices import read_device
from pipnet_edge.targets.ssh import far
from pipnet_edge.worker import protocol
from tests.fuzz import checks, seeds
from tests.fuzz.mutators import arrays, jsons, plain, tomls
from tests.fuzz.target import Target

JOBS = tuple(protocol.JOBS)


def pick(data: bytes, choices: Sequence[Any]) -> Any:
    """One of the choices: always the same one for the same input."""
    return choices[zlib.crc32(data) % len(choices)]


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def manifest(data: bytes, folder: Path) -> object:
    """As `inspect` does: the bundle, its hash and its tunings' texts."""
    bundle = bundles.read_any(written(folder, "bundle/manifest.json", data).parent)
    return bundle.sha256, [str(tuned) for tuned in bundle.tuned.values()], [v.size for v in bundle.variants]


@cache
def example() -> bundles.Bundle:
    return bundles.read(seeds.EXAMPLE)


def golden(data: bytes, folder: Path) -> object:
    """With the hash mended."""
    path = written(folder, "golden.npz", data)
    made = replace(example(), folder=folder, golden=File.of(folder, path))
    return made.read_golden(), made.read_domain()


def heads(data: bytes, folder: Path) -> object:
    """With the hash mended."""
    path = written(folder, "null-int8/heads.npz", data)
    (variant,) = (v for v in example().variants if v.heads)
    mended = replace(variant, files=(File.of(folder, path),))
    return replace(example(), folder=folder, variants=(mended,), tuned={}).decoder(variant.name)


def label_file(data: bytes, folder: Path) -> object:
    """In the format that the content shows, or in one that is named."""
    seeds.pictures_of_labels(folder / "images")
    form = pick(data, (None, None, None, *(name for name in labels.FORMATS if name != "ibug")))
    found = labels.read_labels(written(folder, "labels.txt", data), folder / "images", form, pick(data[1:], (None, 3)))
    return found.notes()


def pts(data: bytes, folder: Path) -> object:
    """One file, or one in a folder."""
    seeds.pictures_of_labels(folder / "images")
    path = written(folder, "points/a.pts", data)
    return labels.read_labels(pick(data, (path, path.parent)), folder / "images").notes()


def mean_face(data: bytes, folder: Path) -> object:
    return mean_faces.read_mean_face(written(folder, "meanface.txt", data))


def device(data: bytes, folder: Path) -> object:
    found = read_device(written(folder, "rpi4.toml", data))
    return found.threads, [str(anchor) for anchor in found.anchors]


def hosts(data: bytes, folder: Path) -> object:
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    written(folder, "pipnet-edge/hosts.json", data)
    assert place.hosts_file() == folder / "pipnet-edge/hosts.json"
    return place.hosts()


def bench_result(data: bytes, folder: Path) -> object:
    """As `bench --baseline` and its limits do."""
    found = result.read(written(folder, "result.json", data))
    result.summary(found)
    result.failures(found, [limits.Limit(name, 20.0) for name in result.UNITS])
    return result.compare(found, found)


def report_page(data: bytes, folder: Path) -> object:
    """As `report` does, in each of its formats."""
    made = report.make([written(folder, "result.json", data)])
    return pick(data, (report.html, report.markdown, report.csv))(made)


def kept_chunk(data: bytes, folder: Path) -> object:
    """A file of drift's cache, its hash mended: the landmarks of two faces with three landmarks each."""
    mended = pick(data, (hashlib.sha256(data[32:]).digest() + data[32:], data))
    return chunks._kept(written(folder, "x.landmarks", mended), (2, 3, 4))


def job(data: bytes, folder: Path) -> object:
    return str(protocol.read_job(data.decode(errors="replace")))


def event(data: bytes, folder: Path) -> object:
    """A talk: a job, and the lines that answer it."""
    asked, *lines = data.decode(errors="replace").split("\n")
    given = protocol.read_job(asked)
    return [protocol.read_event(line, given) for line in lines if line]


def board(data: bytes, folder: Path) -> object:
    return [far.read(line) for line in data.decode(errors="replace").split("\n") if line]


def option_texts(data: bytes, folder: Path) -> object:
    """The option's name stands before the text."""
    name, _, text = data.decode(errors="replace").partition(" ")
    if name == "box":
        return preprocess.crop_rect(run._box(text), 640, 480, pick(data, ("test", "demo")))
    readers = {
        "limit": lambda given: limits.parse(given, result.UNITS),
        "metric": lambda given: limits.parse(given, metrics.UNITS),
        "budget": budget.parse,
        "mean": lambda given: options.floats("mean", given, 3),
        "cores": bench._cpus,
        "threads": bench._counts,
        "host": lambda given: options.places(["rpi4"], [given], False, False),
        "target": lambda given: options.places([given], [], True, False),
        "size": options.listed,
    }
    if name not in readers:
        raise EdgeError("no such option")
    return readers[name](text)


def machine(data: bytes, folder: Path) -> object:
    """Files of /proc and /sys: their contents stand after lines with their names."""
    parts = data.decode(errors="replace").split("\n=== ")
    host.parse_cpuinfo(parts[0])
    (folder / "proc").mkdir(exist_ok=True)
    for path, part in zip(seeds.MACHINE_FILES, (*parts, *[""] * len(seeds.MACHINE_FILES)), strict=False):
        written(folder, path, part.encode(errors="replace"))
    facts = host.facts(folder)
    return host.name(facts), host.clusters(folder), host.state(folder), json.dumps(facts)


ACCURACY, SPEED = "pipnet_edge.benchmarks.accuracy", "pipnet_edge.benchmarks.speed"
STRICT = "pipnet_edge.strict"
TARGETS = (
    Target(
        "manifest",
        manifest,
        seeds.manifests,
        checks.json_with(format="pipnet-edge-bundle", version=bundles.VERSION),
        jsons.ALL,
        (
            "pipnet_edge.manifest:read,File,Layer,Variant,Tuned",
            STRICT,
            "pipnet_edge.spec:MeanFace,ModelSpec,check_sizes",
            "pipnet_edge.detect.spec:Prior,Level,Margins,DetectorSpec,Sized",
        ),
    ),
    Target("golden", golden, seeds.goldens, checks.archive(), arrays.NPZ, ("pipnet_edge.npz",)),
    Target("heads", heads, seeds.heads, checks.archive(), arrays.NPZ, ("pipnet_edge.npz",)),
    Target(
        "labels", label_file, seeds.labels, checks.text, plain.TEXT, (f"{ACCURACY}.labels", f"{ACCURACY}.label_text")
    ),
    Target("pts", pts, seeds.pts, checks.text, plain.TEXT, (f"{ACCURACY}.labels", f"{ACCURACY}.label_text")),
    Target(
        "meanface",
        mean_face,
        seeds.mean_faces,
        checks.text,
        plain.TEXT,
        ("pipnet_edge.converters.checkpoint.mean_face:read_mean_face",),
    ),
    Target("device", device, seeds.devices, checks.toml, tomls.ALL, ("pipnet_edge.targets.devices.file",)),
    Target("hosts", hosts, seeds.hosts, checks.json_with(), jsons.ALL, ("pipnet_edge.targets.place:hosts",)),
    Target(
        "result",
        bench_result,
        seeds.bench_results,
        checks.json_with(schema="pipnet-edge/1", command="bench"),
        jsons.ALL,
        (f"{SPEED}.result", STRICT),
    ),
    Target(
        "report",
        report_page,
        seeds.results,
        checks.json_with(schema="pipnet-edge/1"),
        jsons.ALL,
        ("pipnet_edge.benchmarks.report.contents", "pipnet_edge.benchmarks.report.tables"),
    ),
    Target(
        "chunk",
        kept_chunk,
        seeds.chunks,
        lambda data: len(data) == seeds.CHUNK,
        (plain.flip, plain.flip, plain.number, plain.number, plain.chunk),
        (f"{ACCURACY}.chunks:_kept",),
    ),
    Target("job", job, seeds.jobs, checks.json_naming("do", *JOBS), jsons.ALL, ("pipnet_edge.worker.protocol", STRICT)),
    Target(
        "event",
        event,
        seeds.talks,
        checks.json_lines(("do", *JOBS), ("event", *protocol.EVENTS, protocol.DONE)),
        jsons.ALL,
        ("pipnet_edge.worker.protocol", STRICT),
    ),
    Target(
        "board",
        board,
        seeds.board_messages,
        checks.json_lines(("far", *far.MESSAGES)),
        jsons.ALL,
        ("pipnet_edge.targets.ssh.far", STRICT),
    ),
    Target(
        "option",
        option_texts,
        seeds.options,
        lambda data: data.partition(b" ")[0].decode(errors="replace") in seeds.OPTION_NAMES,
        plain.TEXT,
        ("pipnet_edge.cli.options:floats,listed,places", "pipnet_edge.converters.quantize.budget:parse"),
    ),
    Target(
        "machine",
        machine,
        seeds.machines,
        checks.text,
        plain.TEXT,
        ("pipnet_edge.host:parse_cpuinfo,facts,name,clusters,state,_text,_number,_whole",),
    ),
)
