"""Rounds weights to an int8 grid, once for all runtimes that have it, so that the network's outputs change least.

Two copies of the network run over calibration faces, layer by layer from the image on: the float one, and one with the
weights so far rounded and the activations stored in 8 bits. Each layer's weights are first fitted by least squares, to
make up for what its inputs have lost. Then they are rounded column by column, and the columns that follow make up for
each column's error (GPTQ, Frantar et al. 2022, arXiv:2210.17323). The bias takes the mean error that is left. Every
channel's largest weight stays at ±levels steps, so that the steps can be found again from the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from pipnet_edge.converters.checkpoint.network import Pictures, batches, normalise
from pipnet_edge.converters.graph import convolutions
from pipnet_edge.converters.quantize.scheme import Range, stored, weight_steps
from pipnet_edge.spec import Input

BATCH = 8
# How many images run while the activations are large, and how many when there is room for them.
FEW, MANY = 32, 128
ROOM = 500 << 20  # bytes of activations, both copies
COLUMNS = 20_000  # positions that a layer's moments are taken from
DAMPING = 0.01  # of the mean second moment (GPTQ's own value)
RIDGE = 1.0  # likewise, for the least-squares fit: strong, as 32 faces are few
BLOCK = 128

Progress = Callable[[str, int, int], None]


def nearest(graph: fx.GraphModule, keep: Collection[str], levels: int) -> fx.GraphModule:
    """A copy of the graph whose weights are rounded to the nearest step, except layers in `keep`."""
    rounded = copy.deepcopy(graph)
    for name in convolutions(rounded):
        if name not in keep:
            weight = rounded.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            weight.copy_(on_grid(weight, levels))
    return rounded


def on_grid(weight: Tensor, levels: int) -> Tensor:
    """The nearest weights k * absmax / levels, k a whole number, for each output channel of a convolution."""
    steps = weight_steps(weight, levels)
    return torch.round(weight / steps).clamp(-levels, levels) * steps


@torch.no_grad()
def sequential(
    graph: fx.GraphModule,
    spec: Input,
    pictures: Pictures,
    ranges: Mapping[str, Range],
    keep: Collection[str],
    levels: int,
    aside: Collection[str] = (),
    progress: Progress = lambda *_: None,
    seed: int = 0,
) -> fx.GraphModule:
    """A copy of the float graph with weights rounded to ±levels steps and corrected biases.

    pictures show calibration faces, in any sizes; ranges are for those of graph.points that are stored. Layers in
    `keep` stay as they are. Those in `aside` are rounded too, but the layers behind them see them in float.
    """
    return _Sequence(graph, spec, pictures, ranges, keep, levels, aside, progress, seed).run()


@dataclass
class _Batch:
    """A few images on their way through both copies: node name -> output, as long as something will read it."""

    image: Tensor
    float_: dict[str, Tensor] = field(default_factory=dict)
    int8: dict[str, Tensor] = field(default_factory=dict)


class _Sequence:
    def __init__(
        self,
        graph: fx.GraphModule,
        spec: Input,
        pictures: Pictures,
        ranges: Mapping[str, Range],
        keep: Collection[str],
        levels: int,
        aside: Collection[str],
        progress: Progress,
        seed: int,
    ) -> None:
        self._float, self._int8 = _fast(graph), _fast(graph)
        self._spec, self._pictures, self._ranges, self._progress = spec, pictures, ranges, progress
        self._levels = levels
        self._aside, self._rounded = aside, dict[str, nn.Module]()
        self._random = torch.Generator().manual_seed(seed)
        self._layers = [node for name, node in convolutions(graph).items() if name not in keep]
        nodes = list(graph.graph.nodes)
        # Nodes after the last layer to round need not run.
        self._nodes = nodes[: nodes.index(self._layers[-1]) + 1] if self._layers else []
        self._last = {source.name: node.name for node in self._nodes for source in node.all_input_nodes}
        self._batches = self._read(0, FEW)

    def run(self) -> fx.GraphModule:
        widen = self._where_many_fit()
        for index, node in enumerate(self._nodes):
            if index == widen:
                for batch in self._read(FEW, MANY):
                    for earlier in self._nodes[:index]:
                        self._advance(batch, earlier)
                    self._batches.append(batch)
            if node in self._layers:
                self._progress(str(node.target), self._layers.index(node), len(self._layers))
                self._round(node)
            else:
                for batch in self._batches:
                    self._advance(batch, node)
        for name, layer in self._rounded.items():
            self._int8.get_submodule(name).load_state_dict(layer.state_dict())
        return _laid_out(self._int8, torch.contiguous_format)

    def _read(self, start: int, stop: int) -> list[_Batch]:
        return [
            _Batch(normalise(batch, self._spec).contiguous(memory_format=torch.channels_last))
            for batch in batches(self._pictures[start:stop], BATCH)
        ]

    def _where_many_fit(self) -> int:
        """Index of the first node from which on the activations of MANY images fit into ROOM."""
        largest = max((batch.image for batch in self._batches), key=lambda image: image[0].numel())
        batch, sizes = _Batch(largest[:1]), []
        for node in self._nodes:
            held = sum(value.numel() for value in batch.float_.values())
            self._advance(batch, node)
            sizes.append(2 * 4 * (held + batch.float_[node.name].numel()))
        fitting = [all(MANY * size <= ROOM for size in sizes[index:]) for index in range(len(sizes))]
        return fitting.index(True) if True in fitting else len(sizes)

    def _advance(self, batch: _Batch, node: fx.Node) -> None:
        """Runs one node in both copies, stores its output, and forgets inputs that nothing else reads."""
        batch.float_[node.name] = self._output(self._float, batch.image, batch.float_, node)
        self._settle(batch, node, self._output(self._int8, batch.image, batch.int8, node))

    def _settle(self, batch: _Batch, node: fx.Node, value: Tensor) -> None:
        bounds = self._ranges.get(node.name)
        batch.int8[node.name] = value if bounds is None else stored(value, bounds)
        for source in node.all_input_nodes:
            if self._last[source.name] == node.name:
                del batch.float_[source.name], batch.int8[source.name]

    @staticmethod
    def _output(graph: fx.GraphModule, image: Tensor, values: Mapping[str, Tensor], node: fx.Node) -> Tensor:
        if node.op == "placeholder":
            return image
        arguments = fx.node.map_arg(node.args, lambda source: values[source.name])
        options = fx.node.map_arg(node.kwargs, lambda source: values[source.name])
        if node.op == "call_module":
            output: Tensor = graph.get_submodule(str(node.target))(*arguments, **options)
        elif node.op == "call_method":
            output = getattr(arguments[0], str(node.target))(*arguments[1:], **options)
        elif node.op == "get_attr":
            output = _attribute(graph, str(node.target))
        else:
            assert callable(node.target)
            output = node.target(*arguments, **options)
        return output

    def _round(self, node: fx.Node) -> None:
        name, source = str(node.target), node.all_input_nodes[0].name
        layer = self._int8.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        before = copy.deepcopy(layer) if name in self._aside else None
        moments = _Moments(layer)
        for batch in self._batches:
            target = self._output(self._float, batch.image, batch.float_, node)
            batch.float_[node.name] = target
            moments.add(batch.int8[source], target, COLUMNS // len(self._batches), self._random)
        layer.weight.copy_(_rounded(layer, *moments.centred(), self._levels))
        error = torch.zeros(layer.out_channels, dtype=torch.float64)
        for batch in self._batches:
            output = batch.int8[node.name] = self._output(self._int8, batch.image, batch.int8, node)
            error += (
                batch.float_[node.name].mean((2, 3), dtype=torch.float64) - output.mean((2, 3), dtype=torch.float64)
            ).sum(0)
        correction = (error / sum(len(batch.image) for batch in self._batches)).float()
        layer.bias += correction
        if before is not None:
            self._rounded[name] = copy.deepcopy(layer)
            layer.load_state_dict(before.state_dict())
        for batch in self._batches:
            if before is not None:
                output = self._output(self._int8, batch.image, batch.int8, node)
            else:
                output = batch.int8[node.name].add_(correction[:, None, None])
            self._settle(batch, node, output)


def _attribute(graph: fx.GraphModule, path: str) -> Tensor:
    """A tensor that a graph holds outside of its layers."""
    owner, _, name = path.rpartition(".")
    value: Tensor = getattr(graph.get_submodule(owner), name)
    return value


def _fast(graph: fx.GraphModule) -> fx.GraphModule:
    return _laid_out(copy.deepcopy(graph), torch.channels_last)


def _laid_out(graph: fx.GraphModule, layout: torch.memory_format) -> fx.GraphModule:
    graph.to(memory_format=layout)  # type: ignore[call-overload]
    return graph


class _Moments:
    """First and second moments of a layer's inputs X (groups, P, d) and targets T (groups, P, rows) over positions."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        groups, rows = layer.groups, layer.out_channels // layer.groups
        depth = layer.weight[0].numel()
        self._count, self._offset = 0, torch.zeros(())
        self._x, self._t = torch.zeros(groups, depth), torch.zeros(groups, rows)
        self._xx = torch.zeros(groups, depth, depth)
        self._xt = torch.zeros(groups, depth, rows)

    def add(self, source: Tensor, target: Tensor, most: int, random: torch.Generator) -> None:
        """Adds at most so many random positions of a batch: source (B, C, H, W), target (B, R, h, w)."""
        batch, _, height, width = target.shape
        total = batch * height * width
        at = torch.randperm(total, generator=random)[:most] if total > most else torch.arange(total)
        image, row, column = at // (height * width), at // width % height, at % width
        groups = self._layer.groups
        x = _patches(self._layer, source, image, row, column).reshape(len(at), groups, -1).transpose(0, 1)
        t = target.permute(0, 2, 3, 1)[image, row, column].reshape(len(at), groups, -1).transpose(0, 1)
        if not self._count:
            # A value near the mean, so that the covariance is not a small difference of large numbers.
            self._offset = x.mean(1, keepdim=True)
        x -= self._offset
        self._count += len(at)
        self._x += x.sum(1)
        self._t += t.sum(1)
        self._xx += x.transpose(1, 2) @ x
        self._xt += x.transpose(1, 2) @ t

    def centred(self) -> tuple[Tensor, Tensor]:
        """Covariance of X (groups, d, d) and of X with T (groups, d, rows)."""
        x, t = self._x / self._count, self._t / self._count
        covariance = (self._xx / self._count).sub_(x[:, :, None] * x[:, None])
        return covariance, self._xt / self._count - x[:, :, None] * t[:, None]


def _patches(layer: nn.Conv2d, source: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """What the kernel sees at some output positions: (P, C, kh * kw), zeros outside of the image."""
    values, (height, width) = source.permute(0, 2, 3, 1), source.shape[2:]
    assert not isinstance(layer.padding, str)
    seen = []
    for y in range(layer.kernel_size[0]):
        for x in range(layer.kernel_size[1]):
            top = row * layer.stride[0] + y * layer.dilation[0] - layer.padding[0]
            left = column * layer.stride[1] + x * layer.dilation[1] - layer.padding[1]
            inside = (top >= 0) & (top < height) & (left >= 0) & (left < width)
            value = values[image, top.clamp(0, height - 1), left.clamp(0, width - 1)]
            seen.append(torch.where(inside[:, None], value, torch.zeros(())))
    return torch.stack(seen, 2)


def _rounded(layer: nn.Conv2d, xx: Tensor, xt: Tensor, levels: int) -> Tensor:
    weight = layer.weight.reshape(layer.groups, -1, xx.shape[1])
    missing = xt - xx @ weight.transpose(1, 2)
    factor = torch.linalg.cholesky(_damped(xx, RIDGE))
    fitted = weight + torch.cholesky_solve(missing, factor).transpose(1, 2)
    del factor
    return gptq(fitted, xx, levels).reshape(layer.weight.shape)


def _damped(matrix: Tensor, share: float) -> Tensor:
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1)
    return matrix + torch.diag_embed((share * mean + 1e-12)[:, None].expand(matrix.shape[:2]))


def gptq(weight: Tensor, xx: Tensor, levels: int) -> Tensor:
    """Rounds weights (groups, rows, d) to grids of ±levels steps, for inputs with covariance xx (groups, d, d)."""
    groups, rows, depth = weight.shape
    steps = weight.abs().amax(2, keepdim=True) / levels
    steps = torch.where(steps > 0, steps, torch.ones(()))
    largest = torch.zeros_like(weight, dtype=torch.bool).scatter_(2, weight.abs().argmax(2, keepdim=True), True)
    xx = _damped(xx, DAMPING)
    # Columns with the largest inputs come first, while many columns are left to make up for their errors.
    order = xx.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    across, down = order[:, None].expand(weight.shape), order[:, :, None].expand(xx.shape)
    left, pinned = weight.gather(2, across), largest.gather(2, across)
    xx = xx.gather(1, down).gather(2, order[:, None].expand(xx.shape))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(xx)), upper=True)
    integers = torch.empty_like(left)
    for start in range(0, depth, BLOCK):
        stop = min(start + BLOCK, depth)
        errors = left.new_empty(groups, rows, stop - start)
        for k in range(start, stop):
            column = left[:, :, k] / steps[:, :, 0]
            whole = torch.where(pinned[:, :, k], levels * torch.sign(column), column.round().clamp(-levels, levels))
            error = (left[:, :, k] - whole * steps[:, :, 0]) / factor[:, k, k, None]
            left[:, :, k + 1 : stop] -= error[:, :, None] * factor[:, None, k, k + 1 : stop]
            integers[:, :, k], errors[:, :, k - start] = whole, error
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    back = order.argsort(1)[:, None].expand(weight.shape)
    return integers.gather(2, back) * steps
