"""What was found: one case for each place in the product, made as small as a few tries allow."""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = tuple(f"{ROOT}/{name}/" for name in ("pipnet_edge", "converters", "benchmarks", "targets"))
# A line of faulthandler's.
DUMPED = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')
# A planted fault lies here, where no code of the product is.
PLANTED = f"{ROOT}/tests/fuzz/planted.py"
FRAMES = 3


@dataclass(frozen=True)
class Finding:
    """kind: "exception", "hang" or "kill". what: the exception's type and text, or how the process ended.

    frames: the innermost lines of the product, the innermost first. index: the input's number.
    """

    target: str
    kind: str
    what: str
    frames: tuple[str, ...]
    index: int

    @property
    def key(self) -> str:
        """The same for all inputs that fail in the same way at the same place."""
        how = f"{self.target} {self.kind} {self.what.partition(':')[0]} {self.frames}"
        return f"{self.target}-{self.kind}-{hashlib.sha256(how.encode()).hexdigest()[:10]}"

    def __str__(self) -> str:
        return f"{self.target} #{self.index}: {self.kind}: {self.what[:200]!r} at {' < '.join(self.frames) or '?'}"


def of_exception(target: str, error: BaseException, index: int) -> Finding:
    frames = [
        _frame(entry.filename, entry.lineno or 0, entry.name)
        for entry in reversed(traceback.extract_tb(error.__traceback__))
        if _is_product(entry.filename)
    ]
    text = str(error).encode("utf-8", "backslashreplace").decode()
    return Finding(target, "exception", f"{type(error).__name__}: {text}", tuple(frames[:FRAMES]), index)


def of_death(target: str, kind: str, what: str, dump: str, index: int) -> Finding:
    """dump: what faulthandler wrote, the innermost frame first."""
    main = dump.rpartition("Current thread")[2]
    frames = [_frame(name, int(line), where) for name, line, where in DUMPED.findall(main) if _is_product(name)]
    return Finding(target, kind, what, tuple(frames[:FRAMES]), index)


def _is_product(name: str) -> bool:
    return str(Path(name).resolve()).startswith((*PRODUCT, PLANTED)) if name.startswith("/") else False


def _frame(name: str, line: int, where: str) -> str:
    return f"{Path(name).resolve().relative_to(ROOT)}:{line} {where}"


def keep(folder: Path, finding: Finding, data: bytes) -> None:
    """Writes the input and what is known about it, if this key has none yet or a larger one."""
    folder.mkdir(parents=True, exist_ok=True)
    case, told = folder / f"{finding.key}.bin", folder / f"{finding.key}.json"
    if not case.exists() or len(data) < case.stat().st_size:
        case.write_bytes(data)
        told.write_text(json.dumps(asdict(finding), indent=1) + "\n")


def read(folder: Path) -> list[tuple[Finding, Path]]:
    """The findings that were kept, and the files of their inputs."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        fields = json.loads(path.read_text())
        found.append((Finding(**{**fields, "frames": tuple(fields["frames"])}), path.with_suffix(".bin")))
    return found


def smaller(data: bytes, still: Callable[[bytes], bool], tries: int) -> bytes:
    """The data without the chunks that do not matter: what is left still fails in the same way."""
    size = max(1, len(data) // 2)
    while size and tries:
        at = 0
        while at < len(data) and tries:
            less = data[:at] + data[at + size :]
            tries -= 1
            if still(less):
                data = less
            else:
                at += size
        size //= 2
    return data
