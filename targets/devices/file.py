"""The devices that a target can name: one TOML file each, beside this module or in any folder of a user.

name, title, soc, machine    "rpi4", "Raspberry Pi 4 Model B", "BCM2711", "aarch64"
boards                       possible beginnings of /proc/device-tree/model; none for generic devices
features                     instruction-set features by their names in /proc/cpuinfo (pipnet_edge.host.ISA_FEATURES)
memory_gb_s                  memory traffic in GB/s: twice the speed of a copy on one core
qemu                         the -cpu of qemu-user that is closest to it; absent if there is none
[[cores]] type, count, mhz   one table per cluster, the fastest first
[[settings]]                 name, value, reason
[[anchors]]                  published timings: runtime, network, input_px, gmac, precision, threads, ms, source
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from pipnet_edge import strict
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import opened
from pipnet_edge.host import ISA_FEATURES
from pipnet_edge.words import counted

FOLDER = Path(__file__).parent
LARGEST = 1 << 20  # bytes of a file
MACHINES = ("aarch64", "x86_64")
SETTINGS = ("governor", "threads")
OPTIONAL: Mapping[str, object] = {"boards": [], "qemu": None, "settings": [], "anchors": []}


@dataclass(frozen=True)
class CoreType:
    """A type of core. kind: the group of cores whose speeds the latency model fits together.

    fp32, fp16, int8: peak operations per cycle and core. A multiply-add is two operations. fp16 equals fp32 if the core
    has no half-precision arithmetic.
    """

    kind: str
    fp32: int
    fp16: int
    int8: int

    @property
    def has_fp16(self) -> bool:
        return self.fp16 > self.fp32


# Arm's peaks are measured by github.com/pigirons/cpufp or derived from the number and width of the SIMD pipes. If a
# core has no dot product, int8 is the nominal rate of widening multiply-adds.
CORE_TYPES: Mapping[str, CoreType] = {
    "Cortex-A53": CoreType("in-order", 8, 8, 16),
    "Cortex-A55": CoreType("in-order", 8, 16, 32),
    "Cortex-A57": CoreType("a57-a75", 8, 8, 16),
    "Cortex-A72": CoreType("a57-a75", 8, 8, 16),
    "Cortex-A73": CoreType("a57-a75", 8, 8, 16),
    "Cortex-A75": CoreType("a57-a75", 8, 16, 16),
    "Cortex-A76": CoreType("a76", 16, 32, 64),
    "Cortex-A77": CoreType("a76", 16, 32, 64),
    "Cortex-A78": CoreType("a76", 16, 32, 64),
    "Cortex-A78AE": CoreType("a76", 16, 32, 64),
    "Cortex-A720": CoreType("a76", 16, 32, 128),
    "Neoverse-N1": CoreType("a76", 16, 32, 64),
    "Neoverse-N2": CoreType("a76", 16, 32, 128),
    "Zen": CoreType("x86", 16, 16, 32),
    "Zen2": CoreType("x86", 32, 32, 64),
    "Zen3": CoreType("x86", 32, 32, 64),
    "AVX2": CoreType("x86", 32, 32, 64),
}


@dataclass(frozen=True)
class Cores:
    """One cluster: `count` cores of a type (CORE_TYPES) at up to `mhz`."""

    type: str
    count: int
    mhz: int

    def __post_init__(self) -> None:
        if self.type not in CORE_TYPES:
            raise EdgeError(f"core type {self.type!r:.60} is unknown; take the most alike of: {', '.join(CORE_TYPES)}")
        if not (1 <= self.count <= 1024 and 1 <= self.mhz <= 10_000):
            raise EdgeError(f"{self.count} cores at {self.mhz} MHz are no cluster; allowed: 1 to 1024, 1 to 10000 MHz")

    def peak(self, precision: str) -> float:
        """Peak operations of one core in 1e9 a second, at fp32, fp16 or int8."""
        return float(getattr(CORE_TYPES[self.type], precision)) * self.mhz / 1000


@dataclass(frozen=True)
class Setting:
    """A setting to measure with, and why."""

    name: str
    value: str
    reason: str

    def __post_init__(self) -> None:
        if self.name not in SETTINGS:
            raise EdgeError(f"setting {self.name!r:.60} is unknown; allowed: {', '.join(SETTINGS)}")


@dataclass(frozen=True)
class Anchor:
    """A published timing: a network of gmac 1e9 multiply-adds, input_px square, took ms. source: its address."""

    runtime: str
    network: str
    input_px: int
    gmac: float
    precision: str
    threads: int
    ms: float
    source: str

    def __post_init__(self) -> None:
        if not (self.ms > 0 and self.gmac > 0 and self.threads > 0):
            raise EdgeError(f"an anchor of {self.network!r:.60} has a time, cost or thread count that is not positive")

    def __str__(self) -> str:
        threads = counted(self.threads, "thread")
        return f"{self.runtime} {self.precision} {self.network} at {self.input_px} px, {threads}: {self.ms:g} ms"


@dataclass(frozen=True)
class Device:
    """A board or a class of machines, as its file describes it (see this module)."""

    name: str
    title: str
    soc: str
    machine: str
    boards: tuple[str, ...]
    features: tuple[str, ...]
    memory_gb_s: float
    qemu: str | None
    cores: tuple[Cores, ...]
    settings: tuple[Setting, ...]
    anchors: tuple[Anchor, ...]

    def __post_init__(self) -> None:
        if self.machine not in MACHINES:
            raise EdgeError(f"machine {self.machine!r:.60} is unknown; allowed: {', '.join(MACHINES)}")
        if unknown := [feature for feature in self.features if feature not in ISA_FEATURES]:
            raise EdgeError(f"feature {unknown[0]!r:.60} is unknown; allowed: {', '.join(ISA_FEATURES)}")
        if not 0 < self.memory_gb_s <= 10_000:
            raise EdgeError(f"memory_gb_s is {self.memory_gb_s}, more than 0 and at most 10000 is needed")
        speeds = [cluster.peak("fp32") for cluster in self.cores]
        if not speeds or speeds != sorted(speeds, reverse=True):
            raise EdgeError("cores need at least one cluster, the fastest first")
        names = [setting.name for setting in self.settings]
        if len(set(names)) < len(names):
            raise EdgeError(f"a setting is given twice: {', '.join(names)}")
        threads = self.setting("threads")
        if threads and threads.value not in map(str, range(1, self.core_count + 1)):
            raise EdgeError(f"setting threads is {threads.value!r:.60}, allowed: 1 to {self.core_count}")

    @property
    def core_count(self) -> int:
        return sum(cluster.count for cluster in self.cores)

    @property
    def threads(self) -> int:
        """The setting `threads`; without it all cores of the fastest cluster, but at most 4."""
        setting = self.setting("threads")
        return int(setting.value) if setting else min(4, self.cores[0].count)

    def setting(self, name: str) -> Setting | None:
        return next((setting for setting in self.settings if setting.name == name), None)


@lru_cache
def devices() -> Mapping[str, Device]:
    """The devices that come with the package, by name, in alphabetical order."""
    paths = sorted(FOLDER.glob("*.toml"))
    return MappingProxyType({path.stem: read_device(path) for path in paths})


def device(name: str) -> Device:
    """A device by name, or by the path of a user's file (it ends in .toml). Raises EdgeError for any other name."""
    if name.endswith(".toml"):
        return read_device(Path(name))
    if name not in devices():
        raise EdgeError(f"target {name!r:.60} is unknown; allowed: {', '.join(devices())} or a path that ends in .toml")
    return devices()[name]


def read_device(path: Path) -> Device:
    """Reads one file; its stem must be the device's name. Raises EdgeError that names file and field."""
    try:
        with opened(path, LARGEST) as file:
            data = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else strict.printable(str(error))[:200]
        raise EdgeError(f"{path} cannot be read as a device: {reason}") from None
    try:
        found = strict.read(Device, {**OPTIONAL, **data}, "device")
    except EdgeError as error:
        raise EdgeError(f"{path}: {error}") from None
    if found.name != path.stem:
        raise EdgeError(
            f"{path}: the device calls itself {found.name!r:.60}, its file {path.stem!r:.60}; they must agree"
        )
    return found
