"""Facts of the machine. A fact that cannot be read is absent, never "unknown"."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipnet_edge.errors import EdgeError
from pipnet_edge.words import counted

ROOT = Path("/")
# Words in the names of thermal zones that belong to the CPU.
CPU_ZONES = ("cpu", "soc", "x86_pkg", "bigcore", "littlecore")

# The runtimes choose their kernels by these features. The names are those of /proc/cpuinfo.
ISA_FEATURES = (
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
)

# /proc/cpuinfo of 64-bit ARM names cores by number: implementer 0x41 (Arm), part from the core's reference manual.
ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd41": "Cortex-A78",
}
# What system files state: a whole number, firmware bits, and after three averages the threads that want to run.
DECIMAL, HEX = re.compile(r"[0-9]{1,15}"), re.compile(r"(0x)?[0-9a-fA-F]{1,8}")
RUNNING = re.compile(r"(?:\S+\s+){3}([0-9]{1,7})/")


def default_threads() -> int:
    """The number of cores that this process may use, at most 4: small networks do not gain from more."""
    return min(4, len(allowed_cpus()))


def cut_threads(threads: int, cores: int) -> tuple[int, str | None]:
    """The threads to use of those asked for, at most one a core; and if those are fewer, a sentence that says so."""
    if threads <= cores:
        return threads, None
    return cores, f"{threads} threads are useless on {counted(cores, 'core')}: {counted(cores, 'thread')} used"


def parse_cpuinfo(text: str) -> dict[str, object]:
    """Facts from the text of /proc/cpuinfo: cpu (name), cores seen, features that matter here."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), []).append(value.strip())
    facts: dict[str, object] = {}
    parts = [ARM_PARTS[part] for part in fields.get("CPU part", []) if part in ARM_PARTS]
    name = fields.get("model name") or [" + ".join(dict.fromkeys(parts))]
    if name[0] not in ("", "unknown"):
        facts["cpu"] = name[0]
    if "processor" in fields:
        facts["cores"] = len(fields["processor"])
    flags = fields.get("flags") or fields.get("Features")
    if flags:
        facts["features"] = [feature for feature in ISA_FEATURES if feature in flags[0].split()]
    return facts


def features() -> tuple[str, ...]:
    """Those of ISA_FEATURES that this machine's CPU has; empty if they cannot be read."""
    found = facts().get("features", [])
    assert isinstance(found, list)
    return tuple(found)


def facts(root: Path = ROOT) -> dict[str, object]:
    """Facts of a machine, to compare results by: two machines that differ in any of them are different.

    machine, cpu, cores, features, board and soc (from the device tree), clusters (text, fastest first), governor,
    memory_mb, system, libc, python. root: the folder that holds /proc and /sys.
    """
    found: dict[str, object] = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if libc := " ".join(platform.libc_ver()).strip():
        found["libc"] = libc
    if cpuinfo := _text(root / "proc/cpuinfo"):
        found |= parse_cpuinfo(cpuinfo)
    if board := _text(root / "proc/device-tree/model"):
        found["board"] = board
    if soc := _text(root / "proc/device-tree/compatible"):
        found["soc"] = soc.split("\0")[-1].partition(",")[2] or soc
    if governors := {_text(policy / "scaling_governor") for policy in _policies(root)} - {""}:
        found["governor"] = " + ".join(sorted(governors))
    groups = clusters(root)
    if any(group.mhz for group in groups):
        found["clusters"] = " + ".join(f"{len(group.cpus)} at {group.mhz} MHz" for group in groups)
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:") and (
            kilobytes := _whole(line.removeprefix("MemTotal:").removesuffix("kB").strip())
        ):
            found["memory_mb"] = kilobytes // 1024
    return found


def name(facts: Mapping[str, object]) -> str | None:
    """The name by which a kind of machine is recognised: its board (else its CPU) and how many cores it has.

    facts: the machine's facts. None if they do not say.
    """
    what = str(facts.get("board") or facts.get("cpu") or "")
    what = " ".join("".join(c for c in what if c.isprintable()).split())
    return f"{what[:100]}, {facts['cores']} cores" if what and "cores" in facts else None


@dataclass(frozen=True)
class Cluster:
    """CPUs of one kind, by number, and their highest clock in MHz (0 if the system does not tell)."""

    cpus: tuple[int, ...]
    mhz: int


def clusters(root: Path = ROOT) -> tuple[Cluster, ...]:
    """The CPUs this process may use, the fastest kind first (by capacity, then clock); one if all are the same."""
    groups: dict[tuple[int, int], list[int]] = {}
    for cpu in allowed_cpus():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        speed = (_number(folder / "cpu_capacity"), _number(folder / "cpufreq/cpuinfo_max_freq") // 1000)
        groups.setdefault(speed, []).append(cpu)
    return tuple(Cluster(tuple(cpus), speed[1]) for speed, cpus in sorted(groups.items(), reverse=True))


def allowed_cpus() -> list[int]:
    """The numbers of the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cpu_list(cpus: Sequence[int]) -> str:
    """CPU numbers as the kernel writes them: "0-3,6"."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


# Bits of the Raspberry Pi firmware's get_throttled: true now. The same bits, 16 higher: true since the board started.
THROTTLED = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


def state(root: Path = ROOT) -> dict[str, object]:
    """Facts that change while a machine works: mhz (of each clock domain), celsius, throttled (firmware bits), load.

    load is the number of threads that want to run at this moment, of this process and of all others. (An average
    over a minute would include earlier measurements.)
    """
    found: dict[str, object] = {}
    mhz = [_number(policy / "scaling_cur_freq") // 1000 for policy in _policies(root)]
    if any(mhz):
        found["mhz"] = mhz
    zones = [(_text(zone / "type"), _number(zone / "temp")) for zone in root.glob("sys/class/thermal/thermal_zone*")]
    warm = [value for name, value in zones if any(word in name for word in CPU_ZONES)]
    if hottest := max(warm, default=0) or max((value for _, value in zones), default=0):
        found["celsius"] = hottest / 1000
    # The node is "soc" on a Raspberry Pi 4 and has an address on newer ones.
    for path in root.glob("sys/devices/platform/soc*/soc*:firmware/get_throttled"):
        if HEX.fullmatch(throttled := _text(path)):
            found["throttled"] = int(throttled, 16)
    if running := RUNNING.match(_text(root / "proc/loadavg")):
        found["load"] = float(running[1])
    return found


def big_cpus(threads: int) -> tuple[int, ...]:
    """The CPUs of the fastest kind if there is one for every thread, else all that this process may use."""
    fastest = clusters()[0].cpus
    return fastest if threads <= len(fastest) else tuple(allowed_cpus())


def pin(cpus: str | Sequence[int], threads: int) -> None:
    """Keeps this process to CPUs: their numbers, or "big" for those that big_cpus gives.

    Raises EdgeError for any other text and for numbers that this process may not use.
    """
    if isinstance(cpus, str):
        if cpus != "big":
            raise EdgeError(f"CPUs {cpus!r:.60}; allowed: big, or their numbers")
        cpus = big_cpus(threads)
    allowed = allowed_cpus()
    if not cpus or not set(cpus) <= set(allowed):
        raise EdgeError(f"CPUs {cpu_list(cpus)} are not all here; allowed: {cpu_list(allowed)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus])


def peak_bytes() -> int | None:
    """The most memory this process has held at once. (getrusage would count its parent's memory too.)"""
    for line in _text(ROOT / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _policies(root: Path) -> list[Path]:
    return sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"))


def _text(path: Path) -> str:
    """The text of a system file, or "": many exist only on some machines, or only for root."""
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _number(path: Path) -> int:
    return _whole(_text(path))


def _whole(text: str) -> int:
    return int(text) if DECIMAL.fullmatch(text) else 0
