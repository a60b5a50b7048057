"""From a file to a ModelSpec and a torch network; everything that can be inferred is inferred from keys and shapes."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipnet_edge.converters.checkpoint import from_onnx, nets
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import IMAGENET_MEAN, IMAGENET_STD, MeanFace, ModelSpec, mean_faces

# Where training scripts put the state_dict when they save more than that.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """What a file cannot say about itself: the dataset's name or a mean-face file, sizes and normalization."""

    data: str | None = None
    meanface: Path | None = None
    input_size: int | None = None
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    trust_pickle: bool = False


@dataclass(frozen=True)
class Found:
    """What a file says about itself: sizes, read from keys and shapes, and the torch network.

    net takes (1, 3, S, S) float32 normalised RGB, S = input_size, and returns the five maps (nets.HEAD_KEYS).
    """

    backbone: str
    num_lms: int
    num_nb: int
    net_stride: int
    input_size: int
    net: nn.Module

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    @property
    def datasets(self) -> list[str]:
        """The datasets that have so many landmarks."""
        return [face.name for face in mean_faces().values() if len(face.points) == self.num_lms]


def read(path: Path, input_size: int | None = None, trust_pickle: bool = False) -> Found:
    """Reads a state_dict (bare or wrapped) or a five-map ONNX file; input_size is 256 or the ONNX file's if not given.

    Raises EdgeError, one line, for files that are none of these, other architectures, NaN weights, and for pickled
    modules unless they are trusted.
    """
    if not path.is_file():
        raise EdgeError(f"{path} is a folder, no checkpoint" if path.is_dir() else f"there is no file {path}")
    if path.suffix.lower() == ".onnx":
        onnx = from_onnx.read(path, input_size)
        return Found("onnx", onnx.num_lms, onnx.num_nb, onnx.net_stride, onnx.input_size, onnx.net.eval())
    state = _state_dict(path, trust_pickle)
    num_lms, num_nb = _heads(path, state)
    backbone, stride, net = nets.build(state)
    return Found(backbone, num_lms, num_nb, stride, input_size or 256, net)


def load(path: Path, options: Options) -> Network:
    """Reads a network and completes its spec. Raises EdgeError as `read` does, and if the options do not fit."""
    found = read(path, options.input_size, options.trust_pickle)
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
    return Network(spec, found.net, found.parameters)


def choose_mean_face(num_lms: int, data: str | None, file: Path | None) -> MeanFace:
    """The mean face by file, by dataset name, or by the landmark count if only one dataset has it.

    Raises EdgeError if the count is ambiguous (68) or unknown, and if it contradicts what was given.
    """
    if file is not None:
        if data is not None:
            raise EdgeError("--data and --meanface exclude each other")
        face = read_mean_face(file)
    elif data is not None:
        name = data.lower().removeprefix("data_").replace("_", "-")
        if name not in mean_faces():
            raise EdgeError(f"--data {data}; allowed: {', '.join(mean_faces())}")
        face = mean_faces()[name]
    else:
        fitting = [face for face in mean_faces().values() if len(face.points) == num_lms]
        if len(fitting) != 1:
            known = (
                f"several datasets have {num_lms} landmarks" if fitting else f"no known dataset has {num_lms} landmarks"
            )
            choice = f"--data {' or '.join(f.name for f in fitting)}" if fitting else "--meanface FILE"
            raise EdgeError(f"{known}: say which with {choice}")
        face = fitting[0]
    if len(face.points) != num_lms:
        raise EdgeError(f"the checkpoint has {num_lms} landmarks, {face.name} has {len(face.points)}")
    return face


def read_mean_face(path: Path) -> MeanFace:
    """A mean face from text: x0 y0 x1 y1 …, separated by spaces, commas or lines, like the reference's meanface.txt."""
    try:
        numbers = [float(word) for word in path.read_text().replace(",", " ").split()]
    except OSError as e:
        raise EdgeError(f"cannot read the mean face {path}: {e.strerror}") from e
    except ValueError as e:
        raise EdgeError(f"mean face {path} is not a list of numbers: {e}") from e
    if len(numbers) % 2:
        raise EdgeError(f"mean face {path} has {len(numbers)} numbers, an even count is needed (x y pairs)")
    return MeanFace(path.stem, tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def _state_dict(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    loaded = _unpickle(path, trust_pickle)
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping | nn.Module):
            inner = loaded[wrapper]
            loaded = inner.state_dict() if isinstance(inner, nn.Module) else inner
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        what = (
            f"a {type(loaded).__name__}"
            if not isinstance(loaded, Mapping)
            else f"a dict of {', '.join(map(str, loaded))[:100]}"
        )
        raise EdgeError(f"{path} holds {what}, not a state_dict, bare or under {', '.join(WRAPPERS)}")
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise EdgeError(f"{path}: tensor {key!r} holds NaN or infinity")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _unpickle(path: Path, trust_pickle: bool) -> object:
    try:
        with warnings.catch_warnings():
            # Files that torch warns about here are refused below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except OSError as e:
        raise EdgeError(f"cannot read {path}: {e.strerror}") from e
    except pickle.UnpicklingError as e:
        # torch refuses anything but tensors with these words. For a file that is no pickle it says "invalid load key".
        if "Unsupported" in str(e) and "GLOBAL" in str(e):
            raise EdgeError(
                f"{path} is a pickled module, which runs code when it is loaded; save its state_dict() instead, or "
                "give --trust-pickle if you trust whoever made the file"
            ) from e
        raise EdgeError(f"{path} is not a PyTorch checkpoint") from e
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, ImportError, zipfile.BadZipFile) as e:
        if "TorchScript" in str(e):
            raise EdgeError(f"{path} is a TorchScript archive; a state_dict or a five-map ONNX file is needed") from e
        if isinstance(e, AttributeError | ImportError):
            raise EdgeError(f"{path} needs code that is not installed here: {e}") from e
        raise EdgeError(f"{path} is not a PyTorch checkpoint, or a truncated one") from e


def _heads(path: Path, state: Mapping[str, Tensor]) -> tuple[int, int]:
    """(landmarks, neighbours) from the head shapes."""
    rows = {}
    for key in nets.HEAD_KEYS.values():
        weight = state.get(f"{key}.weight")
        if weight is None:
            like = (
                "a classifier's state_dict"
                if {"fc.weight", "classifier.1.weight", "classifier.weight"} & set(state)
                else "other keys"
            )
            raise EdgeError(f"{path} has no PIPNet head {key!r}.weight (it has {like})".replace("'.weight", ".weight'"))
        rows[key] = weight.shape[0]
    num_lms = rows["cls_layer"]
    num_nb = rows["nb_x_layer"] // max(num_lms, 1)
    if not (
        rows["x_layer"] == rows["y_layer"] == num_lms
        and rows["nb_x_layer"] == rows["nb_y_layer"] == num_lms * num_nb > 0
    ):
        raise EdgeError(f"{path}: head sizes {rows} do not fit each other (L, L, L, L*N, L*N are needed)")
    return num_lms, num_nb
