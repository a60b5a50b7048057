"""Checkpoints with reproducible weights (see tests/golden/README.md) and the command line as a user calls it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation half needs torch")

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper, parser  # noqa: E402

from pipnet_edge import runtimes  # noqa: E402
from pipnet_edge.cli.app import main  # noqa: E402
from pipnet_edge.converters import demo  # noqa: E402
from pipnet_edge.converters.checkpoint import faceboxes, nets  # noqa: E402
from pipnet_edge.converters.checkpoint.network import Network, normalise  # noqa: E402
from pipnet_edge.converters.graph import Run  # noqa: E402
from pipnet_edge.converters.quantize.calibration import Calibration  # noqa: E402
from pipnet_edge.converters.quantize.prepare import Options, Prepared, prepare  # noqa: E402
from pipnet_edge.converters.quantize.scheme import FULL  # noqa: E402
from pipnet_edge.decode import MAP_NAMES  # noqa: E402
from pipnet_edge.preprocess import Rect, cut, read_picture  # noqa: E402
from pipnet_edge.spec import MeanFace, ModelSpec  # noqa: E402

Array = np.ndarray[Any, Any]

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
DATA = {
    "AFLW": "aflw",
    "COFW": "cofw",
    "WFLW": "wflw",
    "LaPa": "lapa",
    "data_300W": "300w",
    "data_300W_CELEBA": "300w-celeba",
}


@dataclass(frozen=True)
class Case:
    name: str
    data: str
    backbone: str
    num_lms: int
    num_nb: int
    net_stride: int
    input_size: int
    keys: tuple[tuple[str, tuple[int, ...]], ...]

    def state(self) -> dict[str, torch.Tensor]:
        return {key: weight(key, shape) for key, shape in self.keys}

    def maps(self) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{self.name}.npz") as arrays:
            return dict(arrays)


def weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights that tests/golden/README.md defines for a key."""
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        values = random.uniform(0.5, 1.5 if key.endswith("running_var") else 1.0, shape)
    elif len(shape) >= 2:
        values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 0.1 * random.standard_normal(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _cases() -> dict[str, Case]:
    index: dict[str, Any] = json.loads((GOLDEN / "index.json").read_text())
    fields = ("backbone", "num_lms", "num_nb", "net_stride", "input_size")
    return {
        name: Case(
            name=name,
            data=DATA[case["data"]],
            keys=tuple((key, tuple(shape)) for key, shape in case["keys"]),
            **{field: case[field] for field in fields},
        )
        for name, case in index.items()
    }


CASES = _cases()


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Each golden case in turn."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    return CASES


@pytest.fixture(scope="session")
def save_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a golden case's state_dict and returns its path."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def save(name: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.is_file():
            torch.save(CASES[name].state(), path)
        return path

    return save


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Runs `pipnet-edge` with words; `prefix` goes before it, for example to cut the network off."""

    def run(*words: object, prefix: tuple[str, ...] = (), cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [*prefix, sys.executable, "-P", "-m", "pipnet_edge.cli", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)

    return run


Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """Runs a command in this process, which has torch already: (exit status, stdout, stderr without the progress)."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipnet-edge", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capfd.readouterr()
        return int(done.value.code or 0), out, "\n".join(line for line in err.splitlines() if line[:1] != "[")

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test finds the weights that another rounded. One thread, which a busy machine slows down least."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.fixture(scope="session")
def faces() -> Callable[..., Path]:
    """faces(folder, count, source): a new folder with the first pictures of another, by default to calibrate with."""

    def copy(folder: Path, count: int, source: Path = demo.CALIBRATION) -> Path:
        folder.mkdir()
        for path in sorted(source.glob("*.jpg"))[:count]:
            shutil.copy(path, folder)
        return folder

    return copy


# --- A network as small as can be, for what int8 does to it.


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Layers as small as these take ten times as long where threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    face = MeanFace("five", ((0.2, 0.2), (0.8, 0.3), (0.5, 0.5), (0.3, 0.8), (0.7, 0.9)))
    return ModelSpec("tiny", 5, 2, 16, 64, face)


@pytest.fixture(scope="session")
def tiny_faces() -> np.ndarray:
    """(25, 64, 64, 3) uint8 RGB: the embedded faces."""
    pictures = [read_picture(path) for path in sorted(demo.FACES.glob("*.jpg"))]
    return np.stack([cut(p, Rect(0, 0, p.shape[1], p.shape[0]), 64) for p in pictures])


@pytest.fixture(scope="session")
def tiny_net() -> Callable[[], torch.nn.Module]:
    """Makes the same network each time: stem, pooling, a depthwise block, both residual blocks, five heads.

    Its channels are uneven, as those of trained networks are.
    """

    def make() -> torch.nn.Module:
        random = torch.Generator().manual_seed(0)

        def conv(inner: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> torch.nn.Conv2d:
            layer = torch.nn.Conv2d(inner, out, kernel, stride, kernel // 2, groups=groups).requires_grad_(False)
            spread = torch.exp(0.7 * torch.randn(out, 1, 1, 1, generator=random))
            scale = (2 / layer.weight[0].numel()) ** 0.5
            layer.weight.copy_(scale * spread * torch.randn(layer.weight.shape, generator=random))
            layer.bias.copy_(0.2 * torch.randn(out, generator=random))
            return layer

        depthwise = torch.nn.Sequential(conv(12, 12, 3, 2, groups=12), torch.nn.ReLU6())
        plain = torch.nn.Sequential(conv(12, 12, 3), torch.nn.ReLU(), conv(12, 12, 3))
        down = torch.nn.Sequential(conv(12, 16, 3, 2), torch.nn.ReLU(), conv(16, 16, 3))
        parts = {
            "stem": torch.nn.Sequential(conv(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1)),
            "expand": torch.nn.Sequential(conv(8, 12, 1), torch.nn.ReLU6()),
            "depthwise": depthwise,
            "project": conv(12, 12, 1),
            "mobilenet": nets.Residual(torch.nn.Sequential(conv(12, 12, 1), torch.nn.ReLU6(), conv(12, 12, 1))),
            "plain": nets.Residual(plain, relu=True),
            "down": nets.Residual(down, conv(12, 16, 1, 2), relu=True),
        }
        backbone = torch.nn.Sequential()
        for name, part in parts.items():
            backbone.add_module(name, part)
        rows = {"neighbor_x": 10, "neighbor_y": 10}
        return nets.Pipnet(backbone, {name: conv(16, rows.get(name, 5), 1) for name in nets.HEAD_KEYS}).eval()

    return make


@pytest.fixture(scope="session")
def tiny_calibration(tiny_faces: np.ndarray) -> Calibration:
    return Calibration(tiny_faces, tuple((path, None) for path in sorted(demo.FACES.glob("*.jpg"))), (), 0)


@pytest.fixture(scope="session")
def tiny_prepared(
    tiny_net: Callable[[], torch.nn.Module],
    tiny_spec: ModelSpec,
    tiny_calibration: Calibration,
    tmp_path_factory: pytest.TempPathFactory,
) -> Prepared:
    """The tiny network on its way to int8, rounded to nearest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return prepare(Network(tiny_spec, tiny_net(), 0), tiny_calibration, Options("minmax", "nearest"), [FULL])[FULL]


# --- What networks give, in torch and in the runtimes.


@pytest.fixture(scope="session")
def values_of() -> Callable[[torch.fx.GraphModule, ModelSpec, Array], dict[str, torch.Tensor]]:
    """values_of(graph, spec, crops): node name -> its float output for these crops, (n, C, H, W)."""

    def run(graph: torch.fx.GraphModule, spec: ModelSpec, crops: Array) -> dict[str, torch.Tensor]:
        found = {}

        def hook(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            found[node.name] = value
            return value

        with torch.no_grad():
            Run(graph, hook).run(normalise(crops, spec))
        return found

    return run


@pytest.fixture(scope="session")
def run_int8() -> Callable[[str, Path, ModelSpec, Array], list[Array]]:
    """run_int8(runtime, folder, spec, crops): the five maps of an int8 model in a folder, (n, C, H, W) each."""

    def run(runtime: str, folder: Path, spec: ModelSpec, crops: Array) -> list[Array]:
        session = runtimes.load(runtime, folder, spec, "int8", 1)
        found = [session.run(crop) for crop in crops]
        session.close()
        shape = (len(crops), -1, spec.grid, spec.grid)
        return [np.stack([getattr(maps, name) for maps in found]).reshape(shape) for name in MAP_NAMES]

    return run


@pytest.fixture(scope="session")
def distance() -> Callable[[list[Array], list[Array]], float]:
    """The mean difference of all maps, as a share of their mean magnitude."""

    def share(one: list[Array], other: list[Array]) -> float:
        return float(np.mean([np.abs(a - b).mean() / np.abs(b).mean() for a, b in zip(one, other, strict=True)]))

    return share


# --- ONNX files that others wrote.


@pytest.fixture
def quiet(one_thread: None) -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that dynamo=False is going away
        yield


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Sequence[Any], Sequence[Any]], None]:
    """Five maps within 1e-5 of each one's largest magnitude."""

    def check(got: Sequence[Any], want: Sequence[Any]) -> None:
        assert len(got) == len(want) == 5
        for index, (a, b) in enumerate(zip(map(np.asarray, got), map(np.asarray, want), strict=True)):
            assert a.shape == b.shape
            assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), index

    return check


@pytest.fixture(scope="session")
def tiny_onnx() -> Callable[..., Path]:
    """Writes an ONNX file: image -> the given nodes -> features -> one convolution an output, 1x1 or over the whole.

    A weight is an array, or a shape to be filled at random.
    """

    def write(
        path: Path,
        nodes: str = "features = Relu (image)",
        weights: dict[str, Any] | None = None,
        *,
        opset: int = 17,
        shape: Sequence[int | str] = (1, 3, 8, 8),
        kind: int = TensorProto.FLOAT,
        outputs: Sequence[str] = MAP_NAMES,
        maps: Sequence[int] = (3, 3, 3, 6, 6),
        whole: bool = False,
    ) -> Path:
        random = np.random.default_rng(5)
        filled = {
            name: random.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
            for name, value in (weights or {}).items()
        }
        body = [parser.parse_node(line) for line in filter(None, map(str.strip, nodes.split("\n")))]
        for node in body:
            node.name = node.output[0]
        given = [helper.make_tensor_value_info("image", kind, shape)]
        graph = helper.make_graph(body, "tiny", given, [helper.make_empty_tensor_value_info("features")])
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in filled.items())
        ops = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=ops, ir_version=8 if opset < 21 else 10)
        inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
        channels, *kernel = [d.dim_value for d in inferred][1:] if whole else (inferred[1].dim_value or 3, 1, 1)
        del graph.output[:]
        for name, out in zip(outputs, maps, strict=True):
            weight = random.standard_normal((out, channels, *kernel)).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(weight, f"{name}_weight"))
            graph.node.append(helper.make_node("Conv", ["features", f"{name}_weight"], [name], f"head_{name}"))
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4))
        path.write_bytes(helper.make_model(graph, opset_imports=ops, ir_version=model.ir_version).SerializeToString())
        return path

    return write


@pytest.fixture(scope="session")
def detector_state() -> dict[str, torch.Tensor]:
    """Random weights as FaceBoxesV2.pth has them, BatchNorm's counters among them. Nobody may write into them."""
    random, found = torch.Generator().manual_seed(0), {}
    for key, shape in faceboxes.shapes().items():
        scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
        # Heads give small numbers, so that boxes are of the size of their priors.
        numbers = torch.randn(shape, generator=random) * scale * (0.02 if key.startswith(("loc", "conf")) else 1)
        found[f"module.{key}"] = 1 + numbers.abs() if key.endswith(("bn.weight", "running_var")) else numbers
        if key.endswith("running_var"):
            found[f"module.{key.replace('running_var', 'num_batches_tracked')}"] = torch.tensor(7)
    return found
