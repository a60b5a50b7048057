"""YuNet, the face detector that OpenCV runs itself (cv2.FaceDetectorYN), from its ONNX file in OpenCV's model zoo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.detect.boxes import Faces, Found
from pipnet_edge.detect.spec import Margins, check_threshold
from pipnet_edge.errors import EdgeError
from pipnet_edge.files import opened
from pipnet_edge.preprocess import check_pixels
from pipnet_edge.words import one_line

THRESHOLD, OVERLAP, MOST = 0.6, 0.3, 750
LARGEST = 64 << 20  # bytes of a file
# Its boxes lie about faces as FaceBoxesV2's do: measured.
MARGINS = Margins(left=0.03, top=-0.2, right=0.03, bottom=0.03)


class Yunet:
    """A YuNet, loaded. threshold: another than the usual one. Raises EdgeError for a file that OpenCV refuses."""

    margins = MARGINS

    def __init__(self, path: Path, threshold: float | None = None) -> None:
        import cv2

        self.version = f"YuNet, OpenCV {cv2.__version__}"
        threshold = THRESHOLD if threshold is None else threshold
        check_threshold(threshold)
        try:
            with opened(path, LARGEST) as file:
                content = np.frombuffer(file.read(), np.uint8)
        except OSError as e:
            raise EdgeError(f"{path} is not readable: {e.strerror}") from None
        try:
            self._net = cv2.FaceDetectorYN.create(
                "onnx", content, np.empty(0, np.uint8), (320, 320), threshold, OVERLAP, MOST
            )
            # What is no YuNet shows only when it runs.
            self._net.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error as e:
            raise EdgeError(f"{path} is no YuNet that OpenCV can read: {one_line(e)}") from e

    def faces(self, picture: NDArray[np.uint8]) -> Faces:
        """Boxes in an (H, W, 3) uint8 RGB picture. Raises EdgeError for any other array."""
        import cv2

        check_pixels("picture", picture)
        self._net.setInputSize((picture.shape[1], picture.shape[0]))
        _, rows = self._net.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        found = np.zeros((0, 15)) if rows is None else np.asarray(rows, np.float64)
        return Faces(found[:, :4], np.clip(found[:, -1], 0, 1))

    def find(self, picture: NDArray[np.uint8]) -> tuple[Found, ...]:
        """The faces, with the boxes that their landmarks should fill."""
        return self.faces(picture).found(MARGINS)

    def close(self) -> None: ...
