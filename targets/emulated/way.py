"""An emulated board: a worker on the target's instruction set, under qemu-user.

Landmarks and maps come from the real runtimes. Time under emulation says nothing about any board, so no time is given.
The cost of a frame is given in instructions (count.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.devices import Device, devices
from pipnet_edge.targets.emulated.emulator import SLOWNESS, WORKER, Emulator, ready
from pipnet_edge.targets.place import Place
from pipnet_edge.worker import call as calls
from pipnet_edge.worker.call import Call, Listen, ignore
from pipnet_edge.worker.protocol import Answer, Chain, Event, Job, Loaded, Machine, Time

GIVES = "emulated"
IS_APART = False

# The other facts describe the machine that qemu runs on.
FACTS = ("machine", "features", "libc", "python")


@contextmanager
def connect(place: Place, keep: bool = False) -> Iterator[Call]:
    """Raises EdgeError for a device that cannot be emulated, and if no emulator is set up."""
    assert place.device is not None
    core(place.device)
    yield Emulated(place.device, ready())


@dataclass(frozen=True)
class Emulated:
    """A Call to a worker on a device's kind of core. Raises EdgeError when asked for times."""

    device: Device
    emulator: Emulator

    def __call__(self, job: Job[Answer], listen: Listen = ignore) -> Answer:
        if isinstance(job, Time | Chain):
            raise EdgeError(f"an emulated {self.device.name} has no speed; count its instructions, or measure on one")
        cpu = core(self.device)
        with self.emulator.environment() as environment:
            command = [*self.emulator.python(cpu), *WORKER]
            answer = calls.start(command, job, lambda event: listen(untimed(event)), environment, slowness=SLOWNESS)
        if isinstance(answer, Machine):
            facts = {name: value for name, value in answer.facts.items() if name in FACTS}
            return replace(answer, facts={"cpu": cpu} | facts)
        return answer


def untimed(event: Event) -> Event:
    """The event without its time."""
    return replace(event, milliseconds=None) if isinstance(event, Loaded) else event


def core(device: Device) -> str:
    """The -cpu of qemu for a device. If there is none, raises EdgeError that lists the devices with one."""
    if device.qemu is None:
        known = ", ".join(name for name, other in devices().items() if other.qemu)
        raise EdgeError(f"target {device.name!r:.60} cannot be emulated; allowed: {known}")
    return device.qemu
