"""The live page over real sockets: what is served, to whom, and that no client holds anything up."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.video import page as pages
from pipnet_edge.video.page import Page
from pipnet_edge.video.source import Frame
from pipnet_edge.video.track import Tracked
from tests.device.video import moving

NOBODY = Tracked((), False)
PART = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"


@pytest.fixture
def page() -> Iterator[Page]:
    served = Page(port=0)
    yield served
    served.close()


def address(page: Page) -> tuple[str, int]:
    host, _, port = page.url.removeprefix("http://").rstrip("/").rpartition(":")
    return host, int(port)


def ask(page: Page, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(*address(page), timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


class Watching:
    """A client of the stream."""

    def __init__(self, page: Page) -> None:
        self._socket = socket.create_connection(address(page), timeout=10)
        self._socket.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self._file = self._socket.makefile("rb")
        head = self._until_empty()
        assert head[0] == b"HTTP/1.0 200 OK"
        assert b"Content-Type: multipart/x-mixed-replace; boundary=frame" in head
        assert self._file.read(len(PART)) == PART

    def picture(self) -> NDArray[np.uint8]:
        """The next picture, RGB. The head of the one behind it has been sent too."""
        data = b""
        while not data.endswith(b"\r\n--frame\r\n"):
            line = self._file.readline()
            assert line
            data += line
        assert self._file.read(len(PART) - len(b"--frame\r\n")) == PART.removeprefix(b"--frame\r\n")
        return cv2.imdecode(np.frombuffer(data[:-11], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _until_empty(self) -> list[bytes]:
        lines = []
        while line := self._file.readline().rstrip():
            lines.append(line)
        return lines


def grey(level: int, width: int = 64, height: int = 48) -> Frame:
    return Frame(np.full((height, width, 3), level, np.uint8), level / 30, level)


def level(picture: NDArray[np.uint8]) -> int:
    return round(float(picture.mean()))


def waits(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


# --- What is served.


def test_the_page_shows_the_stream_and_nothing_else_is_served(page: Page) -> None:
    status, headers, body = ask(page, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert b'<img src="stream"' in body
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for path in ("/favicon.ico", "/index.html", "/stream/", "/../etc/passwd", "/%2e%2e/etc/passwd", "*"):
        assert ask(page, path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
        assert ask(page, "/", method)[0] == 501
    assert address(page)[0] == "127.0.0.1"


def test_the_stream_has_the_frames_with_their_faces(page: Page) -> None:
    plain = grey(90, 320, 240)
    page.write(plain, NOBODY, {})
    client = Watching(page)
    for x in (100, 200):
        face = moving.face(1, x, 120)
        page.write(plain, Tracked((face,), False), {})
        columns, rows = face.points.astype(int).T

        def shows_it(columns: NDArray[Any] = columns, rows: NDArray[Any] = rows) -> bool:
            picture = client.picture().astype(int)
            return ((picture[:, :, 1] - picture[:, :, 0])[rows, columns] > 20).mean() > 0.9

        waits(shows_it)
    client.close()


def test_opencv_reads_the_stream(page: Page) -> None:
    page.write(grey(60, 320, 240), NOBODY, {})
    going = threading.Event()

    def feed() -> None:
        while not going.wait(0.02):
            page.write(grey(60, 320, 240), NOBODY, {})

    feeding = threading.Thread(target=feed)
    feeding.start()
    video = cv2.VideoCapture(f"{page.url}stream")
    pictures = [video.read()[1] for _ in range(5)]
    video.release()
    going.set()
    feeding.join()
    assert [picture.shape for picture in pictures] == [(240, 320, 3)] * 5
    assert {level(picture) for picture in pictures} <= {59, 60, 61}


def test_a_frame_is_sent_again_while_none_comes(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "AGAIN", 0.05)
    page.write(grey(50), NOBODY, {})
    client = Watching(page)
    assert [level(client.picture()) for _ in range(4)] == [50] * 4
    client.close()
    waits(lambda: threads() == 0)


def test_who_comes_before_the_first_frame_sees_it(page: Page) -> None:
    client = Watching(page)
    page.write(grey(77), NOBODY, {})
    assert level(client.picture()) == 77
    client.close()


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "10.0.0.7"])
def test_this_machine_may_be_called_by_address(page: Page, host: str) -> None:
    assert ask(page, "/", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "[", "a:b:c"])
def test_another_sites_name_for_this_machine_is_refused(page: Page, host: str) -> None:
    assert ask(page, "/", Host=host)[0] == 403
    assert ask(page, "/stream", Host=host)[0] == 403


def test_on_a_network_any_name_will_do() -> None:
    served = Page("0.0.0.0", 0)
    status, _, _ = ask(served, "/", Host="raspberrypi.local")
    served.close()
    assert status == 200


def test_an_address_of_ipv6() -> None:
    try:
        served = Page("::1", 0)
    except EdgeError:
        pytest.skip("this machine has no IPv6")
    assert served.url.startswith("http://[::1]:")
    served.close()


def test_what_cannot_be_served_is_one_line(page: Page) -> None:
    host, port = address(page)
    with pytest.raises(EdgeError, match=rf"^cannot serve a page on 127\.0\.0\.1:{port}: Address already in use$"):
        Page(host, port)
    with pytest.raises(EdgeError, match=r"^cannot serve a page on 127\.0\.0\.1:70000: "):
        Page(port=70000)
    with pytest.raises(EdgeError, match=r"^cannot serve a page on 192\.0\.2\.1:0: "):
        Page("192.0.2.1", 0)
    with pytest.raises(EdgeError, match=r"^cannot serve a page on a b:0: "):
        Page("a b", 0)


# --- Clients cost little.


def test_frames_that_nobody_sees_are_not_encoded(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, encode = [], pages._jpeg

    def counted(frame: Frame, tracked: Tracked) -> bytes:
        encoded.append(frame.index)
        return encode(frame, tracked)

    monkeypatch.setattr(pages, "_jpeg", counted)
    for index in range(50):
        page.write(grey(index), NOBODY, {})
    ask(page, "/")
    assert encoded == []
    clients = [Watching(page) for _ in range(4)]
    page.write(grey(99), NOBODY, {})
    for client in clients:
        waits(lambda client=client: level(client.picture()) == 99)
        client.close()
    # Once for all of them.
    assert encoded.count(99) == 1
    assert set(encoded) <= {49, 99}


def test_a_slow_client_holds_up_nobody_and_sees_the_newest(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PATIENCE", 60.0)
    noise = moving.noise(640, 480)
    page.write(Frame(noise, 0, 0), NOBODY, {})
    slow, other = Watching(page), Watching(page)
    longest = 0.0
    # About 20 MB for one who reads nothing.
    for index in range(50):
        start = time.thread_time()
        page.write(Frame(noise, index, index), NOBODY, {})
        longest = max(longest, time.thread_time() - start)
        other.picture()
    assert longest < 0.01
    for index in (101, 102):
        page.write(Frame(np.full_like(noise, 40), index, index), NOBODY, {})
    waits(lambda: level(other.picture()) == 40)
    # A frame on the way, and what waits in sockets; not the fifty.
    late = next(number for number in range(20) if level(slow.picture()) == 40)
    assert late <= 6
    slow.close()
    other.close()


def test_one_who_reads_nothing_is_hung_up_on(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PATIENCE", 0.3)
    noise = moving.noise(1280, 960)
    page.write(Frame(noise, 0, 0), NOBODY, {})
    client = Watching(page)

    def gone() -> bool:
        page.write(Frame(noise, 0, 0), NOBODY, {})
        return threads() == 0

    waits(gone)
    client.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"\0\xff\xfe\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\r\n\r\n",
        b"\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    ],
)
def test_garbage_and_half_requests_end(
    page: Page, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:
    monkeypatch.setattr(pages, "PATIENCE", 0.3)
    with socket.create_connection(address(page), timeout=10) as client, contextlib.suppress(OSError):
        client.sendall(sent)
        answer = client.recv(4096)
        assert not answer.startswith(b"HTTP/1.0 2")
        while client.recv(4096):
            pass
    waits(lambda: threads() == 0)
    assert ask(page, "/")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_who_sends_a_byte_now_and_then_does_not_stay(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PATIENCE", 0.4)
    start = time.monotonic()
    with socket.create_connection(address(page), timeout=10) as client, contextlib.suppress(OSError):
        while True:
            client.sendall(b"G")
            time.sleep(0.05)
    assert 0.3 < time.monotonic() - start < 5


def test_more_than_the_most_are_refused_until_one_goes(page: Page) -> None:
    page.write(grey(10), NOBODY, {})
    clients = [Watching(page) for _ in range(pages.MOST_CLIENTS)]
    assert threads() == pages.MOST_CLIENTS
    with socket.create_connection(address(page), timeout=10) as late:
        assert late.recv(100).startswith(b"HTTP/1.0 503 ")
    clients.pop().close()

    def is_served() -> bool:
        page.write(grey(20), NOBODY, {})
        with contextlib.suppress(OSError, http.client.HTTPException):
            return ask(page, "/")[0] == 200
        return False

    waits(is_served)
    for client in clients:
        client.close()


def test_closing_ends_all_at_once() -> None:
    page = Page(port=0)
    where = address(page)
    noise = moving.noise(1280, 960)
    waiting = Watching(page)
    page.write(Frame(noise, 0, 0), NOBODY, {})
    hanging = socket.create_connection(where)
    deaf = Watching(page)
    for index in range(20):
        page.write(Frame(noise, index, index), NOBODY, {})
        time.sleep(0.02)
    start = time.monotonic()
    page.close()
    assert time.monotonic() - start < 2
    waits(lambda: threads() == 0, 2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where)
    for each in (waiting, hanging, deaf):
        each.close()
    # The same port can be had again.
    again = Page(*where)
    again.close()
