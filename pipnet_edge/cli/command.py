"""Shared by all commands. Each returns an Output; `command` runs it, prints it and turns errors into exit codes."""

from __future__ import annotations

import errno
import functools
import inspect as python_inspect
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipnet_edge.cli import render
from pipnet_edge.cli.render import Output
from pipnet_edge.errors import USER_ERROR, EdgeError

if TYPE_CHECKING:
    from pipnet_edge.targets.place import Place

INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# Packages of the extra [convert]; a device has none of them.
WORKSTATION = {"torch", "onnx", "onnxsim", "onnxruntime", "pnnx"}

BundleArgument = Annotated[Path, typer.Argument(metavar="[BUNDLE]", help="The bundle's folder.")]
Threads = Annotated[
    int, typer.Option(min=0, help="Threads of the runtime; 0: as many as this machine has cores, at most 4.")
]
DEFAULT_BUNDLE = Path("bundle")
# For commands that take one target; bench takes several.
Target = Annotated[str | None, typer.Option(help="Do it on a device (see `pipnet-edge targets`), not here.")]
Host = Annotated[str | None, typer.Option(help="Where ssh finds the target: USER@HOST.")]
Emulate = Annotated[bool, typer.Option("--emulate", help="Emulate the target's core on this machine.")]


def command(function: Callable[..., Output]) -> Callable[..., None]:
    """Makes a command of the function. It also takes --json, prints the Output, and prints an EdgeError as one line."""

    @functools.wraps(function)
    def run(*, json: bool, **arguments: Any) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            output = function(**arguments)
        except EdgeError as e:
            output = Output({}, code=e.code, error=" ".join(str(e).split()))
        except ModuleNotFoundError as e:
            if e.name not in WORKSTATION:
                raise
            error = f"needs the workstation half: pip install 'pipnet-edge[convert]' (there is no {e.name} here)"
            output = Output({}, code=USER_ERROR, error=error)
        except OSError as e:
            # The user can fix a path that cannot be written. Any other failure keeps its traceback.
            if e.errno not in UNWRITABLE:
                raise
            output = Output({}, code=USER_ERROR, error=f"cannot write {e.filename or 'a file'}: {e.strerror}")
        except KeyboardInterrupt:
            output = Output({}, code=INTERRUPTED, error="interrupted; nothing half-written was left")
        render.emit(name, output, json)
        raise typer.Exit(output.code)

    name = function.__name__
    flag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
    parameters = [
        *python_inspect.signature(function, eval_str=True).parameters.values(),
        python_inspect.Parameter("json", python_inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag),
    ]
    run.__signature__ = python_inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def thread_count(given: int) -> int:
    """The number given, or as many as this machine has cores, at most 4."""
    from pipnet_edge import host

    return given or host.default_threads()


def words(text: str) -> tuple[str, ...]:
    """The words that commas separate."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def floats(name: str, text: str, count: int) -> tuple[float, ...]:
    """The `count` numbers in the text of option `name`. Raises EdgeError for anything else."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise EdgeError(f"--{name} {text}; {count} numbers separated by commas are needed")
    return numbers


def places(names: Sequence[str], hosts: Sequence[str], emulate: bool, predict: bool) -> list[Place]:
    """The places that --target, --host, --emulate and --predict together name."""
    from pipnet_edge import host as this
    from pipnet_edge.targets import place as known

    names = list(dict.fromkeys(names)) or [known.LOCAL]
    given: dict[str, str] = {}
    for text in hosts:
        name, equals, host = text.rpartition("=")
        if not equals and len(names) > 1:
            raise EdgeError(f"--host {text} for {len(names)} targets; TARGET=USER@HOST is needed")
        if equals and name not in names:
            raise EdgeError(f"--host {text} is for {name}, which is no --target; those are {', '.join(names)}")
        if (name or names[0]) in given:
            raise EdgeError(f"--host {text}, but {name or names[0]} has the host {given[name or names[0]]} already")
        given[name or names[0]] = host
    board = str(this.facts().get("board", ""))
    saved = known.hosts()
    found = [known.resolve(name, given.get(name), emulate, predict, board, saved) for name in names]
    for index, place in enumerate(found):
        if place.name in (other.name for other in found[:index]):
            raise EdgeError(f"--target {names[index]} is {place.name}, which is given already")
    return found
