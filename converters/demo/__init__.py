"""A checkpoint and faces that travel with the project: to calibrate with, and labelled ones to look at."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
CHECKPOINT, FACES, CALIBRATION = _HERE / "demo_mbv2_68.pth", _HERE / "faces", _HERE / "calibration"
