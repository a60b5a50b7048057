"""ncnn on the CPU. Crops enter through its pixel path, which also normalizes."""

from __future__ import annotations

from pathlib import Path

import ncnn
import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.spec import Input

FILES = ("model.param", "model.bin")
# The probe's model: its layers; then the tag 0 (raw float weights), the weights 1 and 2, and the bias.
TINY = (
    b"7767517\n2 2\nInput image 0 1 image 0=2 1=2 2=2\nConvolution conv 1 1 image out 0=1 1=1 5=1 6=2\n",
    np.array([0, 0x3F800000, 0x40000000, 0x3F000000], dtype="<u4").tobytes(),
)


def version() -> str:
    return f"ncnn {ncnn.__version__}"


class Session:
    """Input blob `image`; names are those of the output blobs."""

    def __init__(self, folder: Path, spec: Input, precision: str, threads: int) -> None:
        self._size = spec.size
        self._mean = [255.0 * m for m in spec.mean]
        self._scale = [1.0 / (255.0 * s) for s in spec.std]
        self._net = _load(folder / FILES[0], folder / FILES[1], PRECISIONS[precision].is_half, threads)
        if list(self._net.input_names()) != ["image"]:
            raise EdgeError(f"{folder / FILES[0]} has no input 'image'")
        self.names = list(self._net.output_names())

    def run(self, crop: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        # A Mat made from pixels is a copy, so the crop may be reused; it must be contiguous.
        image = ncnn.Mat.from_pixels(np.ascontiguousarray(crop), ncnn.Mat.PixelType.PIXEL_RGB, *self._size)
        image.substract_mean_normalize(self._mean, self._scale)
        extractor = self._net.create_extractor()
        extractor.input("image", image)
        return {name: _extract(extractor, name) for name in self.names}

    def close(self) -> None:
        self._net.clear()


def _extract(extractor: ncnn.Extractor, name: str) -> NDArray[np.float32]:
    status, mat = extractor.extract(name)
    if status:
        raise EdgeError(f"ncnn failed to compute {name!r} (status {status})")
    # The Mat dies with the extractor, so the array has to be a copy.
    return np.array(mat)


def _load(param: Path, weights: Path, half: bool, threads: int) -> ncnn.Net:
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    # ncnn turns fp16 on by itself if the CPU has it, but fp32 has to mean fp32.
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, half and "bf16" not in option)
    for load, path in ((net.load_param, param), (net.load_model, weights)):
        status = load(str(path))
        if status:
            raise EdgeError(f"ncnn cannot read {path} (status {status})")
    return net


def tiny(folder: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probe's model on a (1, C, H, W) image."""
    net = _load(folder / FILES[0], folder / FILES[1], half=False, threads=1)
    extractor = net.create_extractor()
    extractor.input("image", ncnn.Mat(image[0]).clone())
    return _extract(extractor, "out")
