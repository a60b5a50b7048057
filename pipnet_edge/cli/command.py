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
        except (Exception, KeyboardInterrupt) as e:
            failed = _failure(e)
            if failed is None:
                raise
            output = failed
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


def _failure(error: BaseException) -> Output | None:
    """What is told of an error that a user can mend, and of an interruption; None for what keeps its traceback."""
    if _is_interruption(error):
        return Output({}, code=render.INTERRUPTED, error="interrupted; nothing half-written was left")
    if isinstance(error, EdgeError):
        return Output({}, code=error.code, error=str(error))
    if isinstance(error, ModuleNotFoundError) and error.name in WORKSTATION:
        said = f"needs the workstation half: pip install 'pipnet-edge[convert]' (there is no {error.name} here)"
        return Output({}, code=USER_ERROR, error=said)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        # The user can fix a path that cannot be written.
        return Output({}, code=USER_ERROR, error=f"cannot write {error.filename or 'a file'}: {error.strerror}")
    return None


def _is_interruption(error: BaseException | None) -> bool:
    """Also if C code that was being imported says that it failed because of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None
