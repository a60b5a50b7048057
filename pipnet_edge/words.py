"""Numbers and errors in the words of tables and messages."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, what: str) -> str:
    """ "1 face", "2 faces"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def megabytes(size: int) -> str:
    """Bytes as "1.5 MB"."""
    return f"{size / 1e6:.1f} MB"


def joined(values: Iterable[float]) -> str:
    """ "0.485,0.456,0.406", as options take them."""
    return ",".join(f"{value:.6g}" for value in values)


def clean(text: str) -> str:
    """The text with "?" for each character that a terminal would act on, or that cannot be printed."""
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(error: BaseException) -> str:
    """An exception's type and first line of text, cut and printable, for messages that have to fit one line."""
    lines = str(error).strip().splitlines()
    text = clean(lines[0][:300]) if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
