"""`cdc handlers list|resume`: how the handlers fare in the state, and the way back for a removed one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from cdc.cli.output import ConfigOption, JsonOption, console, print_json, table
from cdc.config import Config, find, load
from cdc.errors import CallbackError
from cdc.state import CallbackRecord, CallbackState, Gap, open_state

__all__ = ["app"]

app = typer.Typer(help="List handlers with what they missed; resume removed ones.", no_args_is_help=True)


@app.command("list")
def list_handlers(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show each handler's settled position, whether it is removed, and which events it did not get."""
    records, gaps = _read(load(find(config)))
    if as_json:
        print_json({"handlers": [_record(item) for item in records], "gaps": [_gap(item) for item in gaps]})
        return
    out = console()
    columns = ["handler", "state", "settled", "removed at", "reason"]
    rows = [(item.name, item.state, item.settled, item.removed_at, item.reason) for item in records]
    out.print(table("handlers", columns, rows))
    if gaps:
        lost = [(gap.callback or "(all)", gap.reason, gap.events, gap.first, gap.last, gap.last_time) for gap in gaps]
        out.print(table("events not delivered", ["handler", "reason", "events", "first", "last", "until"], lost))


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="The handler's name.")],
    config: ConfigOption = None,
) -> None:
    """Give a removed handler events again, from the next start of the service on. Its gap stays on record."""
    settings = load(find(config))
    records, _ = _read(settings)
    removed = [item.name for item in records if item.state is CallbackState.REMOVED]
    if name not in removed:
        raise CallbackError(
            f"no handler named {name!r} is removed", callback=name, hint=f"removed: {', '.join(removed) or 'none'}"
        )
    store = open_state(settings.state.url)
    try:
        store.mark_active(name)
    finally:
        store.close()
    console().print(Text(f"{name} gets events again when the service is started the next time"))


def _read(settings: Config) -> tuple[list[CallbackRecord], list[Gap]]:
    store = open_state(settings.state.url, read_only=True)
    try:
        return store.callbacks(), store.gaps()
    finally:
        store.close()


def _record(record: CallbackRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "state": record.state.value,
        "settled": str(record.settled),
        "removed_at": None if record.removed_at is None else str(record.removed_at),
        "removed_time": record.removed_time,
        "reason": record.reason,
    }


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
