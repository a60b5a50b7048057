"""Which runtimes work, here or on a target."""

from __future__ import annotations

from pipnet_edge.cli.command import command
from pipnet_edge.cli.options import Emulate, Host, Target, places
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Output, Table


@command
def doctor(target: Target = None, host: Host = None, emulate: Emulate = False) -> Output:
    """Run a tiny inference on every runtime, here or on a target, and say which work there."""
    from pipnet_edge import runtimes
    from pipnet_edge.benchmarks.speed.result import facts_of
    from pipnet_edge.errors import CHECK_FAILED
    from pipnet_edge.targets.place import calling
    from pipnet_edge.worker import protocol

    (place,) = places([target] if target else (), [host] if host else (), emulate, False)
    results: dict[str, dict[str, str]] = {}
    with calling(place) as call:
        machine = call(protocol.Facts())
        for name in runtimes.DESTINATIONS:
            try:
                results[name] = {"result": "PASS", "detail": call(protocol.Probe(name)).version}
            except EdgeError as e:
                results[name] = {"result": "FAIL" if name in machine.runtimes else "absent", "detail": str(e)}
    failed = [name for name, result in results.items() if result["result"] == "FAIL"]
    return Output(
        {"target": place.name, "kind": place.kind, "machine": machine.facts, "runtimes": results},
        (
            Table(["machine", ""], list(facts_of(machine.facts).items())),
            "",
            Table(["runtime", "result", ""], [[name, r["result"], r["detail"]] for name, r in results.items()]),
        ),
        code=CHECK_FAILED if failed else 0,
        error=f"{', '.join(failed)} does not work {'here' if place.is_here else f'on {place.name}'}"
        if failed
        else None,
    )
