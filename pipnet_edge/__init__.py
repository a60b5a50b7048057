"""PIPNet facial landmarks on edge runtimes."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipnet_edge.bundle import Bundle
    from pipnet_edge.bundle import read as read_bundle
    from pipnet_edge.decode import Decoder, Landmarks, Maps
    from pipnet_edge.detect.detector import Detector
    from pipnet_edge.errors import EdgeError
    from pipnet_edge.landmarker import Landmarker
    from pipnet_edge.spec import MeanFace, ModelSpec
    from pipnet_edge.video.track import Rules, Tracker

__version__ = "0.1.0"

# ONNX Runtime reads this when it is imported. Without it, ONNX Runtime keeps usage data in a cache folder and can
# send them.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = [
    "Bundle",
    "Decoder",
    "Detector",
    "EdgeError",
    "Landmarker",
    "Landmarks",
    "Maps",
    "MeanFace",
    "ModelSpec",
    "Rules",
    "Tracker",
    "read_bundle",
]

_HOMES = {
    "Bundle": "bundle",
    "Decoder": "decode",
    "Detector": "detect.detector",
    "EdgeError": "errors",
    "Landmarker": "landmarker",
    "Landmarks": "decode",
    "Maps": "decode",
    "MeanFace": "spec",
    "ModelSpec": "spec",
    "Rules": "video.track",
    "Tracker": "video.track",
}


def __getattr__(name: str) -> object:
    # A name is looked up at its first use, so that the command line's --help does not wait for numpy.
    if name == "read_bundle":
        return importlib.import_module("pipnet_edge.bundle").read
    if name in _HOMES:
        return getattr(importlib.import_module(f"pipnet_edge.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
