"""`cdc replay`: give the events of a file_wal log once more to handlers of the configuration."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from cdc import logs
from cdc.cli.output import ConfigOption, JsonOption, console, counted, print_json, refuse_usage, table
from cdc.cli.replaying import Account, Conditions, Reader, Replay
from cdc.codes import Code
from cdc.config import Config, HandlerConfig, find, load
from cdc.errors import CallbackError, CdcError, ConfigError
from cdc.events import EventType
from cdc.loading import ENTRY_POINTS
from cdc.logs import clean
from cdc.patterns import TablePatterns, TagPatterns
from cdc.terms import parse_event_types

__all__ = ["app"]

app = typer.Typer()

SHOWN_FAILURES = 5  # positions for people; --json has more

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Folders and segments of a file_wal log.")]
HandlerOption = Annotated[
    list[str] | None, typer.Option("--handler", metavar="NAME", help="Who gets them; several times for several.")
]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="From this commit time on: 2026-01-02T12:00:00Z.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this commit time.")]
TableOption = Annotated[
    list[str] | None, typer.Option("--table", metavar="SCHEMA.TABLE", help="Only these tables; * is a wildcard.")
]
TypeOption = Annotated[list[str] | None, typer.Option("--type", metavar="TYPE", help="Only these: create, ...")]
TagOption = Annotated[list[str] | None, typer.Option("--tag", metavar="GLOB", help="Only with one of these tags.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Count what each handler would get; call none.")]


@app.command()
def replay(  # noqa: PLR0913, PLR0917 - an option each
    files: Files,
    handler: HandlerOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    table: TableOption = None,  # noqa: A002, RUF100 - the word that people type
    event_type: TypeOption = None,
    tag: TagOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the events of a file_wal log to handlers once more; exit 1 when some of them failed.

    Each handler gets what its conditions select, with its retries. No checkpoint moves and no dead letter is made.
    Times without an offset are local.
    """
    settings = load(find(config))
    chosen = _chosen(settings, handler)
    conditions = _conditions(since, until, table, event_type, tag)
    as_progress = sys.stderr.isatty()
    logs.setup("error" if as_progress else "warning", settings.log.format)
    with _reading():
        reader = _reader(files)
        found = Replay(settings, chosen, conditions)
        with _progress(reader, found, shown=as_progress) as tell:
            if dry_run:
                found.count(reader, tell)
            else:
                asyncio.run(found.run(reader, tell))
    if as_json:
        print_json(_document(found, dry_run=dry_run))
    else:
        _print(found, dry_run=dry_run)
    if not (dry_run or found.is_clean):
        raise typer.Exit(1)


def _chosen(config: Config, names: Sequence[str] | None) -> list[HandlerConfig]:
    known = {item.name: item for item in config.handlers}
    hint = f"known: {', '.join(known) or 'none'}"
    if not names:
        refuse_usage("no handler is named: who shall get the events?", f"--handler NAME; {hint}")
    for name in names:
        if name not in known:
            raise CallbackError(
                f"no handler of {config.file.name} is named {name!r}",
                callback=name,
                hint=hint,
                code=Code.HANDLER_UNKNOWN,
            )
    return [known[name] for name in dict.fromkeys(names)]


def _conditions(
    since: str | None,
    until: str | None,
    tables: Sequence[str] | None,
    event_types: Sequence[str] | None,
    tags: Sequence[str] | None,
) -> Conditions:
    try:
        return Conditions(
            since=_time("--since", since),
            until=_time("--until", until),
            tables=TablePatterns(tables or ()),
            event_types=parse_event_types(event_types or list(EventType)),
            tags=TagPatterns(tags or ()),
        )
    except (CallbackError, ConfigError) as error:
        refuse_usage(error.message, error.hint)


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        refuse_usage(f"{option} {text} is no time", "write 2026-01-02, 2026-01-02T12:00 or 2026-01-02T12:00:00Z")


def _reader(files: Sequence[Path]) -> Reader:
    """That of the handler that writes such logs, by its short name: their format is its own."""
    (entry,) = entry_points(group=ENTRY_POINTS, name="file_wal")
    reader: Reader = entry.load().Reader(files)
    return reader


@contextmanager
def _reading() -> Iterator[None]:
    """What may be wrong with the files is an error of the command."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CdcError(str(error), code=Code.LOG_UNREADABLE) from None
    except OSError as error:
        raise CdcError(
            f"{error.filename or 'the log'} cannot be read: {error.strerror or error}", code=Code.LOG_UNREADABLE
        ) from None


@contextmanager
def _progress(reader: Reader, found: Replay, *, shown: bool) -> Iterator[Callable[[], None]]:
    if not shown:
        yield lambda: None
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[events]:,} events"), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=reader.total_bytes, events=0)
        yield lambda: progress.update(task, completed=reader.done_bytes, events=found.selected)


def _document(found: Replay, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "read": found.read,
        "selected": found.selected,
        "stopped": found.stopped,
        "last_position": None if found.last is None else str(found.last.position),
        "handlers": [account.to_dict() for account in found.accounts.values()],
    }


def _print(found: Replay, *, dry_run: bool) -> None:
    out = console()
    out.print(Text(f"{counted(found.read, 'event')} read, {found.selected:,} selected"))
    if dry_run:
        rows: list[Sequence[object]] = [(item.name, f"{item.matched:,}") for item in found.accounts.values()]
        out.print(table("would get", ["handler", "events"], rows))
        return
    rows = [
        (item.name, f"{item.delivered:,}", f"{item.failed:,}", f"{item.not_called:,}")
        for item in found.accounts.values()
    ]
    out.print(table("replayed", ["handler", "delivered", "failed", "not called"], rows))
    for account in found.accounts.values():
        for line in _told(account):
            out.print(Text(clean(line)))
    if found.stopped and found.last is not None:
        last = found.last
        out.print(Text(f"ended early, at {last.position}; go on with: --since {last.timestamp.isoformat()}"))


def _told(account: Account) -> Iterator[str]:
    if account.failures:
        errors = ", ".join(f"{kind} {count:,}" for kind, count in account.errors.most_common())
        places = ", ".join(item["position"] for item in account.failures[:SHOWN_FAILURES])
        more = ", ..." if account.failed > SHOWN_FAILURES else ""
        yield f"{account.name} failed: {errors}; at {places}{more}"
    if account.removed:
        yield f"{account.name} failed too often in a row and was called no more: signal.max_consecutive_failures"
