"""Shared by all commands. Each returns an Output; `command` runs it, prints it and turns errors into exit codes."""

from __future__ import annotations

import errno
import functools
import inspect as python_inspect
import signal
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipnet_edge.cli import render
from pipnet_edge.errors import USER_ERROR, EdgeError
from pipnet_edge.output import Output

UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
# Packages of the extra [convert]; a device has none of them.
WORKSTATION = {"torch", "onnx", "onnxsim", "onnxruntime", "pnnx", "safetensors"}


def command(function: Callable[..., Output]) -> Callable[..., None]:
    """Makes a command of the function. It also takes --json, prints the Output, and prints an EdgeError as one line."""

    @functools.wraps(function)
    def run(*, json: bool, **arguments: Any) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            output = function(**arguments)
        except EdgeError as e:
            output = Output({}, code=e.code, error=str(e))
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
            output = Output({}, code=render.INTERRUPTED, error="interrupted; nothing half-written was left")
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
