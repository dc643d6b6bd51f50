"""`cdc tail`: live events of any database on the screen, beside whatever else reads it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Annotated, cast

import typer
from psycopg.conninfo import conninfo_to_dict
from pydantic import TypeAdapter, ValidationError
from rich.text import Text

from cdc import logs
from cdc.cli.filters import Filter
from cdc.cli.interrupts import until_signal
from cdc.cli.output import ConfigOption, console, counted, refuse_usage
from cdc.cli.shown import Over, Shown, Writer
from cdc.config import Config, HandlerConfig, SourceConfig, find, load
from cdc.config.fields import SizeBound
from cdc.errors import UnknownCallback
from cdc.events import EventType
from cdc.loading import load_callback
from cdc.logs import clean
from cdc.tail import Tail, View
from cdc.wording import told

app = typer.Typer()

MAX_WAL = "1GiB"  # minutes of a very busy server, days of most; and no disk of one is so small


@app.command()
def tail(  # noqa: PLR0913, PLR0917 - one parameter per option; typer passes them by name
    config: ConfigOption = None,
    dsn: Annotated[
        str | None,
        typer.Option(
            metavar="DSN",
            help="The database, without a configuration file (with --config: in place of its source.dsn)."
            " Leave the password to PGPASSFILE: everybody sees in the process list what is typed here.",
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", "-t", metavar="SCHEMA.TABLE", help="Of these tables, * for any; repeatable."),
    ] = None,
    event_type: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="|".join(map(str, EventType)), help="Of these types; repeatable."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="With a tag that matches, such as audit:*; repeatable.")
    ] = None,
    handler: Annotated[
        str | None, typer.Option(metavar="NAME", help="What this handler of the configuration gets, as it sees it.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="End after so many events; 0: never.")] = 0,
    values: Annotated[bool, typer.Option(help="Show values, or only the names of columns.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, one object per line.")] = False,
    max_wal: Annotated[
        str, typer.Option(metavar="SIZE", help="End when the server keeps more WAL for it; 0: no bound.")
    ] = MAX_WAL,
) -> None:
    """Show live events on a temporary slot, beside a running service, until Ctrl-C.

    Needs a role with REPLICATION, a free replication slot and a free walsender; no state, no handlers. The configured
    slot is left alone. Its own slot is gone as soon as it ends, after kill -9 too.

    Tables, tag rules and soft deletes are those of the configuration. A column that any of its handlers masks or
    leaves out is masked; --handler shows exactly what that one gets.

    What it holds: a thousand events in memory. What a stopped terminal or a waiting pager has not taken yet, the server
    keeps as WAL: at half of --max-wal it says so, past it it ends with exit 1.
    """
    if as_json and not values:
        refuse_usage("JSON always holds the values", "leave out --json or --no-values")
    bound = _size(max_wal)
    filters = Filter.typed(table or (), event_type or (), tag or ())
    settings = _settings(config, dsn)
    view = _view(settings, handler)
    logs.setup("warning", "console")
    shown = Shown(_writer(as_json=as_json, values=values), filters, limit)
    ended = asyncio.run(until_signal(_follow(Tail(settings, max_wal=bound, tell=_tell), view, filters, shown)))
    if ended or not shown.is_pipe_closed:
        _say(counted(shown.count, "event"))


def _size(text: str) -> int:
    try:
        size: int = TypeAdapter(SizeBound).validate_python(int(text) if text.isdecimal() else text)
    except ValidationError:
        refuse_usage(f"--max-wal {clean(text)} is no size", "write 512MiB, 10GiB, a number of bytes, or 0 for no bound")
    return size


def _settings(path: Path | None, dsn: str | None) -> Config:
    """Those of the file, those of the file for another database, or none but a database."""
    if dsn is None:
        return load(find(path))
    try:
        source = SourceConfig(dsn=dsn)
    except ValidationError as error:
        refuse_usage(f"--dsn: {told(error.errors()[0])}", "write postgresql://user@host/database")
    if conninfo_to_dict(dsn).get("password"):
        _tell("everybody can read the password of --dsn in the process list; put it into a PGPASSFILE")
    if path is None:
        return Config(source=source)
    settings = load(find(path))
    return settings.model_copy(update={"source": settings.source.model_copy(update={"dsn": dsn})})


def _view(config: Config, name: str | None) -> View:
    """That of a handler; or all, with every column masked that some handler does not get to see."""
    if name is None:
        hidden = {column for one in config.handlers for column in (*one.columns.exclude, *one.columns.mask)}
        return View(mask=sorted(hidden))
    for one in config.handlers:
        if one.name == name:
            return View(one.tables, one.event_types, one.tags, one.columns.exclude, one.columns.mask)
    known = ", ".join(one.name for one in config.handlers) or "none"
    raise UnknownCallback(f"no handler is named {name!r}", callback=name, hint=f"in the configuration: {known}")


def _writer(*, as_json: bool, values: bool) -> Writer:
    """The handler `console`, by its name: the command line looks like it, whatever it comes to look like."""
    options = {"format": "json" if as_json else "text", "values": values}
    return cast(Writer, load_callback(HandlerConfig(callback="console", options=options), Path.cwd()))


async def _follow(source: Tail, view: View, filters: Filter, shown: Shown) -> None:
    async with source:
        _say(f"{source.database} from {source.lsn} on, slot {source.slot}; Ctrl-C ends")
        for remark in filters.remarks(source.tables, lambda *table: source.delivers(view, *table)):
            _tell(remark)
        tasks = [asyncio.create_task(source.run(view, shown.receive)), asyncio.create_task(shown.until_nobody_reads())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            with suppress(Over):
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await shown.end()


def _say(text: str) -> None:
    """On standard error: what is on standard output are events."""
    console(stderr=True).print(Text(text, style="dim"))


def _tell(text: str) -> None:
    console(stderr=True).print(Text.assemble(("warning: ", "yellow"), clean(text)))
