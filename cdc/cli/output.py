"""How commands speak: tables and sentences for people, JSON for programs, errors on stderr.

Whatever came from a server or a file is cleaned before it reaches a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdc.codes import Code
from cdc.errors import CdcError, ConfigError
from cdc.logs import clean

__all__ = [
    "ConfigOption",
    "JsonOption",
    "YesOption",
    "confirm",
    "console",
    "counted",
    "forget_json",
    "human_bytes",
    "pairs",
    "print_error",
    "print_json",
    "print_json_list",
    "refuse_usage",
    "table",
]

PIPE_WIDTH = 200  # columns without a terminal: what reads us cuts lines better than we would

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration; else $CDC_CONFIG, else ./cdc.toml."),
]
_json_is_wanted: ContextVar[bool] = ContextVar("json_is_wanted", default=False)


def _remember_json(wanted: bool) -> bool:
    _json_is_wanted.set(wanted)
    return wanted


def forget_json() -> None:
    """A new command begins: whether it wants JSON is not known yet."""
    _json_is_wanted.set(False)


JsonOption = Annotated[
    bool, typer.Option("--json", callback=_remember_json, help="Print JSON, and nothing else, on stdout.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def console(*, stderr: bool = False) -> Console:
    """Made anew for each command: the streams may have been replaced since."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=None if stream.isatty() else PIPE_WIDTH)


def print_error(error: CdcError) -> None:
    """``error[code]:`` with the message, one line per problem, and ``fix:`` with what to do.

    After a command that was asked for JSON stdout gets ``{"error": {...}}``, too.
    """
    if _json_is_wanted.get():
        print_json({"error": error.to_dict()})
    out = console(stderr=True)
    out.print(Text.assemble((f"error[{clean(error.code)}]: ", "bold red"), clean(error.message)))
    if isinstance(error, ConfigError):
        for problem in error.problems:
            out.print(Text(f"  {clean(problem)}"))
    if error.hint:
        out.print(Text.assemble(("fix: ", "bold green"), clean(error.hint)))


def refuse_usage(message: str, hint: str) -> NoReturn:
    """End the command, exit code 2: what was typed makes no sense."""
    print_error(CdcError(message, hint=hint, code=Code.USAGE_WRONG))
    raise typer.Exit(2)


def confirm(question: str, *, refusal: str, hint: str) -> None:
    """Go on after a yes. Without a terminal nobody can give one: then `refusal` is the error, `hint` its fix."""
    if not sys.stdin.isatty():
        raise CdcError(refusal, hint=hint, code=Code.CONFIRMATION_MISSING)
    typer.confirm(question, abort=True, err=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_json_list(name: str, items: Iterable[Any], rest: Mapping[str, Any]) -> None:
    """One JSON object as `print_json` prints it, whose list `name` is written item by item, never held."""
    out = sys.stdout
    out.write(f"{{\n  {json.dumps(name)}: [")
    comma = ""
    for item in items:
        out.write(comma + "\n    " + json.dumps(item, indent=2, default=str).replace("\n", "\n    "))
        comma = ","
    out.write("\n  ]" if comma else "]")
    for key, value in rest.items():  # a mapping may be filled while the items are read
        out.write(f",\n  {json.dumps(key)}: " + json.dumps(value, indent=2, default=str).replace("\n", "\n  "))
    out.write("\n}\n")


def counted(number: int, word: str) -> str:
    """``1 dead letter``, ``2,000 dead letters``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


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
