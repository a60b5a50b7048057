"""Networks prepared for int8, and the cache that keeps the outcome."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from pipnet_edge.converters import graph as graphs
from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.converters.checkpoint.network import Network
from pipnet_edge.converters.graph import convolutions, heads, points, trace
from pipnet_edge.converters.quantize import prepare, ranges, scheme
from pipnet_edge.converters.quantize.calibration import Calibration
from pipnet_edge.converters.quantize.prepare import Options, Prepared
from pipnet_edge.converters.quantize.scheme import FULL, SAFE, weight_steps
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
ValuesOf = Callable[..., dict[str, Tensor]]


def maps_of(values: Mapping[str, Tensor]) -> list[Tensor]:
    return [values[f"heads_{name}"] for name in nets.HEAD_KEYS]


def weights(graph: fx.GraphModule, name: str) -> Tensor:
    return graph.get_submodule(name).get_parameter("weight")


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def on_grid(weight: Tensor, levels: int = FULL) -> bool:
    whole = weight / weight_steps(weight, levels)
    return bool((whole - whole.round()).abs().max() < 1e-3 and (whole.round().abs().amax((1, 2, 3)) == levels).all())


@pytest.fixture
def cache(cache: Path) -> Path:
    """Where rounded weights are kept in it."""
    return cache / "pipnet-edge" / "rounded"


@pytest.fixture
def network(tiny_net: Make, tiny_spec: ModelSpec) -> Network:
    return Network(tiny_spec, tiny_net(), 0)


NEAREST = Options("minmax", "nearest")


def steps_of(network: Network, faces: Calibration, options: Options = NEAREST) -> tuple[Prepared, set[str]]:
    """What is prepared, and the first words of what progress told."""
    told = set()
    made = prepare.prepare(network, faces, options, [FULL], lambda text, *_: told.add(text.split()[0]))
    return made[FULL], told


def test_the_cache_gives_the_same_bits(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    options = Options()
    (made, told), (again, nothing) = (steps_of(network, tiny_calibration, options) for _ in range(2))
    assert told == {"equalise", "calibrate", "round"}
    assert nothing == set()
    assert equal(made.float_, again.float_)
    assert equal(made.rounded, again.rounded)
    assert not equal(made.rounded, made.float_)
    assert (made.spec, dict(made.ranges)) == (again.spec, dict(again.ranges))
    assert len(list(cache.iterdir())) == 1
    keep = heads(made.float_)
    assert equal(made.keeping(keep).graph, again.keeping(keep).graph)


def test_each_grid_is_kept_by_itself(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    given = network, tiny_calibration, NEAREST
    both = prepare.prepare(*given, [SAFE, FULL])
    for levels, made in both.items():
        assert made.levels == levels
        assert all(on_grid(weights(made.rounded, name), levels) for name in convolutions(made.rounded))
    assert equal(both[SAFE].float_, both[FULL].float_)
    prepare._path(*given, SAFE).unlink()
    told: list[str] = []
    again = prepare.prepare(*given, [SAFE, FULL], lambda what, *_: told.append(what))
    assert told
    for levels in (SAFE, FULL):
        assert equal(both[levels].rounded, again[levels].rounded)
        (alone,) = prepare.prepare(*given, [levels], lambda *_: pytest.fail("the cache has it")).values()
        assert equal(both[levels].rounded, alone.rounded)


def test_hard_swishes_are_scaled_and_kept_in_the_cache(
    cache: Path, network: Network, tiny_calibration: Calibration, values_of: ValuesOf
) -> None:
    for name in ("expand", "depthwise"):
        network.net.get_submodule(f"backbone.{name}").add_module("1", nn.Hardswish())
    before = maps_of(values_of(trace(network.net), network.spec, tiny_calibration.crops))
    made, again = (prepare.prepare(network, tiny_calibration, Options(), [FULL])[FULL] for _ in range(2))
    assert made.kinds(["swished"]) == {"backbone.depthwise.0": "swished"}
    for prepared in (made, again):
        for graph in (prepared.float_, prepared.rounded):
            assert isinstance(graph.get_submodule("backbone.expand.1"), nn.Hardswish)
            factors = 6 * graph.get_submodule("backbone.depthwise.1").get_buffer("sixth")
            assert factors.max() / factors.min() > 1.5
        assert all(on_grid(weights(prepared.rounded, name)) for name in convolutions(prepared.rounded))
    assert equal(made.float_, again.float_)
    assert equal(made.rounded, again.rounded)
    after = maps_of(values_of(made.float_, made.spec, tiny_calibration.crops))
    for one, other in zip(before, after, strict=True):
        assert (one - other).abs().max() < 0.01 * one.abs().max()


def test_progress_counts_faces_and_layers(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    told: list[tuple[str, int, int]] = []
    made = prepare.prepare(network, tiny_calibration, Options(), [SAFE, FULL], lambda *given: told.append(given))
    faces = len(tiny_calibration.crops)
    for which in (1, 2):
        seen = [(done, of) for what, done, of in told if what == f"calibrate (pass {which} of 2)"]
        assert seen == sorted(seen)
        assert seen[-1] == (faces, faces)
        assert seen[0][0] <= ranges.BATCH
    layers = len(convolutions(made[FULL].float_))
    for levels in (SAFE, FULL):
        rounds = [(done, of) for what, done, of in told if what.startswith("round ") and what.endswith(f"(±{levels})")]
        assert rounds == [(done, layers) for done in range(layers)]
    assert next((done, of) for what, done, of in told if what == "equalise") == (0, faces)


def test_what_is_prepared_is_the_network_given(
    cache: Path, network: Network, tiny_calibration: Calibration, values_of: ValuesOf
) -> None:
    made, _ = steps_of(network, tiny_calibration)
    crops = tiny_calibration.crops
    exact = maps_of(values_of(trace(network.net), network.spec, crops))
    for one, other in zip(exact, maps_of(values_of(made.float_, made.spec, crops)), strict=True):
        assert (one - other).abs().max() < 0.01 * one.abs().max()
    assert all(on_grid(weights(made.rounded, name)) for name in convolutions(made.rounded))
    assert made.ranges.keys() == points(made.float_).keys() | graphs.maps(made.float_).keys()


def test_layers_to_keep_are_as_before_rounding(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    made, _ = steps_of(network, tiny_calibration)
    given = made.keeping({"backbone.project", "heads.score"})
    assert given.keep == {"backbone.project", "heads.score"}
    for name in convolutions(made.float_):
        source = made.float_ if name in given.keep else made.rounded
        for part in ("weight", "bias"):
            assert torch.equal(given.graph.get_parameter(f"{name}.{part}"), source.get_parameter(f"{name}.{part}"))
    assert scheme.integers(given).keys() == set(convolutions(made.float_)) - given.keep
    assert made.kinds(["heads", "gates", "transposed"]) == dict.fromkeys(heads(made.float_), "heads")
    with pytest.raises(KeyError):
        made.kinds(["tails"])


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_replaced(
    cache: Path, network: Network, tiny_calibration: Calibration, share: float
) -> None:
    made, _ = steps_of(network, tiny_calibration)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    again, told = steps_of(network, tiny_calibration)
    assert "equalise" in told
    assert equal(made.rounded, again.rounded)
    assert list(cache.iterdir()) == [path]
    assert steps_of(network, tiny_calibration)[1] == set()


def test_a_file_with_other_numbers_is_replaced(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    made, _ = steps_of(network, tiny_calibration)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    kept = torch.load(io.BytesIO(whole[prepare.HASH :]), weights_only=True)
    kept["rounded"]["backbone.project.weight"] *= 0.9
    changed = io.BytesIO()
    torch.save(kept, changed)
    for content in (whole[: prepare.HASH] + changed.getvalue(), changed.getvalue()):
        path.write_bytes(content)
        again, told = steps_of(network, tiny_calibration)
        assert "equalise" in told
        assert equal(made.rounded, again.rounded)
    # Nor is one that was made from something else, under this one's name.
    other = path.with_name(f"{'0' * 64}.pt")
    other.write_bytes(whole)
    assert prepare._read(path) is not None
    assert prepare._read(other) is None


def test_other_files_in_its_place_are_replaced(cache: Path, network: Network, tiny_calibration: Calibration) -> None:
    steps_of(network, tiny_calibration)
    (path,) = cache.iterdir()
    for content in (b"\n", b"PK\x03\x04 no archive", os.urandom(1000)):
        path.write_bytes(content)
        assert "equalise" in steps_of(network, tiny_calibration)[1]
        assert steps_of(network, tiny_calibration)[1] == set()


def test_whatever_goes_in_makes_another_key(cache: Path, tiny_net: Make, tiny_calibration: Calibration) -> None:
    from pipnet_edge.spec import MeanFace

    spec = ModelSpec("tiny", 5, 2, 16, 64, MeanFace("five", tuple((i / 5, i * i / 25) for i in range(5))))
    network = Network(spec, tiny_net(), 0)
    other_net = tiny_net()
    other_net.get_parameter("backbone.project.bias")[3] += 1e-6
    turned = replace(tiny_calibration, crops=np.ascontiguousarray(tiny_calibration.crops[::-1]))
    given = [
        (network, tiny_calibration, NEAREST),
        (Network(spec, other_net, 0), tiny_calibration, NEAREST),
        # Another seed draws other faces, or the same in another order.
        (network, turned, NEAREST),
        (network, tiny_calibration, Options("mse", "nearest")),
        (network, tiny_calibration, Options("minmax", "sequential")),
        (Network(replace(spec, mean=(0.5, 0.5, 0.5)), tiny_net(), 0), tiny_calibration, NEAREST),
        (Network(replace(spec, std=(0.5, 0.5, 0.5)), tiny_net(), 0), tiny_calibration, NEAREST),
    ]
    for count, arguments in enumerate(given, 1):
        assert "equalise" in steps_of(*arguments)[1]
        assert len(list(cache.iterdir())) == count
    for arguments in given:
        assert steps_of(*arguments)[1] == set()


def test_a_cache_that_cannot_be_written_is_no_error(
    cache: Path, network: Network, tiny_calibration: Calibration
) -> None:
    cache.parent.write_text("a file where a folder should be")
    made, told = steps_of(network, tiny_calibration)
    assert told == {"equalise", "calibrate"}
    assert set(convolutions(made.rounded)) == scheme.integers(made.keeping(())).keys()
    assert cache.parent.is_file()


SMALL_DISK = """
import resource, sys
from pathlib import Path
from pipnet_edge.converters.quantize import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
path = Path(sys.argv[1]) / "folder" / "file.pt"
import torch
prepare._write(path, {"float": {"weight": torch.zeros(100_000)}})
print(path.parent.is_dir(), list(path.parent.iterdir()))
"""


def test_a_full_disk_is_no_error_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", SMALL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True []\n", "")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("entropy", "nearest"), f"--ranges entropy; allowed: {', '.join(ranges.METHODS)}"),
        (("mse", "adaround"), "--rounding adaround; allowed: sequential, nearest"),
    ],
)
def test_unknown_options(names: tuple[str, str], message: str) -> None:
    with pytest.raises(EdgeError, match=f"^{re.escape(message)}$"):
        Options(*names)
