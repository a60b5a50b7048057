"""Finds the state_dict of a PIPNet in whatever a training script saved, by its keys."""

from __future__ import annotations

import argparse
import itertools
import math
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipnet_edge.converters.checkpoint import archive, nets
from pipnet_edge.errors import EdgeError
from pipnet_edge.words import counted

MOST_NODES, DEEPEST, MOST_NETWORKS = 200_000, 8, 50  # how much of a file is searched
MOST_AXES = 8
THOP = ("total_ops", "total_params")  # counters that thop.profile puts into a network
SCORE = f"{nets.HEAD_KEYS['score']}.weight"
CLASSIFIERS = ("fc.weight", "classifier.1.weight", "classifier.weight")
WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NEEDED = f"dense numbers are needed, {', '.join(str(dtype).removeprefix('torch.') for dtype in WEIGHTS)}"
ROOT = "."  # the name of what a file holds bare
Namespace = argparse.Namespace | types.SimpleNamespace


@dataclass(frozen=True)
class Group:
    """What lies together in a file under texts. path: the keys that lead there."""

    path: tuple[str, ...]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """One network: the tensors of a group whose names begin with `prefix`."""

    group: Group
    prefix: str

    @property
    def name(self) -> str:
        return ".".join((*self.group.path, *self.prefix.split("."))).strip(".") or ROOT

    def weights(self) -> dict[str, Tensor]:
        """Its tensors without the prefix."""
        prefix = self.prefix
        return {key[len(prefix) :]: value for key, value in self.group.tensors.items() if key.startswith(prefix)}


def read(
    path: Path, is_safetensors: bool = False, trust_pickle: bool = False, name: str | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A PIPNet's tensors, float32, by their keys without prefix; and notes on what was left aside.

    name: which network, where a file holds several. trust_pickle lets the file run code, which pickled modules need.
    Raises EdgeError, one line, for files without a network or with several, and for tensors that are no weights.
    """
    root = archive.read(path, is_safetensors, trust_pickle)
    groups = _search(root)
    candidate = _choose(path, _candidates(groups), name)
    if candidate is None:
        raise _refusal(path, root, groups)
    weights, notes = candidate.weights(), []
    counters = {key for key in weights if key.rpartition(".")[2] in THOP}
    if counters:
        notes.append(f"left aside: thop's {' and '.join(THOP)}, {counted(len(counters), 'tensor')}")
    beside = [key for key in candidate.group.tensors if not key.startswith(candidate.prefix)]
    if beside:
        others = f"{counted(len(beside), 'tensor')} outside of {candidate.prefix}*"
        notes.append(f"left aside: {others}, such as {beside[0]!r:.80}")
    used = {key: tensor for key, tensor in weights.items() if key not in counters and not _is_step_counter(key)}
    for key, tensor in used.items():
        _check(path, key, tensor)
    # The same bytes may be there under many names.
    size, most = sum(_size(tensor) for tensor in used.values()), path.stat().st_size
    if size > most:
        raise EdgeError(f"{path}: its tensors take {size:,} bytes, but the file has {most:,}")
    return {key: _loaded(path, key, tensor) for key, tensor in used.items()}, tuple(notes)


def weight(path: Path, key: str, tensor: Tensor) -> Tensor:
    """A copy of a file's tensor, float32. Raises EdgeError if it is no weight: not dense, not finite, no floats."""
    _check(path, key, tensor)
    return _loaded(path, key, tensor)


def _check(path: Path, key: str, tensor: Tensor) -> None:
    if fault := _fault(tensor):
        raise EdgeError(f"{path}: tensor {key!r:.120} {fault}")


def _fault(tensor: Tensor) -> str | None:
    """Why it is no weight ("is sparse"), None if it is one: dense, floating point, no larger than its storage."""
    if kind := _odd(tensor):
        return f"is {kind}; {NEEDED}"
    if tensor.dtype not in WEIGHTS:
        return f"is of type {str(tensor.dtype).removeprefix('torch.')}; {NEEDED}"
    stored = tensor.untyped_storage().nbytes()
    if tensor.ndim > MOST_AXES or _size(tensor) > stored:
        shown = ", ".join(map(str, tensor.shape[:MOST_AXES]))
        more = ", …" if tensor.ndim > MOST_AXES else ""
        return f"has the shape ({shown}{more}), but {stored:,} bytes in the file"
    return None


def _odd(tensor: Tensor) -> str | None:
    """What a tensor is that is not numbers side by side in a storage."""
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_meta:
        return "on the meta device, so without numbers"
    if tensor.is_nested:
        return "nested"
    return None if tensor.layout is torch.strided else "sparse"


def _size(tensor: Tensor) -> int:
    """The bytes of its numbers, those of an expanded one counted each."""
    return math.prod(tensor.shape) * tensor.element_size()


def _is_step_counter(key: str) -> bool:
    """Whether it is BatchNorm's count of training steps, which nothing here needs."""
    return key.endswith("num_batches_tracked")


def _loaded(path: Path, key: str, weight: Tensor) -> Tensor:
    """A copy, so that it holds when the file changes."""
    tensor = weight.detach().to("cpu", torch.float32, copy=True)
    if not torch.isfinite(tensor).all():
        raise EdgeError(f"{path}: tensor {key!r:.120} holds NaN or infinity")
    return tensor


def _search(root: object) -> list[Group]:
    """The groups of tensors in an object, the nearest first."""
    groups, seen = list[Group](), set[int]()
    queue = deque[tuple[tuple[str, ...], object]]([((), root)])
    while queue and len(seen) < MOST_NODES:
        path, node = queue.popleft()
        if id(node) in seen or len(path) > DEEPEST:
            continue
        seen.add(id(node))
        tensors = {}
        for key, value in _items(node):
            if isinstance(value, Tensor):
                tensors[key] = value
            elif isinstance(value, Mapping | list | tuple | nn.Module | Namespace) and len(queue) < MOST_NODES:
                queue.append(((*path, key), value))
        if tensors:
            groups.append(Group(path, tensors))
    return groups


def _items(node: object) -> Iterator[tuple[str, object]]:
    """What an object holds, by name or by number."""
    if isinstance(node, nn.Module):
        node = node.state_dict()
    elif isinstance(node, Namespace):
        node = vars(node)
    if isinstance(node, Mapping):
        # Keys of other types are no names of weights, and some would take hours to print.
        yield from ((str(key), value) for key, value in node.items() if type(key) in (str, int))
    elif isinstance(node, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(node))


def _candidates(groups: list[Group]) -> list[Candidate]:
    """The networks: where all heads lie under one prefix. Of two that share all tensors, the first."""
    found = list[Candidate]()
    prefixed = ((group, prefix) for group in groups for prefix in _prefixes(group.tensors))
    for group, prefix in itertools.islice(prefixed, MOST_NETWORKS):
        candidate = Candidate(group, prefix)
        weights = candidate.weights()
        if not _lacks(weights) and all(_places(weights) != _places(other.weights()) for other in found):
            found.append(candidate)
    return found


def _places(weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Where each tensor lies in memory: one that was saved twice is loaded as two over the same numbers."""
    return {key: id(t) if _odd(t) else (t.data_ptr(), t.shape, t.stride()) for key, t in weights.items()}


def _prefixes(keys: Iterable[str]) -> Iterator[str]:
    """What stands before the score head's key: nothing, or names with a dot after each."""
    prefixes = (key.removesuffix(SCORE) for key in keys if key.endswith(SCORE))
    return (prefix for prefix in prefixes if prefix[-1:] in ("", "."))


def _lacks(weights: Mapping[str, Tensor]) -> str | None:
    """The first key of a head that is missing."""
    keys = (f"{head}.weight" for head in nets.head_keys(weights).values())
    return next((key for key in keys if key not in weights), None)


def _choose(path: Path, candidates: list[Candidate], name: str | None) -> Candidate | None:
    names = ", ".join(sorted(repr(candidate.name)[:80] for candidate in candidates)[:20])
    if name is not None and candidates:
        for candidate in candidates:
            if candidate.name == name:
                return candidate
        raise EdgeError(f"{path} has no network {name!r}; --weights may be {names}")
    if len(candidates) > 1:
        raise EdgeError(f"{path} holds {len(candidates)} networks: {names}; choose one with --weights NAME")
    return candidates[0] if candidates else None


def _refusal(path: Path, root: object, groups: list[Group]) -> EdgeError:
    """Says what is there instead of a network."""
    named = [group for group in groups if not all(key.isdigit() for key in group.tensors)]
    if not named:
        return EdgeError(f"{path} holds {_what(root)}, not a state_dict of a PIPNet")
    tensors = max((group.tensors for group in named), key=len)  # the network, if there is one
    prefix = next(_prefixes(tensors), "")
    lacks = _lacks({key.removeprefix(prefix): value for key, value in tensors.items()})
    keys = ", ".join(repr(key) for key in itertools.islice(tensors, 3))
    like = "a classifier's state_dict" if any(key in tensors for key in CLASSIFIERS) else f"keys such as {keys:.150}"
    return EdgeError(f"{path} has no PIPNet head {lacks!r} (it has {like})")


def _what(root: object) -> str:
    if isinstance(root, Tensor):
        return "a tensor"
    if isinstance(root, Mapping):
        keys = [repr(str(key))[1:-1] for key in list(root)[:20] if type(key) in (str, int)]
        return f"a dict of {', '.join(keys)[:100] or 'nothing'}"
    return f"a {type(root).__name__}"
