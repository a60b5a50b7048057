"""Line coverage of the parsers: a short sample of inputs is run with a trace, apart from the counted ones.

Lines of functions count. Lines that run when a module is imported do not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.engine import Engine, Tally

Lines = set[int]


def lines_of(parser: str) -> Lines:
    """The lines of a parser: of all functions in a module, or of those after a colon, "module:one,two"."""
    module, _, names = parser.partition(":")
    path = path_of(module)
    wanted = set(names.split(",")) if names else None
    found: Lines = set()
    for code in _functions(compile(path.read_text(), str(path), "exec")):
        if wanted is None or code.co_qualname.partition(".")[0] in wanted:
            found |= {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
    return found


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x2:  # CO_NEWLOCALS: a function, not the body of a class
                yield constant
            yield from _functions(constant)


def path_of(module: str) -> Path:
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).resolve()


def measure(engine: Engine, seconds: float) -> Mapping[str, tuple[int, int]]:
    """Parser (see lines_of) -> (lines that ran, lines). `seconds`: for each target."""
    ran: dict[str, Lines] = {}
    for tally in engine.tallies:
        for path, lines in _traced(engine, tally, seconds).items():
            ran.setdefault(path, set()).update(lines)
    found = {}
    for parser in dict.fromkeys(name for tally in engine.tallies for name in tally.target.modules):
        lines = lines_of(parser)
        found[parser] = len(lines & ran.get(str(path_of(parser.partition(":")[0])), set())), len(lines)
    return found


def _traced(engine: Engine, tally: Tally, seconds: float) -> dict[str, Lines]:
    """Runs one slice with a trace and brings its lines back."""
    out = engine.folder / f"lines-{tally.target.name}.json"
    watched = [path_of(name.partition(":")[0]) for name in tally.target.modules]
    target = tally.target
    tracer = _Tracer(watched, out)
    traced = Tally(type(target)(**{**vars(target), "parse": tracer.around(target.parse)}), tally.seeds)
    running = engine.started(traced, seconds)
    while not engine.ended(running):
        time.sleep(0.01)
    return {path: set(lines) for path, lines in json.loads(out.read_text()).items()} if out.exists() else {}


class _Tracer:
    """Notes the lines that run in some files while a parser runs, and writes them whenever there are more."""

    def __init__(self, files: Sequence[Path], out: Path) -> None:
        self.names: dict[str, str | None] = {}
        self.files = {str(path) for path in files}
        self.lines: dict[str, Lines] = {name: set() for name in self.files}
        self.out, self.told = out, 0

    def around(self, parse: Any) -> Any:
        def traced(data: bytes, folder: Path) -> object:
            sys.settrace(self._call)
            try:
                return parse(data, folder)
            finally:
                sys.settrace(None)
                if (known := sum(map(len, self.lines.values()))) > self.told:
                    self.told = known
                    self._tell()

        return traced

    def _tell(self) -> None:
        scratch = self.out.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({name: sorted(lines) for name, lines in self.lines.items()}))
        scratch.replace(self.out)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in self.names:
            real = str(Path(name).resolve())
            self.names[name] = real if real in self.files else None
        return self._line if self.names[name] else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            name = self.names[frame.f_code.co_filename]
            assert name is not None
            self.lines[name].add(frame.f_lineno)
        return self._line
