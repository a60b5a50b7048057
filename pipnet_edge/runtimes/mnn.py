"""MNN on the CPU. Crops enter through its image process, which also normalizes."""

from __future__ import annotations

from pathlib import Path

import MNN
import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.precisions import PRECISIONS
from pipnet_edge.spec import Input

FILES = ("model.mnn",)
# The probe's model as the converters make it, packed as runtimes/probe.py says.
TINY = (
    "c-n<hy-or_5dQW+?<B+!f{BF%F~m@Cgu@G9BZkV-H@JA`ouN<&!Crd{AHae~u<((5221gqy**tCiIaSp-"
    "P!s5W}5(x(1J%@MGXz?U>Aq9xwJH?MM`*gfLCJ0+cPmjE@h%c4Ek}Lj`~AC>ji-yhDqw5Wy2dk4dWo`C%qudlEVLjXcIMaFA=kcC"
    "H8Y2MRA(V7HPCxK-"
    ";Ew*SBdD@g9mBJ2W<GwUI;4FEqA^EA#gGwO#`gB|UeD1|jo4nRtoaR{KN8IogM#<9sdmJ@vMcr)u&zRv$ox^OgBt<q5d7=2ba$V@"
    "IpUaZbqzLhUU(5dNFwwM?Em=;@t^xb*rf>K{1P8K^U_$6Q4fmllzUlAVNGxKY@?15f91wXc*>KONPX7kn#bDQX-"
    "jo3rCz9;|%|XA<XX&R~3%#hYV6IQGmhtQa53b=n<t1Kk5KpU&@7_WKP?{YJL",
)


def version() -> str:
    return f"MNN {MNN.version()}"


class Session:
    """Input `image`; names are those of the outputs. MNN's NC4HW4 tensors are read as NCHW."""

    def __init__(self, folder: Path, spec: Input, precision: str, threads: int) -> None:
        self._size = spec.size
        self._interpreter, self._session = _open(folder / FILES[0], PRECISIONS[precision].is_half, threads)
        inputs = self._interpreter.getSessionInputAll(self._session)
        if set(inputs) != {"image"}:
            raise EdgeError(f"{folder / FILES[0]} has no input 'image'")
        self._input = inputs["image"]
        self._outputs = self._interpreter.getSessionOutputAll(self._session)
        self.names = list(self._outputs)
        self._host = {name: _nchw(tensor) for name, tensor in self._outputs.items()}
        mean, scale = [255.0 * m for m in spec.mean], [1.0 / (255.0 * s) for s in spec.std]
        self._process = MNN.CVImageProcess(
            {
                "filterType": MNN.CV_Filter_NEAREST,
                "sourceFormat": MNN.CV_ImageFormat_RGB,
                "destFormat": MNN.CV_ImageFormat_RGB,
                "mean": (*mean, 0.0),
                "normal": (*scale, 1.0),
            }
        )

    def run(self, crop: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self._process.convert(np.ascontiguousarray(crop), *self._size, 0, self._input)
        status = self._interpreter.runSession(self._session)
        if status:
            raise EdgeError(f"MNN failed to run (status {status})")
        found = {}
        for name, tensor in self._outputs.items():
            tensor.copyToHostTensor(self._host[name])
            # The host tensor is overwritten by the next run.
            found[name] = np.array(self._host[name].getNumpyData())
        return found

    def close(self) -> None:
        del self._session, self._interpreter


def _open(path: Path, half: bool, threads: int) -> tuple[MNN.Interpreter, MNN.Session]:
    interpreter = MNN.Interpreter(str(path))
    config = {"numThread": threads, "backend": "CPU", "precision": "low" if half else "high"}
    return interpreter, interpreter.createSession(config)


def _nchw(like: MNN.Tensor) -> MNN.Tensor:
    shape = like.getShape()
    return MNN.Tensor(shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), MNN.Tensor_DimensionType_Caffe)


def tiny(folder: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probe's model on a (1, C, H, W) image."""
    interpreter, session = _open(folder / FILES[0], half=False, threads=1)
    given = MNN.Tensor(image.shape, MNN.Halide_Type_Float, image, MNN.Tensor_DimensionType_Caffe)
    interpreter.getSessionInput(session, "image").copyFrom(given)
    interpreter.runSession(session)
    output = interpreter.getSessionOutput(session, "out")
    host = _nchw(output)
    output.copyToHostTensor(host)
    return np.array(host.getNumpyData())
