"""Chunks of faces over a Dask cluster, with the results and the cache of processes on this machine.

The machines of its workers have to see the bundle, the images and the cache under the paths that they have here, and to
have the same versions of Dask, pipnet-edge, numpy and the runtimes. Where that is not so, it is an error of one line.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.accuracy import chunks
from pipnet_edge.benchmarks.accuracy.chunks import ByVariant, Chunk, Meter, Spread
from pipnet_edge.errors import EdgeError
from pipnet_edge.strict import printable
from pipnet_edge.words import counted, one_line
from pipnet_edge.worker.call import here, ignore

if TYPE_CHECKING:
    from distributed import Client, Future

# Packages of which the scheduler and its workers need the versions that are here.
PACKAGES = ("dask", "distributed", "pipnet_edge")
# Seconds within which a scheduler answers, between two looks at it, and that it may be without a worker.
ANSWER, LOOK, ALONE = 5.0, 2.0, 60.0
KEPT = "chunks of faces that were finished are kept, the same command goes on with them"

Cpu = tuple[str, tuple[str, ...]]


def over(scheduler: str, note: Callable[[str], None]) -> Spread:
    """Spreads chunks over the workers of a Dask scheduler. note: gets a sentence if their CPUs are of other kinds.

    scheduler: its address, such as tcp://10.0.0.1:8786. Raises EdgeError without Dask. The spread raises it also when
    the scheduler does not answer or is lost, and when the cluster lacks what the module's text names.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as e:
        raise EdgeError(f"--dask needs Dask: pip install 'pipnet-edge[dask]' ({one_line(e)})") from e
    shown = f"the Dask scheduler {printable(scheduler)[:100]}"

    def spread(parts: Sequence[Chunk], meter: Meter) -> dict[int, ByVariant]:
        _check_versions(scheduler, shown)
        found, cpus = dict[int, ByVariant](), list[Cpu]()
        with _client(scheduler, shown) as client:
            submitted = {client.submit(work, *_sent(part), pure=False): part for part in parts}
            for future, (measured, cpu) in _results(client, list(submitted), shown):
                part = submitted.pop(future)
                found[part.index] = measured
                cpus.append(cpu)
                for _ in part.variants:
                    with meter.counts(len(part.faces)):
                        pass  # all of them
        if others := sum(cpu != chunks.cpu() for cpu in cpus):
            note(
                f"{others} of {counted(len(cpus), 'chunk')} ran on CPUs with other features than this machine's: "
                "the last digits may differ from what it would find"
            )
        return found

    return spread


def work(
    chunk: Chunk, versions: Sequence[tuple[str, str | None, str]], sizes: Sequence[int | None]
) -> tuple[ByVariant, Cpu]:
    """What a Dask worker does: it measures a chunk, in processes of its own. Also gives the CPU that it has.

    versions: chunks.versions of each variant; sizes: bytes of each image. Raises EdgeError that names the worker, also
    where it has others of these or another bundle.
    """
    from distributed import get_worker

    try:
        for variant, needed in zip(chunk.variants, versions, strict=True):
            found = chunks.versions(variant.runtime)
            for what, version, wanted in zip(("pipnet-edge", variant.runtime, "numpy"), found, needed, strict=True):
                _check_same(what, version, wanted)
        if bundles.read(chunk.bundle.folder) != chunk.bundle:
            raise EdgeError(f"{chunk.bundle.folder} is another bundle than where the command runs")
        for face, size in zip(chunk.faces, sizes, strict=True):
            if _size(face.image) not in (size, None):
                raise EdgeError(f"{face.image} is another file than where the command runs")
        return chunks.measure(chunk, here, lambda _: nullcontext(ignore), threading.Event()), chunks.cpu()
    except EdgeError as e:
        raise EdgeError(f"{e} (on the Dask worker {get_worker().address})", e.code) from e


def _sent(part: Chunk) -> tuple[Chunk, list[tuple[str, str | None, str]], list[int | None]]:
    """What `work` takes. A worker has another current folder."""
    bundle = replace(part.bundle, folder=part.bundle.folder.absolute())
    faces = tuple(replace(face, image=face.image.absolute()) for face in part.faces)
    chunk = replace(part, bundle=bundle, faces=faces, cache=part.cache.absolute())
    return chunk, [chunks.versions(v.runtime) for v in part.variants], [_size(face.image) for face in faces]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None  # reading it says why


def _check_versions(scheduler: str, shown: str) -> None:
    """Raises EdgeError if a scheduler does not answer, or if it or a worker has other versions of PACKAGES.

    This is asked before a client connects, whose first words may differ between versions.
    """
    from distributed.core import rpc
    from distributed.security import Security
    from distributed.versions import get_versions

    async def ask() -> tuple[Any, Any]:
        async with rpc(scheduler, connection_args=Security().get_connection_args("client")) as remote:
            asked = {"packages": list(PACKAGES)}
            workers = {"op": "versions", **asked}
            return await remote.versions(**asked), await remote.broadcast(msg=workers, on_error="ignore")

    async def asked() -> tuple[Any, Any]:
        return await asyncio.wait_for(ask(), ANSWER)

    try:
        of_scheduler, of_workers = asyncio.run(asked())
    except Exception as e:  # whatever listens there may answer anything
        raise EdgeError(f"{shown} does not answer: {one_line(e)}") from e
    mine = get_versions(PACKAGES)["packages"]
    for who, told in (shown, of_scheduler), *((f"the Dask worker {name}", told) for name, told in of_workers.items()):
        for package in PACKAGES:
            _check_same(f"{who}: {package.replace('_', '-')}", told["packages"].get(package), mine[package])


def _check_same(what: str, there: str | None, here: str | None) -> None:
    """Raises EdgeError unless two versions, None for a package that is missing, are the same."""
    if there != here:
        raise EdgeError(printable(f"{what} is {there or 'missing'}, {here or 'missing'} where the command runs"))


@contextmanager
def _client(scheduler: str, shown: str) -> Iterator[Client]:
    """A client that connects to the scheduler alone."""
    from distributed import Client

    # What matters of versions and lost connections is said here, in one line.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            client = Client(scheduler, timeout=ANSWER, set_as_default=False, direct_to_workers=False)
    except OSError as e:
        raise EdgeError(f"{shown} does not answer: {one_line(e)}") from e
    try:
        yield client
    finally:
        with suppress(TimeoutError):  # the scheduler hangs
            client.close(timeout=LOOK)


def _results(client: Client, futures: Sequence[Future], shown: str) -> Iterator[tuple[Future, tuple[ByVariant, Cpu]]]:
    """What tasks gave, as they end. Raises what they raise, and EdgeError if the scheduler or its workers are lost."""
    from distributed.scheduler import KilledWorker

    ended = queue.SimpleQueue[Any]()
    for future in futures:
        future.add_done_callback(ended.put)
    left, seen = len(futures), time.monotonic()
    while left:
        try:
            future = ended.get(timeout=LOOK)
        except queue.Empty:
            seen = _look(client, shown, seen)
            continue
        try:
            found = future.result(timeout=LOOK)
        except CancelledError as e:
            raise EdgeError(f"{shown} was lost; {KEPT}") from e
        except KilledWorker as e:
            raise EdgeError(f"{shown} gave a chunk up, as each worker that ran it died; {KEPT}") from e
        except ImportError as e:
            raise EdgeError(f"{shown} or a worker of it cannot import what it needs: {one_line(e)}") from e
        except TimeoutError:
            if future.status == "error":
                raise
            ended.put(future)  # it ran on a worker that has died since, and runs again
            seen = _look(client, shown, seen)
            continue
        left -= 1
        yield future, found


def _look(client: Client, shown: str, seen: float) -> float:
    """When there was a worker the last time; `seen` was the time before. Raises EdgeError if that is too long ago."""
    try:
        workers = client.sync(client.scheduler.ncores, callback_timeout=ANSWER)
    except OSError as e:
        raise EdgeError(f"{shown} was lost; {KEPT}") from e
    if workers:
        return time.monotonic()
    if time.monotonic() - seen > ALONE:
        raise EdgeError(f"{shown} has had no worker for {ALONE:.0f} s; {KEPT}")
    return seen
