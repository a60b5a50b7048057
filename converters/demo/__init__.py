"""A checkpoint and faces that come with the project: some to calibrate with, and some with labels to look at."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
CHECKPOINT, FACES, CALIBRATION = _HERE / "demo_mbv2_68.pth", _HERE / "faces", _HERE / "calibration"
