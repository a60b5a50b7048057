"""A network as small as can be with a ResNet18's keys, and files that hold it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipnet_edge.converters.checkpoint import read as checkpoints
from pipnet_edge.converters.checkpoint.read import Found
from pipnet_edge.errors import EdgeError

State = dict[str, torch.Tensor]
LANDMARKS, NEIGHBOURS, CHANNELS = 5, 2, 4


def _state(seed: int) -> State:
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    def norm(key: str) -> State:
        parts = {"weight": 1 + numbers(CHANNELS).abs(), "bias": numbers(CHANNELS), "running_mean": numbers(CHANNELS)}
        parts |= {"running_var": 1 + numbers(CHANNELS).abs(), "num_batches_tracked": torch.tensor(7)}
        return {f"{key}.{part}": value for part, value in parts.items()}

    state = {"conv1.weight": numbers(CHANNELS, 3, 7, 7), **norm("bn1")}
    for stage in range(1, 5):
        for block in range(2):
            key = f"layer{stage}.{block}"
            for index in (1, 2):
                state |= {f"{key}.conv{index}.weight": numbers(CHANNELS, CHANNELS, 3, 3), **norm(f"{key}.bn{index}")}
            if stage > 1 and block == 0:
                down = f"{key}.downsample"
                state |= {f"{down}.0.weight": numbers(CHANNELS, CHANNELS, 1, 1), **norm(f"{down}.1")}
    for head in ("cls_layer", "x_layer", "y_layer", "nb_x_layer", "nb_y_layer"):
        rows = LANDMARKS * (NEIGHBOURS if head.startswith("nb") else 1)
        state |= {f"{head}.weight": numbers(rows, CHANNELS, 1, 1), f"{head}.bias": numbers(rows)}
    return state


@pytest.fixture(autouse=True)
def sparing() -> Iterator[None]:
    """No file, however small, may take 300 MB or 20 s."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert time.monotonic() - start < 20


@pytest.fixture
def state() -> State:
    return _state(0)


@pytest.fixture
def other_state() -> State:
    """The same network with other numbers."""
    return _state(1)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """saved(what, **options of torch.save): the file of it."""

    def save(what: object, **options: object) -> Path:
        torch.save(what, tmp_path / "net.pth", **options)
        return tmp_path / "net.pth"

    return save


@pytest.fixture
def is_of() -> Callable[[Found, State], bool]:
    """Whether a network was read from exactly this state: its heads' kernels, and the size of all."""

    def check(found: Found, state: State) -> bool:
        heads = dict(found.net.heads.items())  # type: ignore[union-attr,operator]
        same = all(
            torch.equal(heads[name].weight, state[f"{key}.weight"])
            for name, key in (("score", "cls_layer"), ("neighbor_y", "nb_y_layer"))
        )
        return same and (found.num_lms, found.num_nb, found.net_stride) == (LANDMARKS, NEIGHBOURS, 32)

    return check


@pytest.fixture
def refusal() -> Callable[..., str]:
    """refusal(path, …): the one line with which a file is refused."""

    def read(path: Path, **options: object) -> str:
        with pytest.raises(EdgeError) as refused:
            checkpoints.read(path, **options)  # type: ignore[arg-type]
        line = str(refused.value)
        assert line.isprintable()
        assert str(path) in line
        return line

    return read
