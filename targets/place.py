"""What `--target` means: which way to run on a device is taken, and which hosts are saved for it."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipnet_edge import strict
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import config_folder, opened, write
from pipnet_edge.targets import devices
from pipnet_edge.targets.devices import Device
from pipnet_edge.worker.call import Call

LOCAL = "local"
LARGEST = 1 << 20  # bytes of the file of saved hosts
# The folders beside this file that have a way.py: see Way.
WAYS = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/way.py")))


class Way(Protocol):
    """The module way.py of a folder.

    GIVES: the kind of its numbers: measured, emulated or predicted. IS_APART: whether it computes on a machine of its
    own, so that other places can work at the same time.
    """

    GIVES: str
    IS_APART: bool

    def connect(self, place: Place, keep: bool = False) -> AbstractContextManager[Call]: ...


@dataclass(frozen=True)
class Place:
    """A target with its way to run (one of WAYS). host: the name for ssh. device: None if the target names none."""

    name: str
    way: str
    device: Device | None = None
    host: str | None = None

    @property
    def kind(self) -> str:
        """The kind of its numbers: measured, emulated or predicted."""
        return _way(self.way).GIVES

    @property
    def is_apart(self) -> bool:
        """Whether it computes on a machine of its own."""
        return _way(self.way).IS_APART

    @property
    def is_here(self) -> bool:
        """Whether it is this machine itself."""
        return self.way == LOCAL


def _way(name: str) -> Way:
    found: Way = importlib.import_module(f"pipnet_edge.targets.{name}.way")
    return found


def resolve(name: str, host: str | None, emulate: bool, predict: bool, board: str, hosts: Mapping[str, str]) -> Place:
    """The place for a target's name and the options.

    An option for a way wins. Without one, it is this machine if it is that device (board: its /proc/device-tree/model),
    then the host that is saved for the name. Raises EdgeError that names the choices if there is no place, and for two
    such options.
    """
    given = [option for option, used in (("--host", host), ("--emulate", emulate), ("--predict", predict)) if used]
    if len(given) > 1:
        raise EdgeError(f"{' and '.join(given)} for {name}; one of them is allowed")
    if name == LOCAL:
        if emulate or predict:
            raise EdgeError(f"{given[0]} needs --target; allowed: {', '.join(devices.devices())} or a file")
        return Place(host, "ssh", None, host) if host else Place(LOCAL, "local")
    device = devices.device(name)
    if emulate or predict:
        return Place(device.name, "emulated" if emulate else "predicted", device)
    if host:
        return Place(device.name, "ssh", device, host)
    if any(board.startswith(known) for known in device.boards):
        return Place(device.name, "local", device)
    if device.name in hosts:
        return Place(device.name, "ssh", device, hosts[device.name])
    raise EdgeError(
        f"this machine is no {device.title}; measure on one with --host USER@HOST (saved by `pipnet-edge targets "
        f"--save {device.name}=USER@HOST`), or take --emulate, --predict or --target {LOCAL}"
    )


@contextmanager
def calling(place: Place, keep: bool = False) -> Iterator[Call]:
    """Gives a Call that runs jobs at a place until the block ends. keep: a board keeps the pushed files.

    Raises EdgeError for a place that is only predicted, and for one that cannot be reached.
    """
    with _way(place.way).connect(place, keep) as call:
        yield call


def hosts_file() -> Path:
    """The file of the saved hosts."""
    return config_folder() / "hosts.json"


def hosts() -> dict[str, str]:
    """The saved hosts by target. Raises EdgeError for a file of another format."""
    path = hosts_file()
    if not path.is_file():
        return {}
    data: dict[str, object] | None = None
    with contextlib.suppress(EdgeError), opened(path, LARGEST) as file:
        data = strict.json_object(file.read().decode(errors="replace"), "it")
    if data is None or not all(isinstance(host, str) for host in data.values()):
        raise EdgeError(f"{path} is not an object of target: host; mend or remove it")
    return {name: str(host) for name, host in data.items()}


def save(target: str, host: str) -> Path:
    """Saves a target's host (an empty one removes it) and returns the path of the file."""
    name = devices.device(target).name
    known = {**hosts(), name: host} if host else {other: h for other, h in hosts().items() if other != name}
    path = hosts_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, (json.dumps(dict(sorted(known.items())), indent=1) + "\n").encode())
    return path
