"""The library's front door: pictures in, landmarks out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pipnet_edge import bundle as bundles
from pipnet_edge.decode import Landmarks
from pipnet_edge.defaults import choose
from pipnet_edge.preprocess import Box, Rect, check_pixels, crop_rect, cut
from pipnet_edge.video.level import LevelCrop, cut_level
from pipnet_edge.video.track import Reading


class Landmarker:
    """One variant of a bundle, loaded.

        with Landmarker("bundle", "ncnn-fp32", threads=4) as landmarker:
            points = landmarker.locate(picture, boxes=[(40, 60, 200, 200)])

    If variant or threads is not given, it is what `bench --tune` found for this machine (the attributes `variant` and
    `threads` say what is used). If the bundle was never tuned for it, or cannot run here as tuned, it is the installed
    variant that is likely fastest on this CPU (see pipnet_edge.fastest) and 1 thread. More threads than this process
    may use CPUs are cut to them. The process is not kept to the CPUs that tuning found: its program chooses them.

    It runs in this process. A model file that crashes its runtime ends the process too; the command line runs a worker
    to avoid that.
    """

    def __init__(self, bundle: str | Path, variant: str | None = None, threads: int | None = None) -> None:
        opened = bundles.read(Path(bundle))
        chosen = choose(opened, variant, threads, otherwise=1)
        self.spec, self.variant, self.threads = opened.spec, chosen.variant, chosen.threads
        self._session = opened.open_session(chosen.variant, chosen.threads)
        self._decode = opened.decoder(chosen.variant)

    def crop(self, crop: NDArray[np.uint8]) -> Landmarks:
        """Landmarks of one (S, S, 3) uint8 RGB crop, normalised to it. Raises EdgeError for any other array."""
        return self._decode(self._session.run(crop))

    def locate(
        self, picture: NDArray[np.uint8], boxes: Sequence[Box] = (), policy: str | None = None
    ) -> NDArray[np.float32]:
        """Landmarks (faces, L, 2) in pixels (x, y) of an (H, W, 3) uint8 RGB picture, one face for each box.

        Without boxes the whole picture is the crop. policy: the crop policy; by default the network's own. Raises
        EdgeError for any other array, and for boxes outside the picture.
        """
        check_pixels("picture", picture)
        height, width = picture.shape[:2]
        rects = [crop_rect(box, width, height, policy or self.spec.crop) for box in boxes] or [
            Rect(0, 0, width, height)
        ]
        faces = [rect.to_picture(self.crop(cut(picture, rect, self.spec.input_size)).points) for rect in rects]
        return np.stack(faces)

    def read(self, picture: NDArray[np.uint8], crop: LevelCrop) -> Reading:
        """Landmarks and their mean score in one level crop of an (H, W, 3) uint8 RGB picture, in the picture's pixels.

        Raises EdgeError for any other array, and for a crop whose middle lies outside the picture.
        """
        return Reading.of(self.crop(cut_level(picture, crop)), crop)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Landmarker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
