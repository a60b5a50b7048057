"""Crops on an emulated board: the pixels of this machine, and nothing read that is not the picture's."""

from __future__ import annotations

import platform
import subprocess
import sys

from pipnet_edge.targets.emulated.emulator import Emulator

# Prints a hash of many crops. The pictures end where memory ends: reading on would kill the process, as OpenCV's own
# resize does for the first of these rectangles.
CROPS = """
import ctypes, hashlib, mmap, platform
import numpy as np
from pipnet_edge.preprocess import Rect, cut
size = 1 << 20
memory = mmap.mmap(-1, size + 65536)
end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(65536), 0) == 0
random, crops = np.random.default_rng(0), hashlib.sha256()
sizes = [(257, 257), (258, 264), (300, 260), (512, 512), *random.integers(20, 560, (20, 2)).tolist()]
for height, width in sizes:
    bytes_of_it = height * width * 3
    picture = np.frombuffer(memory, np.uint8, bytes_of_it, size - bytes_of_it).reshape(height, width, 3)
    picture[:] = random.integers(0, 256, picture.shape, dtype=np.uint8)
    for left, top in ((0, 0), (5, 2)):
        crops.update(cut(picture, Rect(left, top, width, height), 256))
print(platform.machine(), crops.hexdigest())
"""


def test_crops_are_those_of_this_machine(emulator: Emulator) -> None:
    here = subprocess.run([sys.executable, "-c", CROPS], capture_output=True, text=True, timeout=60, check=True)
    with emulator.environment() as environment:
        command = [*emulator.python("cortex-a72"), "-c", CROPS]
        board = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (board.returncode, board.stdout) == (0, here.stdout.replace(platform.machine(), "aarch64")), board.stderr
