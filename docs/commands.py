"""Writes commands.md from the commands' own --help: `python docs/commands.py`, in a clone with its .venv activated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipnet_edge.cli.app import app

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 100
HEAD = """\
# Commands

What `--help` prints, written by `python docs/commands.py`. Every command takes `--json`, for one versioned JSON object
on stdout. Progress goes to stderr.

Exit codes: 0 done, 1 bad input (one line says what was given and what is allowed), 2 usage, 3 a check failed.
"""


def page() -> str:
    """The page, Markdown: the same whatever the terminal's width and colours."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    named: dict[str, Any] = {"pipnet-edge": group}
    named |= {f"pipnet-edge {name}": command for name, command in group.commands.items()}
    return HEAD + "".join(f"\n## {name}\n\n```text\n{_help(command, name)}\n```\n" for name, command in named.items())


def _help(command: TyperCommand | TyperGroup, name: str) -> str:
    # Made by hand, a context has the width that is given, not the terminal's.
    context = command.context_class(command, info_name=name, terminal_width=WIDTH, color=False)
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


if __name__ == "__main__":
    PAGE.write_text(page())
