"""A live page: the newest frame with its faces drawn, as MJPEG over HTTP, to whoever looks."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from pipnet_edge import draw
from pipnet_edge.errors import EdgeError
from pipnet_edge.video.source import Frame
from pipnet_edge.video.track import Tracked

LOOPBACK = "127.0.0.1"

# Connections at a time; more are refused.
MOST_CLIENTS = 16
# Seconds in which a request has to be there and a frame be taken, and the bytes of a request.
PATIENCE, LONGEST_REQUEST = 5.0, 16384
# Seconds after which a frame is sent again, so that a client that has gone is noticed.
AGAIN = 1.0
# Bytes that wait in the system for a slow client: few, so that it sees no old frames.
WAITING = 65536
QUALITY = 80

INDEX = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>pipnet-edge track</title>
<link rel="icon" href="data:,">
<style>
body { margin: 0; background: #202124 }
img { display: block; margin: auto; max-width: 100%; max-height: 100vh }
</style>
<img src="stream" alt="The newest frame, with landmarks on the faces">
</html>
"""
# What other pages may not do with this one, and what this one may.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
PART = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"


class Page:
    """Serves `/`, a page with the picture, and `/stream`, the picture itself; frames that nobody sees are not encoded.

    port 0: any that is free; `url` says which. Raises EdgeError with the system's reason if it cannot be served there.
    """

    def __init__(self, host: str = LOOPBACK, port: int = 8080) -> None:
        self._newest = _Newest()
        try:
            self._server = _Server(host, port, self._newest)
        except (OSError, OverflowError) as e:
            reason = getattr(e, "strerror", None) or e
            raise EdgeError(f"cannot serve a page on {host}:{port}: {reason}") from e
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def write(self, frame: Frame, tracked: Tracked, milliseconds: Mapping[str, float]) -> None:
        """Shows the frame to all who look. It returns at once."""
        self._newest.put(frame, tracked)

    def close(self) -> None:
        """Ends all connections."""
        self._newest.end()
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        self._thread.join()


class _Newest:
    """The newest frame, drawn and encoded once for all who look."""

    def __init__(self) -> None:
        self._changed, self._encoding = threading.Condition(), threading.Lock()
        self._frame: tuple[Frame, Tracked] | None = None
        self._number, self._ended = 0, False
        self._encoded = 0, b""

    def put(self, frame: Frame, tracked: Tracked) -> None:
        with self._changed:
            self._frame, self._number = (frame, tracked), self._number + 1
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def after(self, number: int) -> tuple[int, bytes] | None:
        """The number and the JPEG of the newest frame, as soon as it is another than `number` or AGAIN has passed.

        None if there will be no more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._number > number, AGAIN)
            self._changed.wait_for(lambda: self._ended or self._frame is not None)
        with self._encoding:
            with self._changed:
                newest, found, ended = self._number, self._frame, self._ended
            if ended or found is None:
                return None
            if newest != self._encoded[0]:
                self._encoded = newest, _jpeg(*found)
            return self._encoded


class _Server(socketserver.ThreadingTCPServer):
    """A thread for each connection, and not more of them than MOST_CLIENTS."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, newest: _Newest) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.newest = newest
        self._open, self._lock = set[socket.socket](), threading.Lock()
        super().__init__((host, port), _Client)
        self.is_loopback = ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            free = len(self._open) < MOST_CLIENTS
            if free:
                self._open.add(request)
        if free:
            super().process_request(request, client_address)
            return
        request.setblocking(False)
        with contextlib.suppress(OSError):
            request.send(b"HTTP/1.0 503 Too many look already\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients come and go. Anything else keeps its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        with self._lock:
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)


class _Client(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "pipnet-edge", ""

    def setup(self) -> None:
        super().setup()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WAITING)
        self.rfile = io.BytesIO(self._head())
        self.request.settimeout(PATIENCE)

    def _head(self) -> bytes:
        """The request, empty if it is too long or not there in time. Nobody stays who sends a byte now and then."""
        head, end = b"", time.monotonic() + PATIENCE
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            self.request.settimeout(max(0.001, end - time.monotonic()))
            try:
                more = self.request.recv(4096)
            except TimeoutError:
                return b""
            head += more
            if not more or len(head) > LONGEST_REQUEST:
                return b""
        return head

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._is_own():
            self.send_error(HTTPStatus.FORBIDDEN)
        elif path == "/":
            self._begin("text/html; charset=utf-8")
            self.wfile.write(INDEX)
        elif path == "/stream":
            self._stream()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _stream(self) -> None:
        self._begin("multipart/x-mixed-replace; boundary=frame")
        self.wfile.write(PART)
        number = 0
        while found := self.server.newest.after(number):
            number, jpeg = found
            # A browser shows a picture when it has seen the head of the next one.
            self.wfile.write(jpeg + b"\r\n" + PART)

    def _begin(self, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {"Content-Type": kind, **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()

    def _is_own(self) -> bool:
        """Whether it was asked for by an address or as localhost, where only this machine may look.

        A page of another site can give its own name the address of this machine, and read all that is served there.
        """
        if not self.server.is_loopback or "Host" not in self.headers:
            return True
        try:
            name = urlsplit(f"//{self.headers['Host']}").hostname or ""
            return name == "localhost" or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not logged: what is on the terminal is about the frames."""


def _jpeg(frame: Frame, tracked: Tracked) -> bytes:
    import cv2

    drawn = cv2.cvtColor(draw.faces(frame.picture, tracked.faces), cv2.COLOR_RGB2BGR)
    # With colours at every second pixel, as is usual, small dots are grey.
    how = cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    return cv2.imencode(".jpg", drawn, how)[1].tobytes()
