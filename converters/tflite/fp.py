"""The TFLite variants, made by litert-torch from the torch network.

litert-torch imports JAX and prints a lot, so it runs as a child process: `python -m
pipnet_edge.converters.tflite.fp NET OUT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from pipnet_edge.converters import tool
from pipnet_edge.converters.core import Core
from pipnet_edge.spec import Input

TOOLS = ("litert-torch", "ai-edge-quantizer")

# Modules whose classes name tensors: what they are called in the files.
NAMED = {
    "pipnet_edge.converters.tflite.fp": "pipnet_edge.converters.tflite",
    "pipnet_edge.converters.checkpoint.nets": "pipnet_edge.converters.nets",
}


class FromCrop(nn.Module):
    """The network with the uint8 crop (1, H, W, 3) as input and named outputs, as the signature shows them.

    Features are channels last, as TFLite computes them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, spec: Input, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.outputs = net, outputs
        self.size = spec.size
        # As long as a row: XNNPACK is slow when it broadcasts three values.
        self.register_buffer("mean", torch.tensor([255.0 * m for m in spec.mean]).repeat(self.size[0]))
        self.register_buffer("scale", torch.tensor([1.0 / (255.0 * s) for s in spec.std]).repeat(self.size[0]))

    def forward(self, crop: Tensor) -> dict[str, Tensor]:
        rows = (crop.reshape(1, self.size[1], -1).float() - self.mean) * self.scale
        image = rows.reshape(crop.shape).permute(0, 3, 1, 2)
        found = dict(zip(self.outputs, self.net(image), strict=True))
        return {name: value.permute(0, 2, 3, 1) if name == "features" else value for name, value in found.items()}


def convert(core: Core, precision: str, folder: Path) -> None:
    """Writes `model.tflite` into `folder`: a signature from `crop` to the outputs; fp16 has half-precision weights."""
    work = core.work("tflite")
    single, model = to_float(core), folder / "model.tflite"
    if precision == "fp32":
        model.write_bytes(single.read_bytes())
    else:
        command = [*tool.PYTHON, "-m", __name__, str(single), str(model)]
        tool.run("ai-edge-quantizer", command, work, makes=(model,))


def to_float(core: Core) -> Path:
    """The fp32 file in the scratch folder, made when it is first asked for."""
    work = core.work("tflite")
    saved, single = work / "net.pt", work / "fp32.tflite"
    if not single.is_file():
        torch.save(FromCrop(core.net, core.spec, core.outputs).eval(), saved)
        command = [*tool.PYTHON, "-m", __name__, str(saved), str(single)]
        tool.run("litert-torch", command, work, makes=(single,))
    return single


def _from_torch(saved: Path, model: Path) -> None:
    import litert_torch

    # This is our own file, just written into a private folder. It holds a module, so weights_only is off.
    module = torch.load(saved, weights_only=False)
    _name_as_ever(module)
    crop = torch.zeros((1, *module.size[::-1], 3), dtype=torch.uint8)
    litert_torch.convert(module, sample_kwargs={"crop": crop}).export(str(model))


def _name_as_ever(module: nn.Module) -> None:
    """Tensors are named after the classes of layers and their modules. Files stay the same when a class moves."""
    for kind in {type(layer) for layer in module.modules()}:
        if kind.__module__ in NAMED:
            kind.__module__ = NAMED[kind.__module__]


def _to_half(single: Path, model: Path) -> None:
    from ai_edge_quantizer import qtyping, quantizer

    cast = quantizer.Quantizer(str(single))
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    names = qtyping.TFLOperationName
    for operation in (names.CONV_2D, names.DEPTHWISE_CONV_2D, names.CONV_2D_TRANSPOSE):
        cast.update_quantization_recipe(".*", operation, config, algorithm_key="float_casting")
    model.write_bytes(cast.quantize().quantized_model)


if __name__ == "__main__":
    given, made = map(Path, sys.argv[1:])
    (_to_half if given.suffix == ".tflite" else _from_torch)(given, made)
