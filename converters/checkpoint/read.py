"""From a file to a ModelSpec and a torch network; everything that can be inferred is inferred from keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pipnet_edge.converters.checkpoint import from_onnx, kind, nets, state_dict
from pipnet_edge.converters.checkpoint.kind import Kind
from pipnet_edge.converters.checkpoint.mean_face import choose_mean_face
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.checkpoint.weights import Weights
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, check_sizes, mean_faces

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """What a file cannot say about itself: the dataset's name or a mean-face file, sizes and normalization.

    outputs: the names of an ONNX file's maps in the order of nets.HEAD_KEYS, if others than those that are known.
    weights: which network of a checkpoint that holds several.
    """

    data: str | None = None
    meanface: Path | None = None
    input_size: int | None = None
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    trust_pickle: bool = False
    outputs: tuple[str, ...] = ()
    weights: str | None = None


@dataclass(frozen=True)
class Found:
    """What a file says about itself: sizes, read from keys and shapes, and the torch network.

    net takes (1, 3, S, S) float32 normalised RGB, S = input_size, and returns five or three maps (nets.HEAD_KEYS).
    notes: what was left aside or taken for granted, a line each.
    """

    backbone: str
    num_lms: int
    num_nb: int
    net_stride: int
    input_size: int
    net: nn.Module
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self.num_lms, self.num_nb, self.net_stride, self.input_size)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    @property
    def datasets(self) -> list[str]:
        """The datasets that have so many landmarks."""
        return [face.name for face in mean_faces().values() if len(face.points) == self.num_lms]


def read(
    path: Path,
    input_size: int | None = None,
    trust_pickle: bool = False,
    outputs: Sequence[str] = (),
    weights: str | None = None,
) -> Found:
    """Reads a state_dict, wherever it lies in a file, or an ONNX file. input_size: else 256, or the ONNX file's.

    weights names one network where a checkpoint holds several. Raises EdgeError, one line, for files that are none of
    these, other architectures, NaN weights, and for pickled modules unless they are trusted.
    """
    if not path.is_file():
        raise EdgeError(f"{path} is a folder, no checkpoint" if path.is_dir() else f"there is no file {path}")
    what = kind.of(path)
    is_onnx = path.suffix.lower() == ".onnx"
    if what not in (None, Kind.TORCH, Kind.SAFETENSORS) and not (is_onnx and what is Kind.ONNX):
        raise kind.refusal(path, what)
    if is_onnx and what in (None, Kind.ONNX):
        if weights is not None:
            raise EdgeError(f"--weights is for checkpoints; {path} is an ONNX file")
        onnx = from_onnx.read(path, input_size, outputs)
        return Found("onnx", onnx.num_lms, onnx.num_nb, onnx.net_stride, onnx.input_size, onnx.net.eval(), onnx.notes)
    if outputs:
        raise EdgeError(f"--outputs is for ONNX files; {path} is {what or 'none'}")
    state, notes = state_dict.read(path, what is Kind.SAFETENSORS, trust_pickle, weights)
    try:
        num_lms, num_nb = _heads(state)
        backbone, stride, net = nets.build(state)
        return Found(backbone, num_lms, num_nb, stride, 256 if input_size is None else input_size, net, notes)
    except EdgeError as e:
        raise EdgeError(f"{path}: {e}", e.code) from e


def load(path: Path, options: Options) -> Network:
    """Reads a network and completes its spec. Raises EdgeError as `read` does, and if the options do not fit."""
    found = read(path, options.input_size, options.trust_pickle, options.outputs, options.weights)
    spec = ModelSpec(
        backbone=found.backbone,
        num_lms=found.num_lms,
        num_nb=found.num_nb,
        net_stride=found.net_stride,
        input_size=found.input_size,
        mean_face=choose_mean_face(found.num_lms, options.data, options.meanface),
        mean=options.mean,
        std=options.std,
    )
    return Network(spec, found.net, found.parameters, found.notes)


def _heads(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """(landmarks, neighbours) from the head shapes."""
    tensors = Weights(state)
    rows = {key: tensors.rows(f"{key}.weight") for key in nets.head_keys(state).values()}
    num_lms, *own = list(rows.values())[:3]
    near = list(rows.values())[3:]
    num_nb = near[0] // num_lms if near else 0
    if own != [num_lms] * 2 or any(size != num_lms * num_nb or not size for size in near):
        raise EdgeError(f"head sizes {rows} do not fit each other (L, L, L, L*N, L*N are needed)")
    return num_lms, num_nb
