"""`cdc dead-letters list|show|retry|discard`: the events that handlers have not handled, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.text import Text

from cdc.cli import retrying
from cdc.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    console,
    counted,
    human_bytes,
    pairs,
    print_json,
    print_json_list,
    refuse_usage,
    table,
)
from cdc.cli.selection import AllOption, HandlerOption, Ids, OlderOption, Selection, StateOption, TableOption
from cdc.cli.stored import MOST_COUNTED, PAGE_LETTERS, count, moment, opened, pages, summed
from cdc.codec import unpack
from cdc.config import find, load
from cdc.errors import CdcError
from cdc.events import DatabaseEvent
from cdc.logs import clean
from cdc.state import DeadLetter, LetterFilter, LetterState, LetterTotal, StateStore
from cdc.values import to_json

__all__ = ["app"]

app = typer.Typer(help="List, show, retry or discard events that handlers have not handled.", no_args_is_help=True)

_COLUMNS = ["id", "handler", "state", "table", "type", "position", "attempts", "error", "last attempt"]


@app.command("list")
def list_letters(
    ids: Ids = None,
    *,
    handler: HandlerOption = None,
    table_name: TableOption = None,
    older_than: OlderOption = None,
    state: StateOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many at most; 0 for all.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, and how many there are of each handler."""
    settings = load(find(config))
    selection = Selection(ids, handler, table_name, older_than, state)
    with opened(settings, read_only=True) as store:
        wanted = selection.wanted(store, settings)
        totals = [total for total in store.letter_totals() if wanted.callback in (None, total.callback)]
        rest: dict[str, Any] = {"more": 0, "exact": True, "totals": [_total(total) for total in totals]}
        shown = _first(store, wanted, limit, rest)
        if as_json:
            print_json_list("letters", (_letter(letter) for page in shown for letter in page), rest)
            return
        out = console()
        for page in shown:
            out.print(table("dead letters", _COLUMNS, map(_row, page)))
        if rest["more"]:
            more = f"{'' if rest['exact'] else 'at least '}{rest['more']:,} more"
            out.print(Text(f"and {more}; show them with --limit, or choose: cdc dead-letters list --help"))
        if totals:
            columns = ["handler", "state", "letters", "size", "oldest", "to be retried"]
            out.print(table("all dead letters", columns, map(_total_row, totals)))
        else:
            out.print(Text("there are no dead letters"))


@app.command()
def show(
    letter_id: Annotated[int, typer.Argument(metavar="ID", help="As `cdc dead-letters list` shows it.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter with its error and its event, as the handler sees it."""
    settings = load(find(config))
    with opened(settings, read_only=True) as store:
        (letter,) = _found(store, [letter_id])
    event, problem = _event(letter)
    if as_json:
        values = None if event is None else json.loads(event.to_json())
        print_json(_letter(letter) | {"error_text": letter.error_text, "event": values, "problem": problem})
        return
    out = console()
    facts = [
        ("handler", letter.callback),
        ("state", _state(letter)),
        ("position", letter.position),
        ("first attempt" if letter.attempts else "kept since", moment(letter.first_time)),
        ("last attempt", moment(letter.last_time) if letter.attempts else "-"),
        ("attempts", letter.attempts),
        ("error", letter.error),
        ("error text", letter.error_text),
        ("size", human_bytes(letter.size)),
        ("table", letter.table),
        ("type", letter.event_type),
    ]
    if event is not None:
        facts += [
            ("record id", event.record_id),
            ("event id", event.id),
            ("tags", ", ".join(event.tags)),
            ("committed", moment(event.timestamp)),
            ("transaction", event.transaction_id),
            ("unchanged", ", ".join(sorted(event.unchanged))),
        ]
    out.print(pairs(f"dead letter {letter.id}", facts))
    if event is not None:
        out.print(table("row", ["column", "value", "before"], _columns(event)))
    else:
        out.print(Text.assemble(("problem: ", "bold red"), clean(problem)))
    retried = letter.state is LetterState.FAILED
    again = f"cdc dead-letters retry {letter.id}" if retried else f"cdc handlers resume {letter.callback}"
    out.print(Text(f"next: {again}, or give it up: cdc dead-letters discard {letter.id}"))


@app.command()
def retry(  # noqa: PLR0913 - one parameter per option
    ids: Ids = None,
    *,
    handler: HandlerOption = None,
    table_name: TableOption = None,
    older_than: OlderOption = None,
    state: StateOption = None,
    everything: AllOption = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for it, and do not wait for the service.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give failed events to their handlers once more; exit 1 when some fail again."""
    settings = load(find(config))
    selection = Selection(ids, handler, table_name, older_than, state, everything)
    selection.require("retry")
    with opened(settings) as store:
        wanted = selection.wanted(store, settings)
        if wanted.state is LetterState.PARKED:
            refuse_usage("parked letters are not retried one by one", _RESUME.format(handler or "NAME"))
        if ids:
            _refuse_parked(_found(store, ids))
        try:
            outcome = retrying.retry(store, settings, replace(wanted, state=LetterState.FAILED), wait=not no_wait)
        except KeyboardInterrupt:
            raise CdcError(
                "not waited for any longer", hint="the service goes on with it; see: cdc dead-letters list"
            ) from None
        parked = [total.callback for total in store.letter_totals() if total.state is LetterState.PARKED]
    if as_json:
        print_json(outcome.to_dict())
    else:
        out = console()
        lines = retrying.told(outcome) if outcome.requested else ["no failed dead letters match"]
        for line in lines:
            out.print(Text(clean(line)))
        if not ids:
            for name in parked:
                if handler in (None, name):
                    out.print(Text(f"what was parked for {clean(name)} is not among them: cdc handlers resume {name}"))
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def discard(  # noqa: PLR0913 - one parameter per option
    ids: Ids = None,
    *,
    handler: HandlerOption = None,
    table_name: TableOption = None,
    older_than: OlderOption = None,
    state: StateOption = None,
    everything: AllOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give dead letters up: their handlers never get these events. What was lost stays on record."""
    settings = load(find(config))
    selection = Selection(ids, handler, table_name, older_than, state, everything)
    selection.require("discard")
    with opened(settings) as store:
        wanted = selection.wanted(store, settings)
        if ids:
            _found(store, ids)
        known = summed(store, wanted)
        number = count(store, wanted) if known is None else known
        if number and not yes:
            what = f"{counted(number, 'dead letter')}{' or more' if known is None and number >= MOST_COUNTED else ''}"
            confirm(
                f"Discard {what}? Their handlers never get these events.",
                refusal=f"{what} would be lost to their handlers: not without a yes",
                hint="type the same with --yes",
            )
        discarded = store.discard_letters(wanted) if number else 0
    if as_json:
        print_json({"discarded": discarded})
    elif discarded:
        console().print(Text(f"discarded {counted(discarded, 'dead letter')}; on record in: cdc handlers list"))
    else:
        console().print(Text("no dead letters match"))


_RESUME = "a handler gets what was parked for it, in order: cdc handlers resume {}"


def _first(store: StateStore, wanted: LetterFilter, limit: int, rest: dict[str, Any]) -> Iterator[Sequence[DeadLetter]]:
    """The first `limit` page by page; how many more there are goes to `rest` after the last."""
    after: DeadLetter | None = None
    left = limit
    for page in pages(store, wanted, limit=min(limit, PAGE_LETTERS) or PAGE_LETTERS):
        shown = page[:left] if limit else page
        after, left = shown[-1], left - len(shown)
        yield shown
        if limit and left <= 0:
            known = summed(store, wanted)
            rest["more"] = count(store, wanted, behind=after) if known is None else max(known - limit, 0)
            rest["exact"] = known is not None or rest["more"] < MOST_COUNTED
            return


def _found(store: StateStore, ids: Sequence[int]) -> list[DeadLetter]:
    """The letters with these ids, without their events but for a single one; CdcError unless all are there."""
    keep = len(ids) == 1
    found = [
        letter if keep else replace(letter, event=b"")
        for page in pages(store, LetterFilter(ids=ids))
        for letter in page
    ]
    if missing := set(ids) - {letter.id for letter in found}:
        names = ", ".join(map(str, sorted(missing)[:10]))
        raise CdcError(f"no dead letter has the id {names}", hint="look: cdc dead-letters list")
    return found


def _refuse_parked(letters: Sequence[DeadLetter]) -> None:
    parked = [letter for letter in letters if letter.state is LetterState.PARKED]
    if parked:
        first = parked[0]
        raise CdcError(
            f"dead letter {first.id} is parked, not failed: parked letters are not retried one by one",
            hint=_RESUME.format(first.callback),
        )


def _event(letter: DeadLetter) -> tuple[DatabaseEvent | None, str]:
    """The event, or why there is none."""
    if not letter.event:
        return None, "the row could not be read when the letter was written; the table has it, or its log"
    try:
        return unpack(letter.event), ""
    except ValueError as error:
        return None, f"the event cannot be read: {error}"


def _columns(event: DatabaseEvent) -> Iterator[tuple[str, str, str]]:
    before = event.before or {}
    for name in {**event.payload, **before}:
        yield name, _value(event.payload, name), _value(before, name)


def _value(row: Any, name: str) -> str:
    if name not in row:
        return "-"
    value = row[name]
    return value if isinstance(value, str) and value else to_json(value).decode()


def _state(letter: DeadLetter) -> str:
    return f"{letter.state}, to be retried" if letter.retry else str(letter.state)


def _row(letter: DeadLetter) -> Sequence[object]:
    return (
        letter.id,
        letter.callback,
        _state(letter),
        letter.table,
        letter.event_type,
        letter.position,
        letter.attempts or "-",
        letter.error,
        moment(letter.last_time) if letter.attempts else "-",
    )


def _letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "handler": letter.callback,
        "state": letter.state.value,
        "retry": letter.retry,
        "table": letter.table,
        "event_type": letter.event_type,
        "position": str(letter.position),
        "attempts": letter.attempts,
        "error": letter.error,
        "first_time": letter.first_time.isoformat(),
        "last_time": letter.last_time.isoformat(),
        "bytes": letter.size,
    }


def _total(total: LetterTotal) -> dict[str, Any]:
    return {
        "handler": total.callback,
        "state": total.state.value,
        "letters": total.count,
        "bytes": total.bytes,
        "oldest": total.oldest.isoformat(),
        "retry": total.retry,
    }


def _total_row(total: LetterTotal) -> Sequence[object]:
    size, oldest = human_bytes(total.bytes), moment(total.oldest)
    return total.callback, total.state, f"{total.count:,}", size, oldest, f"{total.retry:,}"
