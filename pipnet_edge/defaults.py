"""How a bundle runs if the user does not say: as tuned for this kind of machine, else by a table of fast variants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipnet_edge import fastest, host, runtimes
from pipnet_edge.bundle import AnyBundle, Tuned
from pipnet_edge.errors import EdgeError


@dataclass(frozen=True)
class Choice:
    """cpus: numbers of the CPUs to keep to; empty for all. note: why this, or why it is not as asked."""

    variant: str
    threads: int
    cpus: tuple[int, ...] = ()
    note: str | None = None


def choose(bundle: AnyBundle, variant: str | None, threads: int | None, otherwise: int) -> Choice:
    """The variant and threads to run with: those given, else those that `bench --tune` found for this machine.

    More threads than this process may use CPUs are useless, and cut to them.
    If it found none, or they cannot be used here, they are the variant that is likely fastest of those whose runtimes
    are installed (see pipnet_edge.fastest), and `otherwise` threads. The CPUs that it found are used only with the
    variant and threads that it found. Raises EdgeError for unknown variants and when none is installed.
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
    if variant is None:
        variant, why = installed(bundle)[0]
        notes.append(why)
    return Choice(variant, count, note="; ".join(notes) or None)


def installed(bundle: AnyBundle) -> list[tuple[str, str]]:
    """The variants whose runtimes are installed, the likely fastest on this machine first, each with the reason.

    Raises EdgeError naming the packages when none is installed.
    """
    found = [variant for variant in bundle.variants if not runtimes.is_missing(variant.runtime)]
    if len(found) == 1:
        return [(found[0].name, f"{found[0].name}: no other one is installed")]
    if found:
        packages = {variant.runtime: runtimes.installed(variant.runtime) for variant in found}
        order = fastest.ordered(bundle.network, found, host.features(), packages)
        return [(variant.name, why) for variant, why in order]
    names = sorted({package for variant in bundle.variants if (package := runtimes.package_for(variant.runtime))})
    advice = f"pip install one of {', '.join(names)}" if names else "and none has a package for this Python"
    raise EdgeError(f"none of this bundle's runtimes is installed: {advice}")


def others(bundle: AnyBundle, chosen: Choice, threads: int | None, otherwise: int) -> Iterator[Choice]:
    """What to take if the runtime of `chosen` does not start: of each other one the variant that is likely fastest."""
    tried = {bundle.variant(chosen.variant).runtime}
    for name, why in installed(bundle):
        runtime = bundle.variant(name).runtime
        if runtime not in tried:
            tried.add(runtime)
            yield Choice(name, otherwise if threads is None else chosen.threads, note=why)


def _obstacle(bundle: AnyBundle, tuned: Tuned) -> str | None:
    """Why the bundle cannot run as tuned on this machine; None if it can."""
    allowed = host.allowed_cpus()
    if runtimes.is_missing(bundle.variant(tuned.variant).runtime):
        return f"the runtime of {tuned.variant} is not installed"
    if not set(tuned.cpus) <= set(allowed) or tuned.threads > len(allowed):
        wanted = f"CPUs {host.cpu_list(tuned.cpus)}" if tuned.cpus else f"{tuned.threads} CPUs"
        return f"it takes {wanted}, and this process may use {host.cpu_list(allowed)}"
    return None
