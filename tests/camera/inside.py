"""What tests do inside the guest. Each prints one JSON object.

python inside.py set "Test Pattern" 5     sets a control of the camera
python inside.py read 5 320 180           reads 5 frames, of that size if there is one
python inside.py beside COMMAND …         runs a command while it reads the camera itself
python inside.py unplug LINES COMMAND …   runs a command, and plugs the camera out when it has written some lines
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

CAMERA = "/dev/video0"
# VIDIOC_QUERYCTRL, VIDIOC_S_CTRL and V4L2_CTRL_FLAG_NEXT_CTRL of videodev2.h.
QUERY, SET, NEXT = 0xC0445624, 0xC008561C, 1 << 31


def control(name: str, value: str) -> dict[str, Any]:
    camera, number, found = os.open(CAMERA, os.O_RDWR), 0, b""
    while found[8:40].rstrip(b"\0") != name.encode():
        found = fcntl.ioctl(camera, QUERY, struct.pack("<I64x", number | NEXT))
        number = struct.unpack_from("<I", found)[0]
    fcntl.ioctl(camera, SET, struct.pack("<Ii", number, int(value)))
    return {}


def read(count: str, *size: str) -> dict[str, Any]:
    from pipnet_edge.video.source import Asked, opened

    source = opened(Asked(CAMERA, size=(int(size[0]), int(size[1])) if size else None))
    frames = list(islice(source.frames, int(count)))
    return {
        "size": [source.width, source.height],
        "is_live": source.is_live,
        "shapes": [frame.picture.shape for frame in frames],
        "times": [frame.time for frame in frames],
        "different": len({frame.picture.tobytes() for frame in frames}),
    }


def beside(*command: str) -> dict[str, Any]:
    from pipnet_edge.video.source import Asked, opened

    mine = opened(Asked(CAMERA)).frames
    next(mine)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    next(mine)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def unplug(lines: str, *command: str) -> dict[str, Any]:
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not (Path(lines).exists() and Path(lines).read_text().count("\n") > 3):
        time.sleep(0.1)
    control("Disconnect", "1")
    start = time.monotonic()
    stdout, stderr = running.communicate()
    seconds = time.monotonic() - start
    return {"status": running.returncode, "stdout": stdout, "stderr": stderr, "seconds": seconds}


if __name__ == "__main__":
    what = {"set": control, "read": read, "beside": beside, "unplug": unplug}[sys.argv[1]]
    print(json.dumps(what(*sys.argv[2:])))
