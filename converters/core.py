"""From torch to ONNX to simplified ONNX. The result of each step is run and compared with torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
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
from pipnet_edge.errors import CHECK_FAILED, EdgeError
from pipnet_edge.precisions import SINGLE
from pipnet_edge.spec import ModelSpec

OPSET = 17
# A difference from torch of no more than this share of each output's largest magnitude needs no further look. Features
# may differ more: in an equalised network, single channels have large weights whose sums cancel, and the heads average
# that out. Where a network amplifies rounding, its landmarks decide.
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


def export(net: nn.Module, spec: ModelSpec, folder: Path, simplify: bool = True, heads: Heads | None = None) -> Core:
    """Writes the network as ONNX, batch fixed to 1, into `folder`. Raises EdgeError when a step changes what it gives.

    heads: the offset heads that the network lacks if it returns decode.Features.
    """
    outputs = FEATURE_NAMES if heads else map_names(spec.num_nb)
    reference = _Reference(net, spec, heads, outputs)
    raw, path = folder / "raw.onnx", folder / "core.onnx"
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but needs no further package and writes plain graphs.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.from_numpy(reference.noise),),
            str(raw),
            input_names=["image"],
            output_names=list(outputs),
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
    nodes = (len(before.graph.node), len(after.graph.node))
    return Core(net, spec, path, nodes, (raw.stat().st_size, path.stat().st_size), outputs)


@dataclass(frozen=True, eq=False)
class _Reference:
    """A torch network that an ONNX model has to equal: by its outputs for noise or, if those differ, by landmarks."""

    net: nn.Module
    spec: ModelSpec
    heads: Heads | None
    outputs: Sequence[str]

    @cached_property
    def noise(self) -> NDArray[np.float32]:
        """An image (1, 3, S, S) of noise, in the range that pixels have for this network."""
        pixels = np.random.default_rng(0).random((1, self.spec.input_size, self.spec.input_size, 3), np.float32)
        scaled = (pixels - np.array(self.spec.mean)) / np.array(self.spec.std)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)

    @cached_property
    def expected(self) -> dict[str, NDArray[np.float32]]:
        """The outputs for noise."""
        return _torch(self.net, self.outputs, torch.from_numpy(self.noise))

    def check(self, model: onnx.ModelProto, step: str) -> None:
        """Raises EdgeError (code 3) that names the step and the worst output of a model that is not this network."""
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        got = self._onnx(session, self.noise)
        worst = {n: float(np.abs(got[n] - want).max() / np.abs(want).max()) for n, want in self.expected.items()}
        excess = {name: value / (OF_FEATURES if name == "features" else TOLERANCE) for name, value in worst.items()}
        name = max(excess, key=lambda n: excess[n] if excess[n] == excess[n] else np.inf)
        if excess[name] <= 1:
            return
        # NaN is nobody's rounding.
        why = self._disagreement(session) if np.isfinite(excess[name]) else ["NaN or infinity"]
        if why:
            differs = f"{name} differs by {worst[name]:.1e} of its largest value"
            raise EdgeError(f"{step} changed the maps: {differs}; on faces: {', '.join(why)}", CHECK_FAILED)

    def _disagreement(self, session: onnxruntime.InferenceSession) -> list[str]:
        """How landmarks on faces differ from torch's in float32 and in float64, which is the arbiter between engines.

        Empty if they agree with one of them.
        """
        images = [image[None] for image in normalise(golden.faces(self.spec.input_size), self.spec)]
        decoder = Decoder(self.spec)
        found, why = decoder(self._maps([self._onnx(session, image.numpy()) for image in images])), list[str]()
        for kind in (torch.float32, torch.float64):
            net = copy.deepcopy(self.net).to(kind)
            maps = self._maps([_torch(net, self.outputs, image.to(kind)) for image in images])
            wanted = settled(decoder, maps, decoder(maps), found.cell)
            px = np.linalg.norm(found.points - wanted.points, axis=-1) * self.spec.input_size
            why = SINGLE.broken(float(px.mean()), float(px.max()), float((found.cell != wanted.cell).mean()))
            if not why:
                break
        return why

    def _onnx(
        self, session: onnxruntime.InferenceSession, image: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        return dict(zip(self.outputs, session.run(list(self.outputs), {"image": image}), strict=True))

    def _maps(self, each: Sequence[dict[str, NDArray[np.float32]]]) -> Maps:
        """All maps, batch axis first, from the outputs for each image."""
        if self.heads:
            found = [self.heads.maps(Features.from_outputs(outputs, self.spec)) for outputs in each]
        else:
            found = [Maps.from_outputs(outputs, self.spec) for outputs in each]
        return Maps(**{name: np.stack([getattr(maps, name) for maps in found]) for name in MAP_NAMES})


def _torch(net: nn.Module, outputs: Sequence[str], image: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in zip(outputs, net(image), strict=True)}
