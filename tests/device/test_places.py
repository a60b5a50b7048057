"""What --target and its options mean, and the file of saved hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipnet_edge.cli import options
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets import devices
from pipnet_edge.targets import place as places
from pipnet_edge.targets.place import Place
from pipnet_edge.worker import call as calls

HERE = "Raspberry Pi 4 Model B Rev 1.4"
SAVED = {"rpi4": "pi@four", "rpi5": "pi@five"}
RPI4, RPI5 = devices.device("rpi4"), devices.device("rpi5")


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this user's settings lie."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def resolve(name: str, host: str | None = None, *ways: str, board: str = "", saved: dict[str, str] = SAVED) -> Place:
    return places.resolve(name, host, "emulate" in ways, "predict" in ways, board, saved)


# --- Which way is taken.


@pytest.mark.parametrize(
    ("name", "host", "ways", "board", "place"),
    [
        ("local", None, (), "", Place("local", "local")),
        ("local", None, (), HERE, Place("local", "local")),
        ("local", "me@box", (), "", Place("me@box", "ssh", None, "me@box")),
        # An explicit way is taken, even on the device itself.
        ("rpi4", "pi@x", (), HERE, Place("rpi4", "ssh", RPI4, "pi@x")),
        ("rpi4", None, ("emulate",), HERE, Place("rpi4", "emulated", RPI4)),
        ("rpi4", None, ("predict",), HERE, Place("rpi4", "predicted", RPI4)),
        # Then this machine if it is one, then the host that is saved.
        ("rpi4", None, (), HERE, Place("rpi4", "local", RPI4)),
        ("rpi4", None, (), "", Place("rpi4", "ssh", RPI4, "pi@four")),
        ("rpi5", None, (), HERE, Place("rpi5", "ssh", RPI5, "pi@five")),
    ],
)
def test_the_way_that_is_taken(name: str, host: str | None, ways: tuple[str, ...], board: str, place: Place) -> None:
    assert resolve(name, host, *ways, board=board) == place


def test_no_way_names_the_choices() -> None:
    with pytest.raises(EdgeError) as caught:
        resolve("rpi4", saved={})
    for choice in (RPI4.title, "--host", "targets --save rpi4=", "--emulate", "--predict", "--target local"):
        assert choice in str(caught.value)


@pytest.mark.parametrize(
    ("host", "ways", "message"),
    [
        ("pi@x", ("emulate",), "--host and --emulate for rpi4; one of them is allowed"),
        ("pi@x", ("predict",), "--host and --predict for rpi4"),
        (None, ("emulate", "predict"), "--emulate and --predict for rpi4"),
        ("pi@x", ("emulate", "predict"), "--host and --emulate and --predict for rpi4"),
    ],
)
def test_two_ways_at_once(host: str | None, ways: tuple[str, ...], message: str) -> None:
    with pytest.raises(EdgeError, match=f"^{message}"):
        resolve("rpi4", host, *ways)


@pytest.mark.parametrize("way", ["emulate", "predict"])
def test_this_machine_is_neither_emulated_nor_predicted(way: str) -> None:
    with pytest.raises(EdgeError, match=f"^--{way} needs --target; allowed: .*rpi4"):
        resolve("local", None, way)


def test_unknown_devices() -> None:
    with pytest.raises(EdgeError, match=r"target 'rpi9' is unknown; allowed: .*rpi4"):
        resolve("rpi9", None, "predict")


@pytest.mark.parametrize(
    ("board", "name"),
    [
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "rpi3"),
        ("Raspberry Pi 4 Model B Rev 1.5", "rpi4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "rpi5"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "zero2w"),
        ("Radxa ROCK 5B", "rk3588"),
        ("Orange Pi 5", "rk3588"),
        ("Raspberry Pi 400 Rev 1.0", "rpi4"),  # the same chip
        ("Banana Pi BPI-M5", None),
        ("", None),
    ],
)
def test_a_board_is_one_device_at_most(board: str, name: str | None) -> None:
    """Only those that are that board run without a host."""
    found = []
    for device in devices.devices().values():
        try:
            found.append(resolve(device.name, board=board, saved={}))
        except EdgeError:
            continue
    assert [(place.name, place.way) for place in found] == ([(name, "local")] if name else [])


def test_a_user_s_own_device(tmp_path: Path) -> None:
    text = (devices.FOLDER / "rpi4.toml").read_text().replace('name = "rpi4"', 'name = "kiosk"', 1)
    (tmp_path / "kiosk.toml").write_text(text)
    place = resolve(str(tmp_path / "kiosk.toml"), saved={"kiosk": "pi@kiosk"})
    assert (place.name, place.way, place.host) == ("kiosk", "ssh", "pi@kiosk")
    assert place.device == devices.read_device(tmp_path / "kiosk.toml")


# --- Where work is done.


def test_calling_this_machine_is_the_local_call() -> None:
    with places.calling(Place("local", "local")) as call:
        assert call is calls.here


def test_nothing_runs_where_times_are_predicted() -> None:
    with pytest.raises(EdgeError, match="rpi4 is only predicted"), places.calling(resolve("rpi4", None, "predict")):
        pytest.fail("something ran")


# --- Saved hosts.


def test_hosts_are_saved_and_forgotten(config: Path) -> None:
    assert places.hosts() == {}
    path = places.save("rpi5", "pi@five")
    assert path == config / "pipnet-edge" / "hosts.json" == places.hosts_file()
    places.save("rpi4", "old")
    places.save("rpi4", "pi@four")
    assert places.hosts() == SAVED
    places.save("rpi5", "")
    places.save("zero2w", "")  # never known
    assert places.hosts() == {"rpi4": "pi@four"}
    assert [path.name for path in path.parent.iterdir()] == ["hosts.json"]


def test_hosts_are_in_the_home_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".config" / "pipnet-edge" / "hosts.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    assert places.hosts_file() == expected
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert places.hosts_file() == expected


def test_hosts_are_of_devices_that_exist() -> None:
    with pytest.raises(EdgeError, match="target 'rpi9' is unknown"):
        places.save("rpi9", "pi@nine")
    assert not places.hosts_file().exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rpi4": 4}', b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_hosts_file_that_is_none_is_named_and_kept(content: bytes) -> None:
    path = places.hosts_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for work in (places.hosts, lambda: places.save("rpi4", "pi@four")):
        with pytest.raises(EdgeError, match="is not an object of target: host; mend or remove it") as caught:
            work()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == content


# --- The options together.


@pytest.mark.parametrize(
    ("names", "hosts", "found"),
    [
        ([], [], [("local", None)]),
        ([], ["me@box"], [("me@box", "me@box")]),
        (["rpi4"], ["pi@x"], [("rpi4", "pi@x")]),
        (["rpi4"], ["rpi4=pi@x"], [("rpi4", "pi@x")]),
        (["rpi5", "rpi4"], ["rpi4=pi@x", "rpi5=pi@y"], [("rpi5", "pi@y"), ("rpi4", "pi@x")]),
        (["rpi5", "rpi4", "rpi5"], ["rpi5=pi@y", "rpi4=pi@x"], [("rpi5", "pi@y"), ("rpi4", "pi@x")]),
        (["local", "rpi4"], ["rpi4=pi@x"], [("local", None), ("rpi4", "pi@x")]),
    ],
)
def test_targets_and_their_hosts(names: list[str], hosts: list[str], found: list[tuple[str, str | None]]) -> None:
    assert [(place.name, place.host) for place in options.places(names, hosts, False, False)] == found


def test_saved_hosts_serve_targets_without_one() -> None:
    places.save("rpi5", "pi@five")
    found = options.places(["rpi4", "rpi5"], ["rpi4=pi@x"], False, False)
    assert [place.host for place in found] == ["pi@x", "pi@five"]


@pytest.mark.parametrize(
    ("names", "hosts", "message"),
    [
        (["rpi4", "rpi5"], ["pi@x"], "--host pi@x for 2 targets; TARGET=USER@HOST is needed"),
        (["rpi4"], ["rpi5=pi@x"], "--host rpi5=pi@x is for rpi5, which is no --target; those are rpi4"),
        (["rpi4"], ["pi@x", "pi@y"], "--host pi@y, but rpi4 has the host pi@x already"),
        (["rpi4"], ["pi@x", "rpi4=pi@y"], "--host rpi4=pi@y, but rpi4 has the host pi@x already"),
    ],
)
def test_hosts_that_fit_no_target(names: list[str], hosts: list[str], message: str) -> None:
    with pytest.raises(EdgeError) as caught:
        options.places(names, hosts, False, False)
    assert str(caught.value) == message


def test_two_targets_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "rpi4.toml").write_bytes((devices.FOLDER / "rpi4.toml").read_bytes())
    with pytest.raises(EdgeError, match=r"rpi4\.toml is rpi4, which is given already"):
        options.places(["rpi4", str(tmp_path / "rpi4.toml")], [], False, True)
