"""Which dead letters a command is about: ids, or conditions that all must hold, or all there are."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, get_type_hints

import typer

from cdc.cli.output import refuse_usage
from cdc.cli.stored import require_handler
from cdc.config import Config
from cdc.state import LetterFilter, LetterState, StateStore

__all__ = ["AllOption", "Selection", "selecting"]

AllOption = Annotated[bool, typer.Option("--all", help="All there are.")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"(?:\d+[smhdw])+", re.ASCII)
_HOW = "name ids, or --handler, --table, --older-than or --state, or --all; see them first: cdc dead-letters list"


@dataclass(frozen=True, slots=True)
class Selection:
    """What was typed: its fields are the options of commands that are `selecting`.

    :meth:`wanted` reads it; whatever makes no sense ends the command with exit code 2.
    """

    ids: Annotated[
        list[int] | None, typer.Argument(metavar="[ID]...", help="Ids, as `cdc dead-letters list` shows.")
    ] = None
    handler: Annotated[str | None, typer.Option("--handler", metavar="NAME", help="Of this handler.")] = None
    table: Annotated[str | None, typer.Option("--table", metavar="SCHEMA.TABLE", help="Of this table.")] = None
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Last tried longer ago than 90s, 15m, 2h, 3d or 1w."),
    ] = None
    state: Annotated[
        str | None,
        typer.Option("--state", metavar="failed|parked", help="Failed ones, or those of a removed handler."),
    ] = None

    @property
    def is_empty(self) -> bool:
        """Whether no condition was typed."""
        return not self.ids and not any((self.handler, self.table, self.older_than, self.state))

    def require(self, verb: str, *, everything: bool) -> None:
        """For commands that change something: all letters are meant only when that was typed."""
        if self.is_empty and not everything:
            refuse_usage(f"nothing is selected to {verb}", _HOW)
        if everything and not self.is_empty:
            refuse_usage(
                "--all and a condition contradict each other", f"leave one of them out to {verb} what you mean"
            )

    def wanted(self, store: StateStore, config: Config) -> LetterFilter:
        """As the state understands it; CallbackError for a handler that nobody knows."""
        wanted = LetterFilter(
            ids=self.ids or None,
            callback=self.handler,
            table=None if self.table is None else _table(self.table),
            state=None if self.state is None else _state(self.state),
            before=None if self.older_than is None else datetime.now(UTC) - _age(self.older_than),
        )
        if self.handler is not None:
            require_handler(store, config, self.handler)
        return wanted


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command whose first parameter is a Selection: on the command line it is all options of that."""

    @functools.wraps(command)
    def selected(**typed: Any) -> None:
        chosen = {one.name: typed.pop(one.name) for one in fields(Selection)}
        command(Selection(**chosen), **typed)

    options, (_, *others) = _parameters(Selection), _parameters(command)
    selected.__signature__ = inspect.Signature([*options, *others])  # type: ignore[attr-defined]  # typer reads it
    return selected


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    """By keyword, their annotations as objects."""
    hints = get_type_hints(function, include_extras=True)
    return [
        one.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, one in inspect.signature(function).parameters.items()
    ]


def _age(text: str) -> timedelta:
    """``2h`` or ``1d12h``; anything else ends the command with exit code 2."""
    if not _AGE.fullmatch(text):
        refuse_usage(f"--older-than {text} is no age", "write a number and s, m, h, d or w, such as 2h or 1d12h")
    try:
        return timedelta(seconds=sum(int(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"\d+[smhdw]", text)))
    except (OverflowError, ValueError):
        refuse_usage(f"--older-than {text[:20]} is longer than time itself", "write an age such as 2h or 3d")


def _table(text: str) -> str:
    schema, dot, name = text.partition(".")
    if not (schema and dot and name):
        refuse_usage(f"--table {text} does not name a table with its schema", f"write --table public.{text.strip('.')}")
    return text


def _state(text: str) -> LetterState:
    try:
        return LetterState(text)
    except ValueError:
        refuse_usage(f"--state {text} is none", f"it is {' or '.join(map(str, LetterState))}")
