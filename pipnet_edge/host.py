"""Facts of the machine. A fact that cannot be read is absent, never "unknown"."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# What the runtimes choose their kernels by; the names are those of /proc/cpuinfo.
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


def default_threads() -> int:
    """The cores this process may use, at most 4: small networks do not gain from more."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


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
    """Those of ISA_FEATURES that this machine's CPU has; none where that cannot be told."""
    found = facts().get("features", [])
    assert isinstance(found, list)
    return tuple(found)


def facts() -> dict[str, object]:
    """machine, cpu, cores, features, board (from the device tree), system, python."""
    found: dict[str, object] = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    cpuinfo, board = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")
    if cpuinfo.is_file():
        found |= parse_cpuinfo(cpuinfo.read_text(errors="replace"))
    if board.is_file():
        found["board"] = board.read_text(errors="replace").strip("\0 \n")
    return found
