"""How a bundle runs if the user does not say: as tuned for this kind of machine, else its first installed variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipnet_edge import host, runtimes
from pipnet_edge.bundle import Held, Tuned
from pipnet_edge.errors import EdgeError


@dataclass(frozen=True)
class Choice:
    """cpus: numbers of the CPUs to keep to; empty for all. note: that this is as tuned, or why it is not as asked."""

    variant: str
    threads: int
    cpus: tuple[int, ...] = ()
    note: str | None = None


def choose(bundle: Held, variant: str | None, threads: int | None, otherwise: int) -> Choice:
    """The variant and threads to run with: those given, else those that `bench --tune` found for this machine.

    More threads than this process may use CPUs are useless, and cut to them.
    If it found none, or they cannot be used here, they are the first installed variant and `otherwise` threads. The
    CPUs that it found are used only with the variant and threads that it found. Raises EdgeError for unknown variants
    and when none is installed.
    """
    if variant:
        bundle.variant(variant)
    machine = None if variant and threads is not None else host.name(host.facts())
    count, cut = (otherwise, None) if threads is None else host.cut_threads(threads, len(host.allowed_cpus()))
    tuned = bundle.tuned.get(machine) if machine else None
    notes = [cut] if cut else []
    if tuned and variant in (None, tuned.variant):
        obstacle = _obstacle(bundle, tuned)
        if not obstacle and threads in (None, tuned.threads):
            return Choice(tuned.variant, tuned.threads, tuned.cpus, f"as tuned for {machine}")
        if not obstacle:
            return Choice(tuned.variant, count, note=cut)
        notes.append(f"not as tuned for {machine}: {obstacle}")
    return Choice(variant or first_installed(bundle), count, note="; ".join(notes) or None)


def first_installed(bundle: Held) -> str:
    """The first variant whose runtime is installed. Raises EdgeError naming the packages when none is."""
    for variant in bundle.variants:
        if not runtimes.is_missing(variant.runtime):
            return variant.name
    packages = sorted({package for variant in bundle.variants if (package := runtimes.package_for(variant.runtime))})
    advice = f"pip install one of {', '.join(packages)}" if packages else "and none has a package for this Python"
    raise EdgeError(f"none of this bundle's runtimes is installed: {advice}")


def others(bundle: Held, chosen: Choice, threads: int | None, otherwise: int) -> Iterator[Choice]:
    """What to take if the runtime of `chosen` does not start: the first variant of each other installed runtime."""
    tried = {bundle.variant(chosen.variant).runtime}
    for variant in bundle.variants:
        if variant.runtime not in tried and not runtimes.is_missing(variant.runtime):
            tried.add(variant.runtime)
            yield Choice(variant.name, otherwise if threads is None else chosen.threads)


def _obstacle(bundle: Held, tuned: Tuned) -> str | None:
    """Why the bundle cannot run as tuned on this machine; None if it can."""
    allowed = host.allowed_cpus()
    if runtimes.is_missing(bundle.variant(tuned.variant).runtime):
        return f"the runtime of {tuned.variant} is not installed"
    if not set(tuned.cpus) <= set(allowed) or tuned.threads > len(allowed):
        wanted = f"CPUs {host.cpu_list(tuned.cpus)}" if tuned.cpus else f"{tuned.threads} CPUs"
        return f"it takes {wanted}, and this process may use {host.cpu_list(allowed)}"
    return None
