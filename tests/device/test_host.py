"""Facts of machines that are not here, from the texts of their /proc/cpuinfo, and of the one that is."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge import host

HOSTS = Path(__file__).parent / "hosts"

MACHINES: dict[str, dict[str, object]] = {
    "rpi3": {"cpu": "Cortex-A53", "cores": 4, "features": ["asimd"]},
    "rpi4": {"cpu": "Cortex-A72", "cores": 4, "features": ["asimd"]},
    "rpi5": {"cpu": "Cortex-A76", "cores": 4, "features": ["asimd", "asimdhp", "asimddp"]},
    "rk3588": {"cpu": "Cortex-A55 + Cortex-A76", "cores": 8, "features": ["asimd", "asimdhp", "asimddp"]},
    "x86_avx512_vnni": {
        "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        "cores": 4,
        "features": [
            *("avx", "avx2", "fma", "f16c", "avx512f"),
            *("avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
        ],
    },
    "x86_core2": {"cpu": "Intel(R) Core(TM)2 Duo CPU     E8400  @ 3.00GHz", "cores": 2, "features": []},
    # Neither of these says what its CPU is, so there is no such fact.
    "arm_unlisted": {
        "cores": 2,
        "features": ["asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"],
    },
    "x86_unnamed_vm": {"cores": 1, "features": ["avx", "avx2", "fma", "f16c"]},
}


def cpuinfo(name: str) -> str:
    return (HOSTS / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", MACHINES)
def test_facts_of_a_machine(name: str) -> None:
    assert host.parse_cpuinfo(cpuinfo(name)) == MACHINES[name]


def test_a_32_bit_system_names_neon_as_arm_did() -> None:
    facts = host.parse_cpuinfo(cpuinfo("rpi4_32bit"))
    assert facts["cores"] == 4
    assert facts["features"] == ["neon"]
    assert facts["cpu"]


def test_every_text_is_tested() -> None:
    assert {path.stem for path in HOSTS.glob("*.txt")} == {*MACHINES, "rpi4_32bit"}


@pytest.mark.parametrize("text", ["", "\n\n", "no colon here\n", "Serial : 1\n", "processor"])
def test_what_is_not_there_is_no_fact(text: str) -> None:
    assert host.parse_cpuinfo(text) == {}


def test_a_part_of_the_text_gives_a_part_of_the_facts() -> None:
    assert host.parse_cpuinfo("processor : 0\nprocessor : 1\n") == {"cores": 2}
    assert host.parse_cpuinfo("flags : avx2 fma avx512fp16\n") == {"features": ["avx2", "fma"]}
    assert host.parse_cpuinfo("CPU part : 0xd0b\n") == {"cpu": "Cortex-A76"}


@given(text=st.text() | st.lists(st.sampled_from(cpuinfo("rpi5").splitlines())).map("\n".join))
def test_any_text_gives_facts_for_json(text: str) -> None:
    facts = host.parse_cpuinfo(text)
    assert set(facts) <= {"cpu", "cores", "features"}
    assert json.loads(json.dumps(facts)) == facts


def test_facts_of_this_machine() -> None:
    facts = host.facts()
    assert facts["machine"] == platform.machine()
    assert facts["python"] == platform.python_version()
    if platform.system() == "Linux":
        assert facts["cores"] == os.sysconf("SC_NPROCESSORS_ONLN")
        assert isinstance(facts["features"], list)
    assert all(value not in ("", None, "unknown") for value in facts.values())


def test_default_threads() -> None:
    assert host.default_threads() == min(4, len(os.sched_getaffinity(0)))
