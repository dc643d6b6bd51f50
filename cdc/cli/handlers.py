"""`cdc handlers list|pause|resume|remove|forget`: how the handlers fare, who is called, and who is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cdc.cli.output import ConfigOption, JsonOption, console, counted, print_json, table
from cdc.cli.stored import changes, opened, require_handler
from cdc.codes import Code
from cdc.config import Config, find, load
from cdc.errors import CallbackError
from cdc.logs import clean
from cdc.orders import Order, obey
from cdc.state import CallbackRecord, CallbackState, Gap, LetterState, LetterTotal, StateStore
from cdc.state.owner import is_owned

__all__ = ["app"]

app = typer.Typer(
    help="List handlers with what they missed; pause, resume, remove or forget them.", no_args_is_help=True
)

RESUME_SECONDS = 5.0
"""The service looks twice a second; with little parked, the handler is back within this time."""

Name = Annotated[str, typer.Argument(help="The handler's name.")]


@dataclass(frozen=True, slots=True)
class _Handler:
    """One handler as configuration and state know it."""

    name: str
    configured: bool
    record: CallbackRecord | None
    totals: Sequence[LetterTotal]

    @property
    def state(self) -> str:
        """For people: what keeps it from being called stands first."""
        if not self.configured:
            return "not configured"
        return str(self.record.state) if self.record else "new"

    def letters(self, state: LetterState) -> int:
        """How many dead letters it has."""
        return sum(total.count for total in self.totals if total.state is state)

    def row(self) -> Sequence[object]:
        """As `cdc handlers list` shows it."""
        record = self.record
        failed, parked = self.letters(LetterState.FAILED) or "-", self.letters(LetterState.PARKED) or "-"
        if record is None:
            return self.name, self.state, None, failed, parked, None, None
        return self.name, self.state, record.settled, failed, parked, record.removed_at, record.reason

    def to_dict(self) -> dict[str, Any]:
        """As `cdc handlers list --json` prints it."""
        record = self.record
        return {
            "name": self.name,
            "state": record.state.value if record else "new",
            "configured": self.configured,
            "settled": str(record.settled) if record else None,
            "removed_at": None if record is None or record.removed_at is None else str(record.removed_at),
            "removed_time": None if record is None or record.removed_time is None else record.removed_time.isoformat(),
            "reason": record.reason if record else "",
            "failed": self.letters(LetterState.FAILED),
            "parked": self.letters(LetterState.PARKED),
        }


@app.command("list")
def list_handlers(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show each handler's settled position, its dead letters, and which events it did not get."""
    settings = load(find(config))
    with opened(settings, read_only=True) as store:
        handlers, gaps = _all(store, settings), store.gaps()
    if as_json:
        print_json({"handlers": [item.to_dict() for item in handlers], "gaps": [_gap(item) for item in gaps]})
        return
    out = console()
    columns = ["handler", "state", "settled", "failed", "parked", "removed at", "reason"]
    out.print(table("handlers", columns, [item.row() for item in handlers]))
    if gaps:
        lost = [(gap.callback or "(all)", gap.reason, gap.events, gap.first, gap.last, gap.last_time) for gap in gaps]
        out.print(table("events not delivered", ["handler", "reason", "events", "first", "last", "until"], lost))


@app.command()
def remove(name: Name, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Call a handler no more until it is resumed; what comes for it is parked, or missed if it says so."""
    _take_out(name, Order.REMOVE, config, as_json=as_json)


@app.command()
def pause(name: Name, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Call a handler no more until it is resumed; all that comes for it is parked, and past the bound it waits."""
    _take_out(name, Order.PAUSE, config, as_json=as_json)


def _take_out(name: str, order: Order, config: Path | None, *, as_json: bool) -> None:
    settings = load(find(config))
    with opened(settings) as store:
        state = obey(store, settings, name, order)
        running = is_owned(settings.state.url)
    if as_json:
        print_json({"name": name, "state": state.value, "running": running})
        return
    when = "within a second" if running else "when the service is started"
    console().print(Text(f"{clean(name)} is called no more, {when}; back with: cdc handlers resume {name}"))


@app.command()
def resume(
    name: Name,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for it, and do not wait for the service.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a removed or paused handler what was parked for it, then the live stream. What it missed stays on record."""
    settings = load(find(config))
    with opened(settings) as store:
        obey(store, settings, name, Order.RESUME)
        running = is_owned(settings.state.url)
        if running and not no_wait:
            _wait_until_resumed(store, name)
        (after,) = [item for item in _all(store, settings) if item.name == name]
    if as_json:
        print_json(after.to_dict() | {"running": running})
        return
    out = console()
    out.print(Text(clean(_resumed(after, running=running))))
    if failed := after.letters(LetterState.FAILED):
        out.print(Text(f"{counted(failed, 'event')} failed before: cdc dead-letters retry --handler {name}"))


@app.command()
def forget(
    name: Name,
    discard: Annotated[bool, typer.Option("--discard", help="Give up its dead letters, too.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop all that is known of a handler that is not in the configuration any more."""
    settings = load(find(config))
    with opened(settings) as store:
        require_handler(store, settings, name)
        if name in _names(settings):
            raise CallbackError(
                f"{name} is in the configuration, and would start at the live position",
                callback=name,
                hint=f"take it out of {settings.file.name}, start the service anew, and then forget it",
                code=Code.HANDLER_CONFIGURED,
            )
        letters = sum(total.count for total in store.letter_totals() if total.callback == name)
        if letters and not discard:
            raise CallbackError(
                f"{name} has {counted(letters, 'dead letter')}",
                callback=name,
                hint=f"see cdc dead-letters list --handler {name}; to drop them: cdc handlers forget {name} --discard",
                code=Code.HANDLER_HAS_LETTERS,
            )
        store.forget(name)
    if as_json:
        print_json({"name": name, "discarded": letters})
        return
    lost = f", with {counted(letters, 'dead letter')}" if letters else ""
    console().print(Text(clean(f"{name} is forgotten{lost}")))


def _wait_until_resumed(store: StateStore, name: str) -> None:
    for _ in changes(store, RESUME_SECONDS):
        states = {record.name: record.state for record in store.callbacks()}
        if states.get(name) is not CallbackState.RESUMING:
            return


def _resumed(handler: _Handler, *, running: bool) -> str:
    name, parked = handler.name, handler.letters(LetterState.PARKED)
    if handler.state == CallbackState.ACTIVE.value:
        return f"{name} is back in the live stream"
    if handler.state == CallbackState.REMOVED.value:
        return f"{name} has failed again and is removed: cdc dead-letters list --handler {name}"
    first = f"gets {counted(parked, 'parked event')} first, then" if parked else "gets"
    if running:
        return f"{name} {first} the live stream; how far it is: cdc handlers list"
    return f"{name} {first} the live stream when the service is started: cdc run"


def _names(config: Config) -> list[str]:
    return [handler.name for handler in config.handlers]


def _all(store: StateStore, config: Config) -> list[_Handler]:
    """In the configuration's order, then what else the state knows."""
    records = {record.name: record for record in store.callbacks()}
    totals = store.letter_totals()
    names = dict.fromkeys([*_names(config), *records, *(total.callback for total in totals)])
    configured = set(_names(config))
    return [
        _Handler(name, name in configured, records.get(name), [one for one in totals if one.callback == name])
        for name in names
    ]


def _gap(gap: Gap) -> dict[str, object]:
    return {
        "callback": gap.callback,
        "reason": gap.reason,
        "events": gap.events,
        "first": str(gap.first),
        "last": str(gap.last),
        "first_time": gap.first_time,
        "last_time": gap.last_time,
    }
