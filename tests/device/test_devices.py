"""Device files: those that come with the package, and what is refused in a user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipnet_edge.errors import EdgeError
from pipnet_edge.host import parse_cpuinfo
from pipnet_edge.targets.devices import CORE_TYPES, FOLDER, Anchor, Device, device, devices, read_device
from pipnet_edge.targets.predicted.networks import NETWORKS

NAMES = ["arm64", "rk3588", "rpi3", "rpi4", "rpi5", "x86_64", "zero2w"]
HOSTS = Path(__file__).parent / "hosts"
# Canned /proc/cpuinfo of the boards that have a file.
CPUINFO = {"rpi3": "rpi3.txt", "rpi4": "rpi4.txt", "rpi5": "rpi5.txt", "rk3588": "rk3588.txt"}

SHORT = """
name = "mine"
title = "My board"
soc = "SoC"
machine = "aarch64"
features = ["asimd"]
memory_gb_s = 5

[[cores]]
type = "Cortex-A72"
count = 2
mhz = 1500
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "mine") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


# --- Those that come with the package.


def test_the_devices_are_there() -> None:
    assert list(devices()) == NAMES
    assert all(found.name == name for name, found in devices().items())


@pytest.mark.parametrize("name", NAMES)
def test_settings_have_reasons(name: str) -> None:
    found = device(name)
    assert {setting.name for setting in found.settings} == {"governor", "threads"}
    assert all(len(setting.reason) > 20 for setting in found.settings)
    assert 1 <= found.threads <= found.cores[0].count


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_a_feature_of_cores_that_have_it(name: str) -> None:
    found = device(name)
    for cluster in found.cores:
        assert CORE_TYPES[cluster.type].has_fp16 == ("asimdhp" in found.features)
        assert (cluster.peak("int8") > 2 * cluster.peak("fp32")) == ("asimddp" in found.features)


@pytest.mark.parametrize("name", sorted(CPUINFO))
def test_files_agree_with_what_the_boards_tell(name: str) -> None:
    found, told = device(name), parse_cpuinfo((HOSTS / CPUINFO[name]).read_text())
    assert told["cores"] == found.core_count
    assert told["features"] == list(found.features)
    assert set(str(told["cpu"]).split(" + ")) == {cluster.type for cluster in found.cores}


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "rpi5", "zero2w", "rk3588"])
def test_anchors_name_their_source_and_a_network_of_that_cost(name: str) -> None:
    anchors = device(name).anchors
    assert {anchor.precision for anchor in anchors} >= {"int8"}
    assert {anchor.threads for anchor in anchors if anchor.runtime == "ncnn"} == {1, 4}
    for anchor in anchors:
        assert anchor.source.startswith("https://")
        assert anchor.input_px == 224
        assert anchor.gmac == pytest.approx(NETWORKS[anchor.network]().macs / 1e9, abs=0.0006)
    keys = [(a.runtime, a.network, a.precision, a.threads) for a in anchors]
    assert len(set(keys)) == len(keys)


def test_published_numbers_are_those_of_the_boards() -> None:
    def ms(name: str, runtime: str, network: str, precision: str, threads: int) -> float:
        key = (runtime, network, precision, threads)
        return next(a.ms for a in device(name).anchors if (a.runtime, a.network, a.precision, a.threads) == key)

    assert ms("rpi3", "ncnn", "resnet18", "int8", 4) == pytest.approx(160, abs=1)
    assert ms("rpi4", "ncnn", "resnet18", "fp32", 4) == pytest.approx(122, abs=1)
    assert ms("rpi4", "tflite", "mobilenet_v2", "int8", 4) == 17
    assert ms("rpi5", "ncnn", "resnet18", "fp16", 4) == pytest.approx(20, abs=0.5)
    assert ms("rpi5", "tflite", "resnet18", "int8", 4) == pytest.approx(8.75, abs=0.01)


def test_every_file_is_a_device() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(NAMES)


# --- A user's own.


def test_a_short_file_is_enough(write: Write) -> None:
    mine = device(str(write(SHORT)))
    assert (mine.boards, mine.qemu, mine.settings, mine.anchors) == ((), None, (), ())
    assert mine.threads == 2
    assert mine.cores[0].peak("fp32") == 12


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('title = "My board"', "", "has no 'title'"),
        ('title = "My board"', 'title = "My board"\ncolour = "red"', "unknown field 'colour'"),
        ("Cortex-A72", "Cortex-A99", "core type 'Cortex-A99' is unknown; take the most alike of: Cortex-A53"),
        ("count = 2", "count = 0", "0 cores"),
        ("count = 2", "count = 2.5", "device.cores[0].count is 2.5, int is needed"),
        ("mhz = 1500", "mhz = 15_000", "1 to 10000 MHz"),
        ("memory_gb_s = 5", "memory_gb_s = 0", "memory_gb_s is 0.0"),
        ("memory_gb_s = 5", "memory_gb_s = nan", "a finite number is needed"),
        ('"asimd"', '"mmx"', "feature 'mmx' is unknown; allowed: neon"),
        ("aarch64", "riscv64", "machine 'riscv64' is unknown; allowed: aarch64, x86_64"),
        ('name = "mine"', 'name = "yours"', "the device calls itself 'yours', its file 'mine'"),
        ("[[cores]]", "[[core]]", "has no 'cores'"),
        ("[[cores]]", "cores", "cannot be read as a device"),
    ],
)
def test_mistakes_are_named_in_one_line(write: Write, old: str, new: str, told: str) -> None:
    assert old in SHORT
    path = write(SHORT.replace(old, new))
    with pytest.raises(EdgeError) as caught:
        read_device(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('[[cores]]\ntype = "Cortex-A76"\ncount = 4\nmhz = 2400', "the fastest first"),
        (
            '[[settings]]\nname = "fan"\nvalue = "on"\nreason = "heat"',
            "setting 'fan' is unknown; allowed: governor, thr",
        ),
        ('[[settings]]\nname = "threads"\nvalue = "3"\nreason = "speed"', "setting threads is '3', allowed: 1 to 2"),
        ('[[settings]]\nname = "threads"\nvalue = "two"\nreason = "speed"', "setting threads is 'two'"),
        ('[[settings]]\nname = "threads"\nvalue = "1"\nreason = "heat"\n' * 2, "given twice: threads, threads"),
        (
            '[[anchors]]\nruntime = "ncnn"\nnetwork = "net"\ninput_px = 224\ngmac = 1.0\nprecision = "fp32"\n'
            'threads = 1\nms = 0.0\nsource = "here"',
            "an anchor of 'net' has a time",
        ),
    ],
)
def test_contradictions_are_refused(write: Write, more: str, told: str) -> None:
    with pytest.raises(EdgeError) as caught:
        read_device(write(SHORT + more))
    assert told in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"absent\.toml cannot be read as a device: No such file"):
        device(str(tmp_path / "absent.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(EdgeError, match=r"binary\.toml cannot be read as a device"):
        device(str(tmp_path / "binary.toml"))


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(EdgeError, match="target 'rpi9' is unknown; allowed: arm64, rk3588, rpi3, rpi4, rpi5"):
        device("rpi9")


def test_an_anchor_prints_as_one_line() -> None:
    anchor = Anchor("ncnn", "resnet18", 224, 1.814, "fp32", 1, 190.8, "https://example.org")
    assert str(anchor) == "ncnn fp32 resnet18 at 224 px, 1 thread: 190.8 ms"


def test_devices_cannot_be_changed() -> None:
    found = device("rpi4")
    assert isinstance(found, Device)
    with pytest.raises(AttributeError):
        found.soc = "BCM2712"  # type: ignore[misc]
    with pytest.raises(TypeError):
        devices()["rpi4"] = found  # type: ignore[index]
