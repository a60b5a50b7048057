"""From torch to ONNX to simplified ONNX. The result of each step is run and compared with torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from numpy.typing import NDArray
from torch import nn

from pipnet_edge.decode import MAP_NAMES
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

OPSET = 17
# Largest allowed difference from torch, as a share of each output's largest magnitude. Features may differ more: in an
# equalised network, single channels have large weights whose sums cancel, and the heads average that out.
TOLERANCE, OF_FEATURES = 1e-4, 2e-3


@dataclass(frozen=True)
class Core:
    """The torch network and its ONNX export. Every converter starts from this.

    path: ONNX with input `image` (1, 3, S, S) float32 normalised RGB and named outputs; its folder is scratch space.
    nodes and sizes (bytes) are (before, after) simplification; after equals before when that was switched off.
    outputs: what the network returns, in order: decode.map_names or decode.FEATURE_NAMES.
    """

    net: nn.Module
    spec: ModelSpec
    path: Path
    nodes: tuple[int, int]
    sizes: tuple[int, int]
    outputs: tuple[str, ...] = MAP_NAMES

    def work(self, name: str) -> Path:
        """A scratch folder of this name, made when it is first asked for."""
        folder = self.path.parent / name
        folder.mkdir(exist_ok=True)
        return folder


def export(
    net: nn.Module, spec: ModelSpec, folder: Path, simplify: bool = True, outputs: tuple[str, ...] = MAP_NAMES
) -> Core:
    """Writes the network as ONNX, batch fixed to 1, into `folder`. Raises EdgeError when a step changes an output."""
    # Noise, in the range that pixels have for this network.
    pixels = np.random.default_rng(0).random((1, spec.input_size, spec.input_size, 3), np.float32)
    scaled = (pixels - np.array(spec.mean)) / np.array(spec.std)
    image = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32))
    with torch.no_grad():
        expected = dict(zip(outputs, (output.numpy() for output in net(image)), strict=True))
    raw, path = folder / "raw.onnx", folder / "core.onnx"
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but needs no further package and writes plain graphs.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (image,),
            str(raw),
            input_names=["image"],
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=False,
        )
    before = onnx.load(raw)
    check(before, image.numpy(), expected, "ONNX export")
    after = before
    if simplify:
        after, _ = onnxsim.simplify(before)
        check(after, image.numpy(), expected, "ONNX simplification")
    onnx.save(after, path)
    nodes = (len(before.graph.node), len(after.graph.node))
    return Core(net, spec, path, nodes, (raw.stat().st_size, path.stat().st_size), outputs)


def check(
    model: onnx.ModelProto, image: NDArray[np.float32], expected: dict[str, NDArray[np.float32]], step: str
) -> None:
    """Runs a core model and compares its maps with torch's. Raises EdgeError that names the step and the worst map."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = dict(zip(expected, session.run(list(expected), {"image": image}), strict=True))
    worst = {name: float(np.abs(got[name] - want).max() / np.abs(want).max()) for name, want in expected.items()}
    excess = {name: value / (OF_FEATURES if name == "features" else TOLERANCE) for name, value in worst.items()}
    name = max(excess, key=lambda n: excess[n] if excess[n] == excess[n] else np.inf)
    if not excess[name] <= 1:
        raise EdgeError(f"{step} changed the maps: {name} differs by {worst[name]:.1e} of its largest value", code=3)
