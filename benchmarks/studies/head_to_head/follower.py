"""One way to follow a face in a clip, in a process of its own: `python follower.py JOB`, then a line for each pass.

A frame begins with the clip's file and ends with landmarks in pixels of the picture; nothing is drawn. The first line
of stdout is a JSON list, for each frame of the first pass, of the landmarks of a face, null where there is none, and
their id. Every other line is a list of the milliseconds of a pass's frames.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np

# One frame (H, W, 3) RGB at a time in seconds to landmarks (68, 2) in pixels and an id, or None.
Follow = Callable[[Any, float], tuple[Any, int] | None]

# Which of MediaPipe's 478 landmarks are about where the 68 of 300W are: jaw, brows, nose, eyes, mouth.
OF_68 = (
    *(127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356),
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),
    *(168, 197, 5, 4, 98, 97, 2, 326, 327),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
)


def ours(job: dict[str, Any]) -> Follow:
    """This project's tracker, for one face."""
    from pipnet_edge import Landmarker
    from pipnet_edge.detect.detector import Detector
    from pipnet_edge.video.track import Rules, Tracker

    landmarker = Landmarker(job["bundle"], job["variant"], job["threads"])
    detector = Detector(job["detector"], job["detector_variant"], job["threads"])
    track = Tracker(detector.find, landmarker.read, landmarker.spec, Rules.of(landmarker.spec, faces=1))

    def follow(picture: Any, at: float) -> tuple[Any, int] | None:
        faces = track(picture, at).faces
        return (faces[0].points, faces[0].id) if faces else None

    return follow


def every(job: dict[str, Any]) -> Follow:
    """Detection in every frame and no memory, as PIPNet's demo does it, on the same networks. The best box counts."""
    from pipnet_edge import Landmarker
    from pipnet_edge.detect.detector import Detector
    from pipnet_edge.video.level import upright

    landmarker = Landmarker(job["bundle"], job["variant"], job["threads"])
    detector = Detector(job["detector"], job["detector_variant"], job["threads"])
    side, margin = landmarker.spec.input_size, landmarker.spec.margin

    def follow(picture: Any, _: float) -> tuple[Any, int] | None:
        faces = detector.find(picture)
        return (landmarker.read(picture, upright(faces[0].box, side, margin)).points, 1) if faces else None

    return follow


def mediapipe(job: dict[str, Any]) -> Follow:
    """MediaPipe's Face Landmarker for one face, which it smooths. Its packages for drawing and sound are not needed."""
    sys.path.insert(0, job["mediapipe"])
    for name in ("matplotlib", "matplotlib.pyplot", "sounddevice"):
        sys.modules[name] = MagicMock()
    import mediapipe as mp  # type: ignore[import-not-found]
    from mediapipe.tasks.python import BaseOptions, vision  # type: ignore[import-not-found]

    model = BaseOptions(model_asset_path=job["model"])
    options = vision.FaceLandmarkerOptions(base_options=model, running_mode=vision.RunningMode.VIDEO, num_faces=1)
    landmarker = vision.FaceLandmarker.create_from_options(options)

    def follow(picture: Any, at: float) -> tuple[Any, int] | None:
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=picture)
        faces = landmarker.detect_for_video(image, round(at * 1000)).face_landmarks
        if not faces:
            return None
        size = picture.shape[1::-1]
        return np.array([(faces[0][i].x, faces[0][i].y) for i in OF_68]) * size, 1

    return follow


def frames(clip: str, start: float) -> Iterator[tuple[Any, float]]:
    """The clip's frames in RGB, and their times; start: of the first."""
    video = cv2.VideoCapture(clip)
    fps, count = video.get(cv2.CAP_PROP_FPS), 0
    while (read := video.read())[0]:
        yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), start + count / fps
        count += 1


def main() -> None:
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, job["cpus"])  # for what has no setting for threads
    cv2.setNumThreads(job["threads"])
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    follow = {"ours": ours, "every": every, "mediapipe": mediapipe}[job["kind"]](job)
    found = [follow(picture, at) for picture, at in frames(job["clip"], 0.0)]
    told = [None if each is None else [np.asarray(each[0], np.float64).tolist(), each[1]] for each in found]
    print(json.dumps(told), file=lines, flush=True)
    for turn, _ in enumerate(sys.stdin, 1):
        taken, passing = [], frames(job["clip"], 100.0 * turn)
        while True:
            start = time.perf_counter()
            frame = next(passing, None)
            if frame is None:
                break
            follow(*frame)
            taken.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(taken), file=lines, flush=True)


if __name__ == "__main__":
    main()
