"""The parsers that hand foreign bytes to C code: torch, OpenCV, onnx and the runtimes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np

from pipnet_edge import bundle as bundles
from pipnet_edge import preprocess, runtimes
from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import from_onnx, nets, onnx_file
from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.quantize import prepare
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import EdgeError
from pipnet_edge.manifest import File, Source, Variant
from pipnet_edge.runtimes.probe import _unpacked
from pipnet_edge.worker import call, protocol, serve
from tests.fuzz import checks
from tests.fuzz.inside import example, pick, written
from tests.fuzz.mutators import arrays, pickles, pictures, plain, protos
from tests.fuzz.target import Target

SUFFIXES = (".bmp", ".webp", ".tiff", ".ppm", ".pam", ".gif", ".jp2", ".avif", ".sr")


def checkpoint(data: bytes, folder: Path) -> object:
    return checkpoints.read(written(folder, "net.pth", data)).parameters


def onnx_net(data: bytes, folder: Path) -> object:
    """With the part that the product runs in a process of its own in this one."""
    path = written(folder, "net.onnx", data)

    def run(_: str, command: Sequence[str], *__: object, **___: object) -> None:
        given, work, size, *outputs = command[command.index(onnx_file.__name__) + 1 :]
        try:
            onnx_file.main(Path(given), Path(work), int(size) if size else None, outputs)
        except Exception as error:
            raise EdgeError(f"its process ends: {type(error).__name__}") from error

    with mock.patch.object(from_onnx.tool, "run", run), mock.patch.object(onnx_file, "_limit_memory"):
        return from_onnx.read(path, pick(data, (None, 64)))


def picture(data: bytes, folder: Path) -> object:
    """As labels and `run` do: its size, the picture, and a crop that is cut from it."""
    path = written(folder, "picture.png", data)
    preprocess.image_size(path)
    whole = preprocess.read_picture(path)
    return preprocess.cut(whole, preprocess.Rect.whole(whole), 64)


def rounded(data: bytes, folder: Path) -> object:
    """The cache of rounded weights."""
    return prepare._read(written(folder, "rounded.pt", data))


def answer(data: bytes, folder: Path) -> object:
    """The arrays that come back from a worker or a board."""
    crops = np.zeros((2, 48, 48, 3), np.uint8)

    def reply(job: Any, listen: object = None) -> protocol.Version:
        Path(job.out).write_bytes(data)
        return protocol.Version("x 1")

    return call.infer(reply, example().folder, "null-fp32", 1, crops, pick(data, (False, True)))


def model(runtime: str) -> Callable[[bytes, Path], object]:
    """A model of this runtime in a bundle whose hashes fit, loaded and run as a worker does it.

    A worker that dies is what workers are for. What it says must be an answer or an error of the protocol.
    """

    def run(data: bytes, folder: Path) -> object:
        bundle = bundle_of(runtime, data, folder)
        job = protocol.Infer(str(bundle), f"{runtime}-fp32", 1, str(folder / "out.npz"))
        said = io.StringIO()
        try:
            serve.serve(said, protocol.write_job(job))
        except Exception as error:
            raise EdgeError(f"its process ends: {type(error).__name__}") from error
        told = [protocol.read_event(line, job) for line in said.getvalue().splitlines()]
        if isinstance(told[-1], protocol.Error):
            raise EdgeError(told[-1].message)
        return told

    return run


def worker(data: bytes, folder: Path) -> object:
    """Any runtime's model by a real worker: whatever happens there, the command has one line to say."""
    name, _, content = data.partition(b"\n")
    runtime = name.decode(errors="replace")
    if runtime not in runtimes.DESTINATIONS:
        raise EdgeError("no such runtime")
    bundle = bundle_of(runtime, content, folder)
    return call.infer(call.here, bundle, f"{runtime}-fp32", 1, np.zeros((1, 48, 48, 3), np.uint8))


def bundle_of(runtime: str, data: bytes, folder: Path) -> Path:
    """A bundle with one variant, whose model files are `data`: for ncnn, the second begins after the first NUL."""
    names = runtimes.adapter(runtime).FILES
    parts = data.split(b"\0", 1) if len(names) > 1 else [data]
    files = []
    for name, part in zip(names, (*parts, b""), strict=False):
        files.append(File.of(folder, written(folder, f"{runtime}-fp32/{name}", part)))
    written(folder, bundles.GOLDEN, (example().folder / bundles.GOLDEN).read_bytes())
    source = Source("net.pth", "0" * 64, 1, (1, 1), (1, 1))
    variant = Variant(f"{runtime}-fp32", runtime, "fp32", tuple(files))
    replace(example(), folder=folder, source=source, variants=(variant,), tuned={}, calibration=None).write_manifest()
    return folder


# --- Seeds.


@cache
def picture_seeds() -> list[bytes]:
    """A small face in each format that OpenCV writes here, grey, deep or clear too; and one turned by EXIF."""
    face = cv2.resize(cv2.imread(str(next(iter(sorted(demo.FACES.glob("*.jpg")))))), (40, 32))
    grey, deep = cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), face.astype(np.uint16) * 257
    clear = cv2.cvtColor(face, cv2.COLOR_BGR2BGRA)
    forms = [(".png", face), (".png", grey), (".png", deep), (".png", clear), (".jpg", face), (".jpg", grey)]
    forms += [(suffix, face) for suffix in SUFFIXES if cv2.haveImageWriter(f"x{suffix}")]
    found = [cv2.imencode(suffix, image)[1].tobytes() for suffix, image in forms]
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = found[4][:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + found[4][2:]
    return [*found, turned]


@cache
def checkpoint_seeds() -> list[bytes]:
    """Small files with PIPNet's heads, in the new and the old form, wrapped and not; and the demo's checkpoint."""
    import torch

    chance = torch.Generator().manual_seed(0)
    state: dict[str, Any] = {}
    for name, rows in zip(nets.HEAD_KEYS.values(), (5, 5, 5, 10, 10), strict=True):
        state[f"{name}.weight"] = torch.randn(rows, 8, 1, 1, generator=chance)
        state[f"{name}.bias"] = torch.randn(rows, generator=chance)
    state["conv1.weight"] = torch.randn(4, 3, 3, 3, generator=chance).half()
    state["bn1.num_batches_tracked"] = torch.tensor(1)
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}, "lr": 0.1}
    forms = ((state, True), (wrapped, True), (state, False), (wrapped, False), (list(state.values()), True))
    found = []
    for value, new in forms:
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=new)
        found.append(file.getvalue())
    return [*found, *found, demo.CHECKPOINT.read_bytes()]


@cache
def rounded_seeds() -> list[bytes]:
    import torch

    kept = {"float": {"a.weight": torch.ones(3)}, "rounded": {"a.weight": torch.ones(3)}, "ranges": {"a": (0.0, 1.0)}}
    file = io.BytesIO()
    torch.save(kept, file)
    return [file.getvalue()]


@cache
def onnx_seeds() -> list[bytes]:
    """A small network of five maps; one with more kinds of operations; one that leaves its size open."""
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((0.1 * chance.standard_normal(shape)).astype(np.float32), name)

    def net(more: bool, side: int | str) -> bytes:
        nodes = [helper.make_node("Conv", ["image", "w", "b"], ["c"], "body", kernel_shape=[16, 16], strides=[16, 16])]
        weights = [weight("w", 8, 3, 16, 16), weight("b", 8)]
        last = "c"
        for kind, given in (("Relu", []), ("Add", ["c"]), ("Sigmoid", []), ("Mul", ["c"]), ("HardSwish", []))[
            : 5 if more else 1
        ]:
            nodes.append(helper.make_node(kind, [last, *given], [f"{last}x"], f"n{last}"))
            last += "x"
        outputs = []
        for name, rows in zip(nets.HEAD_KEYS, (5, 5, 5, 10, 10), strict=True):
            weights += [weight(f"{name}.w", rows, 8, 1, 1), weight(f"{name}.b", rows)]
            nodes.append(helper.make_node("Conv", [last, f"{name}.w", f"{name}.b"], [name], f"head.{name}"))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, rows, None, None]))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])
        graph = helper.make_graph(nodes, "net", [image], outputs, weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(made.SerializeToString())

    return [net(False, 64), net(True, 64), net(False, "S")]


@cache
def model_seeds(runtime: str) -> list[bytes]:
    """The probe's model; for ONNX Runtime also one that takes a crop and gives five maps, for ncnn too."""
    tiny = [part if isinstance(part, bytes) else _unpacked(part) for part in runtimes.adapter(runtime).TINY]
    found = [b"\0".join(tiny)]
    if runtime == "ncnn":
        found.append(_ncnn_net())
    if runtime == "onnx":
        found.append(_onnx_crops())
    return found


def _ncnn_net() -> bytes:
    """A text of layers, and weights: a convolution of 16 x 16 cells, and the heads."""
    layers = ["Input image 0 1 image 0=48 1=48 2=3", "Convolution body 1 1 image c 0=8 1=16 3=16 5=1 6=6144"]
    layers.append("Split s 1 5 c c0 c1 c2 c3 c4")
    counts = (5, 5, 5, 10, 10)
    names = tuple(nets.HEAD_KEYS)
    for at, (name, rows) in enumerate(zip(names, counts, strict=True)):
        layers.append(f"Convolution {name} 1 1 c{at} {name} 0={rows} 1=1 5=1 6={8 * rows}")
    text = "\n".join(("7767517", f"{len(layers)} {2 + 5 + 5}", *layers, ""))
    tag = b"\0\0\0\0"
    weights = [tag, np.full(6144 + 8, 0.01, "<f4").tobytes()]
    weights += [part for rows in counts for part in (tag, np.full(8 * rows + rows, 0.01, "<f4").tobytes())]
    return text.encode() + b"\0" + b"".join(weights)


def _onnx_crops() -> bytes:
    from onnx import TensorProto, helper, load_model_from_string

    model = load_model_from_string(onnx_seeds()[0])
    graph = model.graph
    graph.node.insert(0, helper.make_node("Cast", ["crop"], ["cast"], to=TensorProto.FLOAT))
    graph.node.insert(1, helper.make_node("Transpose", ["cast"], ["image"], perm=[0, 3, 1, 2]))
    graph.input[0].CopyFrom(helper.make_tensor_value_info("crop", TensorProto.UINT8, [1, 48, 48, 3]))
    return bytes(model.SerializeToString())


@cache
def worker_seeds() -> list[bytes]:
    return [name.encode() + b"\n" + data for name in runtimes.DESTINATIONS for data in model_seeds(name)]


@cache
def answer_seeds() -> list[bytes]:
    """What a worker gives for two crops, with maps."""
    chance = np.random.default_rng(0)
    shapes = {"score": (2, 5), "cell": (2, 5), "points": (2, 5, 2)}
    maps = {f"map_{name}": (2, rows, 3, 3) for name, rows in zip(MAP_NAMES, (5, 5, 5, 10, 10), strict=True)}
    file = io.BytesIO()
    given: Any = {name: chance.standard_normal(shape).astype(np.float32) for name, shape in (shapes | maps).items()}
    np.savez(file, **given | {"cell": np.ones((2, 5), np.int64)})
    return [file.getvalue()]


CHECKPOINT = "pipnet_edge.converters.checkpoint"
MODELS = {"onnx": protos.ALL, "ncnn": (*plain.TEXT, *plain.BINARY), "mnn": plain.BINARY, "tflite": plain.BINARY}
FIRST: dict[str, checks.Check] = {
    "onnx": checks.onnx,
    "ncnn": lambda data: data.startswith(b"7767517\n"),
    "mnn": lambda data: len(data) > 8,
    "tflite": lambda data: data[4:8] == b"TFL3",
}


def _of_worker(data: bytes) -> bool:
    name, _, content = data.partition(b"\n")
    return name.decode(errors="replace") in FIRST and FIRST[name.decode()](content)


TARGETS = (
    Target("answer", answer, answer_seeds, checks.archive(), arrays.NPZ, ("pipnet_edge.worker.call:infer,_given",)),
    Target(
        "checkpoint",
        checkpoint,
        checkpoint_seeds,
        checks.either(checks.archive("data.pkl"), checks.old_checkpoint),
        pickles.CHECKPOINT,
        tuple(f"{CHECKPOINT}.{name}" for name in ("read", "state_dict", "archive", "nesting", "nets")),
        foreign=True,
    ),
    Target(
        "rounded",
        rounded,
        rounded_seeds,
        checks.archive("data.pkl"),
        pickles.CHECKPOINT,
        ("pipnet_edge.converters.quantize.prepare:_read",),
        foreign=True,
    ),
    Target(
        "onnx",
        onnx_net,
        onnx_seeds,
        checks.onnx,
        protos.ALL,
        tuple(f"{CHECKPOINT}.{name}" for name in ("from_onnx", "onnx_file", "onnx_form", "onnx_data", "onnx_graph")),
        foreign=True,
        contained=True,
        warm=True,
    ),
    Target(
        "picture",
        picture,
        picture_seeds,
        checks.picture,
        pictures.ALL,
        ("pipnet_edge.preprocess:read_picture,cut", "pipnet_edge.image_header"),
        foreign=True,
    ),
    *(
        Target(
            f"model-{name}",
            model(name),
            lambda name=name: model_seeds(name),  # type: ignore[misc]
            FIRST[name],
            mutators,
            (f"pipnet_edge.runtimes.{runtimes.RUNTIMES[name].module}", "pipnet_edge.worker.serve:infer,serve,_open"),
            foreign=True,
            contained=True,
        )
        for name, mutators in MODELS.items()
    ),
    # Each input starts a Python and a runtime, so an hour holds hundreds. The parsers themselves are those above.
    Target(
        "worker",
        worker,
        worker_seeds,
        _of_worker,
        plain.BINARY,
        ("pipnet_edge.worker.call:here,start,follow,_lines,how_it_died",),
        foreign=True,
        minimum=300,
    ),
)
