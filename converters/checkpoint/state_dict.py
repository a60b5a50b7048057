"""Finds the state_dict of a PIPNet in whatever a training script saved, by its keys."""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from pipnet_edge.converters.checkpoint import archive, nets
from pipnet_edge.converters.checkpoint.archive import Archive
from pipnet_edge.converters.checkpoint.pickled import Made
from pipnet_edge.converters.checkpoint.stored import Loaded, Span, Stored, Weight, stored
from pipnet_edge.errors import EdgeError
from pipnet_edge.words import counted, one_line

MOST_NODES, DEEPEST, MOST_NETWORKS = 200_000, 8, 50  # how much of a file is searched
THOP = ("total_ops", "total_params")  # counters that thop.profile puts into a network
SCORE = f"{nets.HEAD_KEYS['score']}.weight"
CLASSIFIERS = ("fc.weight", "classifier.1.weight", "classifier.weight")
# What torch raises for a damaged file, depending on the place.
TORN = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AssertionError, BadZipFile)
ROOT = "."  # the name of what a file holds bare


@dataclass(frozen=True)
class Group:
    """What lies together in a file under texts. path: the keys that lead there."""

    path: tuple[str, ...]
    tensors: Mapping[str, Weight]


@dataclass(frozen=True)
class Candidate:
    """One network: the tensors of a group whose names begin with `prefix`."""

    group: Group
    prefix: str

    @property
    def name(self) -> str:
        return ".".join((*self.group.path, *self.prefix.split("."))).strip(".") or ROOT

    def weights(self) -> dict[str, Weight]:
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
    is_run = trust_pickle and not is_safetensors
    found = Archive(_unpickle(path), {}) if is_run else archive.read(path, is_safetensors)
    groups, modules = _search(found.root, found.spans)
    candidate = _choose(path, _candidates(groups), name)
    if candidate is None:
        raise _refusal(path, found.root, groups, modules)
    weights, notes = candidate.weights(), []
    counters = {key for key in weights if key.rpartition(".")[2] in THOP}
    if counters:
        notes.append(f"left aside: thop's {' and '.join(THOP)}, {counted(len(counters), 'tensor')}")
    beside = [key for key in candidate.group.tensors if not key.startswith(candidate.prefix)]
    if beside:
        others = f"{counted(len(beside), 'tensor')} outside of {candidate.prefix}*"
        notes.append(f"left aside: {others}, such as {beside[0]!r:.80}")
    used = {key: weight for key, weight in weights.items() if key not in counters and not _is_step_counter(key)}
    for key, weight in used.items():
        if fault := weight.fault():
            raise EdgeError(f"{path}: tensor {key!r:.120} {fault}")
    return {key: _finite(path, key, weight.load(path)) for key, weight in used.items()}, tuple(notes)


def _is_step_counter(key: str) -> bool:
    """Whether it is BatchNorm's count of training steps, which nothing here needs."""
    return key.endswith("num_batches_tracked")


def _finite(path: Path, key: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise EdgeError(f"{path}: tensor {key!r:.120} holds NaN or infinity")
    return tensor


def _search(root: object, spans: Mapping[str, Span]) -> tuple[list[Group], list[str]]:
    """The groups of tensors in an object, the nearest first; and the classes of pickled modules, which stay closed."""
    groups, modules, seen = list[Group](), list[str](), set[int]()
    queue = deque[tuple[tuple[str, ...], object]]([((), root)])
    while queue and len(seen) < MOST_NODES:
        path, node = queue.popleft()
        if id(node) in seen or len(path) > DEEPEST:
            continue
        seen.add(id(node))
        if isinstance(node, Made) and _is_module(node):
            modules.append(node.kind)
            continue
        tensors = {}
        for key, value in _items(node):
            if weight := _weight(value, spans):
                tensors[key] = weight
            elif isinstance(value, Made | Mapping | list | tuple | nn.Module) and len(queue) < MOST_NODES:
                queue.append(((*path, key), value))
        if tensors:
            groups.append(Group(path, tensors))
    return groups, modules


def _items(node: Any) -> Iterator[tuple[str, object]]:
    """What an object holds, by name or by number."""
    if isinstance(node, nn.Module):
        node = node.state_dict()
    if isinstance(node, Made):
        yield from node.items.items()
        if isinstance(node.state, dict):
            yield from node.state.items()
        yield from _items(node.members)
        # Python 2 made an OrderedDict of a list of pairs.
        yield from _pairs(node.arguments)
    elif isinstance(node, Mapping):
        yield from ((str(key), value) for key, value in node.items())
    elif isinstance(node, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(node))


def _pairs(arguments: object) -> Iterator[tuple[str, object]]:
    for argument in arguments if isinstance(arguments, tuple) else ():
        for pair in argument if isinstance(argument, list) else ():
            if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str):
                yield pair[0], pair[1]


def _weight(value: object, spans: Mapping[str, Span]) -> Weight | None:
    if isinstance(value, Tensor):
        return Loaded(value)
    if isinstance(value, Stored):
        return value
    return stored(value, spans) if isinstance(value, Made) else None


def _is_module(made: Made) -> bool:
    return isinstance(made.state, dict) and {"_parameters", "_modules"} <= made.state.keys()


def _candidates(groups: list[Group]) -> list[Candidate]:
    """The networks: where all heads lie under one prefix. Of two that share all tensors, the first."""
    found = list[Candidate]()
    prefixed = ((group, prefix) for group in groups for prefix in _prefixes(group.tensors))
    for group, prefix in itertools.islice(prefixed, MOST_NETWORKS):
        candidate = Candidate(group, prefix)
        weights = candidate.weights()
        if not _lacks(weights) and all(weights != other.weights() for other in found):
            found.append(candidate)
    return found


def _prefixes(keys: Iterable[str]) -> Iterator[str]:
    """What stands before the score head's key: nothing, or names with a dot after each."""
    prefixes = (key.removesuffix(SCORE) for key in keys if key.endswith(SCORE))
    return (prefix for prefix in prefixes if prefix[-1:] in ("", "."))


def _lacks(weights: Mapping[str, Weight]) -> str | None:
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


def _refusal(path: Path, root: object, groups: list[Group], modules: list[str]) -> EdgeError:
    """Says what is there instead of a network."""
    if modules:
        return EdgeError(
            f"{path} holds a pickled module, {modules[0]!r:.80}, which runs code when it is loaded; save its "
            "state_dict() instead, or give --trust-pickle if you trust whoever made the file"
        )
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
    if _weight(root, {}):
        return "a tensor"
    if isinstance(root, Made):
        return f"a {root.kind!r:.80}".replace("'", "")
    if isinstance(root, Mapping):
        return f"a dict of {', '.join(repr(str(key))[1:-1] for key in list(root)[:20])[:100] or 'nothing'}"
    return f"a {type(root).__name__}"


def _unpickle(path: Path) -> object:
    """Loads a file as torch does, which may run code from it."""
    try:
        with warnings.catch_warnings():
            # Files that torch warns about here are refused below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except OSError as e:
        raise EdgeError(f"cannot read {path}: {e.strerror}") from e
    except (AttributeError, ImportError) as e:
        raise EdgeError(f"{path} needs code that is not installed here: {one_line(e)}") from e
    except TORN as e:
        raise EdgeError(f"{path} is not a PyTorch checkpoint, or a truncated one") from e
