"""Facts of machines that are not here, from the texts of their /proc/cpuinfo, and of the one that is."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipnet_edge import host
from pipnet_edge.errors import EdgeError

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


# --- Whole machines that are not here, as trees of /proc and /sys.


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cpus(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """This process may use these CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(numbers))


def policy(number: int, governor: str, mhz: int) -> dict[str, str]:
    folder = f"sys/devices/system/cpu/cpufreq/policy{number}"
    return {f"{folder}/scaling_governor": f"{governor}\n", f"{folder}/scaling_cur_freq": f"{mhz * 1000}\n"}


def zone(number: int, kind: str, temperature: str) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/temp": f"{temperature}\n"}


def cores(first: int, count: int, mhz: int, capacity: int | None = None) -> dict[str, str]:
    folders = [f"sys/devices/system/cpu/cpu{cpu}" for cpu in range(first, first + count)]
    files = {f"{folder}/cpufreq/cpuinfo_max_freq": f"{mhz * 1000}\n" for folder in folders}
    return files | ({f"{folder}/cpu_capacity": f"{capacity}\n" for folder in folders} if capacity else {})


@pytest.fixture
def rpi4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cpus(monkeypatch, 0, 1, 2, 3)
    files = {
        "proc/cpuinfo": cpuinfo("rpi4"),
        "proc/meminfo": "MemTotal:        3884372 kB\nMemFree:         2933196 kB\n",
        "proc/loadavg": "3.70 0.12 0.09 1/177 1234\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        **policy(0, "ondemand", 600),
        **cores(0, 4, 1800),
        **zone(0, "cpu-thermal", "48199"),
    }
    return tree(tmp_path, files)


@pytest.fixture
def rpi5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cpus(monkeypatch, 0, 1, 2, 3)
    files = {
        "proc/cpuinfo": cpuinfo("rpi5"),
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
        "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0\n",
        **policy(0, "performance", 2400),
        **cores(0, 4, 2400),
        **zone(0, "cpu-thermal", "55100"),
    }
    return tree(tmp_path, files)


@pytest.fixture
def rk3588(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four small cores, then two pairs of big ones whose limits differ, and six thermal zones."""
    cpus(monkeypatch, *range(8))
    files = {
        "proc/cpuinfo": cpuinfo("rk3588"),
        "proc/device-tree/model": "Radxa ROCK 5B\0",
        "proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0",
        **policy(0, "performance", 1800),
        **policy(4, "schedutil", 2256),
        **policy(6, "schedutil", 2304),
        **cores(0, 4, 1800, 530),
        **cores(4, 4, 2400, 1024),
        **zone(0, "soc-thermal", "41000"),
        **zone(1, "bigcore0-thermal", "43500"),
        **zone(2, "bigcore1-thermal", "42500"),
        **zone(3, "littlecore-thermal", "40600"),
        **zone(4, "gpu-thermal", "90000"),
    }
    return tree(tmp_path, files)


def test_a_raspberry_pi_4(rpi4: Path) -> None:
    facts = host.facts(rpi4)
    assert {key: facts[key] for key in ("board", "soc", "governor", "clusters", "memory_mb", "cpu", "cores")} == {
        "board": "Raspberry Pi 4 Model B Rev 1.4",
        "soc": "bcm2711",
        "governor": "ondemand",
        "clusters": "4 at 1800 MHz",
        "memory_mb": 3793,
        "cpu": "Cortex-A72",
        "cores": 4,
    }
    assert host.state(rpi4) == {"mhz": [600], "celsius": 48.199, "throttled": 0x50005, "load": 1.0}


def test_a_raspberry_pi_5(rpi5: Path) -> None:
    facts = host.facts(rpi5)
    assert (facts["soc"], facts["governor"], facts["features"]) == (
        "bcm2712",
        "performance",
        ["asimd", "asimdhp", "asimddp"],
    )
    assert host.state(rpi5) == {"mhz": [2400], "celsius": 55.1, "throttled": 0}


def test_clusters_and_clock_domains_of_big_little(rk3588: Path) -> None:
    assert host.clusters(rk3588) == (host.Cluster((4, 5, 6, 7), 2400), host.Cluster((0, 1, 2, 3), 1800))
    facts = host.facts(rk3588)
    assert facts["clusters"] == "4 at 2400 MHz + 4 at 1800 MHz"
    assert facts["governor"] == "performance + schedutil"
    assert facts["soc"] == "rk3588"
    # The GPU is warmer, but it computes nothing here.
    assert host.state(rk3588) == {"mhz": [1800, 2256, 2304], "celsius": 43.5}


def test_clusters_by_clock_where_no_capacity_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(monkeypatch, *range(4))
    tree(tmp_path, cores(0, 2, 1000) | cores(2, 2, 2000))
    assert host.clusters(tmp_path) == (host.Cluster((2, 3), 2000), host.Cluster((0, 1), 1000))


def test_clusters_are_of_cpus_that_may_be_used(rk3588: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(monkeypatch, 1, 6)
    assert host.clusters(rk3588) == (host.Cluster((6,), 2400), host.Cluster((1,), 1800))


def test_zones_of_one_kind_count_all(tmp_path: Path) -> None:
    """Two sockets have a zone each, and both are called x86_pkg_temp."""
    tree(tmp_path, zone(0, "x86_pkg_temp", "71000") | zone(1, "x86_pkg_temp", "52000") | zone(2, "acpitz", "80000"))
    assert host.state(tmp_path) == {"celsius": 71.0}


def test_another_zone_serves_where_none_is_the_cpu_s(tmp_path: Path) -> None:
    assert host.state(tree(tmp_path, zone(0, "acpitz", "27800"))) == {"celsius": 27.8}


def test_what_cannot_be_read_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty tree, then one whose files are folders, empty or no numbers, as the superuser reads all others."""
    cpus(monkeypatch, 0, 1)
    here = {"machine", "system", "python", "libc"}
    for _ in range(2):
        assert set(host.facts(tmp_path)) <= here
        assert host.state(tmp_path) == {}
        assert host.clusters(tmp_path) == (host.Cluster((0, 1), 0),)
        files = {
            "proc/cpuinfo": "",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "<unknown>\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "",
            **zone(0, "cpu-thermal", ""),
        }
        tree(tmp_path, files)
        (tmp_path / "proc/loadavg").mkdir(exist_ok=True)
        (tmp_path / "proc/device-tree/model").mkdir(parents=True, exist_ok=True)


def test_a_zone_that_is_asleep_does_not_count_as_freezing(tmp_path: Path) -> None:
    tree(tmp_path, zone(0, "cpu-thermal", "") | zone(1, "soc-thermal", "39000"))
    assert host.state(tmp_path) == {"celsius": 39.0}


# --- This process.


def in_child(code: str) -> str:
    script = f"import os\nfrom pipnet_edge import host\n{code}\nprint(sorted(os.sched_getaffinity(0)))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_pin_keeps_to_cpus_by_number() -> None:
    last = max(os.sched_getaffinity(0))
    assert in_child(f"host.pin([{last}], 1)") == f"[{last}]"


def test_pin_keeps_to_the_fastest_kind_if_it_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    cpus(monkeypatch, *range(8))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, numbers: asked.append(numbers))
    monkeypatch.setattr(host, "clusters", lambda: (host.Cluster((4, 5, 6, 7), 2400), host.Cluster((0, 1, 2, 3), 1800)))
    for threads in (1, 4, 5):
        host.pin("big", threads)
    assert asked == [[4, 5, 6, 7], [4, 5, 6, 7], list(range(8))]


@pytest.mark.parametrize("numbers", [[4095], [0, 4095], []])
def test_pin_refuses_cpus_that_are_not_here(numbers: list[int]) -> None:
    with pytest.raises(EdgeError, match="are not all here; allowed: "):
        host.pin(numbers, 1)


def test_peak_bytes_remembers_what_was_given_back() -> None:
    script = (
        "from pipnet_edge import host\nbefore = host.peak_bytes()\nb = bytearray(64_000_000)\nb[:] = b'x' * len(b)\n"
        "del b\nprint(before, host.peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1_000_000 < before < after - 60_000_000


def test_peak_bytes_are_this_process_s_own() -> None:
    """Not its parent's, whose memory a child has for a moment."""
    held = bytearray(200_000_000)
    script = "from pipnet_edge import host\nprint(host.peak_bytes())"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(held)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("proc/loadavg", "0.5 0.5"),
        ("proc/loadavg", "a b c d/e 1"),
        ("proc/meminfo", "MemTotal:\n"),
        ("proc/meminfo", "MemTotal: much kB\n"),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "50005.4"),
        ("sys/devices/system/cpu/cpu0/cpu_capacity", "9" * 5000),
    ],
)
def test_odd_system_files_state_nothing(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert host.state(tmp_path) == {}
    assert not {"memory_mb", "clusters"} & set(host.facts(tmp_path))


def test_threads_are_at_most_one_a_core() -> None:
    assert host.cut_threads(3, 4) == (3, None)
    assert host.cut_threads(4, 4) == (4, None)
    assert host.cut_threads(5, 4) == (4, "5 threads are useless on 4 cores: 4 threads used")
    assert host.cut_threads(100_000, 1) == (1, "100000 threads are useless on 1 core: 1 thread used")
