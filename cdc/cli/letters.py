"""`cdc dead-letters list|show|retry|discard`: the events that handlers have not handled, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.text import Text

from cdc.cli import retrying
from cdc.cli.letter_views import (
    LETTER_COLUMNS,
    TOTAL_COLUMNS,
    letter_page,
    letter_row,
    letter_values,
    letter_whole,
    total_row,
    total_values,
)
from cdc.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    console,
    counted,
    print_json,
    print_json_list,
    refuse_usage,
    table,
)
from cdc.cli.selection import AllOption, Selection, selecting
from cdc.cli.stored import MOST_COUNTED, PAGE_LETTERS, count, opened, pages, summed
from cdc.codes import Code
from cdc.config import find, load
from cdc.errors import CdcError
from cdc.logs import clean
from cdc.state import DeadLetter, LetterFilter, LetterState, StateStore

__all__ = ["app"]

app = typer.Typer(help="List, show, retry or discard events that handlers have not handled.", no_args_is_help=True)


@app.command("list")
@selecting
def list_letters(
    selection: Selection,
    *,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many at most; 0 for all.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, and how many there are of each handler."""
    settings = load(find(config))
    with opened(settings, read_only=True) as store:
        wanted = selection.wanted(store, settings)
        totals = [total for total in store.letter_totals() if wanted.callback in (None, total.callback)]
        rest: dict[str, Any] = {"more": 0, "exact": True, "totals": [total_values(total) for total in totals]}
        shown = _first(store, wanted, limit, rest)
        if as_json:
            print_json_list("letters", (letter_values(letter) for page in shown for letter in page), rest)
            return
        out = console()
        for page in shown:
            out.print(table("dead letters", LETTER_COLUMNS, map(letter_row, page)))
        if rest["more"]:
            more = f"{'' if rest['exact'] else 'at least '}{rest['more']:,} more"
            out.print(Text(f"and {more}; show them with --limit, or choose: cdc dead-letters list --help"))
        if totals:
            out.print(table("all dead letters", TOTAL_COLUMNS, map(total_row, totals)))
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
    if as_json:
        print_json(letter_whole(letter))
        return
    out = console()
    for part in letter_page(letter):
        out.print(part)


@app.command()
@selecting
def retry(
    selection: Selection,
    *,
    everything: AllOption = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for it, and do not wait for the service.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give failed events to their handlers once more; exit 1 when some fail again."""
    settings = load(find(config))
    selection.require("retry", everything=everything)
    with opened(settings) as store:
        wanted = selection.wanted(store, settings)
        if wanted.state is LetterState.PARKED:
            refuse_usage("parked letters are not retried one by one", _RESUME.format(selection.handler or "NAME"))
        if selection.ids:
            _refuse_parked(_found(store, selection.ids))
        try:
            outcome = retrying.retry(store, settings, replace(wanted, state=LetterState.FAILED), wait=not no_wait)
        except KeyboardInterrupt:
            raise CdcError(
                "not waited for any longer",
                hint="the service goes on with it; see: cdc dead-letters list",
                code=Code.WAIT_ENDED,
            ) from None
        parked = [total.callback for total in store.letter_totals() if total.state is LetterState.PARKED]
    if as_json:
        print_json(outcome.to_dict())
    else:
        out = console()
        lines = retrying.told(outcome) if outcome.requested else ["no failed dead letters match"]
        for line in lines:
            out.print(Text(clean(line)))
        if not selection.ids:
            for name in parked:
                if selection.handler in (None, name):
                    out.print(Text(f"what was parked for {clean(name)} is not among them: cdc handlers resume {name}"))
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
@selecting
def discard(
    selection: Selection,
    *,
    everything: AllOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give dead letters up: their handlers never get these events. What was lost stays on record."""
    settings = load(find(config))
    selection.require("discard", everything=everything)
    with opened(settings) as store:
        wanted = selection.wanted(store, settings)
        if selection.ids:
            _found(store, selection.ids)
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
        raise CdcError(
            f"no dead letter has the id {names}", hint="look: cdc dead-letters list", code=Code.LETTER_UNKNOWN
        )
    return found


def _refuse_parked(letters: Sequence[DeadLetter]) -> None:
    parked = [letter for letter in letters if letter.state is LetterState.PARKED]
    if parked:
        first = parked[0]
        raise CdcError(
            f"dead letter {first.id} is parked, not failed: parked letters are not retried one by one",
            hint=_RESUME.format(first.callback),
            code=Code.LETTER_PARKED,
        )
