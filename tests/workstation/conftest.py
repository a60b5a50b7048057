"""Checkpoints with reproducible weights (see tests/golden/README.md) and the command line as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation half needs torch")

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
