"""Rewrites of an int8 TFLite file: it then computes exactly the same in less time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.converters.tflite.editor import Editor


def rewrite(path: Path) -> None:
    """Applies all of them to the file at `path`, each where it fits."""
    file = Editor(path)
    dequantize_pixels(file)
    pair_pixels(file)
    pool_past_the_edge(file)
    pad_with_zeros(file)
    file.save()


def pad_with_zeros(file: Editor) -> None:
    """PADV2 with the integer for zero becomes PAD, which XNNPACK has. The pool after a ReLU has such a border."""
    for operation in file.operations("PADV2"):
        image, paddings, border = map(int, operation.inputs)
        zero = file.zero_point(image)
        if zero is not None and file.values(border).tolist() == zero:
            file.change(operation, "PAD", (image, paddings))


def dequantize_pixels(file: Editor) -> None:
    """Turns pixels into floats by DEQUANTIZE with a step of one instead of CAST: XNNPACK does that on all threads."""
    for cast in file.operations("CAST"):
        pixels = int(cast.inputs[0])
        if file.kind(pixels) == np.uint8:
            for tensor in (pixels, file.before("RESHAPE", pixels)):
                file.store(tensor, np.ones(1, np.float32))
            file.change(cast, "DEQUANTIZE", (pixels,))


def pair_pixels(file: Editor) -> None:
    """Makes the first convolution read two pixels of three channels as one of six, at half the width.

    XNNPACK's int8 kernels round the channels of every tap up to eight: taps of three waste five eighths, taps of six
    only a quarter. It fits a convolution with a stride of two over a padded image of even width.
    """
    for operation in file.operations("CONV_2D"):
        weight = file.values(int(operation.inputs[1]))
        (pad,) = file.makers(int(operation.inputs[0]), "PAD") or (None,)
        options = operation.builtinOptions
        if weight.shape[3:] != (3,) or weight.dtype != np.int8 or pad is None or options.strideW != 2:
            continue
        image, borders = int(pad.inputs[0]), file.values(int(pad.inputs[1]))
        _, height, width, _ = file.shape(image)
        (left, right), reach = borders[2].tolist(), weight.shape[2]
        if width % 2 or borders[1].tolist() != [left, right] or reach != left + right + 1:
            continue
        paired, before, after = in_pairs(weight, left)
        seen = file.reshape(_quantized_flat(file, image, pad), (1, height, width // 2, 6), before=pad)
        borders = np.array([[0, 0], borders[1].tolist(), [before, after], [0, 0]], np.int32)
        file.change(
            pad, "PAD", (seen, file.constant(borders)), (1, height + left + right, width // 2 + before + after, 6)
        )
        file.replace_values(int(operation.inputs[1]), paired)
        options.strideW = 1


def _quantized_flat(file: Editor, image: int, before: Any) -> int:
    """The image. If it was reshaped and then quantized: its flat form, quantized, because int8 is reshaped faster."""
    shaped = file.before("QUANTIZE", image)
    flat = file.before("RESHAPE", shaped)
    return image if flat == shaped else file.quantize(flat, image, before)


def pool_past_the_edge(file: Editor) -> None:
    """Lets a 3x3 pool with a stride of two use SAME instead of reading a padded image, which takes a copy.

    TFLite's SAME pads both sides only if the size is odd. So the convolution before makes one row and one column more,
    at the end. Only the last windows read them, and these are cut off again. It fits a border lower than any value.
    """
    for pool in file.operations("MAX_POOL_2D"):
        size = pool.builtinOptions
        if (size.filterHeight, size.filterWidth, size.strideH, size.strideW) != (3, 3, 2, 2):
            continue
        for pad in file.makers(int(pool.inputs[0]), "PADV2"):
            image, around, border = map(int, pad.inputs)
            lowest = file.values(border).tolist() == np.iinfo(np.int8).min
            if lowest and file.values(around).tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]:
                _one_more(file, image, pool)


def _one_more(file: Editor, image: int, pool: Any) -> None:
    """Makes a padded convolution give one row and column more, if this image is of even size and only for the pool."""
    _, height, width, channels = file.shape(image)
    if len(file.readers(image)) > 1 or height % 2 or width % 2:
        return
    for layer in file.makers(image, "CONV_2D"):
        for edge in file.makers(int(layer.inputs[0]), "PAD"):
            source, borders = int(edge.inputs[0]), file.values(int(edge.inputs[1])).copy()
            kernel, step = file.shape(int(layer.inputs[1]))[1:3], layer.builtinOptions
            _, high, wide, depth = file.shape(source)
            needed = kernel[0] + step.strideH * height, kernel[1] + step.strideW * width
            borders[1:3, 1] = needed[0] - high - borders[1, 0], needed[1] - wide - borders[2, 0]
            file.change(edge, "PAD", (source, file.constant(borders)), (1, *needed, depth))
            file.reshape_in_place(image, (1, height + 1, width + 1, channels))
            file.pool_and_cut(pool, image)


def in_pairs(weight: NDArray[np.int8], left: int) -> tuple[NDArray[np.int8], int, int]:
    """Turns a weight (out, height, width, 3), which starts `left` pixels before every second one, into one over pairs.

    Returns a weight (out, height, pairs, 6) and how many pairs lie before and after the one with that pixel.
    """
    out, height, width, channels = weight.shape
    before, after = -(-left // 2), (width - 1 - left) // 2
    pairs = before + 1 + after
    paired = np.zeros((out, height, 2 * pairs, channels), weight.dtype)
    first = 2 * before - left
    paired[:, :, first : first + width] = weight
    return paired.reshape(out, height, pairs, 2 * channels), before, after
