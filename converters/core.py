"""From torch to ONNX to simplified ONNX. The result of each step is run and compared with torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from numpy.typing import NDArray
from torch import nn

from pipnet_edge.agreement import settled
from pipnet_edge.converters import golden
from pipnet_edge.converters.checkpoint.network import normalise
from pipnet_edge.decode import FEATURE_NAMES, MAP_NAMES, Decoder, Features, Heads, Maps, map_names
from pipnet_edge.detect.spec import Sized
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.precisions import SINGLE
from pipnet_edge.spec import Input, ModelSpec

Arrays = dict[str, NDArray[np.float32]]

OPSET = 17
# A difference from torch of no more than this share of each output's largest magnitude needs no further look. Features
# may differ more: in an equalised network, single channels have large weights whose sums cancel, and the heads average
# that out. Where a network amplifies rounding, its landmarks decide.
TOLERANCE, OF_FEATURES = 1e-4, 2e-3


@dataclass(frozen=True)
class Core:
    """The torch network and its ONNX export. Every converter starts from this.

    path: ONNX with input `image` (1, 3, H, W) float32 normalised RGB and named outputs; its folder is scratch space.
    nodes and sizes (bytes) are (before, after) simplification; after equals before when that was switched off.
    outputs: what the network returns, in order: decode.map_names, decode.FEATURE_NAMES or a detector's map_names.
    """

    net: nn.Module
    spec: Input
    path: Path
    nodes: tuple[int, int]
    sizes: tuple[int, int]
    outputs: tuple[str, ...] = MAP_NAMES

    def work(self, name: str) -> Path:
        """A scratch folder of this name, made when it is first asked for."""
        folder = self.path.parent / name
        folder.mkdir(exist_ok=True)
        return folder


def export(net: nn.Module, spec: ModelSpec, folder: Path, simplify: bool = True, heads: Heads | None = None) -> Core:
    """Writes the network as ONNX, batch fixed to 1, into `folder`. Raises EdgeError when a step changes what it gives.

    heads: the offset heads that the network lacks if it returns decode.Features.
    """
    outputs = FEATURE_NAMES if heads else map_names(spec.num_nb)
    landmarks = _Landmarks(net, spec, heads, outputs)
    return _export(_Reference(net, spec, outputs, landmarks.disagreement), folder, simplify)


def export_detector(net: nn.Module, sized: Sized, folder: Path, simplify: bool = True) -> Core:
    """Writes a face detector as `export` does, for pictures of one size."""
    return _export(_Reference(net, sized, sized.spec.map_names, _tolerance), folder, simplify)


def _export(reference: _Reference, folder: Path, simplify: bool) -> Core:
    raw, path = folder / "raw.onnx", folder / "core.onnx"
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but needs no further package and writes plain graphs.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            reference.net,
            (torch.from_numpy(reference.noise),),
            str(raw),
            input_names=["image"],
            output_names=list(reference.outputs),
            opset_version=OPSET,
            dynamo=False,
        )
    before = onnx.load(raw)
    reference.check(before, "ONNX export")
    after = before
    if simplify:
        after, _ = onnxsim.simplify(before)
        reference.check(after, "ONNX simplification")
    onnx.save(after, path)
    nodes, sizes = (len(before.graph.node), len(after.graph.node)), (raw.stat().st_size, path.stat().st_size)
    return Core(reference.net, reference.spec, path, nodes, sizes, reference.outputs)


@dataclass(frozen=True, eq=False)
class _Reference:
    """A torch network that an ONNX model has to equal, by its outputs for noise.

    arbiter: asked where those differ; says why the model is not this network, and nothing if it is.
    """

    net: nn.Module
    spec: Input
    outputs: tuple[str, ...]
    arbiter: Callable[[onnxruntime.InferenceSession], str]

    @cached_property
    def noise(self) -> NDArray[np.float32]:
        """An image (1, 3, H, W) of noise, in the range that pixels have for this network."""
        width, height = self.spec.size
        pixels = np.random.default_rng(0).random((1, height, width, 3), np.float32)
        scaled = (pixels - np.array(self.spec.mean)) / np.array(self.spec.std)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)

    @cached_property
    def expected(self) -> Arrays:
        """The outputs for noise."""
        return _torch(self.net, self.outputs, torch.from_numpy(self.noise))

    def check(self, model: onnx.ModelProto, step: str) -> None:
        """Raises EdgeError (code 3) that names the step and the worst output of a model that is not this network."""
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        got = _onnx(session, self.outputs, self.noise)
        worst = {n: float(np.abs(got[n] - want).max() / np.abs(want).max()) for n, want in self.expected.items()}
        excess = {name: value / (OF_FEATURES if name == "features" else TOLERANCE) for name, value in worst.items()}
        name = max(excess, key=lambda n: excess[n] if excess[n] == excess[n] else np.inf)
        if excess[name] <= 1:
            return
        # NaN is nobody's rounding.
        why = self.arbiter(session) if np.isfinite(excess[name]) else "on faces: NaN or infinity"
        if why:
            differs = f"{name} differs by {worst[name]:.1e} of its largest value"
            raise EdgeError(f"{step} changed the maps: {differs}; {why}", CHECK_FAILED)


def _tolerance(_: onnxruntime.InferenceSession) -> str:
    """The arbiter of networks that no rounding excuses."""
    return f"at most {TOLERANCE:g} is allowed"


@dataclass(frozen=True, eq=False)
class _Landmarks:
    """The arbiter of landmark networks: the landmarks."""

    net: nn.Module
    spec: ModelSpec
    heads: Heads | None
    outputs: Sequence[str]

    def disagreement(self, session: onnxruntime.InferenceSession) -> str:
        """How landmarks on faces differ from torch's in float32 and in float64, which is the arbiter between engines.

        Empty if they agree with one of them.
        """
        images = [image[None] for image in normalise(golden.faces(self.spec.input_size), self.spec)]
        decoder = Decoder(self.spec)
        found = decoder(self._maps([_onnx(session, self.outputs, image.numpy()) for image in images]))
        why = list[str]()
        for kind in (torch.float32, torch.float64):
            net = copy.deepcopy(self.net).to(kind)
            maps = self._maps([_torch(net, self.outputs, image.to(kind)) for image in images])
            wanted = settled(decoder, maps, decoder(maps), found.cell)
            px = np.linalg.norm(found.points - wanted.points, axis=-1) * self.spec.input_size
            why = SINGLE.broken(float(px.mean()), float(px.max()), float((found.cell != wanted.cell).mean()))
            if not why:
                break
        return f"on faces: {', '.join(why)}" if why else ""

    def _maps(self, each: Sequence[Arrays]) -> Maps:
        """All maps, batch axis first, from the outputs for each image."""
        if self.heads:
            found = [self.heads.maps(Features.from_outputs(outputs, self.spec)) for outputs in each]
        else:
            found = [Maps.from_outputs(outputs, self.spec) for outputs in each]
        return Maps(**{name: np.stack([getattr(maps, name) for maps in found]) for name in MAP_NAMES})


def _onnx(session: onnxruntime.InferenceSession, outputs: Sequence[str], image: NDArray[np.float32]) -> Arrays:
    return dict(zip(outputs, session.run(list(outputs), {"image": image}), strict=True))


def _torch(net: nn.Module, outputs: Sequence[str], image: torch.Tensor) -> Arrays:
    with torch.no_grad():
        return {name: value.numpy() for name, value in zip(outputs, net(image), strict=True)}
