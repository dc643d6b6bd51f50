"""How commands speak: tables and sentences for people, JSON for programs, errors on stderr.

Whatever came from a server or a file is cleaned before it reaches a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdc.errors import CdcError, ConfigError
from cdc.logs import clean

__all__ = [
    "ConfigOption",
    "JsonOption",
    "console",
    "human_bytes",
    "pairs",
    "print_error",
    "print_json",
    "table",
]

PIPE_WIDTH = 200  # columns without a terminal: what reads us cuts lines better than we would

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration; else $CDC_CONFIG, else ./cdc.toml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def console(*, stderr: bool = False) -> Console:
    """Made anew for each command: the streams may have been replaced since."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=None if stream.isatty() else PIPE_WIDTH)


def print_error(error: CdcError) -> None:
    """``error:`` with the message, one line per problem, and ``fix:`` with what to do."""
    out = console(stderr=True)
    out.print(Text.assemble(("error: ", "bold red"), clean(error.message)))
    if isinstance(error, ConfigError):
        for problem in error.problems:
            out.print(Text(f"  {clean(problem)}"))
    if error.hint:
        out.print(Text.assemble(("fix: ", "bold green"), clean(error.hint)))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose cells are text as it is, never markup."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        made.add_column(column, header_style="dim", overflow="fold")
    for row in rows:
        made.add_row(*(Text(_cell(value)) for value in row))
    return made


def pairs(title: str, values: Iterable[tuple[str, object]]) -> Table:
    """A table of names and values."""
    made = table(title, ["", ""], values)
    made.show_header = False
    return made


def human_bytes(size: int | None) -> str:
    """1536 → "1.5 KiB"."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else clean(str(value))
