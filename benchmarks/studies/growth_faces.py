"""Several faces in one picture: the time per face of each way to find all landmarks.

`python -m pipnet_edge.benchmarks.studies.growth_faces` reads a job on stdin, {"bundle", "variant", "batched", "faces",
"threads", "rounds"}, and writes a JSON list of {"way", "faces", "threads", "ms"}. Ways take turns in one process. All
begin with a picture in memory and end with landmarks:

    loop      one session with all threads, one face after the other
    batch     one session, all faces at once: ONNX Runtime only, with the network for any number of crops at `batched`
    sessions  one Python thread per thread, each with a session of its own on one thread
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge import host, runtimes
from pipnet_edge.bundle import Bundle
from pipnet_edge.decode import outputs
from pipnet_edge.preprocess import Rect, cut

Picture = NDArray[np.uint8]
# (A picture, rectangles of the faces in it) -> landmarks (faces, L, 2), normalised to each face's rectangle.
Way = Callable[[Picture, Sequence[Rect]], NDArray[np.float32]]


def picture_of(crops: NDArray[np.uint8], faces: int) -> tuple[Picture, list[Rect]]:
    """A picture with several faces side by side, each 1.5 times as large as the crops (n, S, S, 3), and rectangles."""
    import cv2

    side, margin = crops.shape[1], crops.shape[1] // 4
    large = side * 3 // 2
    each = [np.asarray(cv2.resize(crops[i % len(crops)], (large, large)), np.uint8) for i in range(faces)]
    padded = [np.pad(face, ((margin, margin), (margin, margin), (0, 0))) for face in each]
    step = large + 2 * margin
    rects = [Rect(i * step + margin, margin, i * step + margin + large, margin + large) for i in range(faces)]
    return np.concatenate(padded, axis=1), rects


def ways(bundle: Bundle, variant: str, threads: int, batched: Path | None) -> Iterator[tuple[str, Way]]:
    """The ways to use a number of threads, by name. Each keeps its sessions as long as it lives."""
    yield "loop", _loop(bundle, variant, threads)
    if batched:
        yield "batch", _batch(bundle, variant, threads, batched)
    if threads > 1:
        yield "sessions", _sessions(bundle, variant, threads)


def _loop(bundle: Bundle, variant: str, threads: int) -> Way:
    session, decode, side = bundle.open_session(variant, threads), bundle.decoder(variant), bundle.spec.input_size

    def locate(picture: Picture, rects: Sequence[Rect]) -> NDArray[np.float32]:
        # One face's maps are decoded before the next face is run, because a runtime may reuse their memory.
        return np.stack([decode(session.run(cut(picture, rect, side))).points for rect in rects])

    return locate


def _batch(bundle: Bundle, variant: str, threads: int, batched: Path) -> Way:
    adapter = runtimes.adapter("onnx")
    options = adapter.onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = adapter.onnxruntime.InferenceSession(str(batched), options, providers=[adapter.CPU])
    names = [output.name for output in session.get_outputs()]
    decode, spec = bundle.decoder(variant), bundle.spec
    kind = outputs(names, spec)

    def locate(picture: Picture, rects: Sequence[Rect]) -> NDArray[np.float32]:
        crops = np.stack([cut(picture, rect, spec.input_size) for rect in rects])
        found = session.run(names, {"crop": crops})
        each = (kind.from_outputs(dict(zip(names, one, strict=True)), spec) for one in zip(*found, strict=True))
        return np.stack([decode(maps).points for maps in each])

    return locate


def _sessions(bundle: Bundle, variant: str, threads: int) -> Way:
    alone = [_loop(bundle, variant, 1) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def locate(picture: Picture, rects: Sequence[Rect]) -> NDArray[np.float32]:
        shares = [rects[i::threads] for i in range(threads)]
        given = [(way, share) for way, share in zip(alone, shares, strict=True) if share]
        parts = pool.map(lambda both: both[0](picture, both[1]), given)
        points = np.empty((len(rects), bundle.spec.num_lms, 2), np.float32)
        for i, part in enumerate(parts):
            points[i::threads] = part
        return points

    return locate


def measure(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Milliseconds per face, one number per round, of every way with every number of faces and threads."""
    import cv2

    cv2.setNumThreads(1)
    bundle = bundles.read(Path(job["bundle"]))
    batched = Path(job["batched"]) if job["batched"] else None
    crops, _ = bundle.read_golden()
    pictures = {faces: picture_of(crops, faces) for faces in job["faces"]}
    entries = [
        ({"way": name, "faces": faces, "threads": threads, "ms": []}, way)
        for threads in job["threads"]
        for name, way in ways(bundle, job["variant"], threads, batched)
        for faces in pictures
    ]
    for turn in range(job["rounds"] + 1):
        # Forwards and backwards, so that no way always follows the same one.
        for row, way in entries if turn % 2 else reversed(entries):
            given = pictures[row["faces"]]
            way(*given)  # threads of the previous way may still spin
            start = time.perf_counter()
            way(*given)
            if turn:  # the first round only warms up
                row["ms"].append(round((time.perf_counter() - start) * 1e3 / row["faces"], 4))
    return [row for row, _ in entries]


def main() -> None:
    job = json.load(sys.stdin)
    host.pin(host.big_cpus(max(job["threads"])), max(job["threads"]))
    print(json.dumps(measure(job)))


if __name__ == "__main__":
    main()
