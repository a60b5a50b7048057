"""Sources for tests: a face that the null runtime keeps, video files with it, and an MJPEG camera on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import map_shapes
from pipnet_edge.spec import MeanFace, ModelSpec

Picture = NDArray[np.uint8]

# The square around these, 1.2 times their box, is the whole crop: who is cut by them is cut there again.
SHAPE = np.array([[0.25, 0.3], [0.75, 0.3], [0.5, 0.5], [1 / 12, 1 / 12], [11 / 12, 11 / 12]])
FACE = MeanFace("five", tuple((x, y) for x, y in SHAPE.tolist()), (0, 1))
SPEC = ModelSpec("resnet18", 5, 0, 32, 96, FACE, presence=0.25)
SCORE = 0.75
# Where the face is in a frame, left, top and side in pixels, and the box of its landmarks.
LEFT, TOP, SIDE = 200, 120, 192
POINTS = SHAPE * SIDE + [LEFT, TOP]
BOX = ",".join(f"{value:g}" for value in (LEFT + SIDE / 12, TOP + SIDE / 12, SIDE / 1.2, SIDE / 1.2))


def steady(make_bundle: Callable[..., Bundle], folder: Path, spec: ModelSpec = SPEC) -> Bundle:
    """A bundle for the null runtime that finds SHAPE in golden crop 0, nobody in 1, and SHAPE moved a little in 2."""
    maps = {name: np.zeros((3, *shape), np.float32) for name, shape in map_shapes(spec).items()}
    for landmark, (x, y) in enumerate(SHAPE * spec.grid):
        at = (slice(None), landmark, int(y), int(x))
        maps["score"][at] = SCORE
        maps["offset_x"][at], maps["offset_y"][at] = x - int(x), y - int(y)
    maps["score"][1] /= 10
    maps["offset_x"][2] += 0.05
    return make_bundle(folder, spec, maps=maps)


def frame(bundle: Bundle, golden: int = 0, width: int = 640, height: int = 480) -> Picture:
    """(height, width, 3) uint8 RGB: a golden crop of the bundle, on grey."""
    picture = np.full((height, width, 3), 128, np.uint8)
    crop = bundle.read_golden()[0][golden]
    picture[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = crop.repeat(2, axis=0).repeat(2, axis=1)
    return picture


def write(path: Path, pictures: list[Picture], codec: str, fps: float = 30) -> Path:
    """A video file, written by OpenCV itself."""
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(picture[:, :, ::-1])
    writer.release()
    return path


def cut(path: Path, part: float) -> Path:
    """A copy of a file that ends early."""
    content = path.read_bytes()
    shorter = path.with_stem(f"{path.stem}-cut")
    shorter.write_bytes(content[: int(len(content) * part)])
    return shorter


# --- A camera: JPEGs over HTTP, each with the time at which it was taken.

BITS, WIDE = 24, 16


def stamped(picture: Picture, milliseconds: int) -> Picture:
    """The picture with a time in black and white squares along its upper edge."""
    picture = picture.copy()
    for bit in range(BITS):
        picture[:WIDE, bit * WIDE : (bit + 1) * WIDE] = 255 * (milliseconds >> bit & 1)
    return picture


def stamp(picture: Picture) -> int:
    """The milliseconds in a stamped picture."""
    middles = picture[WIDE // 2, WIDE // 2 : BITS * WIDE : WIDE].mean(axis=-1)
    return sum(int(middle > 127) << bit for bit, middle in enumerate(middles))


def now() -> int:
    return int(time.monotonic() * 1e3) % (1 << BITS)


class Camera(BaseHTTPRequestHandler):
    """30 frames a second. After 30 of them it does what its path says: hang, drop, resize; cut: each fifth is cut."""

    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for jpeg in self._jpegs(self.path.strip("/")):
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
        except OSError:
            pass  # who looked has gone

    def _jpegs(self, how: str) -> Iterator[bytes]:
        start, index = time.monotonic(), 0
        if how == "silent":
            self.server.over.wait(60)
        while not self.server.over.is_set() and (how != "drop" or index < 30):
            picture = stamped(self.server.picture, now())
            if how == "hang" and index == 30:
                self.server.over.wait(60)
            if how == "resize" and index >= 30:
                picture = picture[: len(picture) // 2]
            jpeg = cv2.imencode(".jpg", picture[:, :, ::-1])[1].tobytes()
            yield jpeg[: len(jpeg) // 3] if how == "cut" and index % 5 == 4 else jpeg
            index += 1
            self.server.over.wait(max(0.0, start + index / 30 - time.monotonic()))


@contextmanager
def camera(picture: Picture) -> Iterator[str]:
    """The URL of a camera that sees a picture."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads, server.picture, server.over = True, picture, threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
