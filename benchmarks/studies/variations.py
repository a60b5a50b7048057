"""Networks that differ only in landmarks or input size, for measuring how cost grows.

`python -m pipnet_edge.benchmarks.studies.variations` reads a JSON list of jobs on stdin and makes a bundle for each:
{"backbone", "data", "side", "heads", "to", "precisions", "out"}, named as in `pipnet-edge convert`. MobileNetV2 is the
embedded checkpoint, ResNet18 has random weights, the same every time. Neither is a landmark detector for other
landmarks or sizes. Parity would show this, so it is not checked. Beside an ONNX variant lies the same network for any
number of crops at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from pipnet_edge import converters
from pipnet_edge.bundle import Bundle
from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import nets, read
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.converters.quantize import calibration
from pipnet_edge.errors import EdgeError
from pipnet_edge.manifest import Parity
from pipnet_edge.spec import ModelSpec, mean_faces

State = dict[str, Tensor]
# The first landmarks of both networks. Other landmarks copy the heads of those that are nearest on the mean face.
DATA, NUM_LMS, NUM_NB, SIDE = "300w", 68, 10, 256
# Enough for statistics of activations; the drift of int8 does not matter here.
FACES = 16
BATCHED = "batched.onnx"


def state(backbone: str, data: str) -> State:
    """A state_dict of `backbone` (BACKBONES) for the landmarks of a dataset. Raises EdgeError for unknown names."""
    for name, given, allowed in (("backbone", backbone, BACKBONES), ("data", data, mean_faces())):
        if given not in allowed:
            raise EdgeError(f"{name} {given!r}; allowed: {', '.join(allowed)}")
    found = dict(BACKBONES[backbone]())
    points, wanted = (np.array(mean_faces()[name].points) for name in (DATA, data))
    nearest = torch.from_numpy(((wanted[:, None] - points) ** 2).sum(axis=2).argmin(axis=1))
    for key in (f"{head}.{part}" for head in nets.HEAD_KEYS.values() for part in ("weight", "bias")):
        by_landmark = found[key].reshape(NUM_LMS, -1, *found[key].shape[1:])
        found[key] = by_landmark[nearest].flatten(0, 1)
    return found


def make(job: Mapping[str, Any]) -> Bundle:
    """A bundle at `out`. Raises EdgeError as converters.convert does, but not for variants that fail parity."""
    plan = converters.Plan((job["to"],), tuple(job["precisions"]), job["heads"])
    options = read.Options(data=job["data"], input_size=job["side"])
    quantize = converters.Quantize(_faces(), count=FACES, ranges="minmax", rounding="nearest")
    with tempfile.TemporaryDirectory(prefix="pipnet-edge-") as folder:
        source = Path(folder, f"{job['backbone']}.pth")
        torch.save(state(job["backbone"], job["data"]), source)
        bundle = converters.convert(source, Path(job["out"]), plan, options, unchecked, quantize=quantize)
    for variant in bundle.variants:
        if variant.runtime == "onnx":
            free_batch(bundle.folder / variant.name)
    return bundle


def free_batch(folder: Path) -> None:
    """Writes BATCHED beside `model.onnx`: the same network with a free first dimension."""
    net = onnx.load(folder / "model.onnx")
    for value in (*net.graph.input, *net.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "crops"
    del net.graph.value_info[:]
    onnx.save(net, folder / BATCHED)


def _faces() -> dict[calibration.Face, None]:
    return {(path, None): None for path in sorted(demo.CALIBRATION.glob("*.jpg"))}


def unchecked(bundle: Bundle) -> dict[str, Parity]:
    """The check of a network that is not a landmark detector, if only its time counts: nothing is checked."""
    return {variant.name: Parity("nothing", 0, 0.0, 0.0, 0) for variant in bundle.variants}


def _demo() -> State:
    loaded: State = torch.load(demo.CHECKPOINT, weights_only=True)
    return {key: value.float() for key, value in loaded.items()}


@cache
def _resnet18() -> State:
    """Random weights, with BatchNorm's statistics from real faces, so that activations have their usual size."""
    random = torch.Generator().manual_seed(0)
    found: State = {}
    for key, norm, shape in _resnet18_layers():
        found[f"{key}.weight"] = torch.randn(shape, generator=random) * (2 / np.prod(shape[1:])) ** 0.5
        one, zero = torch.ones(shape[0]), torch.zeros(shape[0])
        found |= {f"{norm}.weight": one, f"{norm}.bias": zero, f"{norm}.running_mean": zero, f"{norm}.running_var": one}
    for name, key in nets.HEAD_KEYS.items():
        rows = NUM_LMS * (NUM_NB if name.startswith("neighbor") else 1)
        found[f"{key}.weight"] = torch.randn((rows, 512, 1, 1), generator=random) / 512**0.5
        found[f"{key}.bias"] = torch.zeros(rows)
    return found | _statistics(found, {key: norm for key, norm, _ in _resnet18_layers()})


def _resnet18_layers() -> Iterator[tuple[str, str, tuple[int, int, int, int]]]:
    """Names of a convolution and of the BatchNorm after it, and the weight's shape."""
    yield "conv1", "bn1", (64, 3, 7, 7)
    inner = 64
    for stage in range(4):
        width = 64 << stage
        for key in (f"layer{stage + 1}.{block}" for block in range(2)):
            yield f"{key}.conv1", f"{key}.bn1", (width, inner, 3, 3)
            yield f"{key}.conv2", f"{key}.bn2", (width, width, 3, 3)
            if inner != width:
                yield f"{key}.downsample.0", f"{key}.downsample.1", (width, inner, 1, 1)
            inner = width


def _statistics(state: State, norms: Mapping[str, str]) -> State:
    """Mean and variance for each BatchNorm, layer by layer: each from the output of the normalised layers before it."""
    backbone, stride, net = nets.build(state)
    spec = ModelSpec(backbone, NUM_LMS, NUM_NB, stride, SIDE, mean_faces()[DATA])
    found: State = {}

    def take(norm: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def normed(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            mean, variance = output.mean((0, 2, 3)), output.var((0, 2, 3))
            found.update({f"{norm}.running_mean": mean, f"{norm}.running_var": variance})
            by_channel = (slice(None), None, None)
            return (output - mean[by_channel]) / variance[by_channel].sqrt()

        return normed

    for name, layer in net.backbone.named_modules():
        if isinstance(layer, nn.Conv2d):
            key = name.removeprefix("stem.").replace("body.", "").replace("shortcut", "downsample.0")
            layer.register_forward_hook(take(norms[key]))
    with torch.no_grad():
        net(normalise(calibration.choose(list(_faces()), SIDE, FACES).crops, spec))
    return found


BACKBONES: Mapping[str, Callable[[], State]] = {"mobilenet_v2": _demo, "resnet18": _resnet18}


def main() -> None:
    for job in json.load(sys.stdin):
        make(job)
        print(json.dumps(job["out"]), flush=True)


if __name__ == "__main__":
    main()
