"""The Raspberry Pi's own camera, where the system has the package picamera2."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import numpy as np

from pipnet_edge.errors import EdgeError
from pipnet_edge.video.source import Asked, Footage, Frame, check_size

NAME, SIZE = "camera picamera2", (640, 480)


def camera(asked: Asked) -> Footage:
    """The first camera. Raises EdgeError if there is none, and where picamera2 is not installed."""
    try:
        import picamera2
    except ImportError as e:
        instead = "`rpicam-vid --codec mjpeg -t 0 -o - | pipnet-edge track -` needs no package"
        raise EdgeError(f"picamera2 cannot be imported ({e}); {instead}") from None
    try:
        device: Any = picamera2.Picamera2()
    except (RuntimeError, IndexError) as e:  # it has no class of errors
        raise EdgeError(f"picamera2 opens no camera: {e}") from None
    # Its names of formats go from the last byte to the first: BGR888 is red, green, blue in memory.
    main = {"size": asked.size or SIZE, "format": "BGR888"}
    controls = {"FrameRate": asked.fps} if asked.fps else {}
    device.configure(device.create_video_configuration(main=main, controls=controls))
    width, height = device.camera_configuration()["main"]["size"]
    check_size(NAME, width, height)
    device.start()

    def frames() -> Generator[Frame, None, None]:
        index, first = 0, time.monotonic()
        try:
            while True:
                picture = np.ascontiguousarray(device.capture_array("main")[:, :, :3], dtype=np.uint8)
                yield Frame(picture, time.monotonic() - first if index else 0.0, index)
                first = time.monotonic() if not index else first
                index += 1
        finally:
            device.stop()
            device.close()

    return Footage(NAME, width, height, asked.fps, None, True, frames())
