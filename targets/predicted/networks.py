"""The cost of the classifiers whose speed is published, from their architectures: 1000 classes, INPUT_PX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pipnet_edge.targets.predicted.cost import Cost, Layer, convolution, dense, other

INPUT_PX = 224
# MobileNetV2: expansion, output channels, repeats, stride of the first.
V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# MobileNetV3-Large: kernel, expanded channels, output channels, squeeze-and-excitation, hard swish, stride.
V3_START = ((3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1))
V3_MIDDLE = (
    *((5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1)),
    *((3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1)),
    *((3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1)),
)
V3_END = ((5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1))
# ncnn's benchmark kept the first published draft: its stage of 160 channels stays at double size for one more block.
V3_DRAFT_END = ((5, 672, 160, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1))
V3_LARGE = (*V3_START, *V3_MIDDLE, *V3_END)
V3_SMALL = (
    *((3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1)),
    *((5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1)),
    *((5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1)),
)


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> Cost:
    """ResNet18 is (2, 2, 2, 2), ResNet50 (3, 4, 6, 3) with bottlenecks (stride in the 3x3)."""
    return Cost((*_resnet(blocks, bottleneck), *_classifier(2048 if bottleneck else 512)))


def _resnet(blocks: tuple[int, ...], bottleneck: bool) -> Iterator[Layer]:
    yield convolution(3, 64, 7, INPUT_PX // 2, 2)
    size = INPUT_PX // 4
    yield other(64 * size * size * 5)
    channels = 64
    for stage, repeats in enumerate(blocks):
        width = 64 << stage
        out = 4 * width if bottleneck else width
        for block in range(repeats):
            stride = 2 if stage and not block else 1
            size //= stride
            if bottleneck:
                yield convolution(channels, width, 1, size * stride)
                yield convolution(width, width, 3, size, stride)
                yield convolution(width, out, 1, size)
            else:
                yield convolution(channels, width, 3, size, stride)
                yield convolution(width, width, 3, size)
            if channels != out:
                yield convolution(channels, out, 1, size, stride)
            yield other(3 * out * size * size)
            channels = out


def _classifier(channels: int) -> Iterator[Layer]:
    yield other(channels * 7 * 7)
    yield dense(channels, 1000)


def mobilenet_v1() -> Cost:
    return Cost((*_mobilenet_v1(), *_classifier(1024)))


def _mobilenet_v1() -> Iterator[Layer]:
    size = INPUT_PX // 2
    yield convolution(3, 32, 3, size, 2)
    channels = 32
    for out, stride in (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ):
        size //= stride
        yield convolution(channels, channels, 3, size, stride, channels)
        yield convolution(channels, out, 1, size)
        channels = out


def mobilenet_v2(first_expansion: bool = False) -> Cost:
    """first_expansion: the first block has a 1x1 convolution of 32 to 32 channels, as in ncnn's benchmark."""
    return Cost((*_mobilenet_v2(first_expansion), *_classifier(1280)))


def _mobilenet_v2(first_expansion: bool) -> Iterator[Layer]:
    size = INPUT_PX // 2
    yield convolution(3, 32, 3, size, 2)
    channels = 32
    for expansion, out, repeats, first_stride in V2:
        for block in range(repeats):
            stride, wide = (first_stride if not block else 1), expansion * channels
            if expansion > 1 or first_expansion:
                yield convolution(channels, wide, 1, size)
            size //= stride
            yield convolution(wide, wide, 3, size, stride, wide)
            yield convolution(wide, out, 1, size)
            if channels == out and stride == 1:
                yield other(3 * out * size * size)
            channels = out
    yield convolution(channels, 1280, 1, size)


def mobilenet_v3(blocks: tuple[tuple[int, ...], ...], last: int, top: int) -> Cost:
    """last: channels of the last convolution; top: of the dense layer before the classes."""
    return Cost((*_mobilenet_v3(blocks, last), other(last * 7 * 7), dense(last, top), dense(top, 1000)))


def _mobilenet_v3(blocks: tuple[tuple[int, ...], ...], last: int) -> Iterator[Layer]:
    size = INPUT_PX // 2
    yield convolution(3, 16, 3, size, 2)
    yield other(2 * 16 * size * size)
    channels = 16
    for kernel, wide, out, excitation, swish, stride in blocks:
        if wide != channels:
            yield convolution(channels, wide, 1, size)
            if swish:
                yield other(2 * wide * size * size)
        size //= stride
        yield convolution(wide, wide, kernel, size, stride, wide)
        if excitation:
            yield other(3 * wide * size * size)
            yield dense(wide, wide // 4)
            yield dense(wide // 4, wide)
        if swish:
            yield other(2 * wide * size * size)
        yield convolution(wide, out, 1, size)
        if channels == out and stride == 1:
            yield other(3 * out * size * size)
        channels = out
    yield convolution(channels, last, 1, size)
    yield other(2 * last * size * size)


# Name in speeds.csv -> cost. ncnn's own MobileNetV2 and V3 differ from the published ones.
NETWORKS: Mapping[str, Callable[[], Cost]] = {
    "resnet18": lambda: resnet((2, 2, 2, 2), False),
    "resnet50": lambda: resnet((3, 4, 6, 3), True),
    "mobilenet": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": lambda: mobilenet_v3(V3_LARGE, 960, 1280),
    "mobilenet_v3_small": lambda: mobilenet_v3(V3_SMALL, 576, 1024),
    "mobilenet_v2_ncnn": lambda: mobilenet_v2(first_expansion=True),
    "mobilenet_v3_ncnn": lambda: mobilenet_v3((*V3_START, *V3_MIDDLE, *V3_DRAFT_END), 960, 1280),
}
