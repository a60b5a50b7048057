"""Reads a foreign ONNX file in a process of its own, and writes what it found in one form.

`python -m pipnet_edge.converters.checkpoint.onnx_file PATH FOLDER SIZE [OUTPUT…]` (SIZE may be empty) leaves ANSWER in
FOLDER. Unless that refuses the file, it leaves NETWORK too, (1, 3, S, S) float32 to the maps in the order of
decode.MAP_NAMES, simplified; and MAPS, a sample input with what ONNX Runtime computes for it from the original.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import inliner

from pipnet_edge import confined
from pipnet_edge.converters.checkpoint import onnx_data, onnx_form, onnx_normalization
from pipnet_edge.converters.checkpoint.onnx_form import Image, first_line
from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import CHECK_FAILED, USER_ERROR, EdgeError
from pipnet_edge.spec import MOST_LANDMARKS
from pipnet_edge.strict import printable

ANSWER, NETWORK, MAPS = "answer.json", "network.onnx", "maps.npz"
MEMORY = 1 << 30  # bytes; what the libraries take, and a network's activations
MEMORY_PER_BYTE = 8  # of the file: messages, sessions and the simplified copy hold the weights again
OLDEST_OPSET = 9  # from here on BatchNormalization and broadcasting mean what they mean today
TOLERANCE, HALF_TOLERANCE = 1e-4, 3e-2
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a file is. refusal: why it cannot be read, with the error's code; the other fields say nothing then.

    outputs: the maps' own names. grid: cells along a side. size: the input's side in pixels. tolerance: how far torch
    may be off, as a share of a map's largest magnitude.
    """

    refusal: str | None = None
    code: int = USER_ERROR
    outputs: tuple[str, ...] = ()
    num_lms: int = 0
    num_nb: int = 0
    grid: int = 0
    size: int = 0
    tolerance: float = TOLERANCE
    notes: tuple[str, ...] = ()


def main(path: Path, folder: Path, input_size: int | None, outputs: Sequence[str]) -> None:
    try:
        answer = _read(path, folder, input_size, outputs)
    except EdgeError as e:
        answer = Answer(printable(str(e))[:1000], e.code)
    (folder / ANSWER).write_text(json.dumps(asdict(answer)))


def _read(path: Path, folder: Path, input_size: int | None, asked: Sequence[str]) -> Answer:
    model = _load(path)
    graph = model.graph
    image = onnx_form.image_input(graph, input_size)
    found = [output.name for output in graph.output]
    names = onnx_form.bound_outputs(found, asked)
    onnx_form.keep_outputs(graph, names or found)
    onnx_form.refuse_decoding(graph, named=bool(names))
    onnx_form.fix_input(graph, image)
    onnx_form.check_sizes(model)

    sample = np.random.default_rng(0).standard_normal((1, 3, image.size, image.size), dtype=np.float32)
    computed = _computed(model, image, sample)
    notes = []
    if not names:
        names = onnx_form.outputs_by_order({name: value.shape for name, value in computed.items()})
        notes.append(f"outputs without known names, taken in their order: {_named(names)}; if not, give --outputs")
    if others := [name for name in found if name not in names]:
        notes.append(f"outputs left aside: {', '.join(others)}")
    maps = [computed[name] for name in names]
    is_last = onnx_form.channels_are_last([value.shape for value in maps])
    if is_last:
        maps = [np.moveaxis(value, -1, 1) for value in maps]
    num_lms, num_nb, grid = _layout(dict(zip(MAP_NAMES, (m.shape for m in maps), strict=False)), image.size)
    for name, value in zip(names, maps, strict=True):
        if not np.isfinite(value).all():
            raise EdgeError(f"output {name!r} is NaN or infinite in ONNX Runtime itself", CHECK_FAILED)

    is_half = onnx_data.is_half(model)
    if is_half:
        onnx_data.to_float32(model)
        notes.append("read as float32; its own numbers are of half precision")
    # Before the graph is simplified, which moves a scale into the first convolution.
    notes += onnx_normalization.notes(graph, image.name, axis=3 if image.is_last else 1)
    simple = onnx_form.simplified(model, image, names, is_last)
    onnx.save(simple, folder / NETWORK)
    np.savez(folder / MAPS, sample, *maps)
    tolerance = HALF_TOLERANCE if is_half else TOLERANCE
    lines = tuple(printable(note)[:1000] for note in notes)
    return Answer(None, 0, tuple(map(printable, names)), num_lms, num_nb, grid, image.size, tolerance, lines)


def _load(path: Path) -> onnx.ModelProto:
    """The checked model with all of its weights inside."""
    size = path.stat().st_size
    _limit_memory(size)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as e:  # protobuf's errors share no base class
        raise EdgeError(f"not a readable ONNX file: {first_line(e)}") from e
    outside = onnx_data.outside(model, path.parent)
    _limit_memory(size + sum(file.stat().st_size for file in {file for _, file in outside}))
    for tensor, file in outside:
        onnx_data.embed(tensor, file)
    onnx_data.check(model)
    try:
        onnx.checker.check_model(model)
    except Exception as e:  # and so do the checker's
        raise EdgeError(f"not a readable ONNX file: {first_line(e)}") from e
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise EdgeError(f"its opset is {opset}; allowed: {OLDEST_OPSET} and newer")
    return inliner.inline_local_functions(model) if model.functions else model


def _limit_memory(size: int) -> None:
    """From now on as much memory as a file of `size` bytes may take, its data files included."""
    confined.limit_memory(MEMORY + MEMORY_PER_BYTE * size, for_good=False)


def _computed(model: onnx.ModelProto, image: Image, sample: Array) -> dict[str, Array]:
    """What ONNX Runtime computes from the original, for the first image of its batch, as float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = 1
    given = np.repeat(sample, image.batch, 0).astype(image.dtype)
    names = [output.name for output in model.graph.output]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(names, {image.name: np.moveaxis(given, 1, -1) if image.is_last else given})
    except Exception as e:  # onnxruntime's errors share no base class
        raise EdgeError(f"ONNX Runtime cannot run it: {first_line(e)}") from e
    arrays = {name: value for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}
    return {name: value[:1].astype(np.float32) if value.ndim else value for name, value in arrays.items()}


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"{name} is {key}" for name, key in zip(names, MAP_NAMES, strict=False))


def _layout(shapes: Mapping[str, tuple[int, ...]], size: int) -> tuple[int, int, int]:
    """(L, N, cells along a side) of the maps' shapes, five or three."""
    score = shapes["score"]
    neighbor = shapes.get("neighbor_x", (1, 0, *score[2:]))
    if (
        any(len(s) != 4 or s[0] != 1 or s[2:] != score[2:] for s in shapes.values())
        or not score == shapes["offset_x"] == shapes["offset_y"]
        or neighbor != shapes.get("neighbor_y", neighbor)
        or not 0 < score[1] <= MOST_LANDMARKS
        or neighbor[1] % score[1]
        or score[2] != score[3]
        or not score[2]
        or size % score[2]
    ):
        given = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise EdgeError(
            f"its maps are {given}; needed are three (1, L, H, H) and two (1, L*N, H, H) or none, where H divides the "
            f"input's {size} and L is at most {MOST_LANDMARKS}"
        )
    return score[1], neighbor[1] // score[1], score[2]


if __name__ == "__main__":
    # onnxsim imports them where they are installed, for what nobody calls here: seconds, and half a gigabyte.
    absent: dict[str, Any] = dict.fromkeys(("torch", "sympy"))
    sys.modules.update(absent)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3] else None, sys.argv[4:])
