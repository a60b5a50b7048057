"""Crops on an emulated board: nearly the pixels of this machine, and nothing read that is not the picture's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from pipnet_edge.preprocess import LEVELS
from pipnet_edge.targets.emulated.emulator import Emulator

# Writes many crops. The pictures end where memory ends: reading on would kill the process, as OpenCV's own resize does
# for the first of these rectangles.
CROPS = """
import ctypes, mmap, sys
import numpy as np
from pipnet_edge.preprocess import Rect, cut
size = 1 << 20
memory = mmap.mmap(-1, size + 65536)
end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(65536), 0) == 0
random, crops = np.random.default_rng(0), []
sizes = [(257, 257), (258, 264), (300, 260), (512, 512), *random.integers(20, 560, (20, 2)).tolist()]
for height, width in sizes:
    bytes_of_it = height * width * 3
    picture = np.frombuffer(memory, np.uint8, bytes_of_it, size - bytes_of_it).reshape(height, width, 3)
    picture[:] = random.integers(0, 256, picture.shape, dtype=np.uint8)
    for left, top in ((0, 0), (5, 2)):
        crops.append(cut(picture, Rect(left, top, width, height), 256))
np.save(sys.argv[1], np.stack(crops))
"""


def test_crops_are_nearly_those_of_this_machine(emulator: Emulator, tmp_path: Path) -> None:
    here, there = tmp_path / "here.npy", tmp_path / "there.npy"
    subprocess.run([sys.executable, "-c", CROPS, here], timeout=60, check=True)
    with emulator.environment() as environment:
        command = [*emulator.python("cortex-a72"), "-c", CROPS, there]
        board = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert board.returncode == 0, board.stderr
    apart = np.abs(np.load(here).astype(int) - np.load(there))
    print(f"at most {apart.max()} levels, on {(apart > 0).mean():.1%} of all values")
    assert apart.max() <= LEVELS
    assert (apart > 0).mean() < 0.25


# Cuts the vectors of level crops, whose SHA-256 they hold, from pictures that end where memory ends too.
LEVEL_CROPS = """
import ctypes, hashlib, json, mmap, sys
import numpy as np
from pipnet_edge.video.level import LevelCrop, cut_level
size = 1 << 21
memory = mmap.mmap(-1, size + 65536)
end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(65536), 0) == 0
for case in json.loads(sys.stdin.read())["cut"]:
    height, width = case["height"], case["width"]
    count = height * width * 3
    picture = np.frombuffer(memory, np.uint8, count, size - count).reshape(height, width, 3)
    picture[:] = (np.arange(count) * 2654435761 % (1 << 32) >> 24).reshape(picture.shape)
    found = cut_level(picture, LevelCrop(*case["crop"], case["side"]))
    assert hashlib.sha256(found.tobytes()).hexdigest() == case["sha256"], case
print("all alike")
"""


def test_level_crops_are_the_very_same(emulator: Emulator) -> None:
    vectors = Path(__file__).resolve().parents[1] / "golden" / "video" / "level.json"
    with emulator.environment() as environment:
        command = [*emulator.python("cortex-a72"), "-c", LEVEL_CROPS]
        text = vectors.read_text()
        board = subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, timeout=300, check=False
        )
    assert board.returncode == 0, board.stderr
    assert board.stdout == "all alike\n"
